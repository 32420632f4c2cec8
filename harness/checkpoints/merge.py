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
from medbench.harness.checkpoints.quantization import is_quantized
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
    if is_quantized(base):
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
        embeddings = _embedding_rows(model, saved)
        _fit_vocabulary(model, embeddings)
        adapted: Any = peft.PeftModel.from_pretrained(model, str(adapter))
        kind = adapted.peft_config["default"]
        if kind.is_prompt_learning or kind.is_adaption_prompt:
            raise ValueError(f"{kind.peft_type.value} changes the prompt and cannot be merged into weights")
        # peft only warns about layers without weights, and says nothing about weights without a layer
        # of an embedding that was resized, peft saves all that it has
        whole = tuple(f"base_model.model.{name}." for name, _ in embeddings.values())
        own = {key for key in saved if not key.startswith(whole)} - {"__metadata__"}
        taken = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
        missing = {key for key in taken - saved.keys() if not _SHARED.search(key)}
        if missing or own - taken:
            odd = min(missing | own - taken)
            raise ValueError(f"{len(missing)} tensors missing, {len(own - taken)} too many, such as {odd}")
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


def _embedding_rows(model: Any, saved: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """The tensors of an adapter's file that are whole embeddings of the base: name -> (embedding, number of tokens)."""
    embeddings = _embeddings(model)
    names = {name for name, module in model.named_modules() if any(module is one for one in embeddings)}
    found = {key: match["name"] for key in saved if (match := _EMBEDDING.fullmatch(key)) and match["name"] in names}
    return {key: (name, saved[key]["shape"][0]) for key, name in found.items()}


def _fit_vocabulary(model: Any, rows: Mapping[str, tuple[str, int]]) -> None:
    """Resize the base's embeddings to those in the adapter, as peft asks for where tokens were added in training.

    Raises ValueError where only one of two embeddings was saved: the rows of the other are lost.
    """
    size = model.get_input_embeddings().weight.shape[0]
    resized = {count for _, count in rows.values()} - {size}
    if not resized:
        return
    saved = {name for name, _ in rows.values()}
    matrices = {id(module.weight) for module in _embeddings(model)}
    if len(saved) < len(matrices):
        raise ValueError(f"it has {max(resized)} tokens and its base {size}, and only {min(saved)} was saved with them")
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
