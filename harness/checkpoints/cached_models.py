"""Models that medbench made and keeps in its cache: merged adapters, converted checkpoints. Never served damaged.

    cached_model(cache_dir() / "merged" / "step-800-1f2e", fill, say)     # `fill` writes the model into a folder

Each lies beside the hash of its files; one that no longer matches it is made again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from medbench.harness.checkpoints.cache import cache_dir, install, make_cache_dir
from medbench.harness.checkpoints.fingerprint import content_hash
from medbench.harness.contracts import MedbenchError, Say

SEAL = "medbench_seal.json"

_checked: dict[Path, tuple[tuple[str, int, int, int], ...]] = {}
"""Folders found intact by this process, with the stat of each file then: weights are large, and hashed once."""


def cached_model(folder: Path, fill: Callable[[Path], object], say: Say) -> Path:
    """`folder`, made by `fill` if it is not there or is damaged. Raises MedbenchError if it cannot be read or written.

    A damaged disk leaves a file's time as it was, so all is read again once per process.
    """
    try:
        make_cache_dir()
        _remove_leftovers(folder.parent)
        with _lock(folder.name):
            if folder.exists() and not _is_intact(folder):
                say(f"{folder} is damaged, or made by an older medbench: making it again")
                shutil.rmtree(folder)
            if not folder.exists():
                install(folder, lambda temporary: _fill_and_seal(temporary, fill))
            return folder
    except OSError as error:
        raise MedbenchError(f"{folder}: cannot be used ({error.strerror}): fix that, or set MEDBENCH_CACHE") from None


def _lock(name: str) -> FileLock:
    return FileLock(cache_dir() / f".{name}.lock")


def _remove_leftovers(parent: Path) -> None:
    """Remove what killed processes wrote in part: each can be as large as a model. A live one holds its lock."""
    for path in parent.glob(".*.tmp"):
        found = re.fullmatch(r"\.(.+)\.\d+\.tmp", path.name)
        if found:
            with suppress(Timeout), _lock(found[1]).acquire(timeout=0):
                shutil.rmtree(path, ignore_errors=True)


def _fill_and_seal(folder: Path, fill: Callable[[Path], object]) -> None:
    fill(folder)
    (folder / SEAL).write_text(json.dumps({"sha256": content_hash(_files(folder))}) + "\n")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != SEAL)


def _is_intact(folder: Path) -> bool:
    """Raises OSError for a file that is there and cannot be read, which says nothing of its content."""
    files = _files(folder)
    stats = tuple((path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path in files for stat in [path.stat()])
    if _checked.get(folder) == stats:
        return True
    try:
        sealed = json.loads((folder / SEAL).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    intact = isinstance(sealed, dict) and sealed.get("sha256") == content_hash(files)
    if intact:
        _checked[folder] = stats
    return intact
