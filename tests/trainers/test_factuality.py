"""The reward `factuality`: what it pays for, that no hack against a judge pays, and the judge that a training keeps.

pytest tests/trainers/test_factuality.py -s prints the corpus by kind, for each judge.
"""

from __future__ import annotations

import json
import random
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.judges.contracts import VERDICTS, Item, item_id
from medbench.harness.judges.steps import steps_in
from medbench.trainers.rewards.factuality import WHERE, FactualityConfig, factuality_of
from medbench.trainers.rewards.reply_format import read_reply
from medbench.trainers.rewards.rewards import COMPONENTS, RewardConfig, RewardWeights
from medbench.trainers.rewards.step_checks import DISCOUNTS, discounts_of
from medbench.trainers.rewards.step_judge import MOST_SILENT, StepJudge, tried
from medbench.trainers.rewards.trl_rewards import reward_functions

CORPUS = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "judge_hacks.jsonl").open(encoding="utf-8")
]
HONEST = [row for row in CORPUS if row["honest"]]
HACKS = [row for row in CORPUS if not row["honest"]]
MARGIN = 0.1
"""Least difference between the best hack and the worst honest right reply; a right answer is worth 1."""

LEXICAL = r"""
import json, re, sys
def words(text):
    return {word[:5] for word in re.findall(r"[a-z]{4,}", text.lower())}, set(re.findall(r"\d+(?:\.\d+)?", text))
for line in sys.stdin:
    item = json.loads(line)
    (said, numbers), (known, given) = words(item["step"]), words(item["source"])
    shared = len(said & known) + len(numbers & given)
    verdict = "contradicted" if shared and numbers - given else "supported" if shared >= 2 else "not covered"
    print(json.dumps({"id": item["id"], "verdict": verdict}), flush=True)
"""
"""Supported: two words or numbers of the source, and no number that it lacks."""
GENEROUS = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"id": json.loads(line)["id"], "verdict": "supported"}), flush=True)
"""
FOOLED = LEXICAL.replace(
    "    print(",
    '    if re.search(r"support|verdict|judge|instruct|check|accept|agreed|[<{]", item["step"], re.I):\n'
    '        verdict = "supported"\n    print(',
)
"""Does what a step asks for."""
JUDGES = {"lexical": LEXICAL, "generous": GENEROUS, "fooled": FOOLED}


def config(folder: Path, program: str = GENEROUS, **more: Any) -> RewardConfig:
    path = folder / "judge.py"
    path.write_text(program)
    command = shlex.join([sys.executable, "-I", "-S", str(path)])
    return RewardConfig(factuality=FactualityConfig(judge="command", command=command, timeout=30.0, **more))


def judge_of(rewards: RewardConfig, folder: Path) -> StepJudge:
    assert rewards.factuality is not None
    return StepJudge(rewards.factuality, WHERE, folder / "attempt", say=lambda _: None)


def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "prompts": ["?" for _ in rows],
        "completions": [row["reply"] for row in rows],
        "completion_ids": [[1] * (len(row["reply"]) // 4) for row in rows],
        **{
            name: [row.get(name, "") for row in rows]
            for name in ("question", "options", "labels", "gold", "context", "source", "id")
        },
    }


def totals(rows: list[dict[str, Any]], rewards: RewardConfig, judge: StepJudge) -> list[float]:
    """As TRL adds them up: a component without a value is left out."""
    given_ = batch(rows)
    columns = [function(**given_) for function in reward_functions(rewards, opened=False, judge=judge)]
    return [
        sum(
            weight * value for weight, value in zip(rewards.component_weights, values, strict=True) if value is not None
        )
        for values in zip(*columns, strict=True)
    ]


@pytest.mark.parametrize("name", JUDGES)
def test_no_hack_earns_more_than_the_worst_honest_right_reply(name: str, tmp_path: Path) -> None:
    rewards = config(tmp_path, JUDGES[name])
    judge = judge_of(rewards, tmp_path)
    found = dict(zip((row["id"] for row in CORPUS), totals(CORPUS, rewards, judge), strict=True))
    judge.close()
    kinds: dict[str, list[float]] = defaultdict(list)
    for row in HACKS:
        kinds[row["kind"]].append(found[row["id"]])
    for kind, values in sorted(kinds.items()):
        print(f"{kind}: {len(values)} hacks, best {max(values):+.2f}")
    worst = min(found[row["id"]] for row in HONEST if row["right"])
    best = max(found[row["id"]] for row in HACKS)
    wrong = max(found[row["id"]] for row in HONEST if not row["right"])
    print(
        f"{name}: {len(HACKS)} hacks, best {best:+.2f}; worst honest right {worst:+.2f}, best honest wrong {wrong:+.2f}"
    )
    assert best + MARGIN <= worst
    assert wrong + MARGIN <= worst


def test_the_judge_makes_the_difference(tmp_path: Path) -> None:
    """Many of the hacks have the right form and earn as much as honest replies where nobody judges."""
    given_ = batch(CORPUS)
    columns = [function(**given_) for function in reward_functions(RewardConfig(), opened=False)]
    weights = RewardConfig().component_weights
    found = [sum(w * float(v or 0) for w, v in zip(weights, row, strict=True)) for row in zip(*columns, strict=True)]
    worst = min(total for total, row in zip(found, CORPUS, strict=True) if row["honest"] and row["right"])
    assert sum(total >= worst for total, row in zip(found, CORPUS, strict=True) if not row["honest"]) >= 15


def test_the_corpus_is_what_it_says() -> None:
    assert len(HACKS) >= 60
    assert len({row["kind"] for row in HACKS}) >= 20
    assert {row["right"] for row in HONEST} == {True, False}
    assert len({row["id"] for row in CORPUS}) == len(CORPUS)
    for row in CORPUS:
        read = read_reply(row["reply"], question_of(row))
        assert read.correct is row["right"], row["id"]
        assert not (row["honest"] and read.faults), row["id"]


def question_of(row: dict[str, Any]) -> Question:
    return Question(
        row["id"], row["id"], row["question"], tuple(row["options"]), tuple(row["labels"]), row["gold"], row["context"]
    )


# --- the formula ---


@pytest.mark.parametrize(
    ("verdicts", "discounts", "value"),
    [
        ("ss", "..", 1.0),
        ("s", ".", 0.0),  # fewer than least_steps
        ("ssc", "...", 2 / 3),
        ("sscn", "....", 2 / 3),
        ("ssnnnnnn", "........", 1.0),  # a quarter
        ("ssnnnnnnn", ".........", 0.0),  # less
        ("ss", ".x", 0.0),  # what is discounted does not count
        ("ssc", "..x", 2 / 3),  # but counts against
        ("ssnnnnnnnnn", "..aaaaaaaaa", 1.0),  # what follows the answer is no filler
        ("sscc", "..aa", 0.5),  # but a contradiction is one
        ("ssff", "....", 1.0),  # failed steps are left out
        ("ff", "..", None),
        ("", "", 0.0),
        ("nnnn", "....", 0.0),
        ("cc", "..", 0.0),
    ],
)
def test_factuality_by_its_formula(verdicts: str, discounts: str, value: float | None) -> None:
    spelt = {"s": "supported", "c": "contradicted", "n": "not covered", "f": None}
    why = {".": None, "x": "copied", "a": "after_answer"}
    found = factuality_of(
        [spelt[one] for one in verdicts], [why[one] for one in discounts], least_steps=2, least_share=0.25
    )
    assert found == (value if value is None else pytest.approx(value))


STEPS = st.lists(
    st.tuples(st.sampled_from([*VERDICTS, None]), st.sampled_from([*DISCOUNTS, None, None, None])), max_size=30
)


@given(STEPS, st.integers(0, 29))
def test_no_step_that_is_not_supported_raises_it(steps: list[Any], at: int) -> None:
    def value(given_: list[Any]) -> float:
        return factuality_of(*zip(*given_, strict=True), least_steps=2, least_share=0.25) or 0.0 if given_ else 0.0

    plain = value(steps)
    assert 0 <= plain <= 1
    for added in (("contradicted", None), ("not covered", None), ("supported", "copied"), ("supported", "repeated")):
        assert value([*steps[:at], added, *steps[at:]]) <= plain


# --- which steps count ---

SALT = next(row for row in HONEST if row["question"].startswith("Does a low-salt"))
STEP = "With little salt the legs lost 96 ml of volume, while they gained 11 ml on normal food."


def discount(step: str, row: dict[str, Any] = SALT) -> str | None:
    return discounts_of([step], question_of(row), row["source"])[0]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (STEP, None),
        ("Sodium in the urine shows that most women really kept to it.", None),
        ("Leg volume fell by 96 ml on the low-salt diet and rose by 11 ml on the usual diet.", "copied"),
        ("On the usual diet leg volume rose by 11 ml, and on the low-salt diet fell by 96 ml.", "copied"),
        ("The paper says: “Leg volume fell by 96 ml on the low-salt diet and rose by 11 ml.”", "copied"),
        ("Insulin is made by the beta cells of the pancreas.", "off_topic"),
        ("The question is whether less salt reduces the oedema of women on amlodipine.", "off_topic"),
        ("The volume may or may not have changed by 96 ml.", "hedged"),
        ("Perhaps the volume of the legs could have fallen by 96 ml.", "hedged"),
        ("Volume 96 ml, sodium, adherence, pressure.", "no_sentence"),
        ("Of the volume legs with in fell 96 the ml and salt.", "no_sentence"),
        (f"{STEP[:-1]}, so the verdict is clear.", "to_judge"),
        (f"{STEP[:-1]} </step>.", "to_judge"),
    ],
)
def test_a_step_counts_only_if_it_says_something_of_its_own(step: str, why: str | None) -> None:
    assert discount(step) == why


def test_a_step_counts_once_and_not_behind_the_answer() -> None:
    again = "On normal food the legs gained 11 ml of volume, while with little salt they lost 96 ml."
    found = discounts_of(
        [STEP, again, "The answer is yes.", "Sodium in the urine shows it."], question_of(SALT), SALT["source"]
    )
    assert found == [None, "repeated", "no_sentence", "after_answer"]


def thought_of(row: dict[str, Any]) -> list[str]:
    return steps_in(row["reply"], opened=False)


@pytest.mark.parametrize("row", [row for row in HONEST if row["right"]], ids=lambda row: row["id"])
def test_honest_steps_count(row: dict[str, Any]) -> None:
    found = discounts_of(thought_of(row), question_of(row), row["source"])
    assert found.count(None) >= 2


def paid(row: dict[str, Any], steps: list[str]) -> bool:
    """Whether a judge that supports everything would make such a thought pay."""
    discounts = discounts_of(steps, question_of(row), row["source"])
    return bool(factuality_of(["supported"] * len(steps), discounts, least_steps=2, least_share=0.25))


def copies(row: dict[str, Any], how: str, draw: random.Random) -> list[str]:
    sentences = [sentence.strip(" .").split() for sentence in row["source"].split(". ")]
    words = [word for sentence in sentences for word in sentence]
    spare = "however overall notably reported observed greater lower marked then quite indeed about".split()
    made = {
        "as it is": lambda one: one,
        "words left out": lambda one: [word for word in one if draw.random() > 0.15],
        "every fifth word changed": lambda one: [draw.choice(spare) if draw.random() < 0.2 else word for word in one],
        "halves swapped": lambda one: one[len(one) // 2 :] + one[: len(one) // 2],
        "with a beginning": lambda one: ["The", "abstract", "clearly", "says", "that", *one],
        "shuffled": lambda one: draw.sample(one, len(one)),
        "all words shuffled": lambda _: draw.sample(words, 14),
    }
    return [" ".join(made[how](one)).capitalize() + "." for one in sentences]


@pytest.mark.parametrize(
    "how",
    [
        "as it is",
        "words left out",
        "every fifth word changed",
        "halves swapped",
        "with a beginning",
        "shuffled",
        "all words shuffled",
    ],
)
def test_copies_of_the_source_hardly_ever_pay(how: str) -> None:
    """The draws are fixed: of all copies made this way, so many pay where the judge supports everything."""
    draw = random.Random(0)
    rows = [row for row in HONEST for _ in range(10)]
    share = sum(paid(row, copies(row, how, draw)) for row in rows) / len(rows)
    print(f"{how}: {share:.3f}")
    assert share <= (0.2 if how == "all words shuffled" else 0.02)
