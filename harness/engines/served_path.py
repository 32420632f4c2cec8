"""One path for all checkpoints that differ in their weights only, so that vLLM compiles their model once.

    with served_path(Path("step-800")) as path: llm = LLM(path)

The key of vLLM's compile cache has the model's path in it (ModelConfig.compute_hash in vllm/config/model.py, 0.31), so
each checkpoint of a training, and each merged adapter, would be compiled again. Here they share a symbolic link in
medbench's cache, which points to the one that is being loaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medbench.harness.checkpoints.cache import cache_dir
from medbench.harness.checkpoints.fingerprint import sha256_of_config, sha256_of_tokenizer
from medbench.harness.contracts import MedbenchError


@contextmanager
def served_path(path: Path) -> Iterator[str]:
    """The link, which points to `path` within the block; `path` itself while another checkpoint is loaded by it, or
    where no link can be made.

    vLLM keeps tokenizers by their path for as long as it runs: checkpoints with other tokenizers have other links.
    """
    try:
        kind = f"{sha256_of_config(path)} {sha256_of_tokenizer(path)}"
        link = cache_dir() / "served" / hashlib.sha256(kind.encode()).hexdigest()[:16]
        link.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{link}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except (OSError, MedbenchError):
        yield str(path)
        return
    try:
        yield str(link) if _points_to(link, path.resolve(), lock) else str(path)
    finally:
        os.close(lock)


def _points_to(link: Path, target: Path, lock: int) -> bool:
    """Whether `link` points to `target` and stays so until `lock` is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody loads by it: it may be turned
        new = link.with_name(f"{link.name}.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    except OSError:  # in use, or a file system without links
        pass
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return link.readlink() == target
    except OSError:
        return False
