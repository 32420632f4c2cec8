"""Score tests of a mean: Wilson's for shares, Tango's for paired differences, the same idea for values in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medbench.harness.stats.intervals import clustered_mean

TINY = 1e-12
"""A variance below this is that of equal values, but for rounding."""


def score_test(clusters: Sequence[Sequence[float]], *, paired: bool, bounded: bool = True) -> Callable[[float], float]:
    """null -> z of "the mean of the population is `null`", positive where the values seen lie above it.

    The variance is that of the likeliest distribution with the mean `null`, times the design effect of the clusters.
    For rights and wrongs that is Wilson's, for paired differences -1, 0, 1 Tango's (1998): sound near 0 and 1 and with
    few flips, where the variance of the values seen collapses. Other values, as the means of several replies, may lie
    anywhere from 0 (from -1 where `paired`) to 1, and beyond as far as any was seen; see `_likeliest_variance`. Where
    `bounded` is false, as for tokens, whose ends are out of reach, other values get the clustered standard error, or 1
    over clusters where all are alike.
    """
    values = [value for cluster in clusters for value in cluster]
    n = len(values)
    mean, error = clustered_mean(clusters)
    gained, lost = sum(value == 1 for value in values), sum(value == -1 for value in values)
    whole = gained + lost + sum(value == 0 for value in values) == n
    if not whole and not bounded:
        error = error or 1 / len(clusters)
        return lambda null: (mean - null) / error
    independent = math.fsum(value**2 for value in values) / n - mean**2
    alike = math.fsum(len(cluster) ** 2 for cluster in clusters) / n
    effect = max(1.0, error**2 * n / independent) if independent > TINY else alike
    seen, counts = np.unique(values, return_counts=True)
    low, high = min(-1.0 if paired else 0.0, float(seen[0])), max(1.0, float(seen[-1]))

    def z(null: float) -> float:
        if not whole:
            variance = _likeliest_variance(seen, counts / n, null, low, high)
        else:
            variance = _tango(gained, lost, n, null) if paired else null * (1 - null)
        variance *= effect / n
        above = mean - null
        return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above) if above else 0.0

    return z


def _tango(gained: int, lost: int, n: int, null: float) -> float:
    """Variance of one paired difference whose mean is `null`, at the likeliest share of losses."""
    b = gained + lost - null * (2 * n - gained + lost)
    losses = (b + math.sqrt(max(0.0, b**2 + 8 * n * lost * null * (1 - null)))) / (4 * n)
    return max(0.0, 2 * losses + null - null**2)


def _likeliest_variance(values: Any, shares: Any, null: float, low: float, high: float) -> float:
    """Variance of one value under the likeliest distribution with mean `null` on the distinct `values` and both ends.

    That is empirical likelihood (Owen 1988) where an end that was not seen may have a chance too: a value seen with the
    share s has s / (1 + t d), d its distance from `null`. t makes the mean right; where that t would be beyond what
    keeps an end's chance from being negative, it is at that limit, and the end has the rest. On {0, 1} and {-1, 0, 1}
    it is what Wilson and Tango have in closed form.
    """
    if not low < null < high:
        return 0.0
    d = values - null
    least, most = -1 / (high - null), -1 / (low - null)

    end = None
    if values[-1] < high and shares @ (d / (1 + least * d)) < 0:
        t, end = least, high - null
    elif values[0] > low and shares @ (d / (1 + most * d)) > 0:
        t, end = most, low - null
    else:
        t = _tilt(shares, d, least, most)
    chances = shares / (1 + t * d)
    rest = max(0.0, 1 - chances.sum()) * end**2 if end is not None else 0.0
    return float(chances @ d**2 + rest)


def _tilt(shares: Any, d: Any, low: float, high: float) -> float:
    """The t between `low` < 0 and `high` > 0 for which the mean of `d` is 0: Newton's steps from 0, halved where they
    leave what is known to hold it."""
    t, width = 0.0, high - low
    for _ in range(100):
        scaled = d / (1 + t * d)
        mean = float(shares @ scaled)
        if mean == 0:
            break
        low, high = (t, high) if mean > 0 else (low, t)
        step = t + mean / float(shares @ scaled**2)
        after = step if low < step < high else (low + high) / 2
        if abs(after - t) < 1e-11 * width:
            break
        t = after
    return t


def invert(z: Callable[[float], float], level: float, low: float, high: float) -> float:
    """The null between `low` and `high` whose z is `level`; z falls as the null rises."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if z(middle) > level else (low, middle)
    return (low + high) / 2
