"""A share counted by a judge that errs, corrected by items that people have labelled too.

    corrected_by_error_rates(judged, labelled, alpha=0.05)      # labels of other replies: the judge errs there as here
    prediction_powered(judged, labelled, alpha=0.05)            # labels of a random part of these very replies

Items lie in clusters (the steps of replies to one question), which are taken to be independent of each other. Verdicts
and labels are 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medbench.harness.stats.intervals import clustered_mean

FEWEST_LABELLED = 5
"""Clusters, of each label where both are needed: with fewer no interval means anything."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """An item with a judge's verdict and a person's label."""

    cluster: str
    verdict: int
    label: int


@dataclass(frozen=True, slots=True)
class Share:
    """An estimate in 0..1 with its interval; value None where the judge is no better than chance on the labels."""

    value: float | None
    low: float
    high: float


UNKNOWN = Share(None, 0.0, 1.0)


def corrected_by_error_rates(
    judged: Sequence[Sequence[int]], labelled: Sequence[Labelled], alpha: float = 0.05
) -> Share:
    """The true share p where the judged one is p x sensitivity + (1 - p)(1 - specificity).

    `judged`: verdicts of each cluster. Value: Rogan and Gladen 1978, cut to 0..1. Interval: Fieller's, all p at which
    the two sides differ by no more than their standard error allows; unlike the delta method it stays honest for a
    judge little better than chance, where it becomes 0..1. The labels may come from other replies, in which the judge
    errs at the same rates.
    """
    right = [(one.cluster, one.verdict) for one in labelled if one.label]
    wrong = [(one.cluster, 1 - one.verdict) for one in labelled if not one.label]
    if min(len({cluster for cluster, _ in items}) for items in (right, wrong)) < FEWEST_LABELLED or not judged:
        return UNKNOWN
    (q, q_var), (se, se_var), (sp, sp_var) = map(_rate, (judged, _grouped(right), _grouped(wrong)))
    informed = se + sp - 1
    if informed <= 0:
        return UNKNOWN
    # (q - (1 - sp) - p informed)^2 <= z^2 (q_var + p^2 se_var + (1 - p)^2 sp_var), a quadratic in p
    z2 = _quantile(alpha, min(len(judged), len({one.cluster for one in labelled}))) ** 2
    offset = q - (1 - sp)
    a = informed**2 - z2 * (se_var + sp_var)
    b = -2 * (offset * informed - z2 * sp_var)
    c = offset**2 - z2 * (q_var + sp_var)
    value = min(1.0, max(0.0, offset / informed))
    inside = b * b - 4 * a * c
    if a <= 0 or inside < 0:  # the labels do not bound p
        return Share(value, 0.0, 1.0)
    low, high = ((-b + sign * math.sqrt(inside)) / (2 * a) for sign in (-1, 1))
    return Share(value, min(value, max(0.0, low)), max(value, min(1.0, high)))


def prediction_powered(judged: Sequence[Sequence[int]], labelled: Sequence[Labelled], alpha: float = 0.05) -> Share:
    """The mean verdict plus the mean of label - verdict on the labelled items.

    `judged`: verdicts of each cluster without labels; `labelled`: a random sample of the same population, by clusters.
    Angelopoulos et al. 2023 (arXiv 2301.09633); the verdicts are weighted by how well they predict the labels, as in
    PPI++ (Angelopoulos et al. 2023, arXiv 2311.01453), so that a useless judge costs nothing.
    """
    clusters: dict[str, list[Labelled]] = {}
    for one in labelled:
        clusters.setdefault(one.cluster, []).append(one)
    if len(clusters) < FEWEST_LABELLED or not judged:
        return UNKNOWN
    weight = _weight(judged, list(clusters.values()))
    few = [[one.label - weight * one.verdict for one in cluster] for cluster in clusters.values()]
    many = [[weight * verdict for verdict in cluster] for cluster in judged]
    (few_mean, few_error), (many_mean, many_error) = clustered_mean(few), clustered_mean(many)
    value = min(1.0, max(0.0, few_mean + many_mean))
    labels = [one.label for one in labelled]
    share = sum(labels) / len(labels)
    # a cluster-robust variance is too small by about (n - 1) / n
    few_variance, many_variance = (
        error**2 * len(values) / max(1, len(values) - 1) for error, values in ((few_error, few), (many_error, many))
    )
    # all labels alike: no variance to compare, so a cluster's are taken to agree altogether
    alike = sum(len(cluster) ** 2 for cluster in few) / len(labels) ** 2
    of_labels = few_variance / (share * (1 - share)) if 0 < share < 1 else alike
    # (value - p)^2 <= t^2 (of_labels p (1 - p) + many_variance): as in Wilson's interval, the labels' variance is that
    # at p, since the one seen is too small where few of the rarer label were drawn
    t2 = _quantile(alpha, len(few)) ** 2
    a, b, c = 1 + t2 * of_labels, -(2 * value + t2 * of_labels), value**2 - t2 * many_variance
    low, high = ((-b + sign * math.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a) for sign in (-1, 1))
    return Share(value, min(value, max(0.0, low)), max(value, min(1.0, high)))


def _weight(judged: Sequence[Sequence[int]], labelled: Sequence[Sequence[Labelled]]) -> float:
    """The weight of the verdicts that makes the variance smallest, in 0..1; over clusters' sums about their means."""
    items = [one for cluster in labelled for one in cluster]
    label = math.fsum(one.label for one in items) / len(items)
    verdict = math.fsum(one.verdict for one in items) / len(items)
    sums = [
        (math.fsum(one.label - label for one in cluster), math.fsum(one.verdict - verdict for one in cluster))
        for cluster in labelled
    ]
    together = math.fsum(x * y for x, y in sums)
    own = math.fsum(y * y for _, y in sums)
    n, more = len(items), sum(map(len, judged))
    return min(1.0, max(0.0, together / (own * (1 + n / more)))) if own > 0 else 0.0


def _rate(clusters: Sequence[Sequence[int]]) -> tuple[float, float]:
    """(share of ones, its variance), with one success and one failure more than were seen: a rate of 0 or 1 seen in a
    few items is not certain (Agresti and Coull 1998). The variance is the independent one times the design effect."""
    n, ones = sum(map(len, clusters)), sum(map(sum, clusters))
    share, error = ones / n, clustered_mean(clusters)[1]
    independent = share * (1 - share) / n
    effect = max(1.0, error**2 / independent) if independent > 0 else 1.0
    size = n / effect
    middle = (share * size + 1) / (size + 2)
    return (share if 0 < ones < n else middle), middle * (1 - middle) / (size + 2)


def _grouped(items: Sequence[tuple[str, int]]) -> list[list[int]]:
    clusters: dict[str, list[int]] = {}
    for cluster, value in items:
        clusters.setdefault(cluster, []).append(value)
    return list(clusters.values())


def _quantile(alpha: float, clusters: int) -> float:
    """Student's t: the variance is an estimate from so many clusters."""
    from scipy.special import stdtrit

    return float(stdtrit(clusters - 1, 1 - alpha / 2))
