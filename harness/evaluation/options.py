"""The options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from medbench.harness.benchmarks.task_folders import core_tasks
from medbench.harness.config import Record
from medbench.harness.contracts import MOST_NEW_TOKENS, MedbenchError
from medbench.harness.engines.plugins import BUILT_IN, known_engines
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.files import slug
from medbench.harness.text import did_you_mean


class EvalConfig(Record):
    """The file given to `medbench eval --config`; command-line options override it."""

    tasks: list[str] | None = None
    adapters: dict[str, str] | None = Field(None, min_length=1)
    """Target -> the adapter that answers it; see EvalOptions."""
    protocol: str | None = None
    engine: str | None = None
    base_url: str | None = None
    swap: bool | None = None
    max_new_tokens: int | None = Field(None, ge=1, le=MOST_NEW_TOKENS)
    thinking_tokens: int | None = Field(None, ge=1, le=MOST_NEW_TOKENS)
    thinking: bool | None = None
    temperature: float | None = Field(None, ge=0, le=10)
    shots: int | None = Field(None, ge=0)
    samples: int | None = Field(None, ge=1)
    shuffle_options: int | None = Field(None, ge=2)
    limit: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0)
    engine_config: EngineConfig = EngineConfig()

    @field_validator("engine")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in BUILT_IN and name not in known_engines():
            raise PydanticCustomError("engine", "no such engine; {hint}", {"hint": did_you_mean(name, known_engines())})
        return name


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """The options of `medbench eval`, from config file and command line."""

    model: str
    tasks: tuple[str, ...] = field(default_factory=core_tasks)
    adapters: tuple[tuple[str, str], ...] = ()
    """(target, adapter of `model` that answers it); a target is a task or "task/field=value" (see runs.experts)."""
    protocol: str | None = None
    engine: EngineChoice = field(default_factory=EngineChoice)
    data: str | None = None
    partition: Literal["all", "gate", "report"] = "all"
    limit: int | None = None
    max_new_tokens: int | None = None
    thinking_tokens: int | None = None
    thinking: bool | None = None
    temperature: float | None = None
    shots: int | None = None
    samples: int = 1
    shuffle_options: int = 0
    runs: Path = Path("runs")
    name: str | None = None
    seed: int = 0
    order_seed: str | None = None
    """Of a gate's order; None is a seed of the checkpoint's own, see evaluation.question_order."""
    resume: bool = False
    quiet: bool = False


def refuse_bad_name(name: str | None) -> None:
    """Raises MedbenchError unless `name` is None or can name a run folder."""
    if name is not None and slug(name) != name:
        raise MedbenchError(f"--name {name!r}: letters, digits, dot, dash, underscore only; try {slug(name)}")
