"""Whether a checkpoint's config fits its weights, found out from their shapes, without loading them.

    refuse_other_shapes(Path("step-800"))

Loaders let such a checkpoint through: vLLM takes the first rows of a tensor that is larger than config.json says, and
transformers drops the layers that it does not name. Both then serve another model than the one that was trained.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.faults import blame_checkpoint
from medbench.harness.checkpoints.weights import check_safetensors, read_json_file, weight_files
from medbench.harness.contracts import BrokenCheckpoint


def refuse_other_shapes(folder: Path) -> None:
    """Raises BrokenCheckpoint for a tensor of another shape than the config's, or of a layer that the config lacks.

    Nothing is compared for a model that transformers cannot build, packed weights, and tensors with other names:
    engines know more architectures, and rename and fuse tensors.
    """
    if "quantization_config" in read_json_file(folder / "config.json"):
        return
    try:
        model = _without_weights(folder)
    except Exception:
        return
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    kinds = {_of_any_layer(name) for name in shapes}
    ignored = model._keys_to_ignore_on_load_unexpected or ()  # such as the layers that predict several tokens
    for file in weight_files(folder):
        for name, tensor in check_safetensors(file).items():
            if name in shapes and tensor["shape"] != shapes[name]:
                found, wanted = (" x ".join(map(str, shape)) or "1" for shape in (tensor["shape"], shapes[name]))
                raise _misfit(file, f"{name} is {found}, config.json wants {wanted}")
            if name not in shapes and _of_any_layer(name) in kinds and not any(re.search(one, name) for one in ignored):
                raise _misfit(file, f"{name} belongs to a layer that config.json does not have")


def refuse_unbuildable(folder: Path) -> None:
    """Raises BrokenCheckpoint where transformers cannot build the model that config.json describes."""
    with blame_checkpoint(f"transformers cannot build the model of {folder}"):
        _without_weights(folder)


def _without_weights(folder: Path) -> Any:
    """The model with shapes only: tensors on torch's meta device take no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]


def _of_any_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _misfit(file: Path, what: str) -> BrokenCheckpoint:
    return BrokenCheckpoint(f"{file}: {what}: copy the config.json that was saved with the weights")
