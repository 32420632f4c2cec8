"""The folder of a trained judge: what is in it, written whole or not at all, and checked before it is used.

model.safetensors   the network's weights, in bfloat16
config.json         of its layers; beside it the tokenizer's files
judge.json          JudgeFile: how scores become verdicts, and what the judge was made from
report.json         how well it does on abstracts that it has not seen; judge.html shows that
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medbench.harness.checkpoints.fingerprint import content_hash, tokenizer_files
from medbench.harness.checkpoints.weights import check_safetensors, read_json_file
from medbench.harness.contracts import BrokenCheckpoint, Interrupted, MedbenchError
from medbench.harness.files import cannot_write, locked
from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.judges.local.lexical import FEATURES
from medbench.harness.judges.local.network import POOLS, Network, quiet_transformers
from medbench.harness.runs.records import SCHEMA_VERSION
from medbench.harness.runs.run_folder import read_json
from medbench.harness.text import foreign, one_line

WEIGHTS, CONFIG, JUDGE, REPORT = "model.safetensors", "config.json", "judge.json", "report.json"
HEAD = "head."
BACKBONE = "backbone."
MOST_LAYERS = 200
AGAIN = "run the same command again"
Numbers = Annotated[list[float], Field(min_length=1)]


class Calibrator(BaseModel):
    """From inputs, a network's scores and the features of words, to probabilities:
    softmax(weights (inputs - mean) / scale + bias)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    mean: Numbers
    scale: Numbers
    weights: list[Numbers]
    """One row per verdict."""
    bias: Numbers

    @model_validator(mode="after")
    def _shapes_fit(self) -> Calibrator:
        rows = [self.mean, self.scale, *self.weights]
        if len(self.weights) != len(VERDICTS) or len(self.bias) != len(VERDICTS) or len({*map(len, rows)}) != 1:
            raise ValueError(f"must be of {len(VERDICTS)} verdicts, and of as many inputs throughout")
        if min(self.scale) <= 0:
            raise ValueError("scale must be positive")
        return self


class Made(BaseModel):
    """What a judge was made from."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    base: str
    """The model whose first layers it has, as it was named."""
    base_fingerprint: str
    data_sha256: dict[str, str]
    """Split -> sha256 of its abstracts."""
    abstracts: dict[str, int]
    """How many were trained, calibrated and tested on."""
    passes: int
    seed: int


class JudgeFile(BaseModel):
    """judge.json."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    kind: Literal["medbench local judge"] = "medbench local judge"
    version: Literal[1] = 1
    """Of the features and of the way in which the network is read."""
    verdicts: list[str]
    features: list[str]
    layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)]
    most_source_tokens: Annotated[int, Field(ge=1, le=32_768)]
    most_step_tokens: Annotated[int, Field(ge=1, le=4096)]
    calibrator: Calibrator
    thresholds: dict[str, Annotated[float, Field(gt=0, le=1)]]
    """The verdict is the one whose probability is largest beside its threshold."""
    unchecked: list[str]
    """Kinds of faults that the judge does not find, see report.json."""
    weights_sha256: str
    """Of weights, config and tokenizer."""
    made: Made

    @model_validator(mode="after")
    def _is_of_this_version(self) -> JudgeFile:
        if tuple(self.verdicts) != VERDICTS or set(self.thresholds) != set(VERDICTS):
            raise ValueError(f"verdicts must be {', '.join(VERDICTS)}")
        if tuple(self.features) != FEATURES:
            raise ValueError("features are not those of this medbench: train the judge again")
        if len(self.calibrator.mean) != len(VERDICTS) + len(FEATURES):
            raise ValueError("calibrator must have an input per verdict and feature")
        return self


@dataclass(frozen=True, slots=True)
class Loaded:
    """A judge read from its folder."""

    file: JudgeFile
    network: Network
    fingerprint: str


def load(folder: Path) -> Loaded:
    """Raises BrokenCheckpoint for a folder that `medbench judge train` has not written or that has changed since."""
    if not folder.is_dir():
        raise MedbenchError(f"{folder}: no such folder: name one that medbench judge train has written")
    if not (folder / JUDGE).exists():
        raise BrokenCheckpoint(f"{folder}: no {JUDGE}: train a judge with medbench judge train --out FOLDER")
    file = read_json(folder / JUDGE, JudgeFile, hint="train the judge again")
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise BrokenCheckpoint(f"{folder}: no {missing[0]}: copy the judge again, or train it again")
    try:
        if hash_of(folder) != file.weights_sha256:
            raise BrokenCheckpoint(
                f"{folder}: weights, config or tokenizer are not those that {JUDGE} was written with: copy the judge "
                f"again, or train it again"
            )
    except OSError as error:
        raise MedbenchError(f"{folder}: cannot be read ({error.strerror}): fix that and run again") from None
    network = load_network(folder, file.layers)
    settings = file.model_dump(exclude={"made", "unchecked"})
    return Loaded(file, network, _fingerprint(settings))


