"""The charts of a sweep's page: score with interval against what a cell was given and what it cost, as SVG.

A chart is WIDTH by HEIGHT user units; the score goes up. Cells that differ only in their data fraction are a series,
with one colour in all charts; series lie beside each other, a few units apart, where they have the same place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medbench.reports.views.axis import Axis, axis_over
from medbench.reports.views.formats import interval, parameters, percent

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 10, 40
COLOURS = 6
"""Classes c0 to c5 of site.css; further series have them again, with other marks."""
APART = 5.0
"""Between series at the same place."""
NARROWEST = 40.0
"""Between two labels of the axis below."""
LOGARITHMIC = 8.0
"""Values whose largest is so many times their smallest are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Given:
    """A cell, as far as one chart is concerned."""

    cell: str
    series: int
    x: float
    score: float
    interval: tuple[float, float]
    dropped: bool


@dataclass(frozen=True, slots=True)
class Dot:
    """A cell of a chart."""

    x: str
    y: str
    low: str
    high: str
    dropped: bool
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """A series of a chart."""

    colour: str
    """Class of site.css."""
    path: str
    """Through its dots; "" where they are not to be joined."""
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """A label of an axis, and where it is."""

    at: str
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """All that the template draws."""

    title: str
    label: str
    """What a screen reader says."""
    below: str
    """Of the axis below."""
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def chart(title: str, below: str, cells: Sequence[Given], unit: str, *, joined: bool = False) -> Chart | None:
    """None where it would show nothing: fewer than two places. `unit`: "share", "parameters" or "number"."""
    places = sorted({one.x for one in cells})
    if len(places) < 2:
        return None
    axis = axis_over([one.interval for one in cells] + [(one.score, one.score) for one in cells])
    series = sorted({one.series for one in cells})
    scale = _Scale(places[0], places[-1])
    lines = []
    for rank, number in enumerate(series):
        own = sorted((one for one in cells if one.series == number), key=lambda one: one.x)
        dots = tuple(_dot(one, scale.x(one.x) + APART * (rank - (len(series) - 1) / 2), axis, unit) for one in own)
        path = " ".join(f"{'L' if at else 'M'}{dot.x} {dot.y}" for at, dot in enumerate(dots)) if joined else ""
        lines.append(Line(colour_of(number), path, dots))
    low, high = min(one.score for one in cells), max(one.score for one in cells)
    label = f"Chart of {title}: {len(cells)} cells, from {percent(low).strip()} to {percent(high).strip()} %. "
    return Chart(
        title=title,
        label=f"{label}The table of cells has the same numbers.",
        below=below,
        lines=tuple(lines),
        x_ticks=tuple(_spaced([Tick(_text(scale.x(x)), in_unit(x, unit)) for x in places])),
        y_ticks=tuple(
            Tick(_text(_y(low, axis)), f"{100 * low:.0f}")
            for low in (axis.low + step / 10 for step in range(axis.tenths + 1))
        ),
    )


def colour_of(series: int) -> str:
    return f"c{series % COLOURS}"


def in_unit(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:g} %"
    if unit == "parameters":
        return parameters(value) if value >= 1e6 else f"{value:,.0f}"
    return f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float

    def x(self, value: float) -> float:
        if self.low > 0 and self.high / self.low >= LOGARITHMIC:
            place = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        inner = 20.0  # room for series beside each other
        return LEFT + inner + place * (WIDTH - LEFT - RIGHT - 2 * inner)


def _dot(one: Given, x: float, axis: Axis, unit: str) -> Dot:
    return Dot(
        x=_text(x),
        y=_text(_y(one.score, axis)),
        low=_text(_y(one.interval[0], axis)),
        high=_text(_y(one.interval[1], axis)),
        dropped=one.dropped,
        title=f"{one.cell}: {percent(one.score).strip()} % ({interval(one.interval)}) at {in_unit(one.x, unit)}",
    )


def _y(share: float, axis: Axis) -> float:
    place = min(1.0, max(0.0, (share - axis.low) / (axis.high - axis.low)))
    return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)


def _spaced(ticks: Sequence[Tick]) -> list[Tick]:
    """Those that do not run into the one before."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or float(tick.at) - float(kept[-1].at) >= NARROWEST:
            kept.append(tick)
    return kept


def _text(value: float) -> str:
    return f"{value:.1f}"
