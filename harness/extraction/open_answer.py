r"""The number, date, or weeks and days that a completion gives as its answer: extractor quantity-v1.

    python -c "from medbench.harness.extraction.open_answer import extract; print(extract('The answer is (24.10 mL).'))"

Only the text after the reasoning is read. The last statement that gives a quantity counts ("The answer is", "Result:",
\boxed{}, a JSON key or a tag "answer"); without any, a last line that is nothing else or ends in "= 24.1". A statement
is no answer where it is denied, doubted or hypothetical; one that gives a range or two quantities is ambiguous, and a
bound ("above 24") is none. Units are not read.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from medbench.harness.contracts import Extraction
from medbench.harness.extraction.answer import outside_reasoning
from medbench.harness.extraction.cleaning import Cleaned
from medbench.harness.extraction.doubt import is_not_meant
from medbench.harness.extraction.quantity import Quantity, first_quantity

STATEMENT_CHARACTERS = 160
"""So much is read of a statement, at most its line and sentence."""
GAP_CHARACTERS = 48
"""Between the words that open a statement and its quantity, unless brackets enclose it."""

_OPENING = re.compile(
    r"\\boxed\s{0,3}\{"
    r"|[\"']answer[\"']\s{0,9}:"
    r"|<answer>"
    r"|\b(?:answer|result)(?:\s{1,3}(?:to|of|for)\s[^.\n:=]{1,60}?)?[*_\"'”’]{0,4}"
    r"(?:\s{1,3}(?:is|was|equals|would\s{1,3}be|comes\s{1,3}(?:out\s{1,3})?to)\b|\s{0,3}[:=≈])",
    re.IGNORECASE,
)
_MARKS = re.compile(r"(?:[\s*_`$:#|\"'“]|\\[(\[,;: ]|\\(?:text|mathrm|mathbf|approx)\b\{?)*")
_END = re.compile(r"\n|(?<!\bca)(?<!\bapprox)[.;!?](?=[\s*_\"')\]}]|$)|</answer>", re.IGNORECASE)
_NOT_A_VALUE = re.compile(
    r"\W*(?:not|never|unlikely|unknown|undetermined|unclear|cannot|can['’]t|none|n/a|in|on|at|from|as|by|because|since|"
    r"based|obtained|found|calculated|computed|derived|determined|given|correct|incorrect|wrong|right|consistent)\b",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"(?:[<>≤≥]|\b(?:(?:less|greater|more|higher|lower|fewer|larger|smaller)\s{1,3}than|above|below|over|under|exceeds|"
    r"at\s{1,3}least|at\s{1,3}most|up\s{1,3}to|between))\s{0,3}[=$\\(]{0,3}\s{0,3}$",
    re.IGNORECASE,
)
_OTHER = re.compile(
    r"[*_`$)\]%°]{0,4}\s{0,2}(?!round|equiv|equal|correspond|compar|relat|due|accord)[A-Za-zµμ/%²^·]{0,16}[*_`$)\]]{0,4}"
    r"(?:\s{0,2}[-–—~]\s{0,2}|\s{1,3}(?:or|to)\s{1,3}(?:maybe\s|perhaps\s|possibly\s|about\s)?)[*_`$(]{0,4}[-−]?\d",
    re.IGNORECASE,
)
"""A second quantity behind the first."""
_EQUALS = re.compile(r"[=≈]")
_COMPUTED_WITH = re.compile(r"\s{0,2}(?:[+×÷=≈^]|\s[*/]\s|[*/]\d|[-–−]\s?\(?\d)")
_NUMBERED = re.compile(r"\W{0,8}\d{1,3}[.)]\s")
_UNIT = re.compile(
    r"[*_`$)\]}\s]{0,6}(?:\\?(?:text|mathrm)?\{?\s?[A-Za-zµμ%°]\S{0,20}(?:\s?m(?:2|²|\^2))?)?[*_`$)\]}\s.]{0,6}$"
)


class _Found(NamedTuple):
    """What a statement gives."""

    quantity: Quantity
    alone: bool
    """Whether it gives no other."""


def extract(
    text: str,
    /,
    *,
    labels: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
    finish_reason: str = "stop",
    opened: bool = False,
) -> Extraction:
    """The quantity that the completion `text` gives as its answer, in the form that module quantity gives it.

    `labels` and `options` are for questions with options, and not used. `opened` says that the prompt has opened the
    reasoning. Takes time linear in the length of `text`.
    """

    def read(cleaned: Cleaned, cut_off: bool) -> Extraction | None:
        found = _answer(cleaned.text, cut_off=cut_off)
        return _extraction(found, cleaned) if found is not None else None

    return outside_reasoning(text, read, finish_reason=finish_reason, opened=opened)


def _answer(text: str, *, cut_off: bool) -> _Found | None:
    """The statement that counts."""
    last = None
    for opening in _OPENING.finditer(text):
        found = _stated(text, opening.start(), opening.end())
        # "The answer is (12" may have been about to go on with "0.5"
        if found is not None and not (cut_off and not text[found.quantity.end :].strip(".,")):
            last = found
    return last if last is not None or cut_off else _last_line(text)


def _stated(text: str, opens: int, at: int) -> _Found | None:
    """What the statement that text[opens:at] opens gives."""
    if is_not_meant(text, opens, at):
        return None
    marks = _MARKS.match(text, at)
    start = marks.end() if marks else at
    limit = min(len(text), start + STATEMENT_CHARACTERS)
    stop = _END.search(text, start, limit)
    end = stop.start() if stop else limit
    bracketed = text.startswith(("(", "[", "{"), start) or text[at - 1] in "{>"
    if not bracketed and _NOT_A_VALUE.match(text, start, end):
        return None
    direct = _value(text, start, end, gap=2)
    if direct is not None and not _COMPUTED_WITH.match(text, direct.quantity.end, end):
        return direct
    for equals in [*_EQUALS.finditer(text, start, end)][::-1]:  # "clearance = 140 / 2 = 70 mL/min"
        if (found := _value(text, equals.end(), end, gap=GAP_CHARACTERS)) is not None:
            return found
    return _value(text, start, end, gap=STATEMENT_CHARACTERS if bracketed else GAP_CHARACTERS)


def _value(text: str, start: int, end: int, *, gap: int) -> _Found | None:
    quantity = first_quantity(text, start, end)
    if quantity is None or quantity.start - start > gap or _BOUND.search(text[start : quantity.start]):
        return None
    return _Found(quantity, not _OTHER.match(text, quantity.end, end))


def _last_line(text: str) -> _Found | None:
    bare = text.rstrip()
    start = max(bare.rfind("\n") + 1, len(bare) - STATEMENT_CHARACTERS)
    if _NUMBERED.match(bare, start):
        return None
    value = max((match.end() for match in _EQUALS.finditer(bare, start)), default=start)
    found = _value(bare, value, len(bare), gap=4)
    return found if found is not None and _UNIT.match(bare, found.quantity.end) else None


def _extraction(found: _Found, cleaned: Cleaned) -> Extraction:
    quantity = found.quantity
    span = cleaned.origin[quantity.start], cleaned.origin[quantity.end - 1] + 1
    if not found.alone:
        return Extraction(None, "ambiguous", span)
    return Extraction(quantity.written, "answered", span)
