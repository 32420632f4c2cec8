"""Prompts for reinforcement learning: rows with options and a gold answer, asked exactly as the evaluation asks them.

The model sees only the protocol's turns in its own chat template, so that rewards and gates measure the same thing.
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
    """A question as the model sees it."""

    question: Question
    text: str
    tokens: int

    def columns(self) -> dict[str, Any]:
        """A row of GRPOTrainer's dataset: the prompt, and the columns that the rewards need."""
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
    """The rows of all sources. Raises MedbenchError naming file and line of a row with a fault or without options."""
    rows = load_rows(sources)
    free = next((row for row in rows if not row.question.labels), None)
    if free is not None:
        raise MedbenchError(
            f"{free.where}: a free-text row has no options, so no reward can judge a reply to it: use "
            f"rows with options and an answer, or PubMedQA's"
        )
    return rows


class Asker:
    """Turns questions into the prompts that the evaluation sends to a local engine (evaluation/requests.py)."""

    def __init__(self, protocol: Protocol, tokenizer: Tokenizer) -> None:
        self.templated = is_templated(protocol, tokenizer)
        self._protocol = protocol
        self._tokenizer = tokenizer

    def prompt(self, question: Question) -> Prompt:
        text = prompt_text(self._protocol, self._tokenizer, self._protocol.messages(question))
        return Prompt(question, text, len(self.ids(text)))

    def ids(self, text: str) -> list[int]:
        """The tokens that the evaluation's engines see: without a second BOS after the template's."""
        return encode(self._tokenizer, text, self.templated)

    def fitting(self, rows: Iterable[Row], most: int) -> list[Prompt]:
        """The prompts of `rows` with at most `most` tokens."""
        return [prompt for prompt in (self.prompt(row.question) for row in rows) if prompt.tokens <= most]


def prompt_order(n: int, draws: int, seed: int) -> list[int]:
    """`draws` indices from 0..n-1: each once per pass, and each pass in a new order.

    Fixed in advance, because TRL's sampler shuffles a resumed second pass in the order of the first.
    """
    shuffled = random.Random(seed)
    order: list[int] = []
    while len(order) < draws:
        order += shuffled.sample(range(n), n)
    return order[:draws]
