"""What an evaluation is asked to do."""

from __future__ import annotations

from pydantic import Field

from medbench.harness.config import Record
from medbench.harness.engines.settings import EngineConfig, EngineName


class EvalConfig(Record):
    """The file behind `medbench eval --config`; options on the command line win over it."""

    tasks: list[str] | None = None
    protocol: str | None = None
    engine: EngineName | None = None
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
