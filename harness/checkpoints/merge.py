"""Merges PEFT adapters into their base model in float32, and measures on a fixed probe what that changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.faults import blame_checkpoint
from medbench.harness.checkpoints.fingerprint import tokenizer_files
from medbench.harness.checkpoints.packages import needed
from medbench.harness.checkpoints.weights import check_safetensors, own_dtype, read_json_file
from medbench.harness.contracts import Checkpoint

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MERGE_FILE = "medbench_merge.json"
MERGE_PROBE_TOKENS = 64


def forget_merge(checkpoint: Checkpoint) -> None:
    """Remove an adapter's merged model from the cache; it is merged again when it is needed."""
    if checkpoint.kind == "adapter":
        shutil.rmtree(checkpoint.path, ignore_errors=True)


def merge_adapter(base: Path, adapter: Path, tokenizer: Path, folder: Path) -> None:
    """Write the merged model, in the base's dtype and with the files of `tokenizer`, into `folder`.

    Merges in float32, because merging DoRA or LoRA in bfloat16 loses precision (PEFT issues 1388, 2502). Raises
    MedbenchError for an adapter that does not fit its base.
    """
    with needed(f"adapter {adapter}: it cannot be merged", extra="'medbench[train]'"):
        import peft
    import torch
    from transformers import AutoModelForCausalLM

    with blame_checkpoint(f"adapter {adapter} does not fit its base {base}", "name its own base, or save it again"):
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
        adapted: Any = peft.PeftModel.from_pretrained(model, str(adapter))
        # peft only warns about layers without weights, and says nothing about weights without a layer
        taken = {key for key in peft.get_peft_model_state_dict(adapted, save_embedding_layers=False) if "lora_" in key}
        saved = {key for key in check_safetensors(adapter / ADAPTER_WEIGHTS) if "lora_" in key}
        if taken != saved:
            odd = min(taken ^ saved)
            raise ValueError(f"{len(taken - saved)} tensors missing, {len(saved - taken)} too many, such as {odd}")
        unmerged = _log_probabilities(adapted)
        model = adapted.merge_and_unload(safe_merge=True)
        model = model.to(getattr(torch, own_dtype(read_json_file(base / "config.json")) or "float32"))

    deviation = float((_log_probabilities(model) - unmerged).abs().max())
    with blame_checkpoint(f"{base}: its generation_config.json cannot be saved again", "correct it"):
        model.generation_config.validate(strict=True)
    model.save_pretrained(folder)
    (folder / MERGE_FILE).write_text(json.dumps({"deviation": deviation}) + "\n")
    for path in tokenizer_files(tokenizer):
        shutil.copy(path, folder)  # copied: saved again, they would count as another tokenizer


def _log_probabilities(model: Any) -> Any:
    """Log-probabilities on a fixed probe of 64 tokens, float32 [1, 64, vocab], in nats.

    Merging, and the cast to the base's dtype after it, should not change them.
    """
    import torch

    tokens = torch.arange(MERGE_PROBE_TOKENS)[None] * 7 % model.config.vocab_size
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=tokens).logits.float(), dim=-1)
