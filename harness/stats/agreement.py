"""How far a judge agrees with people, and how sure that is: items lie in clusters, such as the steps of a reply.

agreement_of([("q1", "yes", "yes"), ("q1", "no", "yes"), ("q2", "no", "no")], positive="yes")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000
SEED = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one judge with one person (or with the label that most people gave); None where nothing can be said."""

    items: int
    clusters: int
    share: Estimate
    """Of items with the same label."""
    kappa: Estimate | None
    """Cohen 1960; None where both give one label only."""
    alpha: Estimate | None
    """Krippendorff's, for nominal data."""
    sensitivity: Estimate | None
    """Share of the person's positive items that the judge calls positive; None without any."""
    specificity: Estimate | None


def agreement_of(items: Sequence[tuple[str, str, str]], positive: str | None = None) -> Agreement:
    """`items`: (cluster, person's label, judge's label). Without `positive`, no sensitivity and specificity.

    Intervals: percentiles of 2,000 draws of clusters with replacement, the same in every call (Efron and Tibshirani
    1993, chapter 13). Raises ValueError without items.
    """
    if not items:
        raise ValueError("no items")
    labels = sorted({label for _, *pair in items for label in pair})
    clusters = sorted({cluster for cluster, *_ in items})
    tables = np.zeros((len(clusters), len(labels), len(labels)))
    place = {label: at for at, label in enumerate(labels)}
    row = {cluster: at for at, cluster in enumerate(clusters)}
    for cluster, person, judge in items:
        tables[row[cluster], place[person], place[judge]] += 1
    weights = np.random.default_rng(SEED).multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), DRAWS)
    drawn = np.tensordot(weights.astype(float), tables, axes=1)
    observed = tables.sum(axis=0)[None]

    def estimate(measure: Any, *at: int) -> Estimate | None:
        value = float(measure(observed, *at)[0])
        low, high = np.nanpercentile(measure(drawn, *at), [2.5, 97.5]) if np.isfinite(value) else (np.nan, np.nan)
        return Estimate(value, float(low), float(high)) if np.isfinite(value) else None

    share = estimate(_share)
    assert share is not None
    at = place.get(positive, -1) if positive is not None else -1
    return Agreement(
        items=len(items),
        clusters=len(clusters),
        share=share,
        kappa=estimate(_kappa),
        alpha=estimate(_alpha),
        sensitivity=estimate(_sensitivity, at) if at >= 0 else None,
        specificity=estimate(_specificity, at) if at >= 0 else None,
    )


# Each takes tables of counts [draw, person's label, judge's label]; NaN where it is not defined


def _share(tables: Any) -> Any:
    return _ratio(np.trace(tables, axis1=1, axis2=2), tables.sum(axis=(1, 2)))


def _kappa(tables: Any) -> Any:
    n = tables.sum(axis=(1, 2))
    by_chance = _ratio((tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1), n**2)
    return _ratio(_share(tables) - by_chance, 1 - by_chance)


def _alpha(tables: Any) -> Any:
    """Krippendorff 2004, chapter 11: 1 - observed / expected disagreement of the coincidences of two coders."""
    coincidences = tables + tables.transpose(0, 2, 1)
    of_label = coincidences.sum(axis=2)
    n = of_label.sum(axis=1)
    observed = n - np.trace(coincidences, axis1=1, axis2=2)
    expected = _ratio(n**2 - (of_label**2).sum(axis=1), n - 1)
    return 1 - _ratio(observed, expected)


def _sensitivity(tables: Any, at: int) -> Any:
    return _ratio(tables[:, at, at], tables[:, at, :].sum(axis=1))


def _specificity(tables: Any, at: int) -> Any:
    n = tables.sum(axis=(1, 2)) - tables[:, at, :].sum(axis=1)
    return 1 - _ratio(tables[:, :, at].sum(axis=1) - tables[:, at, at], n)


def _ratio(above: Any, below: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)
