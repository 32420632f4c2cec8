"""A base model with a PEFT adapter in place, refused unless the two fit; and what it says on a fixed probe.

The only file of the harness that imports peft.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.faults import blame_checkpoint

PROBE_TOKENS = 64
_SHARED = re.compile(r"vblora_vector_bank|\.tinylora_v\.|\.unilora_theta_d\.")
"""Parameters that layers share, which peft saves once; its from_pretrained does not count them as missing either."""
_EMBEDDING = re.compile(
    r"base_model\.model\.(?P<name>.+?)(?:\.(?:token_adapter\.)?base_layer|\.modules_to_save|\.original_module)?\.weight"
)
"""Names of the weights of an embedding in an adapter's file."""


def adapter_config(adapter: Path) -> Any:
    """peft's config of an adapter. Raises ValueError for one that no weights can stand for."""
    import peft

    config = peft.PeftConfig.from_pretrained(str(adapter))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ValueError(f"{config.peft_type.value} changes the prompt and cannot be merged into weights")
    return config


def adapted(model: Any, adapter: Path, saved: Mapping[str, Any], *, empty: bool = False) -> Any:
    """peft's model of the base `model`, whose vocabulary is already the adapter's, with the adapter in place.

    `saved`: the header of the adapter's file; `empty`: the base's weights are not loaded. Raises ValueError unless the
    file has exactly the tensors that the adapter needs.
    """
    import peft

    embeddings = embedding_rows(model, saved)
    found: Any = peft.PeftModel.from_pretrained(model, str(adapter), low_cpu_mem_usage=empty, torch_device="cpu")
    # peft only warns about layers without weights, and says nothing about weights without a layer
    # of an embedding that was resized, peft saves all that it has
    whole = tuple(f"base_model.model.{name}." for name, _ in embeddings.values())
    own = {key for key in saved if not key.startswith(whole)} - {"__metadata__"}
    taken = peft.get_peft_model_state_dict(found, save_embedding_layers=False).keys()
    missing = {key for key in taken - saved.keys() if not _SHARED.search(key)}
    if missing or own - taken:
        odd = min(missing | own - taken)
        raise ValueError(f"{len(missing)} tensors missing, {len(own - taken)} too many, such as {odd}")
    return found


def replaced_modules(found: Any) -> list[Any]:
    """Modules of the base in whose place the adapter has whole ones; they are not used."""
    from peft.utils import ModulesToSaveWrapper

    wrapped = [one.original_module for one in found.modules() if isinstance(one, ModulesToSaveWrapper)]
    return [part for module in wrapped for part in module.modules()]


def merge_module(model: Any, name: str) -> Any:
    """Merge the adapter into one module of its base, as peft does it for all; returns the module without it.

    Raises ValueError for NaN in the merged weights.
    """
    outermost: list[tuple[str, Any]] = []
    for path, part in model.get_submodule(name).named_modules(prefix=name):
        inside = any(path.startswith(f"{outer}.") for outer, _ in outermost)
        if not inside and (hasattr(part, "base_layer") or hasattr(part, "unload_and_optionally_merge_module")):
            outermost.append((path, part))
    for path, part in outermost:
        if hasattr(part, "unload_and_optionally_merge_module"):
            plain = part.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            part.merge(safe_merge=True)
            plain = part.get_base_layer()
        model.set_submodule(path, plain)
    return model.get_submodule(name)


def new_vocabulary(model: Any, saved: Mapping[str, Any]) -> int | None:
    """The number of tokens in the adapter's embeddings where it is not the base's, as after adding tokens in training.

    Raises ValueError where only one of two embeddings was saved: the rows of the other are lost.
    """
    rows = embedding_rows(model, saved)
    size = model.get_input_embeddings().weight.shape[0]
    resized = {count for _, count in rows.values()} - {size}
    if not resized:
        return None
    found = {name for name, _ in rows.values()}
    matrices = {id(module.weight) for module in embeddings_of(model)}
    if len(found) < len(matrices):
        raise ValueError(f"it has {max(resized)} tokens and its base {size}, and only {min(found)} was saved with them")
    return max(resized)


def embedding_rows(model: Any, saved: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """The tensors of an adapter's file that are whole embeddings of the base: name -> (embedding, number of tokens)."""
    embeddings = embeddings_of(model)
    names = {name for name, module in model.named_modules() if any(module is one for one in embeddings)}
    found = {key: match["name"] for key in saved if (match := _EMBEDDING.fullmatch(key)) and match["name"] in names}
    return {key: (name, saved[key]["shape"][0]) for key, name in found.items()}


def embeddings_of(model: Any) -> list[Any]:
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def tie(config: Any, *, tied: bool) -> None:
    """Have a model loaded with one embedding, or with two: training one of two tied ones makes them differ."""
    config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = tied


def refuse_generation_config(base: Path, model: Any) -> None:
    with blame_checkpoint(f"{base}: its generation_config.json cannot be saved again", "correct it"):
        model.generation_config.validate(strict=True)


def log_probabilities(model: Any, device: Any = "cpu") -> Any:
    """Log-probabilities on a fixed probe of 64 tokens, float32 [1, 64, vocab], in nats, on the CPU.

    Merging, and the cast to the base's dtype after it, should not change them.
    """
    import torch

    tokens = torch.arange(PROBE_TOKENS, device=device)[None] * 7 % model.config.vocab_size
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=tokens).logits.float(), dim=-1).cpu()
