"""An engine's name and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medbench.harness.config import Record
from medbench.harness.contracts import Engine


class EngineConfig(Record):
    """Settings of the engine; each is passed on only when set."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tensor_parallel_size: int = Field(1, ge=1)
    data_parallel_size: int = Field(1, ge=1)
    max_model_len: int | None = Field(None, ge=1)
    """Context length in tokens, prompt and reply together; None is the model's own."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    max_num_seqs: int | None = Field(None, ge=1)
    kv_cache_gib: int | None = Field(None, ge=1)
    """Key-value cache on a CPU, in GiB."""
    batch_invariant: bool = False
    """vLLM's mode in which a reply does not depend on its batch; GPUs of compute capability 8.0 or higher, slower."""
    batch_size: int = Field(8, ge=1)
    """For the hf engine."""
    concurrency: int = Field(16, ge=1)
    """Requests under way at once, for the openai engine."""
    timeout: float = Field(600, gt=0)
    """Seconds for one request, for the openai engine."""
    delay: float = Field(0, ge=0)
    """Seconds a reply takes, for the fake engine."""
    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """Anything else that vLLM's EngineArgs takes, passed through as it is."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine answers, with what it needs beside a checkpoint."""

    name: str = "vllm"
    """vllm, hf, openai, fake, or a plugin's (see pool.py)."""
    config: EngineConfig = field(default_factory=EngineConfig)
    base_url: str | None = None
    """Address of the server; set exactly for `openai`."""
    replies: Path | None = None
    """File of stored replies; set exactly for `fake`."""
    ready: Engine | None = None
    """An engine that the caller made: used as it is, and left open."""
