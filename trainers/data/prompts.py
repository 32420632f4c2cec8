"""Prompts for reinforcement learning: rows with options and a gold answer, asked exactly as the evaluation asks them.

The model sees only the protocol's turns in its own chat template, so that rewards and gates measure the same thing.
Rows with a ground truth in free text, which no evaluation asks, are asked with FINISH.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.protocols.chat import Tokenizer, encode
from medbench.harness.protocols.protocol import Protocol
from medbench.trainers.data.questions import Row
from medbench.trainers.data.rendering import free_turns, is_templated, prompt_text
from medbench.trainers.data.rows import Source, load_rows
from medbench.trainers.rewards.free_answer import LONGEST

FINISH = (
    'Think step by step, then finish your reply with "The answer is X", where X is the answer alone, in as few words '
    "as possible; give a number with its unit."
)
"""Behind a question whose answer is free text, on a line of its own: the form that free_answer.py reads."""


CATEGORY = "category_"
"""Before a category's name in the columns of a Prompt."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model sees it."""

    question: Question
    text: str
    tokens: int
    source: str = ""
    """See Row.source."""

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
            **{f"{CATEGORY}{name}": value for name, value in asked.category.items()},
            "source": self.source if self.source.strip() else "",
            "id": asked.id,
        }


def load_questions(sources: Sequence[Source], by: str | None = None) -> list[Row]:
    """The rows of all sources; `by` as in load_rows.

    Raises MedbenchError naming file and line of a row with a fault, or of one whose replies no reward can judge.
    """
    rows: list[Row] = []
    for row in load_rows(sources, by):
        if not isinstance(row, Row):
            raise MedbenchError(f"{row.where}: a chat has no ground truth, so no reward can judge a reply: {_USABLE}")
        if not row.question.labels and not row.verifiable:
            raise MedbenchError(
                f"{row.where}: a free-text row has no options, so no reward can judge a reply to it: {_USABLE}"
            )
        if not row.question.labels and len(row.question.gold) > LONGEST:
            raise MedbenchError(
                f"{row.where}: the answer has {len(row.question.gold)} characters, and replies are compared with at "
                f"most {LONGEST}: shorten it to the ground truth, or train on it by sft"
            )
        rows.append(row)
    return rows


_USABLE = "use rows with options and an answer, PubMedQA's, or question and answer with a short ground truth"


class Asker:
    """Turns questions into the prompts that the evaluation sends to a local engine (evaluation/requests.py)."""

    def __init__(self, protocol: Protocol, tokenizer: Tokenizer) -> None:
        self.templated = is_templated(protocol, tokenizer)
        self._protocol = protocol
        self._tokenizer = tokenizer

    def prompt(self, question: Question, system: str = "", source: str = "") -> Prompt:
        """`system` is the system prompt of a question without labels; else the protocol has it."""
        turns = self._protocol.messages(question) if question.labels else free_turns(question, system, FINISH)
        text = prompt_text(self._protocol, self._tokenizer, turns)
        return Prompt(question, text, len(self.ids(text)), source)

    def ids(self, text: str) -> list[int]:
        """The tokens that the evaluation's engines see: without a second BOS after the template's."""
        return encode(self._tokenizer, text, self.templated)

    def fitting(self, rows: Iterable[Row], most: int) -> list[Prompt]:
        """The prompts of `rows` with at most `most` tokens."""
        asked = (self.prompt(row.question, row.system, row.source) for row in rows)
        return [prompt for prompt in asked if prompt.tokens <= most]


def prompt_order(n: int, draws: int, seed: int) -> list[int]:
    """`draws` indices from 0..n-1: each once per pass, and each pass in a new order.

    Fixed in advance, because TRL's sampler shuffles a resumed second pass in the order of the first.
    """
    shuffled = random.Random(seed)
    order: list[int] = []
    while len(order) < draws:
        order += shuffled.sample(range(n), n)
    return order[:draws]
