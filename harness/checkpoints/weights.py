"""Checks of weight files: safetensors headers, shards, finite values, parameter counts."""

from __future__ import annotations

import json
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.faults import is_machine_fault
from medbench.harness.contracts import BrokenCheckpoint, MedbenchError
from medbench.harness.text import foreign

FOREIGN_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5")
SHARDED = (
    ("*.distcp", "FSDP", "accelerate merge-weights {shards} OUT"),
    ("*/*.distcp", "FSDP", "accelerate merge-weights {shards} OUT"),
    ("zero_to_fp32.py", "DeepSpeed", "python {found} {folder} OUT --safe_serialization"),
    ("*_optim_states.pt", "DeepSpeed", "python {above}/zero_to_fp32.py {above} OUT --safe_serialization"),
    (
        "model_world_size_*_rank_*.pt",
        "verl",
        "python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir OUT",
    ),
)
"""(pattern of file names, who writes such shards, the command that joins them)"""
GENERATION_SETTINGS = ("generation_config.json", "config.json")
MOST_TOKENS = 2**31
"""Engines keep token ids in 32 bits; no vocabulary comes near."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a full checkpoint, sorted. Raises BrokenCheckpoint if one is missing or damaged."""
    if not folder.is_dir():
        raise MedbenchError(f"{folder}: not a folder; a checkpoint is a folder with config.json and *.safetensors")
    if not any(folder.iterdir()):
        raise BrokenCheckpoint(f"{folder}: the folder is empty; a checkpoint has config.json and *.safetensors")
    refuse_sharded(folder)
    if not (folder / "config.json").exists():
        if inner := sorted(path.parent.name for path in folder.glob("checkpoint-*/config.json")):
            raise MedbenchError(f"{folder}: a folder of checkpoints: name one of them, such as {folder / inner[-1]}")
        raise BrokenCheckpoint(f"{folder}: no config.json; save the model with save_pretrained()")
    read_json_file(folder / "config.json")
    end_tokens(folder)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _shards(index)
        missing = [shard for shard in shards if not (folder / shard).exists()]
        if missing:
            raise BrokenCheckpoint(
                f"{folder}: shard {missing[0]} of {len(shards)} is missing: copy the checkpoint again"
            )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        foreign = [path.name for pattern in FOREIGN_WEIGHTS for path in folder.glob(pattern)]
        found = f"found {foreign[0]}, which is not loaded" if foreign else "no weight file at all"
        raise BrokenCheckpoint(
            f"{folder}: no *.safetensors ({found}): save with save_pretrained(safe_serialization=True)"
        )
    for path in files:
        check_safetensors(path)
    return files


def refuse_sharded(folder: Path) -> None:
    """Raises BrokenCheckpoint for weights that a trainer on several GPUs saved in shards, with the command that joins
    them; not where the whole weights lie beside them."""
    if any(folder.glob("*.safetensors")):
        return
    for pattern, by, command in SHARDED:
        if found := min(folder.glob(pattern), default=None):
            paths = {"folder": folder, "above": folder.parent, "found": found, "shards": found.parent}
            quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
            raise BrokenCheckpoint(
                f"{folder}: its weights are in shards of {by}: join them by `{command.format(**quoted)}`, and copy "
                f"config and tokenizer there"
            )


def end_tokens(folder: Path) -> frozenset[int]:
    """Token ids that end a reply, as engines read them: generation_config.json, or config.json where that is missing.

    Raises BrokenCheckpoint where they are no token ids.
    """
    path = next((path for path in (folder / name for name in GENERATION_SETTINGS) if path.exists()), None)
    listed = read_json_file(path).get("eos_token_id") if path else None
    ends = listed if isinstance(listed, list) else [] if listed is None else [listed]
    for end in ends:
        if not isinstance(end, int) or isinstance(end, bool) or not 0 <= end < MOST_TOKENS:
            raise BrokenCheckpoint(
                f"{path}: eos_token_id: {foreign(end, 40)} is no token id (0 to {MOST_TOKENS - 1}): correct the file"
            )
    return frozenset(ends)


def own_dtype(config: Mapping[str, Any]) -> str | None:
    """The type that config.json gives the weights, such as "bfloat16", under the key's new name or its old one."""
    named = config.get("dtype") or config.get("torch_dtype")
    return str(named).removeprefix("torch.") if named else None


def check_safetensors(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor -> {"dtype", "shape", "data_offsets"}.

    Raises BrokenCheckpoint unless the file holds exactly the tensors that its header names.
    """
    from safetensors import SafetensorError, safe_open

    try:
        header = _header(path)
        with safe_open(path, framework="np"):  # types, shapes and gaps, which the engine's loader checks too
            return header
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        raise BrokenCheckpoint(
            f"{path}: its safetensors header is damaged ({error}): copy the checkpoint again"
        ) from None


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if len(head) < 8 or length > min(size - 8, 100_000_000):
            raise BrokenCheckpoint(
                f"{path}: not a safetensors file, or cut off in its header: copy the checkpoint again"
            )
        try:
            header = json.loads(file.read(length))
            end = max((t["data_offsets"][1] for key, t in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise BrokenCheckpoint(f"{path}: its safetensors header is damaged: copy the checkpoint again") from None
    if end != size - 8 - length:
        raise BrokenCheckpoint(
            f"{path}: {size - 8 - length} bytes of tensors where its header says {end}: the file is "
            f"truncated, copy the checkpoint again"
        )
    return header  # type: ignore[no-any-return]


def refuse_nan(folder: Path) -> None:
    """Raises BrokenCheckpoint naming the first tensor that holds a NaN or an infinity."""
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not _is_finite(tensor):
                    raise BrokenCheckpoint(f"{path}: {name} holds NaN or infinity: the training diverged")


def _is_finite(tensor: Any) -> bool:
    import torch

    try:
        # 8-bit types have no isfinite of their own; bfloat16 holds all their values
        return bool(torch.isfinite(tensor.to(torch.bfloat16) if tensor.element_size() == 1 else tensor).all())
    except NotImplementedError:  # 4-bit types, which have no NaN
        return True


def _shards(index: Path) -> list[str]:
    weight_map = read_json_file(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BrokenCheckpoint(f"{index}: no weight_map of tensor names to files: the file is damaged")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not shard or len(shard) > 200 or shard != Path(shard).name or not shard.isprintable():
            raise BrokenCheckpoint(f"{index}: {shard[:60]!r} is no file name: the file is damaged")
    return shards


def read_json_file(path: Path) -> dict[str, Any]:
    """Raises BrokenCheckpoint unless the file holds a JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError):
        raise BrokenCheckpoint(f"{path}: not JSON: the file is damaged") from None
    if not isinstance(content, dict):
        raise BrokenCheckpoint(f"{path}: expected a JSON object")
    return content


def _unreadable(path: Path, error: OSError) -> MedbenchError:
    if is_machine_fault(error):
        return MedbenchError(f"{path}: cannot be read ({error.strerror}): fix that and run again")
    return BrokenCheckpoint(f"{path}: cannot be read ({error.strerror}): copy the checkpoint again")
