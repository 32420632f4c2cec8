"""The encoder of the local judge: the first layers of a language model, and a linear head over each step's tokens.

The source is read once and followed by all steps that are asked about it. A step sees the source and itself, not the
other steps, and its positions begin where the source ends, so it is read as if it stood alone behind the source.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.text import one_line

POOLS = 3
"""Of a step's tokens: mean, largest value, last."""


@dataclass(frozen=True, slots=True)
class Network:
    """Weights and tokenizer; use with torch.inference_mode() unless it is being trained."""

    backbone: Any
    """A decoder of transformers without its language-model head."""
    head: Any
    """torch.nn.Linear, [POOLS x hidden size] -> one score per verdict."""
    tokenizer: Any

    def tokens(self, text: str) -> list[int]:
        """Ids of one line; empty for text that has none."""
        text = " ".join(text.encode("utf-8", "replace").decode().split())
        return list(self.tokenizer.encode(f"{text}\n", add_special_tokens=False)) if text else []

    def source_tokens(self, text: str) -> list[int]:
        """With the token that begins a text before it, if the tokenizer has one."""
        first = self.tokenizer.bos_token_id
        first = self.tokenizer.eos_token_id if first is None else first
        ids = self.tokens(text)
        return [first, *ids] if ids and first is not None else ids

    def trainable(self, layers: int) -> list[Any]:
        """The weights of the last `layers` and of the norm behind them; all others are frozen."""
        self.backbone.requires_grad_(False)
        parts = [*self.backbone.layers[len(self.backbone.layers) - layers :], self.backbone.norm]
        found = [weight for part in parts for weight in part.parameters()]
        for weight in found:
            weight.requires_grad_(True)
        return found

    def scores(self, source: Sequence[int], steps: Sequence[Sequence[int]]) -> Any:
        """Tensor [steps, verdicts] of unscaled log-probabilities, in the order of VERDICTS; no step may be empty."""
        import torch

        device = self.head.weight.device
        lengths = [len(source), *map(len, steps)]
        part = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
        place = torch.cat([torch.arange(len(source)), *(len(source) + torch.arange(len(step)) for step in steps)])
        order = torch.arange(sum(lengths), device=device)
        seen = (order[None] <= order[:, None]) & ((part[None] == 0) | (part[None] == part[:, None]))
        ids = torch.tensor([*source, *(token for step in steps for token in step)], device=device)
        mask = torch.zeros(seen.shape, device=device).masked_fill(~seen, torch.finfo(torch.float32).min)
        with _half_precision(device.type):
            hidden = self.backbone(
                input_ids=ids[None],
                attention_mask=mask[None, None],
                position_ids=place[None].to(device),
                use_cache=False,
            ).last_hidden_state[0]
        of_steps = torch.split(hidden, lengths)[1:]
        pooled = [torch.cat([one.mean(dim=0), one.amax(dim=0), one[-1]]) for one in of_steps]
        return self.head(torch.stack(pooled).float())


def _half_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 for products of matrices, which halves the time, where the processor has instructions for it."""
    import torch

    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    able = device != "cpu" or any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.autocast(device, dtype=torch.bfloat16, enabled=able)


def fresh_network(folder: Path, layers: int) -> Network:
    """The first `layers` of the checkpoint in `folder` (all, if it has fewer) with a head of zeros, in float32.

    Raises MedbenchError for a model that is no plain decoder.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            config.num_hidden_layers = min(layers, config.num_hidden_layers)
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[: config.num_hidden_layers]
            backbone = AutoModel.from_pretrained(
                folder, config=config, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        _ = backbone.layers, backbone.norm, config.hidden_size
    except (AttributeError, ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        reason = one_line(error)[:200]
        raise MedbenchError(
            f"{folder}: its first layers cannot be trained ({reason}): name a plain language model, or smollm2-135m"
        ) from None
    head = torch.nn.Linear(POOLS * config.hidden_size, len(VERDICTS))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return Network(backbone, head, tokenizer)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its warnings of layers that are not loaded, and its progress bars."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
