"""medbench's cache folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError


def link_or_copy(file: str | Path, target: str | Path) -> None:
    try:
        os.link(Path(file).resolve(), target)  # weights are large
    except OSError:  # another disk, or one without links
        shutil.copy2(file, target)


def cache_dir() -> Path:
    return Path(os.environ.get("MEDBENCH_CACHE") or "~/.cache/medbench").expanduser()


def install(target: Path, fill: Callable[[Path], Any]) -> None:
    """Fill a folder aside and rename it into place, so that a half-made one is never found."""
    from safetensors import SafetensorError

    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    make_cache_dir()
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


def make_cache_dir() -> None:
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made ({error.strerror}): set MEDBENCH_CACHE to a folder that can be written"
        raise MedbenchError(f"cache {cache_dir()} {reason}") from None
