"""Tango's score test for paired proportions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from medbench.harness.stats.intervals import clustered_mean


def score_test(clusters: Sequence[Sequence[float]], *, paired: bool, unit: float = 1.0) -> Callable[[float], float]:
    """null -> z of "the mean of the population is `null`", positive where the values seen lie above it.

    The variance of rights and wrongs is Wilson's under the null, that of paired differences -1, 0, 1 Tango's (1998):
    sound near 0 and 1 and with few flips, where the variance of the values seen collapses. Both times the design effect
    of the clusters. Anything else gets the clustered standard error, or `unit` over clusters where all are alike.
    """
    values = [value for cluster in clusters for value in cluster]
    n = len(values)
    mean, error = clustered_mean(clusters)
    gained, lost = sum(value == 1 for value in values), sum(value == -1 for value in values)
    if gained + lost + sum(value == 0 for value in values) < n:
        error = error or unit / len(clusters)
        return lambda null: (mean - null) / error
    independent = (gained + lost) / n - mean**2
    alike = math.fsum(len(cluster) ** 2 for cluster in clusters) / n
    effect = max(1.0, error**2 * n / independent) if independent > 0 else alike

    def z(null: float) -> float:
        variance = (_tango(gained, lost, n, null) if paired else null * (1 - null)) * effect / n
        above = mean - null
        return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above) if above else 0.0

    return z


def _tango(gained: int, lost: int, n: int, null: float) -> float:
    """Variance of one paired difference whose mean is `null`, at the likeliest share of losses."""
    b = gained + lost - null * (2 * n - gained + lost)
    losses = (b + math.sqrt(max(0.0, b**2 + 8 * n * lost * null * (1 - null)))) / (4 * n)
    return max(0.0, 2 * losses + null - null**2)


def invert(z: Callable[[float], float], level: float, low: float, high: float) -> float:
    """The null between `low` and `high` whose z is `level`; z falls as the null rises."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if z(middle) > level else (low, middle)
    return (low + high) / 2
