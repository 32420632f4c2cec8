"""The steps of a reply: the sentences of its thought, or of what it writes before its answer.

python -c "from medbench.harness.judges.steps import sentences; print(sentences('E. coli grew. HbA1c fell by 0.5.'))"
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from medbench.harness.contracts import Sample
from medbench.harness.extraction.thinking import opens_reasoning, split_reasoning, without_marks

LANGUAGE = "en"
LONGEST_HEADING = 60
"""Characters; a longer line that ends with a colon is a sentence that leads to a list."""
_LIST_MARK = re.compile(
    r"(?:[-*+•–—>]\s+|#{1,6}\s*|\(?\d{1,3}[.)]\s+|\(?[a-z]\)\s+|[a-z]\.\s+(?-i:(?=[A-Z]))"
    r"|\*{0,2}step \d{1,3}\s*[:.)-]\*{0,2}\s*)+",
    re.IGNORECASE,
)
_HEADING = re.compile(r"#{1,6}\s|\*\*[^*]+\*\*:?\s*$|__[^_]+__:?\s*$")
_EMPHASIS = re.compile(r"\*{1,3}(?=\S)|(?<=\S)\*{1,3}|__(?=\S)|(?<=\S)__|`+")
_LETTER = re.compile(r"[^\W\d_]")
_ANSWER = re.compile(
    r"(?:(?:so|thus|hence|therefore|overall|in\s+(?:conclusion|summary|short))\b,?\s+)?(?:the\s+|my\s+)?"
    r"(?:(?:final|correct|best|right)\s+)?answer(?:\s+to\s+(?:the|this)\s+question)?\s*(?:is|would\s+be|:)\s*:?\s*"
    r"(?:option\s+)?[\"'(\[]{0,3}(?:yes|no|maybe|[A-Z])[\"')\].!]{0,4}",
    re.IGNORECASE,
)
"""A sentence that says nothing but the answer."""
_ENDED = re.compile(r"[.!?:;…。]['\")\]*]*$")


def steps_of(sample: Sample) -> list[str]:
    """In the order of the reply; empty for a failed request and for a reply that only answers.

    Sentences that only state the answer are left out, as often as a reply repeats them.
    """
    if sample.error is not None:
        return []
    steps = steps_in(
        sample.output,
        opened=opens_reasoning(sample.prompt),
        answer_at=None if sample.span is None else sample.span[0],
        cut_off=sample.finish_reason == "length",
    )
    return [step for step in steps if not _ANSWER.fullmatch(step)]


def steps_in(reply: str, *, opened: bool, answer_at: int | None = None, cut_off: bool = False) -> list[str]:
    """With a thought, its sentences. Without one, those before the one in which the answer was found, at `answer_at`:
    that is judged by the right answer already. Half a sentence, where a reply was cut off, is no step.

    `opened`: the prompt has opened the thought.
    """
    parts = split_reasoning(reply, opened=opened)
    if parts.reasoning.strip():
        found = sentences(without_marks(parts.reasoning))
        return found if parts.closed else _whole(found)
    if answer_at is None:
        found = sentences(reply)
        return _whole(found) if cut_off else found
    # the sentence with the answer begins before it: what is cut off there is dropped, unless a sentence ends just there
    before = reply[: min(answer_at, len(reply))]
    whole = sentences(reply)
    found = sentences(before)
    return found[: _common(found, whole)]


def sentences(text: str) -> list[str]:
    """Split at the ends of sentences and list items; without list marks, emphasis, headings, and what has no letter."""
    return [sentence for block in _blocks(text) for sentence in _split(block)]


def _whole(found: list[str]) -> list[str]:
    return found[:-1] if found and not _ENDED.search(found[-1]) else found


def _common(found: list[str], whole: list[str]) -> int:
    for at, (one, other) in enumerate(zip(found, whole, strict=False)):
        if one != other:
            return at
    return min(len(found), len(whole))


def _split(block: str) -> Iterator[str]:
    import sentencex

    # halves of surrogate pairs are no text for it
    for piece in sentencex.segment(LANGUAGE, block.encode("utf-8", "replace").decode()):
        sentence = " ".join(piece.split())
        if _LETTER.search(sentence):
            yield sentence


def _blocks(text: str) -> Iterator[str]:
    """Lines without their marks; a line that goes on with a small letter belongs to the one before."""
    block = ""
    for raw in text.splitlines():
        line = raw.strip()
        if not line or _is_heading(line):
            yield block
            block = ""
            continue
        mark = _LIST_MARK.match(line)
        body = _EMPHASIS.sub("", line[mark.end() if mark else 0 :]).strip()
        if block and mark is None and body[:1].islower() and not _ENDED.search(block):
            block = f"{block} {body}"
        else:
            yield block
            block = body
    yield block


def _is_heading(line: str) -> bool:
    return bool(_HEADING.match(line)) or (line.endswith((":", ":**")) and len(line) <= LONGEST_HEADING)
