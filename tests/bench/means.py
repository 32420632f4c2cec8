"""How many questions a gate on the mean of tasks needs, and how often it is wrong, on the records of 28 real models.

    MEDBENCH_DATA=... python tests/bench/means.py [--seeds 60] [--edge 1000] [--only gaps,edge]

Records: replay/mmlu_pro_health_correct.csv (818 questions x 28 models). Its tasks are the parts that MMLU-Pro took them
from: professional medicine (254 questions) and the other 564; or these 254, nutrition (179) and the other 385.

gaps   share of the questions asked, of the threshold at the model's mean minus the gap, without a control and with a
       copy that differs on 4 % of the answers
edge   wrong passes where the mean misses the threshold by less than one question, wrong fails where it just reaches it

"sum" is MeanTest. "bounds" is what it replaced: the mean of the tasks' intervals, each at alpha / tasks. "pooled" is no
method for tasks of different weight: a test of one list of all questions in one random order, whose mean is the same
gap above its threshold. All look at the same answers, 8 of a task at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from families import share_of

from medbench.harness.stats.sequential import Control, SequentialTest
from medbench.harness.stats.stratified import StratifiedTest, Stratum, path

ALPHA, TURN = 0.05, 8
GAPS = (0.02, 0.03, 0.05, -0.02, -0.03, -0.05)
ROUNDING = 1e-12
METHODS = ("sum", "bounds", "pooled")

Scores = np.ndarray


def sides(tasks: Sequence[Scores], copies: Sequence[Scores], threshold: float) -> dict[str, StratifiedTest]:
    """The tests of a pass and of a fail."""
    pairs = list(zip(tasks, copies, strict=True))
    mirrored = [stratum(1 - scores, 1 - copy) for scores, copy in pairs]
    return {
        "pass": StratifiedTest([stratum(*one) for one in pairs], above=threshold - ROUNDING, alpha=ALPHA),
        "fail": StratifiedTest(mirrored, above=1 - threshold + ROUNDING, alpha=ALPHA),
    }


def by_sum(tests: dict[str, StratifiedTest], tasks: Sequence[Scores]) -> tuple[str | None, int]:
    """(verdict of the first of the tests that decides, questions asked)."""
    done = [0] * len(tasks)
    for task, stop in path([len(one) for one in tasks]):
        new = tasks[task][done[task] : stop]
        done[task] = stop
        for name, test in tests.items():
            test.observe(task, new if name == "pass" else 1 - new)
            if test.decided_at is not None:
                return name, sum(done)
    return None, sum(done)


def stratum(scores: Scores, copy: Scores) -> Stratum:
    ids = [str(number) for number in range(len(scores))]
    return Stratum(ids, [Control("copy", dict(zip(ids, copy, strict=True)))] if len(copy) else [])


def by_bounds(tasks: Sequence[Scores], copies: Sequence[Scores], threshold: float) -> tuple[str, int]:
    each, tests, done = ALPHA / len(tasks), [], [0] * len(tasks)
    for scores, copy in zip(tasks, copies, strict=True):
        one = stratum(scores, copy)
        tests.append(
            SequentialTest(one.order, at_least=threshold, alpha_pass=each, alpha_fail=each, controls=one.controls)
        )
    for task, stop in path([len(one) for one in tasks]):
        tests[task].observe(tasks[task][done[task] : stop].tolist())
        done[task] = stop
        low, high = np.mean([test.evidence().interval for test in tests], axis=0)
        if low >= threshold - ROUNDING:
            return "pass", sum(done)
        if high < threshold - ROUNDING:
            return "fail", sum(done)
    raise AssertionError("all questions decide")


def by_pool(scores: Scores, threshold: float) -> tuple[str, int]:
    ids = [str(number) for number in range(len(scores))]
    test = SequentialTest(ids, at_least=threshold, alpha_pass=ALPHA, alpha_fail=ALPHA)
    for start in range(0, len(ids), TURN):
        test.observe(scores[start : start + TURN].tolist())
        if decision := test.evidence().decision:
            return decision, test.evidence().used
    raise AssertionError("all questions decide")


def copy_of(scores: Scores, rng: np.random.Generator) -> Scores:
    where = rng.choice(len(scores), round(0.04 * len(scores)), replace=False)
    found = scores.copy()
    found[where] = 1 - found[where]
    return found


def drawn(tasks: Sequence[Scores], seed: int, *, control: bool) -> tuple[list[Scores], list[Scores]]:
    """One model's scores along random orders, and its copy's."""
    rng, model = np.random.default_rng([seed, len(tasks)]), seed * 5 % tasks[0].shape[1]
    scores = [rng.permutation(task[:, model]) for task in tasks]
    return scores, [copy_of(one, rng) if control else np.empty(0) for one in scores]


def gaps(tasks: Sequence[Scores], seeds: int) -> None:
    print(f"\n| {len(tasks)} tasks | {' | '.join(f'{100 * gap:+.0f}' for gap in GAPS)} |")
    print("|---" * (1 + len(GAPS)) + "|")
    wrong = dict.fromkeys(METHODS, 0)
    for control in (False, True):
        shares: dict[str, list[list[int]]] = {method: [[] for _ in GAPS] for method in METHODS}
        for seed in range(seeds):
            scores, copies = drawn(tasks, seed, control=control)
            mean, every = np.mean([one.mean() for one in scores]), np.concatenate(scores)
            for number, gap in enumerate(GAPS):
                found = {
                    "sum": by_sum(sides(scores, copies, mean - gap), scores),
                    "bounds": by_bounds(scores, copies, mean - gap),
                }
                if not control:
                    mixed = np.random.default_rng(seed).permutation(every)
                    found["pooled"] = by_pool(mixed, every.mean() - gap)
                for method, (said, used) in found.items():
                    shares[method][number].append(used)
                    wrong[method] += said != ("pass" if gap > 0 else "fail")
        total = sum(map(len, tasks))
        for method in METHODS if not control else METHODS[:2]:
            cells = " | ".join(f"{100 * np.mean(used) / total:.0f} %" for used in shares[method])
            print(f"| {method}, {'4 % copy' if control else 'no control'} | {cells} |", flush=True)
    print(f"wrong verdicts: {json.dumps(wrong)} of {seeds * len(GAPS)} to {2 * seeds * len(GAPS)}")


def edge(tasks: Sequence[Scores], runs: int, *, control: bool) -> None:
    """Wrong verdicts at a threshold just above the mean and at the mean itself, the other side never deciding."""
    wrong = {"pass": 0, "fail": 0}
    for seed in range(runs):
        scores, copies = drawn(tasks, seed, control=control)
        mean = float(np.mean([one.mean() for one in scores]))
        for name, threshold in (("pass", mean + 1e-6), ("fail", mean)):
            test = {name: sides(scores, copies, threshold)[name]}
            wrong[name] += by_sum(test, scores)[0] is not None
    shares = [share_of(count, runs) for count in wrong.values()]
    print(f"| {len(tasks)} | {'4 % copy' if control else 'none'} | {' | '.join(shares)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--edge", type=int, default=1000)
    parser.add_argument("--only", default="gaps,edge")
    asked = parser.parse_args()
    if "MEDBENCH_DATA" not in os.environ:
        print("skipped: MEDBENCH_DATA names no folder of benchmark files")
        return
    data = Path(os.environ["MEDBENCH_DATA"])
    table = pd.read_csv(data / "replay" / "mmlu_pro_health_correct.csv", index_col=0)
    rows = map(json.loads, (data / "mmlu_pro_medical" / "health.jsonl").read_text(encoding="utf-8").splitlines())
    source = {row["question_id"]: row["src"].removeprefix("ori_mmlu-") for row in rows}
    part = np.array([source[id] for id in table.index])
    records, medicine, nutrition = table.to_numpy(dtype=float), part == "professional_medicine", part == "nutrition"
    settings = (
        [records[medicine], records[~medicine]],
        [records[medicine], records[nutrition], records[~medicine & ~nutrition]],
    )
    print(f"{records.shape[1]} models, alpha {ALPHA} a side, {asked.seeds} seeds, {asked.edge} at the edge")
    if "gaps" in asked.only:
        for tasks in settings:
            gaps(tasks, asked.seeds)
    if "edge" in asked.only:
        print("\n| tasks | control | wrong pass | wrong fail |\n|---|---|---|---|")
        for tasks in settings:
            for control in (False, True):
                edge(tasks, asked.edge, control=control)


if __name__ == "__main__":
    sys.exit(main())
