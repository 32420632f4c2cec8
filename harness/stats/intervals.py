"""Intervals of shares and means over questions, some of which are duplicates of each other.

python -c "from medbench.harness.stats.intervals import wilson_interval; print(wilson_interval(870, 1000))"
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence


def wilson_interval(total: float, n: float, alpha: float = 0.05) -> tuple[float, float]:
    """Wilson's score interval of total/n, two-sided at level 1 - alpha; `n` may be an effective size.

    Wilson 1927; the same as statsmodels' proportion_confint, which takes most of a second to import.
    """
    from scipy.special import ndtri

    z = -float(ndtri(alpha / 2))
    share, scale = total / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def clustered_interval(clusters: list[tuple[int, float]], alpha: float = 0.05) -> tuple[float, float]:
    """Wilson's interval at the effective sample size, for (size, sum of scores) of each cluster.

    The design effect is the cluster-robust variance of the mean over the independent one (Miller 2024, "Adding
    Error Bars to Evals", section 2.2), never below 1; Wilson at n / effect stays sound near 0 and 1, where the
    plain normal interval of the clustered standard error collapses (Korn and Graubard 1998).
    """
    return counted_clusters_interval(Counter(clusters), alpha)


def counted_clusters_interval(clusters: Mapping[tuple[int, float], int], alpha: float = 0.05) -> tuple[float, float]:
    """The same, for the number of clusters with each (size, sum of scores): few numbers, however many clusters."""
    n = sum(size * times for (size, _), times in clusters.items())
    total = sum(score * times for (_, score), times in clusters.items())
    mean = total / n
    independent = mean * (1 - mean) / n
    robust = math.fsum(times * (score - size * mean) ** 2 for (size, score), times in clusters.items()) / n**2
    # all right or all wrong: no variance to compare, so duplicates are taken to agree altogether
    effect = (
        max(1.0, robust / independent)
        if independent > 0
        else math.fsum(times * size**2 for (size, _), times in clusters.items()) / n
    )
    return wilson_interval(total / effect, n / effect, alpha)


def clustered_mean(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(mean, cluster-robust standard error) of values in clusters; Miller 2024, "Adding Error Bars to Evals", 2.2."""
    n = sum(map(len, clusters))
    mean = math.fsum(value for cluster in clusters for value in cluster) / n
    variance = math.fsum((math.fsum(cluster) - len(cluster) * mean) ** 2 for cluster in clusters) / n**2
    return mean, math.sqrt(variance)


def clustered_mean_interval(clusters: Sequence[Sequence[float]], alpha: float = 0.05) -> tuple[float, float]:
    """Interval of the mean of values in 0..1, such as shares of steps, in clusters.

    Wilson's at the size at which a share would have the mean's cluster-robust variance: beside clustered_interval,
    which takes each value to be all or nothing, it uses that values in between vary less. The variance is an estimate
    from so many clusters, so the quantile is Student's.
    """
    from scipy.special import ndtri, stdtrit

    mean, error = clustered_mean(clusters)
    k = len(clusters)
    wider = (stdtrit(max(1, k - 1), 1 - alpha / 2) / ndtri(1 - alpha / 2)) ** 2
    variance = error**2 * k / max(1, k - 1)  # a cluster-robust variance is too small by about (k - 1) / k
    size = mean * (1 - mean) / variance if variance > 0 and 0 < mean < 1 else float(k)
    low, high = wilson_interval(mean * size / wider, size / wider, alpha)
    return float(min(low, mean)), float(max(high, mean))  # not outside by a rounding error
