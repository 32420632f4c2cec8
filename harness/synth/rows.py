"""Rows that passed, in the forms that the trainers read, each with where it came from.

A file holds one form (docs/training.md): multiple_choice and pubmedqa for questions with options, question_answer for a
short ground truth, messages for answers in free text. The column `provenance` is read by no trainer.
"""

from __future__ import annotations

from typing import Any, Literal

from medbench.harness.contracts import Question
from medbench.harness.synth.questions import Asked
from medbench.harness.synth.reading import Parts
from medbench.trainers.data.forms import ADAPTERS

Form = Literal["multiple_choice", "pubmedqa", "question_answer", "messages"]


def form_of(asked: Asked) -> Form:
    question = asked.question
    if question.labels:
        return "pubmedqa" if question.options == question.labels else "multiple_choice"
    return "question_answer" if asked.verifiable else "messages"


def row_of(asked: Asked, parts: Parts) -> dict[str, Any]:
    """A line of the file of `form_of(asked)`, without its provenance. Raises ValueError where no trainer could read
    it, for instance for a think tag inside the reasoning."""
    form = form_of(asked)
    row = _COLUMNS[form](asked, parts)
    if asked.evidence and asked.evidence != asked.question.context and form != "messages":
        row["source"] = asked.evidence  # by which a judge reads replies, in grpo too
    ADAPTERS[form]("", row)
    return row


def _multiple_choice(asked: Asked, parts: Parts) -> dict[str, Any]:
    question = asked.question
    return {
        "question": question.question,
        "options": dict(zip(question.labels, question.options, strict=True)),
        "answer_idx": question.gold,
        "reasoning": parts.reasoning,
    }


def _pubmedqa(asked: Asked, parts: Parts) -> dict[str, Any]:
    question = asked.question
    return {
        "pubid": question.id,
        "question": question.question,
        "context": {"contexts": [question.context]},
        "long_answer": parts.reasoning,
        "final_decision": question.gold,
    }


def _question_answer(asked: Asked, parts: Parts) -> dict[str, Any]:
    question = asked.question
    more = {"context": question.context, "system": asked.system}
    return {
        "question": question.question,
        **{name: text for name, text in more.items() if text},
        "reasoning": parts.reasoning,
        "answer": question.gold,
    }


def _messages(asked: Asked, parts: Parts) -> dict[str, Any]:
    turns: list[dict[str, str]] = [{"role": "system", "content": asked.system}] if asked.system else []
    turns.append({"role": "user", "content": _told(asked.question)})
    turns.append({"role": "assistant", "content": parts.answer, "reasoning_content": parts.reasoning})
    return {"messages": turns}


def _told(question: Question) -> str:
    return "\n\n".join(part for part in (question.context, question.question) if part)


_COLUMNS = {
    "multiple_choice": _multiple_choice,
    "pubmedqa": _pubmedqa,
    "question_answer": _question_answer,
    "messages": _messages,
}
