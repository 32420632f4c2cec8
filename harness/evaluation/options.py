"""What an evaluation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.files import slug

DEFAULT_TASKS = ("medqa", "mmlu_pro_medical", "pubmedqa")


class EvalConfig(Record):
    """The file behind `medbench eval --config`; options on the command line win over it."""

    tasks: list[str] | None = None
    protocol: str | None = None
    engine: str | None = None
    base_url: str | None = None
    max_new_tokens: int | None = Field(None, ge=1)
    thinking: bool | None = None
    temperature: float | None = Field(None, ge=0, le=10)
    shots: int | None = Field(None, ge=0)
    samples: int | None = Field(None, ge=1)
    shuffle_options: int | None = Field(None, ge=2)
    limit: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0)
    engine_config: EngineConfig = EngineConfig()


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What `medbench eval` was asked, config file and command line joined."""

    model: str
    tasks: tuple[str, ...] = DEFAULT_TASKS
    protocol: str | None = None
    engine: EngineChoice = field(default_factory=EngineChoice)
    data: str | None = None
    partition: str = "all"
    limit: int | None = None
    max_new_tokens: int | None = None
    thinking: bool | None = None
    temperature: float | None = None
    shots: int | None = None
    samples: int = 1
    shuffle_options: int = 0
    runs: Path = Path("runs")
    name: str | None = None
    seed: int = 0
    resume: bool = False
    quiet: bool = False


def refuse_bad_name(name: str | None) -> None:
    """Raises MedbenchError for what is no name of a run folder."""
    if name is not None and slug(name) != name:
        raise MedbenchError(f"--name {name!r}: letters, digits, dot, dash, underscore only; try {slug(name)}")
