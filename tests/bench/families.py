"""Do the error rates of gates hold for checkpoints that were chosen by earlier verdicts, and over families of them?

    MEDBENCH_DATA=... python tests/bench/families.py [--seeds 200] [--only chosen,learned,families,stopped]

Records: replay/mmlu_pro_health_correct.csv (818 questions x 28 models). Every checkpoint truly fails its floor by one
question, unless the column says otherwise; a change flips 4 % of the answers, as many from wrong to right as back.

chosen    a change is kept where the accuracy on the first 128 questions did not fall; wrong passes of the last one kept
learned   the first 50 questions of the order of seed 0 answered right, the truth 2 points below the floor
families  20 checkpoints, 4 % apart: families with any wrong pass; questions asked of one that is 5 points above
stopped   chains of six checkpoints whose gates stop: questions asked of checkpoints 2 to 6, without and with the
          answers of the stopped ones as a control

"same" is one order for all checkpoints, "own" one for each.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta

from medbench.harness.stats.sequential import Control, SequentialTest
from medbench.harness.stats.spending import spent_alpha

ALPHA, LOOK, FIRST = 0.05, 16, 128
FLIPS = 0.04
FAMILY, CHAIN = 20, 6

Scores = np.ndarray
Order = np.ndarray


def gate(
    scores: Scores, order: Order, floor: float, *, alpha: float = ALPHA, controls: Sequence[Scores] = ()
) -> tuple[str, int]:
    """(pass or fail, questions asked) along the order."""
    test = SequentialTest(
        [str(id) for id in order],
        at_least=floor,
        alpha_pass=alpha,
        alpha_fail=ALPHA,
        controls=[Control(str(n), {str(id): one[id] for id in order}) for n, one in enumerate(controls)],
    )
    for start in range(0, len(order), LOOK):
        test.observe(scores[order[start : start + LOOK]].tolist())
        found = test.evidence()
        if found.decision:
            return found.decision, found.used
    raise AssertionError("all questions decide")


def changed(scores: Scores, rng: np.random.Generator, share: float = FLIPS) -> Scores:
    """The same accuracy, with so many answers flipped."""
    each = round(share * len(scores) / 2)
    found = scores.copy()
    found[rng.choice(np.flatnonzero(scores == 1), each, replace=False)] = 0
    found[rng.choice(np.flatnonzero(scores == 0), each, replace=False)] = 1
    return found


def floor_above(scores: Scores, questions: int = 1) -> float:
    """The floor that the scores miss by so many questions; a negative number: that they exceed."""
    return (scores.sum() + questions - 0.5) / len(scores)


def chosen(scores: Scores, rng: np.random.Generator, changes: int, same: bool) -> bool:
    """Whether the last checkpoint that was kept passes."""
    floor, order = floor_above(scores), rng.permutation(len(scores))
    kept, best = scores, scores[order[:FIRST]].mean()
    for _ in range(changes):
        tried = changed(kept, rng)
        order = order if same else rng.permutation(len(scores))
        if tried[order[:FIRST]].mean() >= best:
            kept, best = tried, tried[order[:FIRST]].mean()
    return gate(kept, order if same else rng.permutation(len(scores)), floor)[0] == "pass"


def learned(scores: Scores, rng: np.random.Generator, same: bool) -> bool:
    order = rng.permutation(len(scores))
    knows = scores.copy()
    knows[order[:50]] = 1
    floor = floor_above(knows, round(0.02 * len(scores)))
    return gate(knows, order if same else rng.permutation(len(scores)), floor)[0] == "pass"


def family(scores: Scores, rng: np.random.Generator, same: bool, ledger: str) -> bool:
    """Whether any of the failing checkpoints passes."""
    floor, order, passes = floor_above(scores), rng.permutation(len(scores)), 0
    for number in range(1, FAMILY + 1):
        alpha = ALPHA
        if ledger != "none":
            alpha = min(ALPHA, spent_alpha(ALPHA, number) * (passes + 1 if ledger == "fdr" else 1))
        passes += gate(scores, order if same else rng.permutation(len(scores)), floor, alpha=alpha)[0] == "pass"
        scores = changed(scores, rng)
    return passes > 0


def price(scores: Scores, rng: np.random.Generator, number: int) -> float:
    """Share of the questions asked of the family's checkpoint of this number, 5 points above the floor."""
    floor = floor_above(scores, -round(0.05 * len(scores)))
    copy = changed(scores, rng)
    order = rng.permutation(len(scores))
    return gate(scores, order, floor, alpha=spent_alpha(ALPHA, number), controls=[copy])[1] / len(scores)


