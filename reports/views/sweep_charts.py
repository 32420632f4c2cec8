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
    """None where it would show nothing: fewer than two places.

    `unit`: "share", "parameters", or "number", whose axis begins at 0. `joined`: a line through each series, and a
    label for each place.
    """
    places = sorted({one.x for one in cells})
    if len(places) < 2:
        return None
    axis = axis_over([one.interval for one in cells] + [(one.score, one.score) for one in cells])
    series = sorted({one.series for one in cells})
    scale = _Scale(0.0 if unit == "number" else places[0], places[-1])
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
        x_ticks=tuple(
            _spaced([Tick(_text(scale.x(x)), in_unit(x, unit)) for x in (places if joined else scale.round_values())])
        ),
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

    @property
    def is_logarithmic(self) -> bool:
        return self.low > 0 and self.high / self.low >= LOGARITHMIC

    def round_values(self) -> list[float]:
        """A few round numbers between the ends."""
        if self.is_logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1.0,) if len(decades) > 3 else (1.0, 2.0, 5.0)
            values = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = (self.high - self.low) / 4
            decade = 10.0 ** math.floor(math.log10(rough))
            step = next(one * decade for one in (1, 2, 5, 10) if one * decade >= rough)
            first = math.ceil(self.low / step)
            values = [step * at for at in range(first, first + 8)]
        return [one for one in values if self.low <= one <= self.high]

    def x(self, value: float) -> float:
        if self.is_logarithmic:
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
