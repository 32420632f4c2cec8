"""Quantised checkpoints: their size, and that vLLM serves them as what they are."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.quantized import quantize

from medbench.harness.checkpoints.quantization import size_of
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.checkpoints.weights import refuse_nan
from medbench.harness.contracts import BrokenCheckpoint, MedbenchError, Request

BYTES = {"I32": 4, "I64": 8, "U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "F8_E4M3": 1}


def a_folder(path: Path, tensors: Mapping[str, tuple[str, list[int]]], quantization: Any = None) -> Path:
    """A checkpoint of zeros: name -> (type, shape)."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES[dtype]
        for one in shape:
            size *= one
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    path.mkdir()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(end))
    config = {} if quantization is None else {"quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config))
    return path


# a layer of 64 x 32 weights, an embedding of 10 x 64 beside it
EMBEDDING = {"model.embed_tokens.weight": ("BF16", [10, 64])}
LAYERS: dict[str, tuple[dict[str, tuple[str, list[int]]], Any, str | None]] = {
    "full": ({"q_proj.weight": ("BF16", [32, 64])}, None, None),
    "gptq": (
        {
            "q_proj.qweight": ("I32", [8, 32]),
            "q_proj.qzeros": ("I32", [2, 4]),
            "q_proj.scales": ("F16", [2, 32]),
            "q_proj.g_idx": ("I32", [64]),
        },
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        "gptq 4 bit",
    ),
    "gptq of 8 bit": (
        {"q_proj.qweight": ("I32", [16, 32]), "q_proj.scales": ("F16", [2, 32])},
        {"quant_method": "gptq", "bits": 8},
        "gptq 8 bit",
    ),
    "awq": (
        {"q_proj.qweight": ("I32", [64, 4]), "q_proj.qzeros": ("I32", [2, 4]), "q_proj.scales": ("F16", [2, 32])},
        {"quant_method": "awq", "w_bit": 4},
        "awq 4 bit",
    ),
    "compressed-tensors": (
        {
            "q_proj.weight_packed": ("I32", [32, 8]),
            "q_proj.weight_scale": ("BF16", [32, 2]),
            "q_proj.weight_shape": ("I64", [2]),
        },
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
        "compressed-tensors 4 bit",
    ),
    "compressed-tensors, 8 bit": (
        {"q_proj.weight": ("I8", [32, 64]), "q_proj.weight_scale": ("BF16", [32, 1])},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
        "compressed-tensors 8 bit",
    ),
    "fp8": (
        {"q_proj.weight": ("F8_E4M3", [32, 64]), "q_proj.weight_scale_inv": ("F32", [1, 1])},
        {"quant_method": "fp8"},
        "fp8 8 bit",
    ),
    "bitsandbytes, 4 bit": (
        {
            "q_proj.weight": ("U8", [1024, 1]),
            "q_proj.weight.absmax": ("U8", [32]),
            "q_proj.weight.quant_map": ("F32", [16]),
            "q_proj.weight.nested_absmax": ("F32", [1]),
            "q_proj.weight.quant_state.bitsandbytes__nf4": ("U8", [90]),
        },
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "bitsandbytes 4 bit",
    ),
    "bitsandbytes, 8 bit": (
        {"q_proj.weight": ("I8", [32, 64]), "q_proj.SCB": ("F32", [32])},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "bitsandbytes 8 bit",
    ),
    "mxfp4": (
        {"experts.down_proj_blocks": ("U8", [2, 32, 1, 16]), "experts.down_proj_scales": ("U8", [2, 32, 1])},
        {"quant_method": "mxfp4"},
        "mxfp4 4 bit",
    ),
    "one that nobody knows": ({"q_proj.weight": ("U8", [32, 64])}, {"quant_method": "new"}, "new"),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_weights_are_counted_one_by_one(tmp_path: Path, kind: str) -> None:
    layer, quantization, label = LAYERS[kind]
    folder = a_folder(tmp_path / "m", {**EMBEDDING, **layer}, quantization)
    size = size_of(folder)
    assert (size.parameters, size.quantization) == (640 + 2048, label)
    assert size.weight_bytes == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "quantization",
    [
        {},
        [],
        "gptq",
        {"quant_method": 3, "bits": "x"},
        {"bits": 0},
        {"bits": True},
        {"bits": 1e30},
        {"config_groups": [1]},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_no_traceback(tmp_path: Path, quantization: Any) -> None:
    folder = a_folder(tmp_path / "m", {"q_proj.qweight": ("I32", [8, 32])}, quantization)
    assert size_of(folder).parameters == 256


@pytest.fixture(scope="module")
def twin(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the values that its quantised forms stand for."""
    return quantize(tiny_model, tmp_path_factory.mktemp("quantized") / "twin", "none")


def likelihoods(engine: Any) -> list[float]:
    """Of twelve choices, in nats."""
    choices = tuple(
        f" {word}" for word in ["A", "B", "C", "D", "yes", "no", "maybe", "patient", "fever", "The", "of", "is"]
    )
    (completion,) = engine.generate([Request("1", (), "Which of the following is", 1, choices=choices)])
    return [completion.logprobs[one] for one in choices]


@pytest.mark.engine
@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_vllm_serves_a_quantised_checkpoint_as_its_dequantised_twin(
    tiny_model: Path, twin: Path, tmp_path: Path, method: str
) -> None:
    from medbench.harness.engines.hf import HFEngine
    from medbench.harness.engines.settings import EngineConfig
    from medbench.harness.engines.vllm import VLLMEngine

    folder = quantize(tiny_model, tmp_path / method, method)
    checkpoint, full = resolve(str(folder)), resolve(str(twin))
    assert checkpoint.parameters == full.parameters
    assert checkpoint.quantization == f"{method} 4 bit"
    assert checkpoint.weight_bytes is not None
    assert full.weight_bytes is not None
    assert checkpoint.weight_bytes < 0.6 * full.weight_bytes
    reference = HFEngine(str(twin), device="cpu")
    wanted = likelihoods(reference)
    reference.close()
    engine = VLLMEngine(checkpoint.path, EngineConfig(kv_cache_gib=1, max_model_len=256))
    found = likelihoods(engine)
    engine.close()
    assert max(abs(a - b) for a, b in zip(wanted, found, strict=True)) < 0.15
    assert max(wanted) - min(wanted) > 2


def test_an_adapter_is_not_merged_into_packed_weights(tiny_model: Path, tmp_path: Path) -> None:
    from support.tiny import build_tiny_lora

    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=False, use_rslora=False)
    base = quantize(tiny_model, tmp_path / "tiny-bnb-4bit", "gptq")
    with pytest.raises(MedbenchError, match="is quantised, and adapters are merged in full precision: name the model"):
        resolve(str(adapter), base=str(base))
    assert resolve(str(adapter), base=str(tiny_model)).base == str(tiny_model)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_broken_numbers_are_found_in_8_bit_floating_point(tiny_model: Path, tmp_path: Path, value: float) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_model, tmp_path / "fp8"))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name][3, 4] = value
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if value == 1.0:
        refuse_nan(folder)
        return
    with pytest.raises(BrokenCheckpoint, match=r"q_proj\.weight holds NaN or infinity"):
        refuse_nan(folder)
