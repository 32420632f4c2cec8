"""The memory estimate: what it includes, and that it follows the settings.

pytest tests/trainers/test_memory.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from medbench.trainers.trl.lora import LoraSettings
from medbench.trainers.trl.memory import training_memory
from medbench.trainers.trl.run import TrainingSettings


def parts(start: Path, adapter: LoraSettings | None, **settings: Any) -> dict[str, float]:
    """GiB by name, at a size where two decimals are meaningful."""
    given = TrainingSettings(**{"steps": 1, "batch_size": 4096, "precision": "float32", **settings})
    _, line = training_memory(start, given, adapter, tokens=1000)
    return {name: float(gib) for name, gib in re.findall(r"(\w+) ([\d.]+)(?:,|$)", line.partition(": ")[2])}


def test_the_share_of_trained_parameters(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    total = sum(one.numel() for one in AutoModelForCausalLM.from_pretrained(tiny_model).parameters())
    settings = TrainingSettings(steps=1)
    share, _ = training_memory(tiny_model, settings, None, tokens=10)
    assert share.startswith(f"{total:,} of {total:,} parameters trained (100.00%, all weights)")
    share, _ = training_memory(tiny_model, settings, LoraSettings(rank=4), tokens=10)
    assert 0 < int(share.split(" of ")[0].replace(",", "")) < total / 2


def test_activations_follow_the_paper_and_are_less_with_checkpointing(tiny_model: Path) -> None:
    plain = parts(tiny_model, None)
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    layers, logits = 2 * 128 * 34 * 2, 3 * 4 * vocabulary  # two layers of 128 units, float32
    assert plain["activations"] == round(4096 * 1000 * (layers + logits) / 2**30, 2)
    half = round(4096 * 1000 * (layers / 2 + logits) / 2**30, 2)
    assert parts(tiny_model, None, precision="bfloat16")["activations"] == half
    saved = plain["activations"] - parts(tiny_model, None, gradient_checkpointing=True)["activations"]
    assert saved > 0.4 * 4096 * 1000 * layers / 2**30
