"""Merges PEFT adapters into their base model in float32, and measures on a fixed probe what that changed.

LoRA, DoRA and rsLoRA adapters, with modules saved whole and trained tokens, are merged layer by layer; other kinds with
the whole base in memory.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.adapted import (
    adapted,
    adapter_config,
    embeddings_of,
    log_probabilities,
    new_vocabulary,
    refuse_generation_config,
    tie,
)
from medbench.harness.checkpoints.adapters import ADAPTER_WEIGHTS
from medbench.harness.checkpoints.faults import blame_checkpoint
from medbench.harness.checkpoints.fingerprint import tokenizer_files
from medbench.harness.checkpoints.merge_layers import merge_by_layers
from medbench.harness.checkpoints.packages import needed
from medbench.harness.checkpoints.quantization import is_quantized
from medbench.harness.checkpoints.shards import NotWritten, remove_shards, writing
from medbench.harness.checkpoints.streaming import CannotStream
from medbench.harness.checkpoints.weights import check_safetensors, own_dtype, read_json_file
from medbench.harness.contracts import Checkpoint, MedbenchError

MERGE_FILE = "medbench_merge.json"
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory", re.IGNORECASE)
LAYERS = "end other processes: about four times its largest layer in float32 is needed, and the adapter"
WHOLE = (
    "it is merged with the whole base in memory ({}), at four bytes a weight: merge it on a larger machine by peft's "
    "merge_and_unload, and name the result"
)


def forget_merge(checkpoint: Checkpoint) -> None:
    """Remove an adapter's merged model from the cache; it is merged again when it is needed."""
    if checkpoint.kind == "adapter":
        shutil.rmtree(checkpoint.path, ignore_errors=True)


def refuse_quantized(base: Path, adapter: Path) -> None:
    """Raises MedbenchError for a base whose weights are packed, such as the 4-bit twins that QLoRA trains on."""
    if is_quantized(base):
        raise MedbenchError(
            f"adapter {adapter}: its base {base} is quantised, and adapters are merged in full precision: name the "
            f"model that it was quantised from by --base"
        )


def merge_adapter(base: Path, adapter: Path, tokenizer: Path, folder: Path) -> None:
    """Write the merged model, in the base's dtype and with the files of `tokenizer`, into `folder`.

    Merges in float32, because merging DoRA or LoRA in bfloat16 loses precision (PEFT issues 1388, 2502), on a GPU that
    has room for it. Raises MedbenchError for an adapter that does not fit its base, and OSError or SafetensorError for
    a file that cannot be written.
    """
    with needed(f"adapter {adapter}: it cannot be merged", "peft", extra="'medbench[train]'"):
        import torch

    saved = check_safetensors(adapter / ADAPTER_WEIGHTS)
    try:
        with blame_checkpoint(f"adapter {adapter} does not fit its base {base}", "name its own base, or save it again"):
            config = adapter_config(adapter)
            dtype = getattr(torch, own_dtype(read_json_file(base / "config.json")) or "float32")
            try:
                with _lack_of_memory_named(f"adapter {adapter} cannot be merged into {base}", LAYERS):
                    deviation = merge_by_layers(base, adapter, config, saved, folder, dtype)
            except CannotStream as reason:
                remove_shards(folder)
                with _lack_of_memory_named(f"adapter {adapter} cannot be merged into {base}", WHOLE.format(reason)):
                    deviation = _merge_whole(base, adapter, saved, folder, dtype)
    except NotWritten as error:
        raise error.reason from None
    (folder / MERGE_FILE).write_text(json.dumps({"deviation": deviation}) + "\n")
    for path in tokenizer_files(tokenizer):
        shutil.copy(path, folder)  # copied: saved again, they would count as another tokenizer


@contextmanager
def _lack_of_memory_named(what: str, needs: str) -> Iterator[None]:
    """Raises MedbenchError where memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(said):
            raise
        raise MedbenchError(f"{what}: out of memory ({said[:150]}): {needs}") from None


def _merge_whole(base: Path, adapter: Path, saved: Mapping[str, Any], folder: Path, dtype: Any) -> float:
    """Merge with the whole base in memory, in float32; returns the deviation in nats."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    if size := new_vocabulary(model, saved):
        model.resize_token_embeddings(size, mean_resizing=False)
    plain = embeddings_of(model)
    found = adapted(model, adapter, saved)
    tied = len(plain) == 2 and plain[0].weight is plain[1].weight
    if tied:  # merging into one must not change the other
        plain[1].weight = torch.nn.Parameter(plain[0].weight.detach().clone(), requires_grad=False)
    unmerged = log_probabilities(found)
    was_tied = model.config.get_text_config().tie_word_embeddings
    model = found.merge_and_unload(safe_merge=True)
    weights = [module.weight for module in embeddings_of(model)]
    if tied and torch.equal(*weights):
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
        tie(model.config, tied=True)
    elif was_tied and len(weights) == 2:
        tie(model.config, tied=False)
    model = model.to(dtype)
    deviation = float((log_probabilities(model) - unmerged).abs().max())
    refuse_generation_config(base, model)
    with writing():
        model.save_pretrained(folder)
    return deviation
