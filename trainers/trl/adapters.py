"""The `adapter:` section of a recipe: which kind of adapter is trained, or which of the model's own weights.

    adapter: {kind: ia3}

Every kind ends as a plain checkpoint: peft merges what it has added (checkpoints/merge.py), and the kinds `full` and
`bitfit` train the model's own weights.

lora (arXiv 2106.09685), rslora (2312.03732), dora (2402.09353) and both at once are trl/lora.py's. vera (2310.11454)
trains two vectors per layer between frozen random projections that all layers share; loha (2108.06098) the Hadamard
product of two low-rank matrices; ia3 (2205.05638) a factor for each key, value and unit of the feed-forward layer; ln
(2312.11420) the norms; bitfit (2106.10199) the biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from medbench.harness.checkpoints.weights import check_safetensors, weight_files
from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError
from medbench.trainers.trl import lora
from medbench.trainers.trl.lora import ALL, LoraSettings, check_targets

Kind = Literal["lora", "rslora", "dora", "dora-rslora", "vera", "loha", "ia3", "ln", "bitfit", "full"]
OF_LORA = ("lora", "rslora", "dora", "dora-rslora")
RANKED = {**dict.fromkeys(OF_LORA, 16), "vera": 256, "loha": 8}
"""Kind -> the rank where none is given: LoraSettings' own, and peft's."""
OWN_WEIGHTS = ("bitfit", "full")
"""Kinds that add nothing to the model, so that a checkpoint has all its weights."""
ATTENDED = ("k_proj", "v_proj", "key", "value", "key_proj", "value_proj", "query_key_value", "qkv_proj", "c_attn")
FED_FORWARD = ("down_proj", "fc2", "w2", "fc_out", "dense_4h_to_h", "wo")
"""Layers that (IA)3 scales the output of, and the input of, by their usual names."""


class AdapterSettings(Record):
    """What an sft stage trains. `rank`, `alpha`, `dropout` and `targets` only where the kind has them."""

    kind: Kind
    rank: int | None = Field(None, ge=1)
    """Of lora and its variants (16), vera (256) and loha (8)."""
    alpha: float | None = Field(None, gt=0)
    """Of lora and its variants (32) and loha (its rank)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of lora and its variants, and vera."""
    targets: str | list[str] | None = None
    """As in `lora:`. None is all linear layers; for ia3 keys, values and the last of the feed-forward layer."""

    _names_something = field_validator("targets")(check_targets)

    @model_validator(mode="after")
    def _has_what_is_given(self) -> AdapterSettings:
        takes = {
            "rank": [*RANKED],
            "alpha": [*OF_LORA, "loha"],
            "dropout": [*OF_LORA, "vera"],
            "targets": [*RANKED, "ia3"],
        }
        for name, kinds in takes.items():
            if getattr(self, name) not in (None, 0.0) and self.kind not in kinds:
                raise ValueError(f"{name}: {self.kind} has none, only {', '.join(kinds)}: leave it out")
        if self.kind == "ia3" and self.targets is not None and self.targets != ALL and isinstance(self.targets, str):
            raise ValueError("targets: ia3 takes a list of module names, such as [k_proj, v_proj, down_proj]")
        return self

    @property
    def lora(self) -> LoraSettings | None:
        """The same as the `lora:` section has it, for LoRA and its variants."""
        if self.kind not in OF_LORA:
            return None
        return LoraSettings(
            rank=self._rank,
            alpha=32.0 if self.alpha is None else self.alpha,
            dropout=self.dropout,
            use_dora=self.kind.startswith("dora"),
            use_rslora=self.kind.endswith("rslora"),
            targets=ALL if self.targets is None else self.targets,
        )

    @property
    def _rank(self) -> int:
        return self.rank or RANKED[self.kind]


Trained = LoraSettings | AdapterSettings | None
"""What a stage trains; None is all weights."""


def trained_by(given: LoraSettings | None, adapter: AdapterSettings | None) -> Trained:
    """What a stage trains by its sections `lora:` and `adapter:`."""
    if adapter is None:
        return given
    return None if adapter.kind == "full" else adapter.lora or adapter


def adds_weights(trained: Trained) -> bool:
    """Whether a checkpoint is an adapter, to be merged."""
    return isinstance(trained, LoraSettings) or (trained is not None and trained.kind not in OWN_WEIGHTS)


def refuse_untrainable(trained: Trained, start: Path, where: str) -> None:
    """Raises MedbenchError where nothing of the checkpoint `start` would be trained; reads only weight headers.

    `where`: the section of the recipe that says what is trained.
    """
    if isinstance(trained, LoraSettings):
        lora.targeted(trained, start, where)
    elif trained is not None:
        if trained.targets is not None:
            lora.targeted(LoraSettings(targets=trained.targets), start, where)
        parameters(trained, start)


def name_of(trained: Trained) -> str:
    """In words, for the plan."""
    if trained is None:
        return "all weights"
    if isinstance(trained, LoraSettings):
        return "LoRA"
    return {"vera": "VeRA", "loha": "LoHa", "ia3": "(IA)3", "ln": "norms", "bitfit": "biases"}[trained.kind]


def parameters(trained: Trained, start: Path) -> int:
    """Number of parameters that are trained. Raises MedbenchError where that is none."""
    tensors = _tensors(start)
    if trained is None:
        return sum(map(math.prod, tensors.values()))
    if isinstance(trained, LoraSettings):
        return lora.parameters(trained, start)
    if trained.kind == "ln":
        return sum(math.prod(shape) for name, shape in tensors.items() if _module(name) in _norms(tensors, start))
    if trained.kind == "bitfit":
        return sum(math.prod(shape) for name, shape in tensors.items() if name in _biases(tensors, start))
    if trained.kind == "ia3":
        fed = _fed_forward(_ia3_targets(trained, start))
        modules = lora.targeted(LoraSettings(targets=_ia3_targets(trained, start)), start)
        return sum(shape[1] if _last(name) in fed else shape[0] for name, shape in modules.items())
    shapes = lora.targeted(LoraSettings(targets=trained.targets or ALL), start).values()
    if trained.kind == "vera":
        return sum(outputs + trained._rank for outputs, _ in shapes)
    return sum(2 * trained._rank * (outputs + inputs) for outputs, inputs in shapes)


def peft_config(trained: Trained, start: Path) -> Any:
    """peft's config of the adapter; None where the model's own weights are trained, see `freeze`."""
    import peft

    if isinstance(trained, LoraSettings):
        return lora.peft_config(trained)
    if trained is None or trained.kind in OWN_WEIGHTS:
        return None
    if trained.kind == "ln":
        return peft.LNTuningConfig(target_modules=sorted(_norms(_tensors(start), start)), task_type="CAUSAL_LM")
    if trained.kind == "ia3":
        scaled = _ia3_targets(trained, start)
        return peft.IA3Config(target_modules=scaled, feedforward_modules=_fed_forward(scaled), task_type="CAUSAL_LM")
    targets = trained.targets or ALL
    if trained.kind == "vera":
        return peft.VeraConfig(
            r=trained._rank, vera_dropout=trained.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
    return peft.LoHaConfig(
        r=trained._rank,
        alpha=trained.alpha or trained._rank,  # type: ignore[arg-type]  # as in lora.peft_config
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def freeze(model: Any, trained: Trained) -> None:
    """Leave only those of the model's own weights trainable that are to be trained."""
    if isinstance(trained, AdapterSettings) and trained.kind == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.endswith(".bias")


