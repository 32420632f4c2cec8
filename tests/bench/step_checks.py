"""How many steps of real replies the checks of the reward `factuality` let through, and how many copies of the sources.

    python tests/bench/step_checks.py REPLIES.jsonl pubmedqa/test.jsonl

REPLIES has {"id": pubid, "output": reply} per line; replies without a closed thought are left out. The judge is one
that supports every step, so that the checks alone decide; copies are made of each row's abstract, with fixed draws.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from medbench.harness.contracts import Question
from medbench.harness.judges.steps import sentences, steps_in
from medbench.trainers.rewards.factuality import FactualityConfig, factuality_of
from medbench.trainers.rewards.step_checks import discounts_of

DECISIONS = ("yes", "no", "maybe")
SPARE = ("however", "overall", "notably", "reported", "observed", "greater", "lower", "then", "quite", "about")


def copies(source: str, draw: random.Random) -> dict[str, list[str]]:
    split = [sentence.split() for sentence in sentences(source)]
    words = source.split()

    def changed(share: float) -> Callable[[list[str]], list[str]]:
        return lambda one: [draw.choice(SPARE) if draw.random() < share else word for word in one]

    made: dict[str, Callable[[list[str]], list[str]]] = {
        "copy": lambda one: one,
        "copy, a word in seven left out": lambda one: [word for word in one if draw.random() > 1 / 7],
        "copy, a word in six changed": changed(1 / 6),
        "copy, a word in four changed": changed(1 / 4),
        "copy, a word in three changed": changed(1 / 3),
        "copy behind 'The abstract clearly states that'": lambda one: ["The abstract clearly states that", *one],
        "sentences shuffled": lambda one: draw.sample(one, len(one)),
        "16 words of the abstract shuffled": lambda _: draw.sample(words, min(16, len(words))),
    }
    return {name: [" ".join(make(one)) for one in split] for name, make in made.items()}


def main(replies: str, rows: str) -> None:
    config = FactualityConfig(judge="command", command="any")
    questions = {}
    for line in Path(rows).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        context = "\n".join(row["context"]["contexts"])
        questions[str(row["pubid"])] = Question(
            str(row["pubid"]), "", row["question"], DECISIONS, DECISIONS, row["final_decision"], context
        )
    paid, number = Counter[str](), Counter[str]()
    why = Counter[str]()
    draw = random.Random(0)
    for line in Path(replies).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["id"] not in questions or "</think>" not in row["output"]:
            continue
        asked = questions[row["id"]]
        kinds = {"real replies": steps_in(row["output"], opened=False), **copies(asked.context, draw)}
        for kind, steps in kinds.items():
            discounts = discounts_of(steps, asked, asked.context)
            value = factuality_of(
                ["supported"] * len(steps), discounts, least_steps=config.least_steps, least_share=config.least_share
            )
            paid[kind] += bool(value)
            number[kind] += 1
            if kind == "real replies":
                why.update(one or "counts" for one in discounts)
    for kind, many in number.items():
        print(f"{kind}: {paid[kind]} of {many} can be paid ({100 * paid[kind] / many:.1f} %)")
    total = why.total()
    print(
        f"{total} steps of real replies: "
        + ", ".join(f"{name} {100 * n / total:.1f} %" for name, n in why.most_common())
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
