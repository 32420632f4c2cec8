"""How well a score tells positive items from negative ones, where items lie in clusters.

auroc_of(scores=[0.9, 0.2, 0.4], positive=[True, False, False], clusters=["a", "a", "b"])
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medbench.harness.stats.agreement import Estimate

DRAWS = 1000
SEED = 0


def auroc_of(scores: Sequence[float], positive: Sequence[bool], clusters: Sequence[str]) -> Estimate | None:
    """The chance that a positive item scores higher than a negative one, a tie counting half (Hanley and McNeil 1982).

    Interval, 95 %: percentiles of 1,000 draws of clusters with replacement, the same in every call. None without both
    kinds of items.
    """
    signs = np.asarray(positive, dtype=bool)
    if signs.all() or not signs.any():
        return None
    values, place = np.unique(np.asarray(scores, dtype=float), return_inverse=True)
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    value = _auroc(place, signs, np.ones((1, len(signs))), len(values))[0]
    chance = np.random.default_rng(SEED)
    drawn = np.concatenate(
        [
            _auroc(place, signs, chance.multinomial(len(names), np.full(len(names), 1 / len(names)), 50)[:, cluster],
                   len(values))
            for _ in range(DRAWS // 50)
        ]
    )  # fmt: skip
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def _auroc(place: np.ndarray, positive: np.ndarray, weights: np.ndarray, values: int) -> np.ndarray:
    """For each row of weights; `place`: of each item's score among the `values` different ones, ascending."""
    above, below = np.zeros((len(weights), values)), np.zeros((len(weights), values))
    for row, weight in enumerate(weights):
        above[row] = np.bincount(place, weight * positive, minlength=values)
        below[row] = np.bincount(place, weight * ~positive, minlength=values)
    lower = np.cumsum(below, axis=1) - below
    pairs = above.sum(axis=1) * below.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pairs > 0, (above * (lower + below / 2)).sum(axis=1) / pairs, np.nan)
