"""What the weight files of a quantised checkpoint hold: its method, and how many weights its packed tensors stand for.

    size = size_of(Path("qwen3-8b-awq")); print(size.parameters, size.weight_bytes, size.quantization)

The names of packed tensors are those of vLLM's loaders (vllm/model_executor/layers/quantization) and of bitsandbytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.weights import check_safetensors, read_json_file, weight_files

BITS_OF_TYPE = {"I32": 32, "U32": 32, "I64": 64, "I16": 16, "U8": 8, "I8": 8}
"""Bits of the values that packed weights are kept in."""
PACKED = re.compile(r"\.(?:qweight|weight_packed|\w+_blocks)$")
"""GPTQ and AWQ; compressed-tensors; the experts of gpt-oss (MXFP4)."""
NO_WEIGHTS = re.compile(
    r"(?:scales?|scale_inv|qzeros|zero_point|g_idx|weight_shape|input_scale|global_scale|absmax|quant_map|"
    r"quant_state\.[\w.]+|SCB|weight_format)$"
)
"""What unpacking needs beside the packed weights."""
BITS_OF_METHOD = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "bitsandbytes": 8}
BIT_KEYS = ("bits", "w_bit", "num_bits")


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a full checkpoint."""

    parameters: int
    """Number of weights, those of packed tensors counted one by one."""
    weight_bytes: int
    """Of its weight files."""
    quantization: str | None
    """Such as "gptq 4 bit"; None for weights in full precision."""


def is_quantized(folder: Path) -> bool:
    return bool(_settings(folder))


def size_of(folder: Path) -> Size:
    """Raises BrokenCheckpoint for files that are missing or damaged."""
    files = weight_files(folder)
    config = _settings(folder)
    method = str(config.get("quant_method") or "unknown")[:40] if config else None
    bits = _bits(config, method)
    tensors = (one for file in files for one in check_safetensors(file).items() if one[0] != "__metadata__")
    if method is None:
        parameters = sum(math.prod(tensor["shape"]) for _, tensor in tensors)
    else:
        parameters = sum(_weights(name, tensor, bits, method) for name, tensor in tensors)
    label = None if method is None else f"{method} {bits} bit" if bits else method
    return Size(parameters, sum(file.stat().st_size for file in files), label)


def _settings(folder: Path) -> dict[str, Any]:
    found = read_json_file(folder / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else {}


def _weights(name: str, tensor: Mapping[str, Any], bits: int | None, method: str) -> int:
    """How many weights of the model one tensor of its files stands for."""
    values: int = math.prod(tensor["shape"])
    if NO_WEIGHTS.search(name):
        return 0
    width = BITS_OF_TYPE.get(tensor["dtype"])
    packed = PACKED.search(name) or (method == "bitsandbytes" and tensor["dtype"] == "U8")
    return values * width // bits if packed and width and bits else values


def _bits(config: Mapping[str, Any], method: str | None) -> int | None:
    """Bits of a weight: the smallest that the config names, for some layers may be kept in more."""
    if config.get("load_in_4bit") is True:
        return 4
    named = [bits for bits in _named_bits(config) if 1 <= bits <= 16]
    return min(named, default=BITS_OF_METHOD.get(method or ""))


def _named_bits(config: Mapping[str, Any]) -> Iterator[int]:
    """At the top, or as `weights` in one of compressed-tensors' groups."""
    groups = config.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, dict) else []
    weights = [group.get("weights") for group in groups if isinstance(group, dict)]
    for place in (config, *(one for one in weights if isinstance(one, dict))):
        for key in BIT_KEYS:
            if isinstance(bits := place.get(key), int) and not isinstance(bits, bool):
                yield bits
