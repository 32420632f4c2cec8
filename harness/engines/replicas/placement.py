"""Which part of the cluster each replica gets: its GPUs, or its share of the CPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.engines.vllm import runs_on_cpu
from medbench.harness.secrets import is_secret

ON_GPUS = ("vllm", "hf")
"""Engines that use a GPU where there is one; a plugin's gets none unless tensor_parallel_size says so."""
LITTLE = 0.001
"""CPUs of a replica that only looks replies up."""
RESERVE_SECONDS = 30.0
"""For a cluster that others use too."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What each replica gets."""

    replicas: int
    gpus: int
    cpus: float
    threads: int | None
    """Of its CPU kernels; None where a GPU does the work."""

    @property
    def bundle(self) -> dict[str, float]:
        return {"GPU": float(self.gpus), "CPU": LITTLE} if self.gpus else {"CPU": self.cpus}


def plan(choice: EngineChoice, config: EngineConfig, nodes: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan for `config.replicas` of the engine. Raises MedbenchError where the cluster has too little, and says
    what it has."""
    gpus = sorted((int(node["Resources"].get("GPU", 0)) for node in nodes), reverse=True)
    cpus = sorted((int(node["Resources"].get("CPU", 0)) for node in nodes), reverse=True)
    wanted = config.tensor_parallel_size * config.data_parallel_size
    uses_gpus = choice.name in ON_GPUS and sum(gpus) > 0 and not (choice.name == "vllm" and runs_on_cpu())
    if uses_gpus:
        each = wanted if choice.name == "vllm" else 1
        fitting = sum(have // each for have in gpus)
        count = max(1, fitting) if config.replicas == "all" else config.replicas
        assert isinstance(count, int)
        if fitting < count:
            raise MedbenchError(
                f"--replicas {count}, of {_gpus(each)} each: Ray has {_gpus(sum(gpus))} on {_nodes(len(nodes))} "
                f"({gpus[0]} on the largest), room for {fitting}: ask for fewer, or add nodes"
            )
        return Plan(count, each, LITTLE, None)
    if choice.name == "vllm" and wanted > 1:
        raise MedbenchError(
            f"engine_config.tensor_parallel_size: a replica needs {_gpus(wanted)}, and Ray has none: leave it out"
        )
    if choice.name not in ON_GPUS:
        return Plan(1 if config.replicas == "all" else int(config.replicas or 1), 0, LITTLE, None)
    count = 1 if config.replicas == "all" else int(config.replicas or 1)
    if sum(cpus) < count:
        raise MedbenchError(
            f"--replicas {count}: Ray has no GPU and {_cpus(sum(cpus))} on {_nodes(len(nodes))}: ask for fewer, or add "
            f"nodes"
        )
    each = next(size for size in range(cpus[0], 0, -1) if sum(have // size for have in cpus) >= count)
    return Plan(count, 0, each, min(each, _threads(each)))


def _threads(most: int) -> int:
    """As many as the user wants, where that is said."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and 0 < int(wanted) < most else most


def reserve(ray: Any, plan: Plan) -> list[Any]:
    """A placement group for each replica. Raises MedbenchError where others hold what is needed."""
    from ray.util.placement_group import placement_group

    free = ray.available_resources()
    groups = [placement_group([plan.bundle], strategy="STRICT_PACK") for _ in range(plan.replicas)]
    until = time.monotonic() + RESERVE_SECONDS
    ready = [group for group in groups if group.wait(max(0.1, until - time.monotonic()))]
    if len(ready) < len(groups):
        release(ray, groups)
        has = _gpus(int(free.get("GPU", 0))) if plan.gpus else _cpus(free.get("CPU", 0.0))
        raise MedbenchError(
            f"--replicas {plan.replicas}: only {len(ready)} fit, others use the rest of the cluster ({has} free): ask "
            f"for fewer, or wait"
        )
    return groups


def release(ray: Any, groups: Sequence[Any]) -> None:
    from ray.util.placement_group import remove_placement_group

    for group in groups:
        with suppress(Exception):  # the cluster may be gone
            remove_placement_group(group)


def options_of(plan: Plan, group: Any) -> dict[str, Any]:
    """Ray's options of the actor in its placement group."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return {
        "num_cpus": plan.bundle["CPU"],
        "num_gpus": plan.gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
    }


def environment() -> dict[str, str]:
    """What a replica's process gets of this one's environment, which other nodes do not have: settings of engines,
    never a secret."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name.startswith("VLLM_") or name in ("HF_HUB_OFFLINE", "TORCH_CPP_LOG_LEVEL")) and not is_secret(name)
    }


def _gpus(count: int) -> str:
    return "no GPU" if not count else "1 GPU" if count == 1 else f"{count} GPUs"


def _cpus(count: float) -> str:
    return "1 CPU" if count == 1 else f"{count:g} CPUs"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
