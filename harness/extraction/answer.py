"""The answer that a completion gives, or why it gives none. Evaluation, re-scoring, lm-eval and rewards all use it.

    python -c "from medbench.harness.extraction.answer import extract; print(extract('Answer: B', labels=('A', 'B')))"

Only the text after the reasoning is read. Statements are looked for by kind, the strongest kind first, and within a
kind from the end backwards, because a later statement corrects an earlier one; behind a second thought ("wait, ...")
weaker kinds correct it too. A statement that names several labels is ambiguous; one that names a letter that is not a
label is no answer. Neither falls back to a weaker kind. A letter that is part of a term ("C. difficile", "B cells") is
no statement, unless the option of that letter says the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from medbench.harness.contracts import Extraction, Note
from medbench.harness.extraction.choices import Choices
from medbench.harness.extraction.cleaning import Cleaned, clean
from medbench.harness.extraction.patterns import NEXT_TURN, REFUSAL, REVISION, TAKEN_BACK
from medbench.harness.extraction.statements import OBJECT_CHARACTERS, Statement, Statements
from medbench.harness.extraction.thinking import split_reasoning

READ_CHARACTERS = 100_000
"""Only this much of a completion is read, from its end: eight times the length of 4,096 tokens of prose."""

_REVISION = re.compile(REVISION, re.IGNORECASE)
_TAKEN_BACK = re.compile(TAKEN_BACK, re.IGNORECASE)


def extract(
    text: str,
    *,
    labels: tuple[str, ...],
    options: tuple[str, ...] = (),
    finish_reason: str = "stop",
    opened: bool = False,
) -> Extraction:
    """The one of `labels` that the completion `text` gives as its answer, or None and the reason.

    `options` are the labels' texts, so that "The answer is aspirin" is understood. `opened` says that the prompt has
    opened the reasoning. Takes time linear in the length of `text`.
    """
    choices = Choices(labels, options)

    def read(cleaned: Cleaned, cut_off: bool) -> Extraction | None:
        found = _decisive(cleaned.text, choices)
        return _extraction(found, cleaned) if found is not None else None

    return outside_reasoning(text, read, finish_reason=finish_reason, opened=opened)


def outside_reasoning(
    text: str, read: Callable[[Cleaned, bool], Extraction | None], *, finish_reason: str, opened: bool
) -> Extraction:
    """What `read` finds in the text after the reasoning, up to a question of the completion's own if it finds something
    there; or why there is no answer.

    `read` is given the text and whether the token limit cut it off.
    """
    parts = split_reasoning(text, opened=opened)
    cut_off = finish_reason == "length"
    note: Note | None = "unmarked_thought" if parts.guessed else None
    if not parts.closed or (parts.guessed and cut_off):
        return Extraction(None, "truncated" if cut_off else "unparsed", note=note)
    end = parts.offset + len(parts.answer)
    start = max(parts.offset, end - READ_CHARACTERS)
    later = next((turn for turn in NEXT_TURN.finditer(text, start, end) if text[start : turn.start()].strip()), None)
    if later is not None:
        first = read(clean(text[: later.start()], start), False)
        if first is not None:
            return replace(first, note="went_on")
    whole = clean(text[:end], start)
    if not whole.text.strip():
        return Extraction(None, "truncated" if cut_off and parts.reasoning else "empty")
    found = read(whole, cut_off)
    if found is not None:
        return replace(found, note=note)
    if REFUSAL.search(whole.text):
        return Extraction(None, "refused", note=note)
    return Extraction(None, "truncated" if cut_off else "unparsed", note=note)


def _decisive(text: str, choices: Choices) -> Statement | None:
    """The statement that counts."""
    statements = Statements(text, choices)
    found = next(statements.of(0), None)
    revision = _REVISION.search(text, found.end) if found is not None else None
    if found is None or revision is None:
        return found
    second = next(statements.of(revision.start()), None)
    if second is not None and second.start > found.end:
        return second
    behind = text[revision.start() : revision.start() + OBJECT_CHARACTERS]
    return None if _TAKEN_BACK.search(behind) else found


def _extraction(found: Statement, cleaned: Cleaned) -> Extraction:
    last = min(found.end, len(cleaned.origin)) - 1
    span = cleaned.origin[min(found.start, last)], cleaned.origin[last] + 1
    if len(found.labels) == 1:
        return Extraction(found.labels[0], "answered", span)
    return Extraction(None, "ambiguous" if found.labels else "unparsed", span)
