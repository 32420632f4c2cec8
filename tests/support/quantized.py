"""A model quantised to 4 bit as GPTQ, AWQ and compressed-tensors keep it on disk, and its dequantised twin.

    from support.quantized import quantize; quantize(Path("tiny"), Path("tiny-gptq"), "gptq")

The values are rounded to the nearest step of their group, symmetric; the layouts are those that vLLM loads (auto_gptq,
auto_awq and compressed_tensors in vllm/model_executor/layers/quantization).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

BITS, GROUP, ZERO = 4, 32, 8
PER_INT = 32 // BITS
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": BITS, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": BITS,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": GROUP,
                },
            }
        },
    },
}


def quantize(model: Path, folder: Path, method: str) -> Path:
    """Write `model` to `folder`, its linear layers quantised by `method`; "none" writes the dequantised values."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors: dict[str, Any] = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight.to(torch.bfloat16)
            continue
        steps, scales = _rounded(weight)
        layer = name.removesuffix(".weight")
        if method == "none":
            tensors[name] = ((steps - ZERO).view(-1, GROUP) * scales.view(-1, 1)).view(weight.shape).to(torch.bfloat16)
        else:
            tensors |= {f"{layer}.{key}": value.contiguous() for key, value in _packed(steps, scales, method).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    if method != "none":
        config["quantization_config"] = SETTINGS[method]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _rounded(weight: Any) -> tuple[Any, Any]:
    """(steps 0..15, int32 [out, in]; scales bfloat16 [out, groups])."""
    import torch

    groups = weight.view(weight.shape[0], -1, GROUP)
    scales = (groups.abs().amax(-1) / (ZERO - 1)).to(torch.bfloat16)
    steps = (groups / scales.float()[..., None]).round().clamp(-ZERO, ZERO - 1) + ZERO
    return steps.view(weight.shape).to(torch.int32), scales


def _packed(steps: Any, scales: Any, method: str) -> dict[str, Any]:
    import torch

    outs, ins = steps.shape
    zeros = torch.full((outs, scales.shape[1]), ZERO, dtype=torch.int32)
    if method == "compressed-tensors":
        shape = torch.tensor([outs, ins], dtype=torch.int64)
        return {"weight_packed": _pack(steps), "weight_scale": scales, "weight_shape": shape}
    if method == "gptq":
        # GPTQ keeps zero points one lower
        return {
            "qweight": _pack(steps).T,
            "qzeros": _pack(zeros.T - 1),
            "scales": scales.T,
            "g_idx": torch.arange(ins, dtype=torch.int32) // GROUP,
        }
    return {
        "qweight": _pack(steps.T, AWQ_ORDER),
        "qzeros": _pack(zeros.T, AWQ_ORDER),
        "scales": scales.T,
    }


def _pack(values: Any, order: tuple[int, ...] = tuple(range(PER_INT))) -> Any:
    """int32 [rows, columns] of 4-bit values -> [rows, columns / 8], the value order[i] of each eight at bit 4 i."""
    import torch

    eights = values.contiguous().to(torch.int64).view(values.shape[0], -1, PER_INT)
    packed = sum(eights[..., at] << (BITS * place) for place, at in enumerate(order))
    return torch.where(packed < 2**31, packed, packed - 2**32).to(torch.int32)
