"""Text for people: one-line errors, printable characters, percentages, spelling suggestions."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def did_you_mean(name: str, known: list[str]) -> str:
    """ "did you mean X or Y?", or the first 20 known names when none is similar."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known)[:20])}"


def one_line(error: BaseException) -> str:
    """The error's message with line breaks and runs of spaces as single spaces."""
    return " ".join(str(error).split())


def percent(share: float | None) -> str:
    """A share 0..1 as a percentage with one decimal, without the sign; "-" for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def markdown_cell(text: str) -> str:
    """`text` as one line that stays inside its table cell and is no Markdown, HTML, link or mention."""
    escaped = re.sub(r"([\\`*_{}\[\]#|~$!:@])", r"\\\1", " ".join(printable(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def printable(text: str) -> str:
    """`text` with each control character except newline and tab replaced by U+FFFD."""
    return CONTROL.sub("\ufffd", text)


def without_halves(content: Any) -> Any:
    """What was read from JSON, with "?" for each half of a surrogate pair: no output could hold one."""
    return json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
