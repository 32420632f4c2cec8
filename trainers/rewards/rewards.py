"""Rewards for a reply to a question with options, or with a ground truth in free text: small pure functions, each in a
stated range, summed with the recipe's weights.

With the default weights, and tested: a reply with a format fault or without reasoning earns at most 0; an honest reply
earns more than that even if it is wrong; an honest right reply earns more than any wrong one. So no trick that the
format or reasoning checks catch pays, whatever letter it names. No rule catches invented reasoning in the right format:
for that there is a judge (factuality.py), and the loop gates every checkpoint on questions that no reward has seen.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.extraction.answer import READ_CHARACTERS
from medbench.trainers.rewards.factuality import NAME as FACTUALITY
from medbench.trainers.rewards.factuality import FactualityConfig
from medbench.trainers.rewards.reasoning import Reasoning, reasoning_of
from medbench.trainers.rewards.reply_format import FAULTS, Fault, Reply, read_reply

COMPONENTS = ("accuracy", "format", "length", "repetition", "reasoning")
"""Of every training; factuality is added where a judge is set."""


class RewardWeights(Record):
    """The weight of each component. All defaults are medbench's own, not from a paper."""

    accuracy: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    format: float = Field(0.1, ge=0, le=100, allow_inf_nan=False)
    """Low: if the format alone paid well, the model would learn only that from questions that it cannot solve."""
    length: float = Field(0.1, ge=0, le=100, allow_inf_nan=False)
    repetition: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    reasoning: float = Field(0.2, ge=0, le=100, allow_inf_nan=False)

    @model_validator(mode="after")
    def _not_all_zero(self) -> Self:
        if not any(self.as_list()):
            raise ValueError("all weights are 0, so nothing would be learnt: set at least one above 0")
        return self

    def as_list(self) -> list[float]:
        """In the order of COMPONENTS."""
        return [float(getattr(self, name)) for name in COMPONENTS]


class RewardConfig(Record):
    """The `rewards:` section of a recipe."""

    weights: RewardWeights = RewardWeights()
    factuality: FactualityConfig | None = None
    """A judge of the reasoning, with its weight; None: no such component."""
    short: int = Field(256, ge=0)
    """Tokens up to which a right reply's length earns 1."""
    long: int = Field(1536, ge=1)
    """Tokens from which it earns 0; keep it below the token limit, so that rambling costs before it is cut off."""
    ngram: int = Field(4, ge=2, le=50)
    """Words in an n-gram of the repetition reward."""

    least_steps: int = Field(2, ge=1)
    """Sentences with new words below which there is no reasoning."""
    least_words: int = Field(4, ge=1)
    """New words in total below which there is no reasoning. Long worked reasoning has dozens.

    Reasoning of one sentence, such as PubMedQA's conclusions, needs `least_steps: 1`."""
    tolerance: float = Field(0.01, ge=0, lt=1)
    """By how much a number in free text may differ from the ground truth, as a share of it."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.short >= self.long:
            raise ValueError(f"short ({self.short}) must be below long ({self.long})")
        return self

    @model_validator(mode="after")
    def _right_above_wrong(self) -> Self:
        """What a wrong reply can earn besides its format must stay below what being right earns, whatever a judge says;
        a judged component that is left out adds 0. Without a judge, weights are the user's own business as before."""
        if self.factuality is None:
            return self
        weights, judged = self.weights, self.factuality.weight
        if weights.reasoning + judged >= weights.accuracy:
            raise ValueError(
                f"factuality.weight ({judged:g}) and weights.reasoning ({weights.reasoning:g}) must together stay "
                f"below weights.accuracy ({weights.accuracy:g}), or a wrong reply could earn more than a right one: "
                f"lower them"
            )
        return self

    @property
    def components(self) -> tuple[str, ...]:
        return (*COMPONENTS, *((FACTUALITY,) if self.factuality else ()))

    @property
    def component_weights(self) -> list[float]:
        """In the order of `components`, for TRL's GRPOConfig.reward_weights."""
        return [*self.weights.as_list(), *((self.factuality.weight,) if self.factuality else ())]

    @property
    def unjudged(self) -> RewardConfig:
        """The same without a judge: what the components that need none depend on."""
        return self.model_copy(update={"factuality": None})


@dataclass(frozen=True, slots=True)
class Rewards:
    """The components of one reply, unweighted, and their weighted sum."""

    accuracy: float
    """0 or 1."""
    format: float
    """0 or 1."""
    length: float
    """0..1."""
    repetition: float
    """-1..0."""
    reasoning: float
    """0..1."""
    total: float
    """Without what a judge says."""
    faults: tuple[Fault, ...]
    """Why the format is wrong; empty exactly if `format` is 1."""


NATURAL_REPEATS = 0.15
"""Share of repeated n-grams that costs nothing: honest worked reasoning has no more (see the tests)."""


