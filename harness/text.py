"""Text shown to people: one line, printable, percentages, spelling suggestions."""

from __future__ import annotations

import difflib
import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def did_you_mean(name: str, known: list[str]) -> str:
    """ " (did you mean X or Y?)", or the known names when nothing is near."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known)[:20])}"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def printable(text: str) -> str:
    """Each control character but new line and tab as U+FFFD."""
    return CONTROL.sub("\ufffd", text)
