"""Rows that ask one question: benchmark questions with options, and free text.

Functions that read a row raise ValueError with one line; the caller puts file and row before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from medbench.harness.benchmarks.rows import cluster_id, content_id
from medbench.harness.contracts import LETTERS, Question
from medbench.trainers.data import columns
from medbench.trainers.data.columns import Raw
from medbench.trainers.data.overlap import TrainingText
from medbench.trainers.rewards.free_answer import ground_truth

DECISIONS = ("yes", "no", "maybe")
_INDICES = tuple(str(index) for index in range(len(LETTERS)))


@dataclass(frozen=True, slots=True)
class Row:
    """One row to train on."""

    where: str
    """File and line, for messages."""
    question: Question
    """Has no labels if the answer is free text."""
    reasoning: str
    """Text for the <think> block; "" if the data set has none."""
    answer: str
    """Free text, used as it is; "" if the question has labels: then the protocol says how its gold is written."""
    system: str = ""
    """System prompt of a question without labels; the protocol says that of one with labels."""
    verifiable: bool = False
    """Whether `question.gold` is a ground truth with which replies in free text can be compared (free_answer.py)."""
    source: str = ""
    """The text by which a judge reads the reasoning of replies, such as an abstract or a reference reasoning; "" if the
    row has none. The model does not see it, unless it is the question's context."""

    def screened(self, number: int) -> TrainingText:
        """What the contamination screening reads; `number` counts the rows of all sources from 1."""
        asked = self.question
        source = "" if self.source == asked.context else self.source
        parts = (self.system, asked.context, asked.question, *asked.options, self.reasoning, self.answer, source)
        return TrainingText(number, "\n".join(part for part in parts if part), asked.question)

    def with_system(self, system: str) -> Row:
        """The same, with a system prompt if it has none. Raises ValueError for a row with options."""
        if self.question.labels:
            raise ValueError("system: rows with options are asked as the protocol says: leave `system` out")
        return self if self.system else replace(self, system=system)

    def without_reasoning(self) -> Row:
        return replace(self, reasoning="")


def structured_medical(where: str, raw: Raw) -> Row:
    return _free_text(where, raw, "case", "reasoning", "answer")


def huatuo_o1(where: str, raw: Raw) -> Row:
    if "options" in raw:
        columns.text(raw, "reasoning")
        return multiple_choice(where, raw)
    return _free_text(where, raw, "Question", "Complex_CoT", "Response")


def _free_text(where: str, raw: Raw, asked: str, reasoning: str, answer: str) -> Row:
    text, answer = columns.text(raw, asked), columns.text(raw, answer)
    if any(tag in answer for tag in columns.TAGS):
        raise ValueError("the answer contains a <think> tag: remove the reasoning from it")
    question = Question(content_id(text), cluster_id(text, ()), text, (), (), answer)
    return Row(where, question, columns.thought(columns.text(raw, reasoning)), answer)


def pubmedqa(where: str, raw: Raw) -> Row:
    text, decision = _as_asked(raw), columns.text(raw, "final_decision")
    if decision not in DECISIONS:
        raise ValueError(f"final_decision: {decision!r} is not one of {', '.join(DECISIONS)}")
    context = _abstract(raw)
    question = Question(
        str(raw.get("pubid", content_id(text))),
        cluster_id(text, (context,)),
        text,
        DECISIONS,
        DECISIONS,
        decision,
        context,
    )
    conclusion = next((name for name in ("LONG_ANSWER", "long_answer") if name in raw), None)
    reasoning = columns.thought(columns.text(raw, conclusion)) if conclusion is not None else ""
    return Row(where, question, reasoning, "", source=columns.source(raw) or context)


def _abstract(raw: Raw) -> str:
    """PubMedQA's own column, which is JSON in a cell of a CSV file, or one text."""
    given = raw.get("context")
    if isinstance(given, str) and not given.lstrip().startswith("{"):
        return columns.text(raw, "context")
    given = columns.listed(raw, "context")
    contexts = given.get("contexts") if isinstance(given, Mapping) else None
    if not isinstance(contexts, list) or not contexts or not all(isinstance(one, str) for one in contexts):
        raise ValueError(f"context.contexts: expected a list of texts{columns.there(raw)}")
    return "\n".join(contexts)  # as tasks/pubmedqa joins them


def multiple_choice(where: str, raw: Raw) -> Row:
    text, options = _as_asked(raw), _options(raw)
    labels = tuple(LETTERS[: len(options)])
    column = next((name for name in ("reasoning", "explanation") if raw.get(name) is not None), None)
    question = Question(
        content_id(text, *options), cluster_id(text, options), text, options, labels, _gold(raw, options, labels)
    )
    reasoning = columns.thought(columns.text(raw, column)) if column else ""
    return Row(where, question, reasoning, "", source=columns.source(raw))


def _options(raw: Raw) -> tuple[str, ...]:
    given = columns.listed(raw, "options")
    if isinstance(given, Mapping):
        given = {label: text for label, text in given.items() if text is not None}  # the Hub pads with None
        if sorted(given) != list(LETTERS[: len(given)]):
            raise ValueError(f"options: keys must be A, B, ... in order, found {columns.names(given)}")
        given = [given[label] for label in sorted(given)]
    if not isinstance(given, list) or not all(isinstance(one, str) and one.strip() for one in given):
        raise ValueError(f"options: expected an object or a list of texts{columns.there(raw)}")
    if not 2 <= len(given) <= len(LETTERS):
        raise ValueError(f"options: expected 2 to {len(LETTERS)}, found {len(given)}")
    return tuple(given)


def _gold(raw: Raw, options: tuple[str, ...], labels: tuple[str, ...]) -> str:
    """The label given by answer_idx (or answer): a letter, an index from 0, or the option's text."""
    column = "answer_idx" if raw.get("answer_idx") is not None else "answer"
    given = raw.get(column)
    if given is None:
        raise ValueError(f"no column answer_idx or answer{columns.there(raw)}")
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(labels):
        return labels[given]
    if given in labels:
        return str(given)
    if options.count(given) == 1:
        return labels[options.index(given)]
    if given in _INDICES[: len(labels)]:  # a table of text has no other numbers
        return labels[int(given)]
    raise ValueError(f"{column}: {str(given)[:80]!r} is not one of the options {', '.join(labels)}")


def _as_asked(raw: Raw) -> str:
    """The question exactly as the evaluation asks it, spaces included."""
    columns.text(raw, "question")
    return str(raw["question"])


def question_answer(where: str, raw: Raw) -> Row:
    answer = raw.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        raw = {**raw, "answer": str(answer)}
    row = exchange(where, raw, columns.text(raw, "question"), "answer", columns.optional_text(raw, "context"))
    source = columns.source(raw) or row.question.context
    return replace(row, question=replace(row.question, gold=ground_truth(row.answer)), verifiable=True, source=source)


def exchange(where: str, raw: Raw, asked: str, column: str, context: str = "") -> Row:
    """A free-text question with its reply in `column`; the context is shown before the question."""
    reasoning, answer = columns.reply(raw, column)
    question = Question(
        content_id(context, asked), cluster_id(asked, (context,) if context else ()), asked, (), (), answer, context
    )
    return Row(where, question, reasoning, answer, columns.optional_text(raw, "system"))
