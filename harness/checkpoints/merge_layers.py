"""Merges an adapter one decoder layer at a time: peak memory is a few layers, whatever the size of the base.

Each layer is read from the base's files, run unmerged on the probe, merged by peft's own code for the layer, written
and freed. The deviation is measured on the files that were written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.adapted import (
    adapted,
    log_probabilities,
    merge_module,
    new_vocabulary,
    refuse_generation_config,
    replaced_modules,
    tie,
)
from medbench.harness.checkpoints.shards import OF_TORCH, ShardWriter, remove_shards, writing
from medbench.harness.checkpoints.streaming import (
    CannotStream,
    StoredWeights,
    forget,
    is_loaded,
    largest_unit,
    parameters_of,
    streamed,
    units_of,
    without_weights,
)

ROOM = 4
"""Free memory that a GPU needs, in multiples of the largest layer in float32: merging DoRA makes copies of a matrix."""
LAYER_BY_LAYER = ("LORA", "TRAINABLE_TOKENS")
"""peft's kinds that need nothing of the base but the layer; others have not been tried."""


def merge_by_layers(
    base: Path, adapter: Path, config: Any, saved: Mapping[str, Any], folder: Path, dtype: Any
) -> float:
    """Write the merged model's weights and configs in `dtype` to `folder`; returns the deviation in nats.

    Raises CannotStream for a model or an adapter of a kind that must be merged whole, NotWritten, and ValueError for an
    adapter that does not fit.
    """
    import torch

    _refuse_unusual(config, dtype)
    if torch.cuda.is_available():
        matmul = torch.backends.cuda.matmul
        precision = matmul.fp32_precision
        try:
            matmul.fp32_precision = "ieee"  # not TF32
            return _merge_on(torch.device("cuda"), base, adapter, saved, folder, dtype)
        except torch.OutOfMemoryError:  # an engine holds it, perhaps
            pass
        finally:
            matmul.fp32_precision = precision
            torch.cuda.empty_cache()
    return _merge_on(torch.device("cpu"), base, adapter, saved, folder, dtype)


def _refuse_unusual(config: Any, dtype: Any) -> None:
    if config.peft_type.value not in LAYER_BY_LAYER:
        raise CannotStream(f"{config.peft_type.value} has not been tried layer by layer")
    if getattr(config, "init_lora_weights", True) not in (True, False, "gaussian"):
        raise CannotStream("it is made from a decomposition of the base's weights")
    if str(dtype).removeprefix("torch.") not in OF_TORCH:
        raise CannotStream(f"{dtype} cannot be written")


def _merge_on(device: Any, base: Path, adapter: Path, saved: Mapping[str, Any], folder: Path, dtype: Any) -> float:
    import torch
    from transformers import AutoConfig, GenerationConfig

    remove_shards(folder)
    config: Any = AutoConfig.from_pretrained(base, trust_remote_code=False)
    model = without_weights(config, torch.float32)
    if size := new_vocabulary(model, saved):
        config.get_text_config().vocab_size = size
        model = without_weights(config, torch.float32)
    units = units_of(model)
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < ROOM * largest_unit(model, units):
        raise torch.OutOfMemoryError("no room for a layer")
    if (base / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(base)
    refuse_generation_config(base, model)
    names = [name for name, *_ in parameters_of(model)]
    weights = StoredWeights(base, model)
    found = adapted(model, adapter, saved, empty=True)
    with ShardWriter(folder, names) as shards:
        merge = _LayerMerge(model, weights, frozenset(map(id, replaced_modules(found))), shards, device, dtype)
        merge.share_saved()
        merge.refuse_unknown(found)
        with streamed(model, units, device, merge.load, merge.merge):
            unmerged = log_probabilities(found, device)
    if merge.untied:
        tie(model.config, tied=False)
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    with writing():
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    deviation = float((_merged_log_probabilities(folder, device, dtype) - unmerged).abs().max())
    if deviation != deviation:
        raise CannotStream("a weight was used outside of its layer")
    return deviation


@dataclass(slots=True)
class _LayerMerge:
    """Loads, merges and writes the layers of an adapted model."""

    model: Any
    weights: StoredWeights
    unused: frozenset[int]
    """ids of modules that the adapter replaces."""
    shards: ShardWriter
    device: Any
    dtype: Any
    untied: bool = False
    """Whether weights that were tied are so no longer."""
    written: dict[int, str] = field(default_factory=dict)
    """Group of tied weights -> sha256 of what was written for it."""

    def share_saved(self) -> None:
        """Give a tied weight that the adapter's file has whole, such as a resized embedding, to all of its places.

        Each place has a parameter of its own: merging into one must not change what the others compute.
        """
        import torch

        for places in self.weights.tied:
            loaded = [one for _, module, key in places if is_loaded(one := module._parameters[key])]
            for _, module, key in places if loaded else ():
                if not is_loaded(module._parameters[key]):
                    module._parameters[key] = torch.nn.Parameter(loaded[0].data, requires_grad=False)

    def refuse_unknown(self, found: Any) -> None:
        """Raises CannotStream for a weight that neither the base nor the adapter has."""
        for name, module, key, parameter in parameters_of(found):
            if not (is_loaded(parameter) or self.weights.has(module, key) or id(module) in self.unused):
                raise CannotStream(f"{name} is in no file")

    def load(self, _: str, unit: Any) -> None:
        import torch

        used = [place for place in parameters_of(unit) if id(place[1]) not in self.unused]
        missing = [(module, key) for _, module, key, parameter in used if not is_loaded(parameter)]
        self.weights.load(missing, self.device, torch.float32)
        for _, module, key, _ in used:
            parameter = module._parameters[key]
            parameter.data = parameter.data.to(self.device, torch.float32)

    def merge(self, name: str, _: Any) -> None:
        merged = merge_module(self.model, name)
        for key, tensor in merged.state_dict().items():
            self._write(f"{name}.{key}", tensor.to(self.dtype))
        forget(merged)

    def _write(self, name: str, tensor: Any) -> None:
        group = next((n for n, places in enumerate(self.weights.tied) if name in {one for one, *_ in places}), None)
        if group is not None:
            digest = _digest(tensor)
            if self.written.get(group) == digest:
                return
            self.untied |= group in self.written
            self.written[group] = digest
        self.shards.add(name, tensor)


def _merged_log_probabilities(folder: Path, device: Any, dtype: Any) -> Any:
    """As `log_probabilities`, of the checkpoint in `folder`, computed in `dtype`."""
    from transformers import AutoConfig

    model = without_weights(AutoConfig.from_pretrained(folder, trust_remote_code=False), dtype)
    weights = StoredWeights(folder, model)

    def load(_: str, unit: Any) -> None:
        weights.load([(module, key) for _, module, key, _ in parameters_of(unit)], device, dtype)

    with streamed(model, units_of(model), device, load, lambda _, unit: forget(unit)):
        return log_probabilities(model, device)


def _digest(tensor: Any) -> str:
    import torch

    return hashlib.sha256(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
