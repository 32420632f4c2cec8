"""A reply taken apart: is its answer right, and where does its reasoning end?

A thought between marks is the reasoning as it is. Without marks, what comes before the sentence with the answer is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medbench.harness.contracts import Completion, Question
from medbench.harness.extraction.thinking import split_reasoning, without_marks
from medbench.harness.scoring.score import score_reply
from medbench.harness.synth.candidates import Candidate
from medbench.harness.synth.questions import Asked
from medbench.trainers.rewards.reply_format import read_reply

TOLERANCE = 0.01
"""By which a number in free text may differ from the ground truth, as a share of it: that of RewardConfig."""
_SENTENCE_END = re.compile(r"[.!?][\"')\]*_]*\s+|\n")
_HEADING = re.compile(r"(?:^|\n)[\W_]*(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|conclusion)[\W_]*\Z", re.IGNORECASE)
_ANSWER = re.compile(r"^[\s*_#>]*answer[\s*_]*:[\s*_]*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was read of a reply when it came."""

    answer: str | None
    right: bool | None
    span: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Parts:
    """A reply in two."""

    reasoning: str
    """Without marks; "" where there is none, or it was never closed."""
    answer: str
    """The text that states the answer."""
    closed: bool = True


def verdict_on(completion: Completion, asked: Asked, *, opened: bool) -> Verdict:
    """Nothing is right or wrong in a failed request."""
    if completion.error is not None:
        return Verdict(None, None, None)
    question, text = asked.question, completion.text
    if question.labels:
        read, score = score_reply(
            text,
            question.labels,
            question.options,
            question.gold,
            finish_reason=completion.finish_reason,
            opened=opened,
        )
        return Verdict(read.answer, bool(score), read.span)
    if not asked.verifiable:
        return Verdict(None, None, None)
    reply = read_reply(text, question, finish_reason=completion.finish_reason, opened=opened, tolerance=TOLERANCE)
    return Verdict(reply.answer.answer, reply.correct, reply.answer.span)


def parts_of(candidate: Candidate, question: Question) -> Parts:
    """Reasoning and answer of a reply that did not fail."""
    text = candidate.output
    parts = split_reasoning(text, opened=candidate.opened)
    if not parts.closed:
        return Parts("", "", closed=False)
    if parts.reasoning.strip():
        answer = parts.answer.strip()
        return Parts(without_marks(parts.reasoning).strip(), answer)
    if candidate.span is not None:
        start, end = candidate.span
        first = _start_of_sentence(text, start)
        stop = text.find("\n", end)
        return Parts(_trimmed(text[:first]), text[first : stop if stop >= 0 else None].strip())
    if question.labels or candidate.right is not None:
        return Parts(text.strip(), "")
    marks = list(_ANSWER.finditer(text))
    return Parts(_trimmed(text[: marks[-1].start()]), text[marks[-1].end() :].strip()) if marks else Parts("", "")


def _start_of_sentence(text: str, at: int) -> int:
    end = 0
    for found in _SENTENCE_END.finditer(text, 0, at):
        end = found.end()
    return end


def _trimmed(text: str) -> str:
    return _HEADING.sub("", text.rstrip()).strip()
