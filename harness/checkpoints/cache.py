"""medbench's cache folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import expanded


def link_or_copy(file: str | Path, target: str | Path) -> None:
    """A hard link where the file system allows one, else a copy."""
    try:
        os.link(Path(file).resolve(), target)  # weights are large
    except OSError:  # another disk, or one without links
        shutil.copy2(file, target)


def cache_dir() -> Path:
    """Raises MedbenchError where there is no home folder to put it in."""
    return expanded(os.environ.get("MEDBENCH_CACHE") or "~/.cache/medbench")


def install(target: Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill` write into a temporary folder, then rename that to `target`, so that it is never found half-written.

    Raises MedbenchError if it cannot be written.
    """
    from safetensors import SafetensorError

    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    make_cache_dir()
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        if not target.exists():
            temporary.rename(target)
    except (OSError, SafetensorError) as error:
        if not target.exists():  # otherwise another process has written the same content
            reason = " ".join(str(error).split())
            raise MedbenchError(f"{target}: cannot be written ({reason}): make room, or set MEDBENCH_CACHE") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_cache_dir() -> None:
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made ({error.strerror}): set MEDBENCH_CACHE to a folder that can be written"
        raise MedbenchError(f"cache {cache_dir()} {reason}") from None
