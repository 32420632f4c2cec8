"""Whether a statement is meant: not denied, not doubted, not about another case than the question's."""

from __future__ import annotations

import re

from medbench.harness.extraction.patterns import CONDITION, DOUBTED, FORCED

REACH = 160
"""How many characters before and behind a statement are read, at most its sentence."""

_DENYING = re.compile(r"(?:\b(?:not|cannot|never|nor|neither)|n['’]t)\b(?:\s+\w+){0,2}[\s(]*$", re.IGNORECASE)
_NONE_OF = re.compile(r"\b(?:none\s+of|neither|nor|not\s+(?:all|both)|no\s+longer)\b[^.\n]{0,60}$", re.IGNORECASE)
_DOUBTED = re.compile(DOUBTED, re.IGNORECASE)
_CONDITION = re.compile(CONDITION, re.IGNORECASE)
_FORCED = re.compile(FORCED, re.IGNORECASE)
_GUESS = re.compile(r"\b(?:might|may|could|possibly|perhaps|maybe)\b", re.IGNORECASE)
_WOULD = re.compile(r"\bwould\b", re.IGNORECASE)
_SENTENCE_START = re.compile(r".*(?:[.!?;]\s|\n|\b(?:but|however|yet|instead)\b[\s,])", re.DOTALL | re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.\n;]")
_FORMAL = ('"', "'", "<", "\\")
"""What begins a JSON key, a tag or a LaTeX command: no part of the sentence before it."""


def is_denied(text: str, at: int) -> bool:
    return bool(_DENYING.search(text[max(0, at - 30) : at]))


def is_not_meant(text: str, start: int, end: int) -> bool:
    """Whether what is said in text[start:end] ("the answer would be") is denied, doubted or hypothetical."""
    said = text[start:end]
    if said.startswith(_FORMAL):
        return False
    if _DENYING.search(text[max(0, start - 12) : end]) and not said.rstrip().endswith(("but", "rather")):
        return True
    if _DOUBTED.search(sentence_before(text, start) + said):
        return True
    return bool(_WOULD.search(said)) and is_conditional(text, start, end)


def is_guess(text: str, at: int) -> bool:
    """Whether the sentence says no more than that it might be."""
    return bool(_GUESS.search(sentence_before(text, at)))


def is_none_of(text: str, at: int) -> bool:
    """Whether a letter at `at` that is praised ("A is right") stands in "none of A, B ... is right", or is doubted."""
    sentence = sentence_before(text, at)
    return bool(_NONE_OF.search(sentence) or _DOUBTED.search(sentence) or _DENYING.search(sentence[-16:]))


def is_conditional(text: str, start: int, end: int) -> bool:
    """Whether the sentence around text[start:end] names a condition: "if she were pregnant"."""
    rest = _SENTENCE_END.split(text[end : end + REACH], maxsplit=1)[0]
    whole = f"{sentence_before(text, start)} {rest}"
    return bool(_CONDITION.search(whole)) and not _FORCED.search(whole)


def sentence_before(text: str, at: int) -> str:
    """The text before `at` of its sentence, or of its part behind "but"."""
    before = text[max(0, at - REACH) : at]
    begin = _SENTENCE_START.match(before)
    return before[begin.end() :] if begin else before
