"""The questions of a recipe's sources, one at a time and always in the same order.

for asked in questions_of(recipe): print(asked.at, asked.kind.name, asked.question.question)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from medbench.harness.benchmarks.rows import cluster_id, content_id
from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.synth.prompts import AUTO, Kind, kind_by_rules, load_kind
from medbench.harness.synth.recipe import SynthRecipe, SynthSource
from medbench.trainers.data.conversations import Conversation
from medbench.trainers.data.questions import Row
from medbench.trainers.data.rows import rows_in


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a source."""

    at: int
    """Its place among the questions of all sources, from 0."""
    source: str
    where: str
    """File and line, for messages."""
    question: Question
    kind: Kind
    verifiable: bool
    """Whether a reply's answer is right or wrong, which without options takes a short ground truth."""
    reference: str
    """The row's own reasoning or, without any, its answer in free text; "" if it has neither."""
    evidence: str = ""
    """The text that comes with the row for judging its replies, such as the question's context; "" if none does."""
    system: str = ""


def questions_of(recipe: SynthRecipe, limit: int | None = None) -> Iterator[Asked]:
    """The first question of each source, then the second of each, and so on, `limit` at most.

    Raises MedbenchError naming file and line of a row with a fault, or that asks no question that can be used.
    """
    return islice(_numbered(recipe), limit)


def _numbered(recipe: SynthRecipe) -> Iterator[Asked]:
    rules = [(re.compile(rule.matches, re.IGNORECASE), rule.kind) for rule in recipe.kinds]
    rows = [_rows(source) for source in recipe.sources]
    waiting = list(zip(recipe.sources, rows, strict=True))
    at = 0
    while waiting:
        left = []
        for source, one in waiting:
            row = next(one, None)
            if row is None:
                continue
            left.append((source, one))
            yield _asked(at, source, row, rules, recipe.filters.answer)
            at += 1
        waiting = left


def _rows(source: SynthSource) -> Iterator[Row]:
    empty = True
    for row in rows_in(source):
        empty = False
        yield row if isinstance(row, Row) else _exchange(row)
    if empty:
        raise MedbenchError(f"{source.name}: no rows, so there is nothing to ask")


def _exchange(chat: Conversation) -> Row:
    """A chat of one question and its reply."""
    users = [turn for turn in chat.turns if turn.role == "user"]
    if len(users) != 1:
        raise MedbenchError(
            f"{chat.where}: a chat with {len(users)} questions, and synth asks one a row: split it, or leave it out"
        )
    system = next((turn.content for turn in chat.turns if turn.role == "system"), "")
    reply = next(turn for turn in chat.turns if turn.role == "assistant")
    text = users[0].content
    question = Question(content_id(system, text), cluster_id(text, ()), text, (), (), reply.content)
    return Row(chat.where, question, reply.reasoning, reply.content, system)


def _asked(at: int, source: SynthSource, row: Row, rules: list[tuple[re.Pattern[str], str]], answers: bool) -> Asked:
    verifiable = bool(row.question.labels) or row.verifiable
    if answers and not verifiable:
        raise MedbenchError(
            f"{row.where}: an answer in free text, with which no reply can be compared: set filters.answer: false, or "
            f"use rows with options, PubMedQA's, or question and answer with a short ground truth"
        )
    name = source.kind
    if name == AUTO:
        asked = row.question.question
        name = next((kind for pattern, kind in rules if pattern.search(asked)), AUTO)
    kind = load_kind(kind_by_rules(row.question) if name == AUTO else name)
    return Asked(
        at=at,
        source=source.name,
        where=row.where,
        question=row.question,
        kind=kind,
        verifiable=verifiable,
        reference=row.reasoning or row.answer,
        evidence=row.source or row.question.context,
        system=row.system,
    )


def text_to_judge_by(asked: Asked, against: str) -> str:
    """`against` as in a recipe's judge. Raises MedbenchError where the row has no such text."""
    text = asked.evidence if against == "source" else asked.reference
    if not text.strip():
        other = "reference" if against == "source" else "source"
        raise MedbenchError(
            f"{asked.where}: no {against} to judge by: set filters.judge.against: {other}, or leave the judge out"
        )
    return text
