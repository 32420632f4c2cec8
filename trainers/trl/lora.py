"""The `lora:` section of a recipe: the low-rank adapter to train, and a check that the model has its target modules.

DoRA (arXiv 2402.09353) trains each weight's magnitude separately from its direction; rsLoRA (arXiv 2312.03732) scales
by alpha / sqrt(rank) instead of alpha / rank, so that a higher rank does not learn more slowly.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from medbench.harness.checkpoints.weights import check_safetensors, weight_files
from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError
from medbench.harness.text import did_you_mean

ALL = "all-linear"
"""peft's name for every linear layer except the output head."""
HEADS = ("lm_head", "embed_out", "output")
"""TRL multiplies by the head's weight directly, so an adapter on it would never be trained."""


def check_targets(targets: str | list[str] | None) -> str | list[str] | None:
    """Raises ValueError for targets that name nothing."""
    if targets is None:
        return None
    if not targets or not all(targets):
        raise ValueError("names no module: write all-linear, or module names such as q_proj")
    if isinstance(targets, str) and targets != ALL:
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error}); write several names as a list") from None
    return targets


class LoraSettings(Record):
    """A low-rank adapter; `lora: null` in a recipe trains all weights."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    use_dora: bool = True
    use_rslora: bool = True
    targets: str | list[str] = ALL
    """"all-linear", a list of module names (such as q_proj), or a regular expression over full module names."""

    _names_something = field_validator("targets")(check_targets)


def peft_config(settings: LoraSettings) -> Any:
    """The peft.LoraConfig of `settings`."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # annotated int; it is only ever divided
        lora_dropout=settings.dropout,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )


def targeted(settings: LoraSettings, start: Path, where: str = "lora") -> dict[str, tuple[int, int]]:
    """Module -> weight shape (outputs, inputs) of the linear layers in the checkpoint `start` that get an adapter.

    `where`: the section of the recipe that has the targets. Raises MedbenchError if a target matches no linear layer,
    or matches the output head.
    """
    modules = _linear_modules(start)
    body = {name: shape for name, shape in modules.items() if not _is(name, HEADS) and "embed" not in name}
    if settings.targets == ALL:
        return body
    known = sorted({name.rpartition(".")[2] for name in body})
    wanted = [settings.targets] if isinstance(settings.targets, str) else settings.targets
    found: dict[str, tuple[int, int]] = {}
    for target in wanted:
        matched = [name for name in modules if _matches(name, target, settings.targets)]
        if not matched:
            raise MedbenchError(
                f"{where}.targets: {target!r} matches no linear layer of {start}; {did_you_mean(target, known)}"
            )
        if head := next((name for name in matched if name not in body), None):
            raise MedbenchError(
                f"{where}.targets: {target!r} matches {head}, on which an adapter is never trained; "
                f"known: {', '.join(known)}"
            )
        found.update({name: body[name] for name in matched})
    return found


def refuse_unmatched(settings: LoraSettings, start: Path) -> None:
    """Raises MedbenchError if a target matches no linear layer of the checkpoint `start`; reads only weight headers."""
    targeted(settings, start)


def parameters(settings: LoraSettings, start: Path) -> int:
    """Number of parameters that the adapter trains."""
    per_module = (
        settings.rank * (outputs + inputs) + settings.use_dora * outputs
        for outputs, inputs in targeted(settings, start).values()
    )
    return sum(per_module)


def _linear_modules(start: Path) -> dict[str, tuple[int, int]]:
    headers = [check_safetensors(file) for file in weight_files(start)]
    return {
        name.removesuffix(".weight"): (tensor["shape"][0], tensor["shape"][1])
        for header in headers
        for name, tensor in header.items()
        if name.endswith(".weight") and len(tensor["shape"]) == 2
    }


def _matches(name: str, target: str, targets: str | list[str]) -> bool:
    """The same rule as peft.tuners.tuners_utils.check_target_module_exists."""
    return bool(re.fullmatch(target, name)) if isinstance(targets, str) else _is(name, (target,))


def _is(name: str, targets: tuple[str, ...]) -> bool:
    return name.endswith(tuple(f".{target}" for target in targets)) or name in targets
