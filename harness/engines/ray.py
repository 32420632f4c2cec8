"""Replicas of an engine, spread by Ray over the GPUs of one machine or of many.

medbench eval MODEL --replicas 8
medbench eval MODEL --engine ray --ray-address head:6379

A setting of other engines rather than one of its own: `--engine ray` means vLLM with as many replicas as there is room
for, and a run's record names the engine that answers. What happens is in `replicas`.
"""

from __future__ import annotations

from medbench.harness.contracts import Checkpoint
from medbench.harness.engines.replicas.engine import ReplicatedEngine
from medbench.harness.engines.settings import EngineChoice


def start(name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> ReplicatedEngine:
    """See engines.plugins."""
    engine = ReplicatedEngine(choice)
    try:
        engine.load(name, checkpoint)
    except BaseException:
        engine.close()
        raise
    return engine
