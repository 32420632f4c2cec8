"""Schemes of quantisation, as compressed-tensors describes them.

config_groups("w4a16", 64)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.weights import check_safetensors, weight_files
from medbench.harness.contracts import MedbenchError

GROUP_SIZES = (128, 64, 32)
"""Weights that share a scale, where a scheme has groups; vLLM's kernels take these."""
NOT_QUANTISED = ("lm_head",)
"""The output layer stays as it is, and so do embeddings and norms, which are no linear layers."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How linear layers are kept and computed."""

    name: str
    about: str
    weights: dict[str, Any]
    activations: dict[str, Any] | None
    """None where they stay as they are."""
    format: str
    """compressed-tensors' name of how the weights lie on disk."""
    has_groups: bool = False


_WEIGHTS = {"symmetric": True, "dynamic": False}
_BY_TOKEN = {"strategy": "token", "symmetric": True, "dynamic": True}
SCHEMES = {
    one.name: one
    for one in (
        Scheme(
            "w8a8",
            "weights and activations in 8-bit integers; a scale for each output channel and each token",
            {"num_bits": 8, "type": "int", "strategy": "channel", **_WEIGHTS},
            {"num_bits": 8, "type": "int", **_BY_TOKEN},
            "int-quantized",
        ),
        Scheme(
            "w4a16",
            "weights in 4-bit integers, a scale for each group of them; activations in 16 bit",
            {"num_bits": 4, "type": "int", "strategy": "group", **_WEIGHTS},
            None,
            "pack-quantized",
            has_groups=True,
        ),
        Scheme(
            "fp8",
            "weights and activations in 8-bit floating point; a scale for each output channel and each token",
            {"num_bits": 8, "type": "float", "strategy": "channel", **_WEIGHTS},
            {"num_bits": 8, "type": "float", **_BY_TOKEN},
            "float-quantized",
        ),
    )
}


def config_groups(scheme: str, group_size: int | None) -> dict[str, Any]:
    """compressed-tensors' `config_groups` for all linear layers."""
    found = SCHEMES[scheme]
    weights = {**found.weights, **({"group_size": group_size} if found.has_groups else {})}
    return {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": found.activations}}


def group_size_for(scheme: str, checkpoint: Path, wanted: int | None) -> int | None:
    """`wanted`, or the largest size that divides the width of every linear layer; None for a scheme without groups.

    Raises MedbenchError where no size does, or `wanted` does not.
    """
    if not SCHEMES[scheme].has_groups:
        if wanted is not None:
            raise MedbenchError(f"--group-size: scheme {scheme} has no groups: leave it out")
        return None
    widths = _widths(checkpoint)
    for size in (wanted,) if wanted is not None else GROUP_SIZES:
        odd = next((width for width in widths if width % size), None)
        if odd is None:
            return size
    tried = f"{wanted} does" if wanted is not None else f"none of {', '.join(map(str, GROUP_SIZES))} does"
    raise MedbenchError(f"--group-size: a layer of {checkpoint} is {odd} wide, which {tried} not divide: use w8a8")


def _widths(checkpoint: Path) -> Sequence[int]:
    """Input widths of the matrices in a checkpoint's layers."""
    found = set()
    for file in weight_files(checkpoint):
        for name, tensor in check_safetensors(file).items():
            if name != "__metadata__" and len(tensor["shape"]) == 2 and "embed" not in name:
                found.add(tensor["shape"][-1])
    return sorted(found)
