"""How many questions a gate needs, beside the plain tests, on the right/wrong records of 28 real models.

    MEDBENCH_DATA=... python tests/bench/gates.py            # 200 seeds; about 15 minutes on one core
    MEDBENCH_DATA=... python tests/bench/gates.py --quick    # 5 seeds

Reads replay/mmlu_pro_health_correct.csv (818 questions x 28 models). Every method is looked at every 16 questions of
the same random orders, at alpha 0.05 a side, and stops for good at its first decision. Plain floor: hypergeometric
likelihood against a uniform beta-binomial mixture (prior-posterior-ratio e-process) with exact curtailment. Plain
paired test: a betting e-process on the mean of d in {-1, 0, 1} without replacement, stakes from the past mean and
variance (truncated GRAPA) with curtailment. Shares are means over models (pairs) and seeds.
"""

from __future__ import annotations

import argparse
import heapq
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import betaln, gammaln
from scipy.stats import beta

from medbench.harness.stats.sequential import BLOCK, Control, Forecaster, SequentialTest, Wealth, lowest_total

ALPHA, MARGIN = 0.05, 0.02
LIMIT = -np.log(ALPHA)
GAPS = np.array([-0.10, -0.05, -0.03, -0.02, 0.02, 0.03, 0.05, 0.10])
BUCKETS = [0.0, 0.01, 0.02, 0.03, 0.05, 0.10, 0.20, 1.0]
WINDOWS = (32, 64, 256)


def needs_of(thresholds: np.ndarray, total: int) -> np.ndarray:
    return np.array([lowest_total(total * threshold, 1.0, False) for threshold in thresholds])


