"""Alpha divided over tries whose number is not known beforehand."""

from __future__ import annotations

import math


def spent_alpha(alpha: float, number: int) -> float:
    """Share of alpha for the `number`-th try, counted from 1; the sum over all numbers is alpha."""
    return alpha * 6 / (math.pi * number) ** 2
