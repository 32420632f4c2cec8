"""Places on the common axis of a column of drawn intervals; templates print them as SVG attributes.

    python -c "from medbench.reports.views.axis import Axis; print(Axis(0.2, 1.0).band((0.6, 0.7)))"

The SVG sits in a table cell, its user unit is a pixel, and WIDTH is the `.ci` of assets/site.css.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

WIDTH = 132
"""Pixels from one end of the axis to the other."""
MARGIN = 2
"""Pixels beside either end, so that a mark at the end is whole."""


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, both shares; whole tenths."""

    low: float
    high: float

    @property
    def tenths(self) -> int:
        """Grid lines between the ends, plus one: a class of site.css draws them."""
        return max(1, round((self.high - self.low) * 10))

    def x(self, share: float) -> str:
        """Pixels from the left; held at the ends of the axis."""
        place = min(1.0, max(0.0, (share - self.low) / (self.high - self.low)))
        return f"{MARGIN + place * WIDTH:.1f}".removesuffix(".0")

    def band(self, pair: tuple[float, float]) -> str:
        """The path of an interval: a line that the style sheet makes thick."""
        return f"M{self.x(pair[0])} 7H{self.x(pair[1])}"

    def mark(self, share: float) -> str:
        """The path of a point estimate: a short upright line."""
        return f"M{self.x(share)} 1v12"


def axis_over(intervals: Iterable[tuple[float, float]]) -> Axis:
    """The smallest axis of whole tenths that holds all `intervals` of shares; the whole one if there are none."""
    known = [pair for pair in intervals if all(map(math.isfinite, pair))]
    if not known:
        return Axis(0.0, 1.0)
    low = max(0.0, math.floor(min(pair[0] for pair in known) * 10 + 1e-9) / 10)
    high = min(1.0, math.ceil(max(pair[1] for pair in known) * 10 - 1e-9) / 10)
    return Axis(low, high) if high > low else Axis(max(0.0, low - 0.1), min(1.0, low + 0.1))


def axis_around_zero(intervals: Iterable[tuple[float, float]]) -> Axis:
    """The same for differences: as far to the left of nought as to the right."""
    known = [abs(end) for pair in intervals for end in pair if math.isfinite(end)]
    reach = min(1.0, max(0.1, math.ceil(max(known, default=0.1) * 10 - 1e-9) / 10))
    return Axis(-reach, reach)