def ours(scores: np.ndarray, controls: np.ndarray, needs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(questions used, +1 pass or -1 fail) of SequentialTest for many thresholds at once."""
    total, count = len(scores), len(needs)
    forecaster, wealth = Forecaster(controls), Wealth(total, needs, 1.0)
    used, verdict = np.zeros(count, dtype=int), np.zeros(count, dtype=int)
    for start in range(0, total, BLOCK):
        forecaster.fit(scores[:start])
        wealth.plan(forecaster.chances)
        path = wealth.observe(scores[start : start + BLOCK])
        crossed = (path >= LIMIT).reshape(len(path), 2, count)
        first = np.where(crossed.any(axis=0), crossed.argmax(axis=0), BLOCK)
        new = (verdict == 0) & (first.min(axis=0) < BLOCK)
        verdict[new] = np.where(first[0] < first[1], 1, -1)[new]
        used[new] = start + len(path)
        if verdict.all():
            break
    return used, verdict


def agrees_with_the_class(scores: np.ndarray, controls: np.ndarray, threshold: float) -> None:
    used, verdict = ours(scores, controls, needs_of(np.array([threshold]), len(scores)))
    ids = [str(number) for number in range(len(scores))]
    test = SequentialTest(
        ids,
        at_least=threshold,
        alpha_pass=ALPHA,
        alpha_fail=ALPHA,
        controls=[Control(str(n), dict(zip(ids, column, strict=True))) for n, column in enumerate(controls.T)],
    )
    for start in range(0, len(ids), BLOCK):
        test.observe(scores[start : start + BLOCK].tolist())
        if decision := test.evidence().decision:
            assert (test.evidence().used, decision) == (used[0], "pass" if verdict[0] > 0 else "fail")
            return
    raise AssertionError("no decision")


def log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def looked(log_pass: np.ndarray, log_fail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(used, verdict) for runs x questions of log e-values, looked at every BLOCK questions."""
    total = log_pass.shape[1]
    at = np.unique(np.append(np.arange(BLOCK - 1, total, BLOCK), total - 1))
    crossed = np.stack([log_pass[:, at] >= LIMIT, log_fail[:, at] >= LIMIT])
    first = np.where(crossed.any(axis=2), crossed.argmax(axis=2), len(at))
    return at[first.min(axis=0)] + 1, np.where(first[0] < first[1], 1, -1)


def plain_floor(runs: np.ndarray, need: float) -> tuple[np.ndarray, np.ndarray]:
    total = runs.shape[1]
    seen, number = runs.cumsum(axis=1), np.arange(1, total + 1)
    mixture = betaln(1 + seen, 1 + number - seen)
    mode = np.floor((total + 1) * seen / number)

    def likelihood(right: np.ndarray) -> np.ndarray:
        right = np.clip(right, seen, total - number + seen)
        return log_choose(total - number, right - seen) - log_choose(np.array(total), right)

    log_pass = mixture - likelihood(np.minimum(need - 1, mode))
    log_fail = mixture - likelihood(np.maximum(need, mode))
    return looked(
        np.where(seen >= need, np.inf, log_pass), np.where(total - number + seen < need, np.inf, log_fail)
    )  # fmt: skip


def plain_paired(runs: np.ndarray, need: float) -> tuple[np.ndarray, np.ndarray]:
    """Pass where the total of the differences is at least `need`."""
    total = runs.shape[1]
    after = runs.cumsum(axis=1)
    before, number = after - runs, np.arange(total)
    mean = before / (number + 1)
    squares = np.cumsum((runs - after / (number + 1)) ** 2, axis=1)
    variance = (0.25 + np.hstack([np.zeros((len(runs), 1)), squares[:, :-1]])) / (number + 1)
    sides = []
    for sign, bound in ((1, need - 1), (-1, need)):
        null = (bound - before) / (total - number)
        gap, reach = sign * (mean - null), np.maximum(1 + sign * null, 1e-9)
        stake = np.clip(gap / (variance + gap**2), 0, 0.5 / reach)
        sides.append(np.log1p(np.maximum(stake * sign * (runs - null), -0.99)).cumsum(axis=1))
    left = total - number - 1
    return looked(np.where(after - left >= need, np.inf, sides[0]), np.where(after + left < need, np.inf, sides[1]))


def completion_order(scores: np.ndarray, window: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(order of completion, questions started by the time each prefix of the order is complete).

    A right answer takes 1 to 2 units of time, a wrong one 4 to 8: the checkpoint thinks longer where it fails.
    """
    lasts = np.where(scores > 0, rng.uniform(1, 2, len(scores)), rng.uniform(4, 8, len(scores)))
    flight: list[tuple[float, int]] = [(lasts[i], i) for i in range(min(window, len(scores)))]
    heapq.heapify(flight)
    started, done, prefix = len(flight), [], 0
    finished = np.zeros(len(scores) + 1, dtype=bool)
    cost = np.zeros(len(scores) + 1, dtype=int)
    while flight:
        now, i = heapq.heappop(flight)
        done.append(i)
        finished[i] = True
        while finished[prefix]:
            prefix += 1
            cost[prefix] = started
        if started < len(scores):
            heapq.heappush(flight, (now + lasts[started], started))
            started += 1
    return np.array(done), cost


class Tally:
    """Shares and wrong decisions by method and column."""

    def __init__(self) -> None:
        self.shares: dict[tuple[str, object], list[float]] = defaultdict(list)
        self.wrong: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])

    def add(self, method: str, columns: list, used: np.ndarray, verdict: np.ndarray, truth: np.ndarray, n: int) -> None:
        for column, share, said, true in zip(columns, used / n, verdict, truth, strict=True):
            self.shares[method, column].append(float(share))
            side = self.wrong[method, "pass" if true < 0 else "fail"]
            side[0] += int(said != true)
            side[1] += 1

    def mean(self, method: str, column: object) -> float:
        return float(np.mean(self.shares[method, column]))


def upper(wrong: int, runs: int) -> float:
    """95 % upper bound of a rate (Clopper-Pearson, one-sided)."""
    return 1.0 if wrong >= runs else float(beta.ppf(0.95, wrong + 1, runs - wrong))


def lower(wrong: int, runs: int) -> float:
    """95 % lower bound of a rate (Clopper-Pearson, one-sided)."""
    return float(beta.ppf(0.05, wrong, runs - wrong + 1)) if wrong else 0.0


def table(head: list[str], rows: list[list[str]]) -> None:
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="5 seeds")
    arguments = parser.parse_args()
    seeds = 5 if arguments.quick else arguments.seeds
    if "MEDBENCH_DATA" not in os.environ:
        print("skipped: MEDBENCH_DATA names no folder of benchmark files")
        return
    file = Path(os.environ["MEDBENCH_DATA"]) / "replay" / "mmlu_pro_health_correct.csv"
    records = pd.read_csv(file, index_col=0).to_numpy(dtype=float)
    n, models = records.shape
    started = time.perf_counter()
    floors, edge, paired, late = Tally(), Tally(), Tally(), Tally()
    per_model: dict[tuple[str, int, str], list[int]] = defaultdict(lambda: [0, 0])
    gaps = [float(gap) for gap in GAPS]

    for model in range(models):
        others = np.delete(np.arange(models), model)
        right = records[:, model].sum()
        thresholds = np.concatenate([right / n - GAPS, records[:, others].mean(axis=0) - MARGIN])
        needs = np.concatenate([needs_of(thresholds, n), [right + 1, right]])
        truth = np.where(right >= needs, 1, -1)
        floor, pair, null = slice(0, len(GAPS)), slice(len(GAPS), len(GAPS) + len(others)), slice(-2, None)
        distance = np.abs(right / n - thresholds[pair])
        buckets = [int(np.searchsorted(BUCKETS, gap, side="right")) - 1 for gap in distance]
        orders = [np.random.default_rng([seed, model]).permutation(n) for seed in range(seeds)]
        runs = np.array([records[order, model] for order in orders])

        for number, gap in enumerate(gaps):
            used, verdict = plain_floor(runs, needs[number])
            floors.add("plain", [gap] * seeds, used, verdict, np.full(seeds, truth[number]), n)
        for need, true in zip(needs[null], truth[null], strict=True):
            edge.add("plain", ["null"] * seeds, *plain_floor(runs, need), np.full(seeds, true), n)
        for other, bucket, need, true in zip(others, buckets, needs[pair], truth[pair], strict=True):
            difference = runs - np.array([records[order, other] for order in orders])
            total_needed = need - records[:, other].sum()
            used, verdict = plain_paired(difference, total_needed)
            paired.add("plain", [bucket] * seeds, used, verdict, np.full(seeds, true), n)

        for seed, order in enumerate(orders):
            rng = np.random.default_rng([seed, model, 1])
            scores, rest = runs[seed], records[order][:, others]
            flipped = scores.copy()
            where = rng.choice(n, round(0.04 * n), replace=False)
            flipped[where] = 1 - flipped[where]
            used, verdict = ours(scores, rest, needs)
            floors.add("27 others", gaps, used[floor], verdict[floor], truth[floor], n)
            paired.add("27 others", buckets, used[pair], verdict[pair], truth[pair], n)
            edge.add("27 others", ["null"] * 2, used[null], verdict[null], truth[null], n)
            for side, said, true in zip(("pass", "fail"), verdict[null], truth[null], strict=True):
                per_model["27 others", model, side][0] += int(said != true)
                per_model["27 others", model, side][1] += 1
            kinds = {"4 % flipped": flipped[:, None]} | ({"no control": rest[:, :0]} if seed % 2 == 0 else {})
            if seed % 4 == 0:
                kinds["4 % flipped and 27 others"] = np.column_stack([flipped, rest])
                kinds["27 shuffled"] = rng.permuted(rest, axis=0)
            for window in WINDOWS:
                done, cost = completion_order(scores, window, rng)
                # the scores consumed are those of the permutation's complete prefix: the very run above
                late.add(f"prefix {window}", ["used"] * 2, used[null], verdict[null], truth[null], n)
                late.shares[f"prefix {window}", "started"] += (cost[used[null]] / n).tolist()
                if model % 4 == 0 and seed % 4 == 0:
                    said = plain_floor(scores[None, done], needs[-2])[1]
                    late.add(f"naive plain {window}", ["null"], np.zeros(1), said, truth[-2:-1], n)
                    said = ours(scores[done], rest[done], needs[-2:-1])[1]
                    late.add(f"naive {window}", ["null"], np.zeros(1), said, truth[-2:-1], n)
            some = np.concatenate([needs[floor], needs[null]])
            true = np.concatenate([truth[floor], truth[null]])
            for kind, controls in kinds.items():
                used, verdict = ours(scores, controls, some)
                floors.add(kind, gaps, used[:-2], verdict[:-2], true[:-2], n)
                edge.add(kind, ["null"] * 2, used[-2:], verdict[-2:], true[-2:], n)
            if seed == 0 and model % 7 == 0:
                agrees_with_the_class(scores, rest, float(thresholds[1]))
                agrees_with_the_class(scores, flipped[:, None], float(thresholds[5]))
        print(f"{model + 1}/{models} models, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    print(f"{time.perf_counter() - started:.0f} s")
    report(floors, edge, paired, late, per_model, seeds, models, n)


def report(
    floors: Tally, edge: Tally, paired: Tally, late: Tally, per_model: dict, seeds: int, models: int, n: int
) -> None:
    met: dict[str, bool] = {}
    print(f"{models} models, {n} questions, {seeds} seeds, alpha {ALPHA} a side; share of the questions used")
    methods = ["plain", "no control", "27 others", "4 % flipped", "4 % flipped and 27 others", "27 shuffled"]
    print("\n### Floors at the model's accuracy minus the gap (in points)")
    table(
        ["controls", *(f"{100 * gap:+.0f}" for gap in GAPS)],
        [[method, *(f"{100 * floors.mean(method, float(gap)):.1f} %" for gap in GAPS)] for method in methods],
    )
    sizes = [0.02, 0.03, 0.05, 0.10]

    def ratio(method: str, size: float) -> float:
        return (floors.mean(method, size) + floors.mean(method, -size)) / (
            floors.mean("plain", size) + floors.mean("plain", -size)
        )

    print("Ratio to the plain test, both directions together")
    table(
        ["controls", *(f"±{100 * size:.0f}" for size in sizes)],
        [[method, *(f"{ratio(method, size):.2f}" for size in sizes)] for method in methods[1:]],
    )
    met["floors, 27 others, gaps 3 to 10: at most 0.8"] = all(ratio("27 others", size) <= 0.8 for size in sizes[1:])
    met["floors, 4 % flipped, gaps 2 to 5: at most 0.5"] = all(ratio("4 % flipped", size) <= 0.5 for size in sizes[:3])
    met["worthless controls: at most 1.1 of plain"] = all(ratio("27 shuffled", size) <= 1.1 for size in sizes)

    print(f"### Pairs: not worse than the baseline by more than {100 * MARGIN:.0f} points (all ordered pairs)")
    rows = []
    for number, low in enumerate(BUCKETS[:-1]):
        if not paired.shares.get(("plain", number)):
            continue
        plain, mine = paired.mean("plain", number), paired.mean("27 others", number)
        pairs = len(paired.shares["plain", number]) // seeds
        rows.append([f"{100 * low:.0f} to {100 * BUCKETS[number + 1]:.0f}", str(pairs), f"{100 * plain:.1f} %",
                     f"{100 * mine:.1f} %", f"{mine / plain:.2f}"])  # fmt: skip
        if 0.03 <= low < 0.10:
            key = "pairs, 27 others, gaps 3 to 10: at most 0.8"
            met[key] = met.get(key, True) and mine / plain <= 0.8
    table(["gap to the threshold, points", "pairs", "plain betting", "27 others", "ratio"], rows)

    print("### Wrong decisions against the full set (95 % upper bound); boundary: the total one below, or at, the need")
    rows = []
    for name, tally in (("floors", floors), ("pairs", paired), ("boundary", edge)):
        for method in dict.fromkeys(method for method, _ in tally.shares):
            row = [name, method]
            for side in ("pass", "fail"):
                wrong, total = tally.wrong[method, side]
                row.append(f"{100 * wrong / total:.2f} % of {total:,} (≤ {100 * upper(wrong, total):.2f} %)")
                if method != "plain" and name != "boundary":
                    key = "wrong decisions at most alpha a side"
                    met[key] = met.get(key, True) and wrong / total <= ALPHA
                elif method != "plain":
                    key = "at the boundary not significantly above alpha"
                    met[key] = met.get(key, True) and lower(wrong, total) <= ALPHA
            rows.append(row)
    table(["", "controls", "wrong passes", "wrong fails"], rows)
    worst = {side: max(w / t for (_, _, s), (w, t) in per_model.items() if s == side) for side in ("pass", "fail")}
    print(f"Worst single model at the boundary, 27 others, of {seeds} runs: "
          f"{100 * worst['pass']:.1f} % wrong passes, {100 * worst['fail']:.1f} % wrong fails")  # fmt: skip

    print("\n### Right answers come back first (1 to 2 time units, wrong ones 4 to 8); true total one below the need")
    rows = []
    for window in WINDOWS:
        cells = [f"{window} in flight"]
        for method in (f"naive plain {window}", f"naive {window}", f"prefix {window}"):
            wrong, total = late.wrong[method, "pass"]
            cells.append(f"{100 * wrong / total:.1f} % (≤ {100 * upper(wrong, total):.1f} %)")
        wrong, total = late.wrong[f"prefix {window}", "fail"]
        key = "easy questions first, permutation kept: at most alpha"
        passes, tries = late.wrong[f"prefix {window}", "pass"]
        met[key] = met.get(key, True) and wrong / total <= ALPHA and passes / tries <= ALPHA
        used, begun = late.mean(f"prefix {window}", "used"), late.mean(f"prefix {window}", "started")
        rows.append([*cells, f"{100 * used:.1f} %", f"{100 * begun:.1f} %"])
    table(["", "wrong passes: completion order, plain", "completion order, 27 others", "permutation kept, 27 others",
           "questions used", "questions started"], rows)  # fmt: skip
    print("Targets: " + "; ".join(f"{name}: {'met' if good else 'NOT MET'}" for name, good in met.items()))


if __name__ == "__main__":
    main()
