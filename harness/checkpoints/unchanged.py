"""Whether a training has changed anything: a checkpoint beside the full checkpoint that it was trained from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.adapters import ADAPTER_WEIGHTS
from medbench.harness.checkpoints.faults import blame_checkpoint
from medbench.harness.checkpoints.weights import check_safetensors, weight_files

LORA_B = (".lora_B.", ".lora_embedding_B")
"""Zero before the first update, whatever else an adapter starts from."""


def is_unchanged(checkpoint: Path, start: Path) -> bool:
    """Whether every weight is that of `start`. A LoRA adapter is unchanged while all of its B are zero; of other
    adapters this is not known, and they count as changed.

    Stops at the first tensor that differs. Raises BrokenCheckpoint for files that cannot be read.
    """
    with blame_checkpoint(f"{checkpoint}: its weights cannot be read"):
        if (checkpoint / ADAPTER_WEIGHTS).exists():
            return _is_untrained(checkpoint / ADAPTER_WEIGHTS)
        return _are_equal(_tensors(checkpoint), _tensors(start))


def _is_untrained(adapter: Path) -> bool:
    from safetensors import safe_open

    names = [name for name in check_safetensors(adapter) if name != "__metadata__"]
    of_lora = [name for name in names if any(part in name for part in LORA_B)]
    if not of_lora or not all(".lora_" in name for name in names):  # others are modules that were saved whole
        return False
    with safe_open(adapter, framework="pt") as file:
        return not any(bool(file.get_tensor(name).any()) for name in of_lora)


def _tensors(folder: Path) -> dict[str, Path]:
    """Tensor -> file."""
    return {name: file for file in weight_files(folder) for name in check_safetensors(file) if name != "__metadata__"}


def _are_equal(own: dict[str, Path], others: dict[str, Path]) -> bool:
    import torch

    if own.keys() != others.keys():
        return False
    return all(torch.equal(_tensor(own[name], name), _tensor(others[name], name)) for name in own)


def _tensor(file: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)
