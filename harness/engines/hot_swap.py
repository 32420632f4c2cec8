"""One warm vLLM engine for many checkpoints; every swap is verified and fails closed.

    with WarmEngine(resolve("base"), EngineConfig(), print) as warm: report = warm.swap(resolve("checkpoints/step-800"))

A probe is the log-probabilities of fixed tokens after a fixed prompt. It runs before a swap, so that the prefix cache
holds its blocks, and after it. Then no block may come from the cache, or the cache holds blocks of the old checkpoint
(vLLM issue 42125). The probe must move where the weights differ, or the engine still serves the old ones (vLLM issue
32718), and must not move for weights that the engine has served before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.fingerprint import fingerprint, served_config
from medbench.harness.checkpoints.packages import needed
from medbench.harness.checkpoints.weights import check_safetensors, weight_files
from medbench.harness.contracts import Checkpoint, MedbenchError
from medbench.harness.engines.settings import EngineConfig
from medbench.harness.engines.vllm import Probe, VLLMEngine, runs_on_cpu

SAME = 1e-3
"""Nats by which two probes of the same weights may differ: batch and cache only change the order of sums."""
MOVED = 1e-6
"""Nats by which a probe must move when the weights differ."""


class StaleSwapError(MedbenchError):
    """The engine does not serve the weights that it was given; none of its completions may be scored."""


@dataclass(frozen=True, slots=True)
class SwapReport:
    """How a checkpoint was loaded into the engine."""

    fingerprint: str
    seconds: float
    restarted: str | None
    """Why the engine had to be restarted; None for a swap."""
    moved: float
    """Largest change of the probe from the previous checkpoint, in nats; 0 when nothing was swapped."""


class WarmEngine:
    """A VLLMEngine that outlives its checkpoint. Use as a context manager."""

    def __init__(self, first: Checkpoint, config: EngineConfig, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._probes: dict[str, list[float]] = {}
        self._checkpoint = first
        self._start(first)

    @property
    def checkpoint(self) -> Checkpoint:
        return self._checkpoint

    def swap(self, checkpoint: Checkpoint) -> SwapReport:
        """Serve `checkpoint` from now on. Raises StaleSwapError, with the engine closed, where it does not."""
        started = time.monotonic()
        if _identity(checkpoint) == _identity(self._checkpoint):
            return SwapReport(checkpoint.fingerprint, 0.0, None, 0.0)
        reason = self._why_not_in_place(checkpoint)
        if reason is not None:
            self._say(f"restarting the engine: {reason}")
            self.engine.close()
            self._start(checkpoint)
            return SwapReport(checkpoint.fingerprint, time.monotonic() - started, reason, 0.0)
        try:
            before = self.engine.probe()
            self.engine.reload(checkpoint.path)
            after = self.engine.probe()
            moved = distance(before.logprobs, after.logprobs)
            self._verify(checkpoint, after, moved)
        except BaseException:
            self.engine.close()
            raise
        self._probes[checkpoint.fingerprint] = after.logprobs
        self._checkpoint = checkpoint
        return SwapReport(checkpoint.fingerprint, time.monotonic() - started, None, moved)

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> WarmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, checkpoint: Checkpoint) -> None:
        with needed("vLLM cannot start"):
            self.engine = VLLMEngine(checkpoint.path, self._config)
        self._checkpoint = checkpoint
        self._shape = self._shape_of(Path(checkpoint.path))
        try:
            self._probes[checkpoint.fingerprint] = self.engine.probe().logprobs
        except BaseException:  # nobody else has the engine yet, to close it
            self.engine.close()
            raise

    def _verify(self, checkpoint: Checkpoint, probe: Probe, moved: float) -> None:
        name, weights = checkpoint.name, checkpoint.fingerprint[:12]
        if probe.cached_tokens:
            raise StaleSwapError(
                f"{name}: the prefix cache still holds another checkpoint's blocks "
                f"({probe.cached_tokens} tokens of the probe): restart medbench"
            )
        if moved <= MOVED and not self._has_the_same_files(checkpoint):
            raise StaleSwapError(
                f"{name}: the weights differ ({weights}) and the probe did not move: the engine still "
                f"serves {self._checkpoint.name}; restart medbench"
            )
        known = self._probes.get(checkpoint.fingerprint)
        if known is not None and distance(known, probe.logprobs) > SAME:
            away = distance(known, probe.logprobs)
            raise StaleSwapError(
                f"{name}: the probe of the same weights ({weights}) differs by {away:.2g} nats from before: "
                f"restart medbench"
            )

    def _has_the_same_files(self, checkpoint: Checkpoint) -> bool:
        """Whether the engine already serves these weights under another fingerprint: a merged adapter, promoted.

        An adapter's fingerprint covers base and adapter, not the merged files; those are hashed only where the probe
        did not move.
        """
        try:
            before = fingerprint(weight_files(Path(self._checkpoint.path)))
        except MedbenchError:  # deleted since
            return False
        return before == fingerprint(weight_files(Path(checkpoint.path)))

    def _why_not_in_place(self, checkpoint: Checkpoint) -> str | None:
        if checkpoint.tokenizer_sha256 != self._checkpoint.tokenizer_sha256:
            return f"{checkpoint.name} has a different tokenizer or chat template"
        if checkpoint.quantization is not None:
            return f"{checkpoint.name} is quantised, and vLLM repacks such weights once, when it starts"
        return self._shape.difference(checkpoint.name, self._shape_of(Path(checkpoint.path)))

    def _shape_of(self, folder: Path) -> Shape:
        return Shape.of(folder, dtype=not runs_on_cpu() and self._config.dtype == "auto")  # else the engine has its own


@dataclass(frozen=True, slots=True)
class Shape:
    """What an engine reads of a checkpoint when it starts, and never again."""

    config: dict[str, Any]
    """What the config files say."""
    tensors: dict[str, list[int]]
    """Name -> shape."""

    @staticmethod
    def of(folder: Path, *, dtype: bool) -> Shape:
        """`dtype`: whether the engine takes its type from the config. Raises BrokenCheckpoint as weight_files."""
        config = served_config(folder)
        if not dtype:
            del config["dtype"]
        tensors = {}
        for file in weight_files(folder):
            header = check_safetensors(file)
            tensors.update({name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"})
        return Shape(config, tensors)

    def difference(self, name: str, other: Shape) -> str | None:
        """Why the checkpoint called `name`, of shape `other`, cannot take the place of one of this shape."""
        mine, its = self.config, other.config
        if mine != its:
            changed = sorted(key for key in mine.keys() | its.keys() if mine.get(key) != its.get(key))
            return f"{name} has a different config ({', '.join(changed[:5])})"
        return None if self.tensors == other.tensors else f"{name} has different tensors"


def _identity(checkpoint: Checkpoint) -> tuple[str, str, str | None]:
    """All that makes two checkpoints reply alike."""
    return checkpoint.fingerprint, checkpoint.tokenizer_sha256, checkpoint.config_sha256


def distance(a: list[float], b: list[float]) -> float:
    """Between two probes, in nats."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
