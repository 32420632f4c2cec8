"""A rough estimate of a training's memory, from the headers of the weight files alone.

Included: weights, gradients, optimizer states and activations (Korthikanti et al., arXiv 2205.05198, section 4, for
attention that does not store scores). Not included: fragmentation, an engine on the same device, and the fixed cost of
a process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.trainers.trl import adapters, lora
from medbench.trainers.trl.run import GIB, TrainingSettings, is_bfloat16

STATES = {"sgd": 0.0, "adafactor": 0.1, "lion": 4.0, "adamw_8bit": 2.0, "adamw_bnb_8bit": 2.0, "lion_8bit": 1.0}
"""Bytes of optimizer state per trained parameter, if other than Adam's 8."""
ADAM = 8.0
ACTIVATION_BYTES = 34
"""Bytes per token, layer and hidden unit in 16-bit precision."""
LOGIT_COPIES, DORA_COPIES = 3, 3
"""How many copies of a token's logits (float32), and of an adapted layer's outputs under DoRA, are held. Fitted to two
measurements of SmolLM2-135M in float32: 4.0 MB per token at 840 tokens and 2.7 at 6,080."""


def training_memory(start: Path, settings: TrainingSettings, trained: adapters.Trained, *, tokens: int) -> list[str]:
    """Lines about the memory on one device, in GiB. `tokens`: length of one row, prompt and reply together."""
    total, parameters = adapters.parameters(None, start), adapters.parameters(trained, start)
    adapted, bfloat16 = adapters.adds_weights(trained), is_bfloat16(settings)
    held = {
        "weights": total * (2 if adapted and bfloat16 else 4) + (4 * parameters if adapted else 0),
        "gradients": 4 * parameters,
        "optimizer": STATES.get(settings.optimizer.lower(), ADAM) * parameters,
        "activations": _activations(_shape(start), settings, tokens, 2 if bfloat16 else 4)
        + _outputs(start, trained, 2 if bfloat16 else 4) * settings.batch_size * tokens,
    }
    what = adapters.name_of(trained)
    share = f"{parameters:,} of {total:,} parameters trained ({parameters / total:.2%}, {what})"
    parts = ", ".join(f"{name} {bytes / GIB:.2f}" for name, bytes in held.items())
    return [share, f"memory about {sum(held.values()) / GIB:.1f} GiB on one device: {parts}"]


def _activations(shape: tuple[int, int], settings: TrainingSettings, tokens: int, width: int) -> float:
    layers, hidden = shape
    per_layer = settings.batch_size * tokens * hidden * ACTIVATION_BYTES * width / 2
    if settings.gradient_checkpointing:  # the input of each layer, and one recomputed layer at a time
        return layers * settings.batch_size * tokens * hidden * width + per_layer
    return layers * per_layer


def _outputs(start: Path, trained: adapters.Trained, width: int) -> float:
    """Bytes per token besides the activations of the base layers."""
    outputs = 0
    if isinstance(trained, lora.LoraSettings) and trained.use_dora:
        outputs = sum(shape[0] for shape in lora.targeted(trained, start).values())
    vocabulary = int(_config(start).get("vocab_size", 0))
    return float(LOGIT_COPIES * 4 * vocabulary + DORA_COPIES * width * outputs)


def _config(start: Path) -> Mapping[str, Any]:
    config: Mapping[str, Any] = json.loads((start / "config.json").read_text(encoding="utf-8"))
    text: Mapping[str, Any] = config.get("text_config", config)
    return text


def _shape(start: Path) -> tuple[int, int]:
    """(layers, hidden units); (0, 0) if config.json calls them something else."""
    config = _config(start)
    return config.get("num_hidden_layers", 0), config.get("hidden_size", 0)
