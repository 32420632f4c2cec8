"""sha256 of weights and of tokenizer files; the hashes of weight files are cached by file stat."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.cache import cache_dir, make_cache_dir
from medbench.harness.checkpoints.weights import own_dtype, read_json_file
from medbench.harness.contracts import BrokenCheckpoint
from medbench.harness.files import write_atomically

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
)
NOT_SERVED = ("torch_dtype", "transformers_version", "_name_or_path", "use_cache")
"""Keys of config.json that change nothing about the replies."""
CHUNK = 1 << 22


def fingerprint(files: list[Path]) -> str:
    """sha256 over names and contents; each file's hash is cached by path, size, mtime and inode."""
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
        make_cache_dir()
        write_atomically(memory, json.dumps(dict(list(known.items())[-10_000:]), indent=0).encode())
    lines = [f"{path.name} {hashes.get(path) or known[keys[path]]}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_hash(files: list[Path]) -> str:
    """As `fingerprint`, but always read from the disk. Raises OSError."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        lines = [f"{path.name} {digest}" for path, digest in zip(files, pool.map(_sha256_of, files), strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


def sha256_of_tokenizer(folder: Path) -> str:
    """sha256 over names and contents of the tokenizer files. Raises MedbenchError if there are none."""
    files = tokenizer_files(folder)
    if not files:
        raise BrokenCheckpoint(
            f"{folder}: no tokenizer files; save the tokenizer beside the model by save_pretrained()"
        )
    return content_hash(files)


def served_config(folder: Path) -> dict[str, Any]:
    """What config.json and generation_config.json say of the network and of the tokens that end a reply.

    Raises MedbenchError for a file that is not a JSON object.
    """
    config = read_json_file(folder / "config.json")
    generation = folder / "generation_config.json"
    ends = read_json_file(generation).get("eos_token_id") if generation.exists() else None
    kept = {key: value for key, value in config.items() if key not in NOT_SERVED}
    ends = config.get("eos_token_id") if ends is None else ends
    return {**kept, "dtype": own_dtype(config), "eos_token_id": ends}


def sha256_of_config(folder: Path) -> str:
    """sha256 of `served_config`."""
    return hashlib.sha256(json.dumps(served_config(folder), sort_keys=True).encode()).hexdigest()


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _stat_key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
