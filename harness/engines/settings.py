"""An engine's name and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from medbench.harness.config import Record
from medbench.harness.contracts import Engine
from medbench.harness.text import seconds_of

WHERE = ("replicas", "ray_address", "ship_weights")
"""Settings that say where an engine runs and how often, and change no answer."""


def _duration(given: object) -> object:
    try:
        return seconds_of(given) if isinstance(given, str) else given
    except ValueError as fault:
        raise PydanticCustomError("duration", "{said}", {"said": str(fault)}) from None


class EngineConfig(Record):
    """Settings of the engine; each is passed on only when set."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tensor_parallel_size: int = Field(1, ge=1)
    data_parallel_size: int = Field(1, ge=1)
    max_model_len: int | None = Field(None, ge=1)
    """Context length in tokens, prompt and completion together; None is the model's own."""
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
    patience: Annotated[float, BeforeValidator(_duration), Field(ge=0, allow_inf_nan=False)] = 600
    """Seconds to wait for a server that is busy or away (openai engine), and for a sign of life from a replica that has
    work to do; "10m" and "2h" are read too."""
    replicas: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    """That many engines, each in a process of its own that Ray places; "all": as many as the GPUs allow."""
    ray_address: str | None = Field(None, min_length=1)
    """Of the head of a running cluster, HOST:PORT, or "auto"; None: RAY_ADDRESS, or a Ray of this machine's own."""
    ship_weights: bool = False
    """Send checkpoints to nodes that do not see their folder."""
    delay: float = Field(0, ge=0, le=1)
    """Seconds per reply, for the fake engine: stored replies as if they came slowly."""
    swap_hosts: list[str] = Field(default_factory=list)
    """Hosts other than this machine whose server may be given other weights, for the openai engine with `swap`."""
    base: str | None = None
    """Base model of an adapter, instead of the one that the adapter names."""
    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """Any other arguments of vLLM's EngineArgs, passed through unchanged."""


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """A LoRA adapter that vLLM serves beside the checkpoint."""

    fingerprint: str
    path: str
    rank: int


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine answers, and what it needs besides a checkpoint: an engine by name, or one the caller made."""

    name: str = "vllm"
    """Built in ("vllm", "hf", "openai", "fake") or a plugin's, see engines.plugins; with `instance`, the instance's.
    "ray" becomes "vllm" with `replicas: all`."""
    config: EngineConfig = field(default_factory=EngineConfig)
    base_url: str | None = None
    """Address of the server, for engines that need one (`openai`)."""
    swap: bool = False
    """Whether the server at `base_url` gets the checkpoint's weights in place of its own, see served_swap."""
    replies: Path | None = None
    """File of stored replies, for engines that need one (`fake`)."""
    instance: Engine | None = None
    """An engine that the caller made and will close: used as it is, whatever the settings above say."""
    adapters: tuple[ServedAdapter, ...] = ()
    """For the vllm engine: which of them answers, each request says (contracts.Request.adapter)."""

    def __post_init__(self) -> None:
        if self.instance is not None:
            object.__setattr__(self, "name", getattr(self.instance, "name", type(self.instance).__name__))
        elif self.name == "ray":
            object.__setattr__(self, "name", "vllm")
            if self.config.replicas is None:
                object.__setattr__(self, "config", self.config.model_copy(update={"replicas": "all"}))
