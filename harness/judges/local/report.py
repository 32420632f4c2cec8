"""How well a judge tells supported steps from others, on abstracts that it has not seen, by kind of fault.

The score is the probability of "supported". For each kind: all supported steps against the steps of that kind. The same
figures for the lexical baseline, a logistic regression on lexical.FEATURES alone, learnt from the same pairs.
Calibration is that of a text of which a third is supported, as in what the judge was calibrated on: the supported steps
of a kind are weighted so, or a rare kind would make every probability look too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.judges.local.pairs import KINDS, Pair
from medbench.harness.runs.records import SCHEMA_VERSION
from medbench.harness.stats.agreement import agreement_of
from medbench.harness.stats.auroc import auroc_of

PAGE = "judge.html"
"""The report as a page, in the judge's folder."""
UNCHECKED = 0.75
"""AUROC below which a kind of fault counts as not found."""
BINS = 10
ALL = "all"
OF_CONCLUSIONS = "changed conclusion"
"""Contradicted against supported steps made from conclusions, whose words the source does not hold."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Interval(_Record):
    """A value and its 95 % interval; abstracts are what is drawn."""

    value: float
    low: float
    high: float


class Bin(_Record):
    """Steps whose probability of being supported is in [low, high)."""

    low: float
    high: float
    steps: int
    probability: float
    """Mean."""
    share: float
    """Of them that are supported, weighted as the module says; so is the mean."""


class Figures(_Record):
    """Of one judge and one kind."""

    auroc: Interval | None
    ece: float
    """Mean distance of probability and share over `bins`, by weight; biased upwards where bins are small."""
    bins: list[Bin]


class KindReport(_Record):
    """One kind of fault against what is supported."""

    kind: str
    faulty: int
    supported: int
    judge: Figures
    baseline: Figures

    @property
    def unchecked(self) -> bool:
        return self.judge.auroc is None or self.judge.auroc.value < UNCHECKED


class Verdicts(_Record):
    """The three verdicts against the known ones."""

    same: Interval
    kappa: Interval | None
    sensitivity: dict[str, float | None]
    """Verdict -> share of its steps that are given it."""


class Report(_Record):
    """report.json."""

    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    base: str
    layers: int
    abstracts: dict[str, int]
    """Trained, calibrated and tested on."""
    pairs: dict[str, int]
    seconds: float
    """Of everything."""
    cores: int
    torch: str
    kinds: list[KindReport]
    """ALL first."""
    judge: Verdicts
    baseline: Verdicts

    @property
    def unchecked(self) -> list[str]:
        return [one.kind for one in self.kinds if one.kind in KINDS and one.unchecked]


def kind_reports(pairs: Sequence[Pair], judge: np.ndarray, baseline: np.ndarray) -> list[KindReport]:
    """`judge`, `baseline`: probability of "supported" of each pair. Without kinds that do not occur."""
    supported = np.array([pair.verdict == "supported" for pair in pairs])
    kinds = np.array([pair.kind for pair in pairs])
    conclusions = np.array([pair.form == "conclusion" and pair.verdict != "not covered" for pair in pairs])
    rows = {ALL: np.full(len(pairs), True)} | {kind: supported | (kinds == kind) for kind in KINDS}
    rows[OF_CONCLUSIONS] = conclusions
    return [
        KindReport(
            kind=kind,
            faulty=int((~supported[of]).sum()),
            supported=int(supported[of].sum()),
            judge=_figures(pairs, judge, supported, of),
            baseline=_figures(pairs, baseline, supported, of),
        )
        for kind, of in rows.items()
        if (~supported[of]).any()
    ]


def verdicts_of(pairs: Sequence[Pair], said: Sequence[int]) -> Verdicts:
    """`said`: places in VERDICTS."""
    items = [(pair.abstract, pair.verdict, VERDICTS[place]) for pair, place in zip(pairs, said, strict=True)]
    agreement = agreement_of(items)
    kappa = agreement.kappa
    found = {verdict: agreement_of(items, positive=verdict).sensitivity for verdict in VERDICTS}
    return Verdicts(
        same=Interval(value=agreement.share.value, low=agreement.share.low, high=agreement.share.high),
        kappa=Interval(value=kappa.value, low=kappa.low, high=kappa.high) if kappa else None,
        sensitivity={verdict: one.value if one else None for verdict, one in found.items()},
    )


def _figures(pairs: Sequence[Pair], scores: np.ndarray, supported: np.ndarray, of: np.ndarray) -> Figures:
    clusters = [pair.abstract for pair, inside in zip(pairs, of, strict=True) if inside]
    found = auroc_of(list(scores[of]), list(supported[of]), clusters)
    bins = _bins(scores[of], supported[of])
    return Figures(
        auroc=Interval(value=found.value, low=found.low, high=found.high) if found else None,
        ece=sum(weight * abs(one.probability - one.share) for weight, one in bins),
        bins=[one for _, one in bins],
    )


def _bins(scores: np.ndarray, supported: np.ndarray) -> list[tuple[float, Bin]]:
    """(share of all weight, bin) of those that have steps; of equal width."""
    third = 1 / len(VERDICTS)
    weights = np.where(supported, third / max(1, supported.sum()), (1 - third) / max(1, (~supported).sum()))
    weights = weights / weights.sum()
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    found = []
    for number in np.unique(place):
        inside = place == number
        total = float(weights[inside].sum())
        one = Bin(
            low=int(number) / BINS,
            high=(int(number) + 1) / BINS,
            steps=int(inside.sum()),
            probability=float((scores * weights)[inside].sum()) / total,
            share=float(weights[inside & supported].sum()) / total,
        )
        found.append((total, one))
    return found
