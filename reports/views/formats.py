"""Numbers, times and foreign text as the pages show them.

python -c "from medbench.reports.views.formats import percent, visible; print(percent(0.871), visible('a\\x1b[31m'))"
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

MISSING = "–"
FIGURE_SPACE = "\N{FIGURE SPACE}"
MINUS = "\N{MINUS SIGN}"

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Characters that change how text looks and cannot be seen: controls, bidi marks and overrides, tags, surrogates.

ZWJ and ZWNJ are left alone: Persian and emoji need them. assets/text.js holds the same set.
"""


def visible(text: str) -> str:
    """Hidden characters spelled out: ESC as its control picture, U+202E as its number in angle brackets."""
    return HIDDEN.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"⟨U+{code:04X}⟩"


def finalize(value: Any) -> Any:
    """What every expression of a template passes through, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def percent(share: float | None, digits: int = 1) -> str:
    """0.871 -> "87.1"; padded with figure spaces so that columns of it line up."""
    if share is None or not math.isfinite(share):
        return MISSING
    return f"{share * 100:.{digits}f}".rjust(3 + digits, FIGURE_SPACE)


def published(value: float) -> str:
    """A score in percent with the digits of its source: 87.1 and 88.85, their points below each other."""
    text = f"{value:.1f}{FIGURE_SPACE}" if round(value, 1) == value else f"{value:.2f}"
    return text.rjust(5, FIGURE_SPACE)


def rate(count: int, total: int) -> str:
    """Share of `total` in percent; "–" of nothing."""
    return percent(count / total) if total else MISSING


def interval(pair: tuple[float, float] | None, digits: int = 1) -> str:
    """(0.851, 0.888) -> "85.1–88.8"."""
    if pair is None:
        return ""
    low, high = pair
    return f"{percent(low, digits).strip(FIGURE_SPACE)}–{percent(high, digits).strip(FIGURE_SPACE)}"


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of shares in points, always with its sign: 0.02 -> "+2.0"."""
    if difference is None or not math.isfinite(difference):
        return MISSING
    text = f"{abs(difference) * 100:.{digits}f}"
    sign = "±" if float(text) == 0 else "+" if difference > 0 else MINUS
    return f"{sign}{text}"


def points_interval(pair: tuple[float, float], digits: int = 1) -> str:
    return f"{points(pair[0], digits)} to {points(pair[1], digits)}"


def number(value: float | None, digits: int = 0) -> str:
    """1234567 -> "1,234,567"."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.{digits}f}"


def significant(value: float | None) -> str:
    """Two or three digits that count: 0.0421 -> "0.042", 7.13 -> "7.1", 88.4 -> "88"."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0 or abs(value) >= 10:
        return number(value)
    return f"{value:.{1 if abs(value) >= 1 else min(6, 1 - math.floor(math.log10(abs(value))))}f}"


def logged(value: float | None) -> str:
    """Four digits of a metric of any size: 0.00002 -> "2e-05", 1234.5 -> "1,234"."""
    if value is None or not math.isfinite(value):
        return MISSING
    return number(value) if 1000 <= abs(value) < 1e6 else f"{MINUS * (value < 0)}{abs(value):.4g}"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """45 -> "45 s", 7325 -> "2 h 2 min"."""
    if not math.isfinite(seconds):
        return MISSING
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def parameters(count: float | None) -> str:
    """135e6 -> "135M", 7.1e9 -> "7.1B"."""
    if not count:
        return MISSING
    scale, unit = (1e9, "B") if count >= 1e9 else (1e6, "M")
    return f"{count / scale:.3g}{unit}"


def file_size(count: int) -> str:
    """269e6 -> "269 MB", 5.41e9 -> "5.41 GB"."""
    scale, unit = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / scale:.3g} {unit}"


def url(id: str) -> str:
    """A run's or task's id as one segment of a path or one value of a fragment."""
    return quote(id, safe="", errors="replace")  # half a surrogate pair is "?" in the viewer's data too


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, text) in their own order; for a table of provenance."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows.extend(flat(value, f"{name}."))
        elif isinstance(value, list | tuple):
            rows.append((name, "\n".join(map(_plain, value)) if value else "none"))
        else:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
