"""Rewards for a multiple-choice reply: small pure functions, each in a stated range, added up by the recipe's weights.

    python -c "from medbench.trainers.rewards.rewards import RewardConfig; print(RewardConfig())"

What holds with the default weights, and is tested: a reply with a fault of form or without reasoning earns at most 0;
an honest one earns more than that even when it is wrong; an honest right one more than any wrong one. So no trick that
the form or the reasoning catches pays, whatever letter it names. What no rule can catch is invented reasoning in good
form: for that the loop gates every checkpoint on questions that no reward has seen.
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
from medbench.trainers.rewards.reasoning import Reasoning, reasoning_of
from medbench.trainers.rewards.reply_format import FAULTS, Fault, Reply, read_reply

COMPONENTS = ("accuracy", "format", "length", "repetition", "reasoning")


class RewardWeights(Record):
    """What each component counts for. All are this project's own choices, not a paper's."""

    accuracy: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    format: float = Field(0.1, ge=0, le=100, allow_inf_nan=False)
    """Low: a form that pays by itself is trained on the questions that the model cannot solve."""
    length: float = Field(0.1, ge=0, le=100, allow_inf_nan=False)
    repetition: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    reasoning: float = Field(0.2, ge=0, le=100, allow_inf_nan=False)

    @model_validator(mode="after")
    def _not_all_zero(self) -> Self:
        if not any(self.as_list()):
            raise ValueError("all weights are 0, so nothing would be learnt: set at least one above 0")
        return self

    def as_list(self) -> list[float]:
        """In the order of COMPONENTS, as TRL's GRPOConfig.reward_weights takes them."""
        return [float(getattr(self, name)) for name in COMPONENTS]


class RewardConfig(Record):
    """The `rewards:` section of a recipe."""

    weights: RewardWeights = RewardWeights()
    short: int = Field(256, ge=0)
    """Tokens up to which a right reply's length earns 1."""
    long: int = Field(1536, ge=1)
    """Tokens from which it earns 0; keep it below the token limit, so that rambling costs before it is cut off."""
    ngram: int = Field(4, ge=2, le=50)
    """Words in an n-gram of the repetition reward."""

    least_steps: int = Field(2, ge=1)
    """Sentences with words of their own without which a thought holds no reasoning."""
    least_words: int = Field(4, ge=1)
    """Words of its own, in all, without which it holds none. Long worked reasoning has dozens.

    Thoughts of one sentence, as PubMedQA's conclusions make them, need `least_steps: 1`."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.short >= self.long:
            raise ValueError(f"short ({self.short}) must be below long ({self.long})")
        return self


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
    faults: tuple[Fault, ...]
    """Why the form is not right; empty exactly when `format` is 1."""


NATURAL_REPEATS = 0.15
"""Share of repeated n-grams that costs nothing: at most that is found in honest worked reasoning (see the tests)."""


def rewards_of(
    reply: str,
    question: Question,
    config: RewardConfig,
    *,
    tokens: int,
    finish_reason: str = "stop",
    opened: bool = False,
) -> Rewards:
    """All components of one reply of `tokens` tokens. Raises MedbenchError for a question that has no labelled gold."""
    _check_question(question)
    read = read_reply(reply, question, finish_reason=finish_reason, opened=opened)
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
    """1 for the gold answer in the right form, by the harness's own extraction and scorer; else 0."""
    return float(read.correct and not faults)


def format_reward(faults: tuple[Fault, ...]) -> float:
    """1 for exactly one closed thought that reasons, then one answer statement, and nothing else; else 0."""
    return float(not faults)


def length_reward(read: Reply, faults: tuple[Fault, ...], tokens: int, config: RewardConfig) -> float:
    """Among right replies alone: 1 up to `short` tokens, falling as half a cosine wave to 0 from `long` on.

    The cosine of Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373, appendix
    C.1) between 1 and 0; a lower bound in place of 0, so that nothing is gained by thinking less than that. Their rule
    that a wrong reply loses less the longer it is, is left out: it pays for rambling.
    """
    if faults or not read.correct:
        return 0.0
    along = min(1.0, max(0.0, (tokens - config.short) / (config.long - config.short)))
    return (1 + math.cos(math.pi * along)) / 2


def repetition_reward(text: str, ngram: int) -> float:
    """0 for a text that repeats itself no more than prose does, down to -1 for one n-gram over and over.

    The share of repeated word n-grams as in Yeo et al. 2025 (arXiv 2502.03373, appendix C.2), 1 - distinct / all, with
    two changes: the share that honest prose has costs nothing, and n-grams end with their sentence (a shorter sentence
    is one n-gram), so that a sentence said again never raises the reward.
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
    """The structure of the steps, in the right form alone: present, ordered, over the options, to the answer."""
    return thought.score if thought is not None and not faults else 0.0


def fault_shares(all_rewards: list[Rewards]) -> dict[str, float]:
    """Fault -> share of the replies that have it; every fault is there, so that a log has the same columns always."""
    n = max(1, len(all_rewards))
    return {fault: sum(fault in rewards.faults for rewards in all_rewards) / n for fault in FAULTS}


def _faults_of_thought(thought: Reasoning | None) -> tuple[Fault, ...]:
    if thought is None:
        return ()
    if not thought.present:
        return ("no_reasoning",)
    return ("contradiction",) if thought.contradicts else ()


def _check_question(question: Question) -> None:
    if question.gold not in question.labels or len(question.options) != len(question.labels):
        raise MedbenchError(
            f"question {question.id or question.question[:40]!r}: rewards need labels, an option for each and a gold "
            f"among them, found gold {question.gold!r} and labels {', '.join(question.labels) or 'none'}"
        )


_TAG = re.compile(r"</?\w{1,20}>")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_NUMBER = re.compile(r"^\s*(?:step\s*)?\d{1,3}\s*[.):]")
_WORD = re.compile(r"\w+")
