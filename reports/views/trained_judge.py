"""The report of a trained judge as its page shows it: a row and a calibration plot per kind of fault.

A plot is an SVG of SIDE user units; probability goes to the right, the share that is supported goes up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medbench.harness.judges.local.report import ALL, OF_CONCLUSIONS, UNCHECKED, Bin, Interval, KindReport, Report
from medbench.reports.views.axis import Axis, axis_over

SIDE = 200
MARGIN = 24
WORDS = {ALL: "All faults", OF_CONCLUSIONS: "Changed conclusion"}
LARGEST_DOT, SMALLEST_DOT = 9.0, 2.0


@dataclass(frozen=True, slots=True)
class Dot:
    """A bin of a plot."""

    x: str
    y: str
    radius: str
    title: str


@dataclass(frozen=True, slots=True)
class Plot:
    """The judge's bins and the baseline's."""

    judge: tuple[Dot, ...]
    line: str
    """The path through the judge's dots."""
    baseline: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A row."""

    name: str
    report: KindReport
    plot: Plot

    @property
    def intervals(self) -> list[Interval]:
        return [one for one in (self.report.judge.auroc, self.report.baseline.auroc) if one is not None]


@dataclass(frozen=True, slots=True)
class View:
    """The page."""

    report: Report
    kinds: tuple[Kind, ...]
    axis: Axis
    unchecked_below: float


def view_of(report: Report) -> View:
    kinds = tuple(Kind(WORDS.get(one.kind, one.kind.capitalize()), one, _plot(one)) for one in report.kinds)
    return View(report, kinds, axis_over((one.low, one.high) for kind in kinds for one in kind.intervals), UNCHECKED)


def _plot(kind: KindReport) -> Plot:
    total = kind.faulty + kind.supported
    judge = _dots(kind.judge.bins, total)
    line = " ".join(f"{'L' if at else 'M'}{dot.x} {dot.y}" for at, dot in enumerate(judge))
    return Plot(judge, line, _dots(kind.baseline.bins, total))


def _dots(bins: Sequence[Bin], total: int) -> tuple[Dot, ...]:
    return tuple(
        Dot(
            x=_place(one.probability),
            y=_place(1 - one.share),
            radius=f"{max(SMALLEST_DOT, LARGEST_DOT * (one.steps / total) ** 0.5):.1f}",
            title=f"{one.steps} steps: probability {one.probability:.2f}, supported {one.share:.2f}",
        )
        for one in bins
    )


def _place(share: float) -> str:
    return f"{MARGIN + share * (SIDE - 2 * MARGIN):.1f}"