def chain(scores: Scores, rng: np.random.Generator, points: float) -> tuple[list[float], list[float], int]:
    """Shares asked of checkpoints 2 to 6, without and with the stopped ones' answers; wrong verdicts of the latter."""
    floor = floor_above(scores, round(-points * len(scores)) or 1)
    newest = np.full(len(scores), np.nan)
    plain, helped, wrong = [], [], 0
    for number in range(CHAIN):
        order = rng.permutation(len(scores))
        control = np.where(np.isnan(newest), np.nanmean(newest) if number else 0, newest)
        decision, used = gate(scores, order, floor, controls=[control] if number else [])
        if number:
            plain.append(gate(scores, order, floor)[1] / len(scores))
            helped.append(used / len(scores))
            wrong += decision != ("pass" if points > 0 else "fail")
        newest[order[:used]] = scores[order[:used]]
        scores = changed(scores, rng)
    return plain, helped, wrong


def rate(function: Callable[[Scores, np.random.Generator], bool], models: Sequence[Scores], seeds: int) -> str:
    found = [function(models[seed % len(models)], np.random.default_rng(seed)) for seed in range(seeds)]
    return share_of(sum(found), len(found))


def share_of(k: int, n: int) -> str:
    """With its 95 % interval (Clopper and Pearson)."""
    low, high = beta.ppf(0.025, k, n - k + 1) if k else 0.0, beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return f"{100 * k / n:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--only", default="chosen,learned,families,stopped")
    asked = parser.parse_args()
    if "MEDBENCH_DATA" not in os.environ:
        sys.exit("set MEDBENCH_DATA to the folder of benchmark files")
    table = pd.read_csv(Path(os.environ["MEDBENCH_DATA"]) / "replay" / "mmlu_pro_health_correct.csv", index_col=0)
    models = [column for column in table.to_numpy(dtype=float).T if 0.3 < column.mean() < 0.9]
    seeds, parts = asked.seeds, asked.only.split(",")
    print(f"{len(models)} models x {len(models[0])} questions, {seeds} seeds, alpha {ALPHA}; intervals: 95 %\n")
    if "chosen" in parts:
        print("| changes tried | wrong pass, same order | own order |\n|---|---|---|")
        for changes in (0, 5, 20, 60):
            cells = [rate(lambda s, r, c=changes, o=same: chosen(s, r, c, o), models, seeds) for same in (True, False)]
            print(f"| {changes} | {' | '.join(cells)} |", flush=True)
    if "learned" in parts:
        cells = [rate(lambda s, r, o=same: learned(s, r, o), models, seeds) for same in (True, False)]
        print(f"\n| 50 questions learned, 2 points below | {' | '.join(cells)} |", flush=True)
    if "families" in parts:
        print("\n| ledger | families with a wrong pass, same order | own order |\n|---|---|---|")
        for ledger in ("none", "family", "fdr"):
            cells = [
                rate(lambda s, r, o=same, w=ledger: family(s, r, o, w), models, max(20, seeds // 4))
                for same in (True, False)
            ]
            print(f"| {ledger} | {' | '.join(cells)} |", flush=True)
        shares = {
            k: np.mean([price(models[s % len(models)], np.random.default_rng(s), k) for s in range(seeds // 2)])
            for k in (1, 5, 10, 20)
        }
        print("questions asked of checkpoint k: " + ", ".join(f"{k}: {100 * v:.0f} %" for k, v in shares.items()))
    if "stopped" in parts:
        print("\n| gap | without | with stopped runs | gain | wrong |\n|---|---|---|---|---|")
        for points in (0.05, -0.05, 0.03, -0.03, 0.02, -0.02, 0.0):
            rngs = [(models[seed % len(models)], np.random.default_rng(seed)) for seed in range(max(10, seeds // 5))]
            found = [chain(scores, rng, points) for scores, rng in rngs]
            plain, helped = (np.mean([one[part] for one in found]) for part in (0, 1))
            wrong = f"{sum(one[2] for one in found)} of {len(found) * (CHAIN - 1)}"
            name = f"{100 * points:+.0f} points" if points else "one question below"
            gain = f"{100 * plain:.0f} % | {100 * helped:.0f} % | {plain / helped:.2f}"
            print(f"| {name} | {gain} | {wrong} |", flush=True)


if __name__ == "__main__":
    main()
