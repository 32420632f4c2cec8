"""Prompts for reinforcement learning: rows that have options and a gold, asked exactly as the evaluation asks them.

    python -c "from medbench.trainers.data.prompts import prompt_order; print(prompt_order(3, 5, seed=0))"

Nothing is shown to the model but the protocol's own turns in the model's own chat template, so that what a reward pays
for is what a gate measures.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.protocols.chat import Tokenizer, encode
from medbench.harness.protocols.protocol import Protocol
from medbench.trainers.data.rendering import is_templated, prompt_text
from medbench.trainers.data.rows import Row, Source, load_rows


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model is asked it."""

    question: Question
    text: str
    tokens: int

    def columns(self) -> dict[str, Any]:
        """A row of the data set that GRPOTrainer gets: what is asked, and what the rewards read."""
        asked = self.question
        return {
            "prompt": self.text,
            "question": asked.question,
            "options": list(asked.options),
            "labels": list(asked.labels),
            "gold": asked.gold,
            "context": asked.context,
        }


def load_questions(sources: Sequence[Source]) -> list[Row]:
    """The rows of all sources. Raises MedbenchError naming file and line, also of one with nothing to choose from."""
    rows = load_rows(sources)
    free = next((row for row in rows if not row.question.labels), None)
    if free is not None:
        raise MedbenchError(
            f"{free.where}: a free-text row has no options, so no reward can judge a reply to it: take "
            f"rows with options and an answer, or PubMedQA's"
        )
    return rows


class Asker:
    """Turns questions into the prompts that the evaluation sends to a local engine (evaluate.build_request)."""

    def __init__(self, protocol: Protocol, tokenizer: Tokenizer) -> None:
        self.templated = is_templated(protocol, tokenizer)
        self._protocol = protocol
        self._tokenizer = tokenizer

    def prompt(self, question: Question) -> Prompt:
        text = prompt_text(self._protocol, self._tokenizer, self._protocol.messages(question))
        return Prompt(question, text, len(self.ids(text)))

    def ids(self, text: str) -> list[int]:
        """The tokens that the evaluation's engines see: no second BOS behind a template's own."""
        return encode(self._tokenizer, text, self.templated)

    def fitting(self, rows: Iterable[Row], most: int) -> list[Prompt]:
        """The prompts of at most `most` tokens."""
        return [prompt for prompt in (self.prompt(row.question) for row in rows) if prompt.tokens <= most]


def prompt_order(n: int, draws: int, seed: int) -> list[int]:
    """`draws` of the indices 0..n-1: every one once in each pass, each pass in an order of its own.

    Laid out beforehand, because TRL's sampler shuffles a resumed second pass as it had shuffled the first.
    """
    shuffled = random.Random(seed)
    order: list[int] = []
    while len(order) < draws:
        order += shuffled.sample(range(n), n)
    return order[:draws]