def _tensors(start: Path) -> dict[str, list[int]]:
    """Name -> shape of the checkpoint's tensors."""
    return {
        name: tensor["shape"]
        for file in weight_files(start)
        for name, tensor in check_safetensors(file).items()
        if name != "__metadata__"
    }


def _norms(tensors: Mapping[str, list[int]], start: Path) -> set[str]:
    """Full names of the norms' modules. Raises MedbenchError without any."""
    found = {
        _module(name)
        for name, shape in tensors.items()
        if name.endswith(".weight") and len(shape) == 1 and ("norm" in _last(_module(name)) or "ln" in _module(name))
    }
    if not found:
        raise MedbenchError(f"adapter.kind: ln trains the weights of norms, and {start} has none: choose another kind")
    return found


def _biases(tensors: Mapping[str, list[int]], start: Path) -> set[str]:
    found = {name for name in tensors if name.endswith(".bias")}
    if not found:
        raise MedbenchError(f"adapter.kind: bitfit trains biases, and {start} has none: use ln, which trains its norms")
    return found


def _ia3_targets(settings: AdapterSettings, start: Path) -> list[str]:
    """Names of the layers that get factors. Raises MedbenchError where the model calls them something else."""
    names = {_last(name) for name in lora.targeted(LoraSettings(), start)}
    if settings.targets == ALL:
        return sorted(names)
    if isinstance(settings.targets, list):
        return settings.targets
    found = sorted(names & {*ATTENDED, *FED_FORWARD})
    if not found:
        raise MedbenchError(
            f"adapter.targets: {start} has no layers with the usual names of keys, values and feed-forward layers: "
            f"name those that ia3 scales; known: {', '.join(sorted(names))}"
        )
    return found


def _fed_forward(targets: list[str]) -> list[str]:
    return [name for name in targets if _last(name) in FED_FORWARD]


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
