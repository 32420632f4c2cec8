"""The recipe of `medbench synth`: what is asked, by which model, and what is kept.

medbench synth recipe.yaml --out synth/mine --dry-run
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from medbench.harness.benchmarks.task_folders import core_tasks
from medbench.harness.config import Record, parse_yaml, validated
from medbench.harness.contracts import MOST_NEW_TOKENS, MedbenchError
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.judges.settings import JudgeSettings
from medbench.harness.synth.prompts import AUTO, checked_kind
from medbench.trainers.data.files import expand
from medbench.trainers.data.overlap import OverlapConfig
from medbench.trainers.data.rows import Source

Strategy = Literal["backtracking", "new_path", "verification", "correction"]
STRATEGIES: tuple[Strategy, ...] = ("backtracking", "new_path", "verification", "correction")
MOST_ATTEMPTS = 1000


def _kind(name: str) -> str:
    if name != AUTO:
        checked_kind(name)
    return name


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from None
    return text


Kind = Annotated[str, AfterValidator(_kind)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class Generator(Record):
    """The model that writes, on any engine of medbench."""

    model: str = Field(min_length=1)
    """As for `medbench eval`; with `replies`, a name for them."""
    engine: str | None = None
    """None: openai with base_url, fake with replies, else vllm."""
    base_url: str | None = None
    replies: str | None = None
    """File of stored replies {"id", "output", "sample"}: see docs/synth.md. May begin with $MEDBENCH_DATA or ~."""
    engine_config: EngineConfig = EngineConfig()

    @property
    def choice(self) -> EngineChoice:
        name = self.engine or ("openai" if self.base_url else "fake" if self.replies else "vllm")
        replies = expand(self.replies) if self.replies else None
        return EngineChoice(name, self.engine_config, self.base_url, replies=replies)


class Sampling(Record):
    """How replies are drawn."""

    temperature: float = Field(0.7, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """0 is off."""
    max_new_tokens: int = Field(2048, ge=1, le=MOST_NEW_TOKENS)
    attempts: int = Field(1, ge=1, le=MOST_ATTEMPTS)
    """Independent first replies to each question."""
    seed: int = Field(0, ge=0)
    thinking: bool | None = None
    """Passed to the chat template as enable_thinking."""


class SynthSource(Source):
    """Rows with questions, in any form that trainers read (docs/training.md)."""

    kind: Kind = AUTO
    """A kind such as diagnosis or diagnosis-v1, a YAML file with a prompt, or auto: by the rules."""


class Rule(Record):
    """For sources of kind auto: questions that contain `matches` are of this kind."""

    matches: Pattern
    """A regular expression; case does not count."""
    kind: Kind


class Verify(Record):
    """What is done about a wrong answer, as by HuatuoGPT-o1 (arXiv 2412.18925)."""

    rounds: int = Field(0, ge=0, le=20)
    """Further replies at most, each by a strategy drawn from `strategies`."""
    strategies: list[Strategy] = Field(default_factory=lambda: list(STRATEGIES), min_length=1)
    told_answer: bool = False
    """Whether the model is told the answer when all rounds are spent. Such rows are marked, and never by default."""

    @model_validator(mode="after")
    def _has_a_first(self) -> Self:
        if self.rounds and set(self.strategies) == {"backtracking"}:
            raise ValueError("strategies: backtracking needs an earlier round: add another strategy")
        return self


class JudgeFilter(JudgeSettings):
    """A judge of harness/judges as a filter: its word on each step of the reasoning."""

    against: Literal["source", "reference"] = "source"
    """The text that steps are judged by: the question's context or the row's column `source`, or the row's own
    reasoning or answer."""
    factuality: float = Field(0.8, ge=0, le=1)
    """Least share of supported among the supported and contradicted steps."""


class Filters(Record):
    """What a reply must pass. Replies that fail and replies that are cut off never pass."""

    form: bool = True
    """One reasoning of at least `least_steps`, then one answer, and nothing hidden or addressed to a scorer."""
    least_steps: int = Field(2, ge=1)
    """Sentences with words of their own."""
    least_words: int = Field(8, ge=1)
    """Such words in all."""
    repetition: float | None = Field(0.1, ge=0, le=1)
    """Largest share of repeated word 4-grams beyond that of prose; null: off."""
    answer: bool = True
    """Whether the answer must be right."""
    judge: JudgeFilter | None = None
    pass_rate: list[float] | None = Field(None, min_length=2, max_length=2)
    """[least, most] share of a question's attempts whose first reply is right."""
    near_duplicates: float | None = Field(0.9, gt=0.5, le=1)
    """Similarity to an earlier accepted reasoning from which a reply is dropped; null: off."""
    contamination: OverlapConfig | None = OverlapConfig()
    """Overlap with the questions of `benchmarks`; null: off."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.pass_rate is None:
            return self
        low, high = self.pass_rate
        if not 0 <= low <= high <= 1:
            raise ValueError("pass_rate: must be [least, most] with 0 <= least <= most <= 1")
        if not self.answer:
            raise ValueError("pass_rate: needs answers that are right or wrong: set answer: true, or leave it out")
        return self


class SynthRecipe(Record):
    """The file behind `medbench synth`."""

    name: str = Field(min_length=1, max_length=200)
    generator: Generator
    sampling: Sampling = Sampling()
    sources: list[SynthSource] = Field(min_length=1)
    """Asked in turn: the first question of each, then the second of each, and so on."""
    kinds: list[Rule] = Field(default_factory=list)
    """Tried in order, before the rules that come with the kinds."""
    verify: Verify = Verify()
    filters: Filters = Filters()
    benchmarks: list[str] = Field(default_factory=lambda: list(core_tasks()))
    """Tasks whose test questions must not come up in the data."""

    @model_validator(mode="after")
    def _can_differ(self) -> Self:
        sampling = self.sampling
        if sampling.attempts > 1 and not sampling.temperature and self.generator.choice.name != "fake":
            raise ValueError(
                f"sampling: {sampling.attempts} attempts at temperature 0 would be equal: set a temperature, e.g. 0.7"
            )
        if not self.filters.answer and self.verify.rounds + self.verify.told_answer:
            raise ValueError("verify: only wrong answers are tried again: set filters.answer: true, or rounds: 0")
        return self

    def asked(self) -> dict[str, Any]:
        """What replies depend on, apart from the rows and the generator's weights. Filters may change."""
        return self.model_dump(mode="json", include={"sampling", "kinds", "verify", "sources"})


def read_recipe(path: Path) -> SynthRecipe:
    """Raises MedbenchError with all faults in one line."""
    content, faults = parse_yaml(path)
    if faults:
        raise MedbenchError("; ".join(faults))
    recipe, found = validated(content, SynthRecipe)
    if recipe is None:
        raise MedbenchError("; ".join(fault.line(str(path)) for fault in found[:20]))
    return recipe