def rewards_of(
    reply: str,
    question: Question,
    config: RewardConfig,
    *,
    tokens: int,
    finish_reason: str = "stop",
    opened: bool = False,
) -> Rewards:
    """All components of one reply of `tokens` tokens. Raises MedbenchError for a question without a gold answer."""
    _check_question(question)
    reply = reply.rstrip()  # blanks at the end say nothing, and must not push an answer out of a pattern's reach
    read = read_reply(reply, question, finish_reason=finish_reason, opened=opened, tolerance=config.tolerance)
    thought = None
    if not read.faults and read.answer.answer is not None:
        thought = reasoning_of(
            read.thought,
            question,
            read.answer.answer,
            least_steps=config.least_steps,
            least_words=config.least_words,
        )
    faults = read.faults or _faults_of_thought(thought)
    parts = {
        "accuracy": accuracy_reward(read, faults),
        "format": format_reward(faults),
        "length": length_reward(read, faults, tokens, config),
        "repetition": repetition_reward(reply, config.ngram),
        "reasoning": reasoning_reward(thought, faults),
    }
    total = sum(weight * parts[name] for name, weight in zip(COMPONENTS, config.weights.as_list(), strict=True))
    return Rewards(**parts, total=total, faults=faults)


def accuracy_reward(read: Reply, faults: tuple[Fault, ...]) -> float:
    """1 for the gold answer in the right format, by the harness's own extraction and scorer, or for free text by
    free_answer.py; else 0."""
    return float(read.correct and not faults)


def format_reward(faults: tuple[Fault, ...]) -> float:
    """1 for exactly one closed think block with reasoning, then one answer statement, and nothing else; else 0."""
    return float(not faults)


def length_reward(read: Reply, faults: tuple[Fault, ...], tokens: int, config: RewardConfig) -> float:
    """For right replies only: 1 up to `short` tokens, falling as half a cosine wave to 0 at `long` and beyond.

    The cosine of Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373, appendix
    C.1), between 1 and 0, and starting at `short` instead of 0, so that reasoning less than that gains nothing. Their
    rule that a wrong reply loses less the longer it is, is left out: it rewards rambling.
    """
    if faults or not read.correct:
        return 0.0
    along = min(1.0, max(0.0, (tokens - config.short) / (config.long - config.short)))
    return (1 + math.cos(math.pi * along)) / 2


def repetition_reward(text: str, ngram: int) -> float:
    """0 for text that repeats itself no more than prose does, down to -1 for a single n-gram over and over.

    The share of repeated word n-grams as in Yeo et al. 2025 (arXiv 2502.03373, appendix C.2), 1 - distinct / all, with
    two changes: the share found in honest prose costs nothing, and n-grams do not cross sentences (a shorter sentence
    is one n-gram), so that repeating a sentence never raises the reward.
    """
    total = 0
    distinct: set[tuple[str, ...]] = set()
    for sentence in _SENTENCE.split(_TAG.sub("\n", text[-READ_CHARACTERS:].lower())):
        words = _WORD.findall(_NUMBER.sub("", sentence, count=1))
        if words:
            grams = list(zip(*(words[at:] for at in range(ngram)), strict=False)) or [tuple(words)]
            total += len(grams)
            distinct.update(grams)
    repeated = 1 - len(distinct) / total if total else 0.0
    return -max(0.0, repeated - NATURAL_REPEATS) / (1 - NATURAL_REPEATS) if repeated > NATURAL_REPEATS else 0.0


def reasoning_reward(thought: Reasoning | None, faults: tuple[Fault, ...]) -> float:
    """Structure of the reasoning, 0..1: present, ordered, about the options, leading to the answer. 0 for a fault."""
    return thought.score if thought is not None and not faults else 0.0


def fault_shares(all_rewards: list[Rewards]) -> dict[str, float]:
    """Fault -> share of the replies with it; all faults are present, so that a log always has the same columns."""
    n = max(1, len(all_rewards))
    return {fault: sum(fault in rewards.faults for rewards in all_rewards) / n for fault in FAULTS}


def _faults_of_thought(thought: Reasoning | None) -> tuple[Fault, ...]:
    if thought is None:
        return ()
    if not thought.present:
        return ("no_reasoning",)
    return ("contradiction",) if thought.contradicts else ()


def _check_question(question: Question) -> None:
    if not question.labels and question.gold.strip():
        return
    if question.gold not in question.labels or len(question.options) != len(question.labels):
        raise MedbenchError(
            f"question {question.id or question.question[:40]!r}: rewards need labels, one option for each and a gold "
            f"among them, found gold {question.gold!r} and labels {', '.join(question.labels) or 'none'}"
        )


_TAG = re.compile(r"</?\w{1,20}>")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_NUMBER = re.compile(r"^\s*(?:step\s*)?\d{1,3}\s*[.):]")
_WORD = re.compile(r"\w+")