def load_network(folder: Path, layers: int) -> Network:
    """Raises BrokenCheckpoint for files that do not go together.

    The config decides how much memory is taken, so it must fit the tensors before anything is made by it.
    """
    import torch
    import transformers
    from safetensors.torch import load_file

    model: Any = transformers.AutoModel  # without types for what makes a model of a config
    header = check_safetensors(folder / WEIGHTS)
    named = read_json_file(folder / CONFIG).get("num_hidden_layers")
    if named != layers:
        raise BrokenCheckpoint(
            f"{folder}/{CONFIG}: has {foreign(named, 20)} layers, not {layers}: train the judge again"
        )
    shapes = {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with torch.device("meta"):
                empty = model.from_config(config, trust_remote_code=False)
            head_shape = (len(VERDICTS), POOLS * config.hidden_size)
            wanted = {BACKBONE + name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
            wanted |= {f"{HEAD}weight": head_shape, f"{HEAD}bias": (len(VERDICTS),)}
            if shapes != wanted:
                odd = sorted({*shapes.items()} ^ {*wanted.items()})[0][0]
                raise ValueError(f"{odd} does not fit {CONFIG}")
            backbone = model.from_config(config, dtype=torch.float32, trust_remote_code=False)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if max(tokenizer.get_vocab().values()) >= config.vocab_size:
                raise ValueError("the tokenizer has more tokens than the weights")
        weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise ValueError(f"{WEIGHTS} holds a NaN or an infinity")
    except Exception as error:  # whatever transformers makes of foreign files
        reason = " ".join(str(error).split())[:200]
        raise BrokenCheckpoint(f"{folder}: no judge can be loaded from it ({reason}): train it again") from None
    backbone.load_state_dict(_below(BACKBONE, weights))
    head = torch.nn.Linear(POOLS * config.hidden_size, len(VERDICTS))
    head.load_state_dict(_below(HEAD, weights))
    backbone.eval()
    return Network(backbone, head, tokenizer)


def _below(prefix: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def save_network(folder: Path, network: Network) -> str:
    """Writes weights, config and tokenizer; returns their sha256."""
    import torch
    from safetensors.torch import save_file

    tensors = {f"{BACKBONE}{name}": tensor for name, tensor in network.backbone.state_dict().items()}
    tensors |= {f"{HEAD}{name}": tensor for name, tensor in network.head.state_dict().items()}
    save_file(
        {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS
    )
    network.backbone.config.save_pretrained(folder)
    network.tokenizer.save_pretrained(folder)
    return hash_of(folder)


def write_folder(out: Path, fill: Callable[[Path], Any]) -> None:
    """Lets `fill` write into a folder beside `out`, then gives it its name; a kill leaves no `out`.

    Raises MedbenchError where `out` exists or another process is writing it, and Interrupted for a full disk.
    """
    from safetensors import SafetensorError

    refuse_existing(out)
    aside = out.with_name(f".{out.name}.unfinished")
    try:
        aside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedbenchError(f"{out}: cannot be made ({error.strerror}): name another folder with --out") from None
    lock = locked(aside, "wait for it, or name another folder with --out")
    try:
        for found in aside.iterdir():  # of a training that was killed
            if found.name != ".lock":
                shutil.rmtree(found) if found.is_dir() else found.unlink()
        fill(aside)
        refuse_existing(out)
        (aside / ".lock").unlink(missing_ok=True)
        aside.rename(out)
    except SafetensorError as error:
        raise Interrupted(f"{out}: cannot be written ({one_line(error)}): make room, then {AGAIN}") from None
    except OSError as error:
        raise cannot_write(out, error, AGAIN) from None
    finally:
        lock.release()
        shutil.rmtree(aside, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise MedbenchError(f"{out}: exists already: name another folder with --out, or remove it")


def write_json(path: Path, content: Any) -> None:
    path.write_bytes(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def hash_of(folder: Path) -> str:
    """sha256 over names and contents of weights, config and tokenizer. Raises OSError."""
    return content_hash([folder / CONFIG, folder / WEIGHTS, *tokenizer_files(folder)])


def _fingerprint(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
