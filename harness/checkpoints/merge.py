"""Merges PEFT adapters into their base model in float32, and measures on a fixed probe what that changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.faults import blame_checkpoint
from medbench.harness.checkpoints.fingerprint import tokenizer_files
from medbench.harness.checkpoints.packages import needed
from medbench.harness.checkpoints.weights import check_safetensors, own_dtype, read_json_file
from medbench.harness.contracts import Checkpoint, MedbenchError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MERGE_FILE = "medbench_merge.json"
MERGE_PROBE_TOKENS = 64
_SHARED = re.compile(r"vblora_vector_bank|\.tinylora_v\.|\.unilora_theta_d\.")
"""Parameters that layers share, which peft saves once; its from_pretrained does not count them as missing either."""
_EMBEDDING = re.compile(
    r"base_model\.model\.(?P<name>.+?)(?:\.(?:token_adapter\.)?base_layer|\.modules_to_save|\.original_module)?\.weight"
)
"""Names of the weights of an embedding in an adapter's file."""


def forget_merge(checkpoint: Checkpoint) -> None:
    """Remove an adapter's merged model from the cache; it is merged again when it is needed."""
    if checkpoint.kind == "adapter":
        shutil.rmtree(checkpoint.path, ignore_errors=True)


def refuse_quantized(base: Path, adapter: Path) -> None:
    """Raises MedbenchError for a base whose weights are packed, such as the 4-bit twins that QLoRA trains on."""
    if read_json_file(base / "config.json").get("quantization_config"):
        raise MedbenchError(
            f"adapter {adapter}: its base {base} is quantised, and adapters are merged in full precision: name the "
            f"model that it was quantised from by --base"
        )


def merge_adapter(base: Path, adapter: Path, tokenizer: Path, folder: Path) -> None:
    """Write the merged model, in the base's dtype and with the files of `tokenizer`, into `folder`.

    Merges in float32, because merging DoRA or LoRA in bfloat16 loses precision (PEFT issues 1388, 2502). Raises
    MedbenchError for an adapter that does not fit its base.
    """
    with needed(f"adapter {adapter}: it cannot be merged", extra="'medbench[train]'"):
        import peft
    import torch
    from transformers import AutoModelForCausalLM

    saved = check_safetensors(adapter / ADAPTER_WEIGHTS)
    with blame_checkpoint(f"adapter {adapter} does not fit its base {base}", "name its own base, or save it again"):
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
        _fit_vocabulary(model, saved)
        adapted: Any = peft.PeftModel.from_pretrained(model, str(adapter))
        kind = adapted.peft_config["default"]
        if kind.is_prompt_learning or kind.is_adaption_prompt:
            raise ValueError(f"{kind.peft_type.value} changes the prompt and cannot be merged into weights")
        # peft only warns about layers without weights, and says nothing about weights without a layer
        loaded = adapted.load_adapter(str(adapter), "default", torch_device="cpu")
        missing = [key for key in loaded.missing_keys if not _SHARED.search(key)]
        # beside resized embeddings peft saves a second copy of those that were trained
        extra = [key for key in loaded.unexpected_keys if key.replace(".modules_to_save.", ".") not in saved]
        if missing or extra:
            odd = min([*missing, *extra])
            raise ValueError(f"{len(missing)} tensors missing, {len(extra)} too many, such as {odd}")
        unmerged = _log_probabilities(adapted)
        model = adapted.merge_and_unload(safe_merge=True)
        _untie(model)
        model = model.to(getattr(torch, own_dtype(read_json_file(base / "config.json")) or "float32"))

    deviation = float((_log_probabilities(model) - unmerged).abs().max())
    with blame_checkpoint(f"{base}: its generation_config.json cannot be saved again", "correct it"):
        model.generation_config.validate(strict=True)
    model.save_pretrained(folder)
    (folder / MERGE_FILE).write_text(json.dumps({"deviation": deviation}) + "\n")
    for path in tokenizer_files(tokenizer):
        shutil.copy(path, folder)  # copied: saved again, they would count as another tokenizer


def _fit_vocabulary(model: Any, saved: Mapping[str, Any]) -> None:
    """Resize the base's embeddings to those in the adapter, as peft asks for where tokens were added in training.

    Raises ValueError where only one of two embeddings was saved: the rows of the other are lost.
    """
    embeddings = _embeddings(model)
    names = {name: module for name, module in model.named_modules() if any(module is one for one in embeddings)}
    rows: dict[str, int] = {}
    for key, tensor in saved.items():
        found = _EMBEDDING.fullmatch(key)
        if found and found["name"] in names:
            rows[found["name"]] = tensor["shape"][0]
    resized = {count for name, count in rows.items() if count != names[name].weight.shape[0]}
    if not resized:
        return
    tied = len({id(module.weight) for module in names.values()}) == 1
    if len(rows) < len(names) and not tied:
        lacking = min(set(names) - set(rows))
        raise ValueError(
            f"it has {max(resized)} tokens and its base {model.config.vocab_size}, and of {lacking} it has no weights"
        )
    model.resize_token_embeddings(max(resized), mean_resizing=False)


def _untie(model: Any) -> None:
    """Have both embeddings saved where training one of two tied ones has made them differ."""
    import torch

    weights = [module.weight for module in _embeddings(model)]
    text = model.config.get_text_config()
    if text.tie_word_embeddings and len(weights) == 2 and not torch.equal(*weights):
        text.tie_word_embeddings = model.config.tie_word_embeddings = False


def _embeddings(model: Any) -> list[Any]:
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def _log_probabilities(model: Any) -> Any:
    """Log-probabilities on a fixed probe of 64 tokens, float32 [1, 64, vocab], in nats.

    Merging, and the cast to the base's dtype after it, should not change them.
    """
    import torch

    tokens = torch.arange(MERGE_PROBE_TOKENS)[None] * 7 % model.config.vocab_size
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=tokens).logits.float(), dim=-1)
