"""What a figure of results/<task>.json may be. Strict: JSON's true and "1" are no numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, Strict

Count = Annotated[int, Strict(), Field(ge=0, le=2**53)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
"""NaN is refused by the bounds."""
Amount = Annotated[float, Strict(), Field(ge=0, le=2**53)]


def _in_order(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("the lower end is above the upper one")
    return interval


Interval = Annotated[tuple[Share, Share], AfterValidator(_in_order)]
