"""How often the intervals of corrected shares hold the truth, by simulation.

    python tests/bench/judged_shares.py --draws 1000         # about 10 minutes on one core

300 judged and 60 labelled questions with 2 to 6 steps each; the steps of a question are alike (intraclass correlation
0.3). A judge finds a supported step supported with its sensitivity, and another one not supported with its specificity.
Columns: share of 95 % intervals that hold the true share, and their mean width; by error rates (Rogan and Gladen, with
Fieller's interval), prediction-powered, and uncorrected (the judge's own share).
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np

from medbench.harness.stats.corrected_share import Labelled, corrected_by_error_rates, prediction_powered
from medbench.harness.stats.intervals import clustered_interval

RATES = (0.6, 0.7, 0.8, 0.9, 0.95)
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
ALIKE = 0.3
JUDGED, LABELLED = 300, 60


def drawn(questions: int, rates: tuple[float, float], share: float, draw: np.random.Generator) -> list[list[Labelled]]:
    found = []
    for question in range(questions):
        steps = draw.integers(2, 7)
        own = draw.beta(share * (1 / ALIKE - 1), (1 - share) * (1 / ALIKE - 1))
        labels = draw.random(steps) < own
        verdicts = np.where(labels, draw.random(steps) < rates[0], draw.random(steps) >= rates[1])
        found.append([Labelled(str(question), int(v), int(y)) for v, y in zip(verdicts, labels, strict=True)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=1000)
    asked = parser.parse_args()
    draw = np.random.default_rng(1)
    started = time.monotonic()
    print("| sensitivity | specificity | share | by error rates | width | prediction-powered | width | uncorrected |")
    print("|---|---|---|---|---|---|---|---|")
    coverages: list[list[float]] = [[], []]
    for *rates, share in itertools.product(RATES, RATES, SHARES):
        hits, widths = np.zeros(3), np.zeros(2)
        for _ in range(asked.draws):
            judged = [[one.verdict for one in q] for q in drawn(JUDGED, (rates[0], rates[1]), share, draw)]
            known = [one for q in drawn(LABELLED, (rates[0], rates[1]), share, draw) for one in q]
            for at, method in enumerate((corrected_by_error_rates, prediction_powered)):
                found = method(judged, known)
                hits[at] += found.low <= share <= found.high
                widths[at] += found.high - found.low
            low, high = clustered_interval([(len(q), float(sum(q))) for q in judged])
            hits[2] += low <= share <= high
        hits, widths = hits / asked.draws, widths / asked.draws
        for at in (0, 1):
            coverages[at].append(hits[at])
        print(
            f"| {rates[0]} | {rates[1]} | {share} | {hits[0]:.3f} | {widths[0]:.2f} "
            f"| {hits[1]:.3f} | {widths[1]:.2f} | {hits[2]:.3f} |",
            flush=True,
        )
    for name, found in zip(("by error rates", "prediction-powered"), coverages, strict=True):
        inside = sum(0.93 <= one <= 0.97 for one in found)
        print(f"{name}: {min(found):.3f} to {max(found):.3f}, {inside} of {len(found)} within 0.93 to 0.97")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
