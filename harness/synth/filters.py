"""What a reply must pass by itself, in the order of FILTERS; each says why a reply does not.

Form and repetition are those of the rewards, so that what is taught here would not be punished there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from medbench.harness.contracts import Question
from medbench.harness.synth.candidates import Candidate
from medbench.harness.synth.questions import Asked
from medbench.harness.synth.reading import TOLERANCE, Parts, parts_of
from medbench.harness.synth.recipe import Filters
from medbench.harness.text import foreign
from medbench.trainers.rewards.reasoning import reasoning_of
from medbench.trainers.rewards.reply_format import read_reply
from medbench.trainers.rewards.rewards import repetition_reward

Filter = Literal[
    "failed",  # the request failed, or the reply is empty
    "cut_off",  # by the token limit
    "form",  # no reasoning before one answer, or something hidden in it
    "repetition",
    "answer",  # not the right one
    "judge",  # a judge does not find the steps supported
    "pass_rate",  # the question is too hard or too easy
    "near_duplicate",  # of a reasoning that passed before
    "contamination",  # overlaps a benchmark question
]
FILTERS: tuple[Filter, ...] = get_args(Filter)
NGRAM = 4
NOT_TAUGHT = {"no_answer", "long_answer"}
"""Faults of the text behind the reasoning. Of questions with options that text is not taught: the trainers write the
answer as the protocol says."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A reply that does not pass."""

    filter: Filter
    reason: str
    """One of few, to be counted."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """A reply that passed every filter that looks at it alone."""

    parts: Parts
    repetition: float
    """Share of repeated n-grams beyond that of prose, 0..1."""


def judged_alone(candidate: Candidate, asked: Asked, filters: Filters) -> Dropped | Passed:
    if candidate.error is not None:
        return Dropped("failed", "the request failed", foreign(candidate.error, 300))
    if not candidate.output.strip():
        return Dropped("failed", "the reply is empty")
    if candidate.finish_reason != "stop":
        return Dropped("cut_off", "cut off by the token limit", f"{candidate.completion_tokens} tokens")
    parts = parts_of(candidate, asked.question)
    if not parts.reasoning:
        return Dropped("form", "unclosed" if not parts.closed else "no_reasoning")
    if filters.form and (fault := _fault_of_form(parts, candidate, asked, filters)):
        return Dropped("form", fault)
    repeated = abs(repetition_reward(parts.reasoning, NGRAM))
    if filters.repetition is not None and repeated > filters.repetition:
        return Dropped("repetition", "repeats itself", f"{repeated:.3f}")
    if filters.answer and not candidate.right:
        if candidate.answer is None:
            return Dropped("answer", "no answer was read")
        return Dropped("answer", "wrong", f"{foreign(candidate.answer, 60)}, not {foreign(asked.question.gold, 60)}")
    return Passed(parts, repeated)


def _fault_of_form(parts: Parts, candidate: Candidate, asked: Asked, filters: Filters) -> str | None:
    """The first fault of the reply as it would be taught, as the rewards name it."""
    question = asked.question
    if not asked.verifiable:
        question = _without_answer(question, parts.answer)
        if not parts.answer:
            return "no_answer"
    if candidate.answer is None and asked.verifiable:
        return "several_answers" if candidate.span is not None else "no_answer"
    reply = read_reply(f"<think>\n{parts.reasoning}\n</think>\n\n{parts.answer}", question, tolerance=TOLERANCE)
    ignored = NOT_TAUGHT if question.labels or not asked.verifiable else set()
    if faults := [fault for fault in reply.faults if fault not in ignored]:
        return faults[0]
    answer = candidate.answer or parts.answer
    found = reasoning_of(
        reply.thought, question, answer, least_steps=filters.least_steps, least_words=filters.least_words
    )
    if not found.present:
        return "no_reasoning"
    return "contradiction" if found.contradicts else None


def _without_answer(question: Question, answer: str) -> Question:
    """A question whose reply is free text is right whatever it says: only its form is looked at."""
    return Question(question.id, question.cluster, question.question, (), (), answer, question.context)
