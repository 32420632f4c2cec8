"""Text for people: one-line errors, printable characters, percentages, spelling suggestions."""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Callable
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
MISLEADING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that end a line, drive a terminal, turn text around, or cannot be written."""


def did_you_mean(name: str, known: list[str]) -> str:
    """ "did you mean X or Y?", or the first 20 known names when none is similar."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known)[:20])}"


def one_line(error: BaseException) -> str:
    """The error's message with line breaks and runs of spaces as single spaces."""
    return " ".join(str(error).split())


def escaped(text: str) -> str:
    """`text` on one line: line breaks, control characters and half characters as \\n, \\x1b, \\ud800."""
    return MISLEADING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def message(line: str, limit: int = 1900) -> str:
    """A message for people as one line of about `limit` characters at most; its end, the fix, is kept."""
    if len(line) > limit:
        line = f"{line[: limit - 505]} ... {line[-500:]}"
    return escaped(line)


def joined(value: object) -> object:
    """Text with line breaks and runs of blanks as single blanks; any other value as it is."""
    return " ".join(value.split()) if isinstance(value, str) else value


def foreign(value: object, limit: int = 200) -> str:
    """Something from outside, to be quoted in a message: escaped, and cut after `limit` characters."""
    text = value if isinstance(value, str) else _start_of_repr(value, limit)
    return escaped(text[:limit]) + (f"... ({len(text)} characters)" if len(text) > limit else "")


def _start_of_repr(value: object, limit: int) -> str:
    """repr() of a value of any size and depth, in bounded time; longer than `limit` where it has been cut."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 3, limit + 1, limit + 1, limit + 1
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = 6
    return short.repr(value)[: limit + 1]


def percent(share: float | None) -> str:
    """A share 0..1 as a percentage with one decimal, without the sign; "-" for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def duration(seconds: float, *, rounded: Callable[[float], int] = round) -> str:
    """An expected time, no more exact than such a thing is: "8 s", "40 s", "2 min", "1 h 20 min"."""
    if seconds <= 10:
        return f"{max(1, rounded(seconds))} s"
    if seconds <= 55:
        return f"{5 * rounded(seconds / 5)} s"
    minutes = rounded(seconds / 60)
    if minutes < 60:
        return f"{max(1, minutes)} min"
    hours, minutes = divmod(10 * rounded(seconds / 600), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def seconds_of(text: str) -> float:
    """ "90", "90s", "10m" or "1.5h" in seconds. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(s|m|min|h)?", text.strip())
    if found is None:
        raise ValueError(f"{foreign(text, 40)!r} is no time: write seconds, or 90s, 10m, 2h")
    return float(found[1]) * {"m": 60, "min": 60, "h": 3600}.get(found[2], 1)


def markdown_cell(text: str) -> str:
    """`text` as one line that stays inside its table cell and is no Markdown, HTML, link or mention."""
    quoted = re.sub(r"([\\`*_{}\[\]#|~$!:@])", r"\\\1", " ".join(printable(text).split()))
    return quoted.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def printable(text: str) -> str:
    """`text` with each control character except newline and tab replaced by U+FFFD."""
    return CONTROL.sub("\ufffd", text)


def without_halves(content: Any) -> Any:
    """What was read from JSON, with "?" for each half of a surrogate pair: no output could hold one."""
    return json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
