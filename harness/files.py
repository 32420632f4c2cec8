"""Files that are whole or absent: atomic writes, folder locks, torn last lines, names made safe."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from filelock import FileLock, Timeout

from medbench.harness.contracts import Interrupted, MedbenchError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def slug(text: str, limit: int = 60) -> str:
    """A file name's worth of `text`: letters, digits, dot, dash, underscore; never empty, never a dot file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[-limit:].strip("-.") or "run"


def write_atomically(path: Path, content: bytes) -> None:
    """Aside, synced, renamed: readers see the old file or the new one, never a part. Raises Interrupted if full."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def locked(folder: Path) -> FileLock:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MedbenchError(f"{folder} is being written by another process: wait for it, or use --name") from None
    except OSError as error:
        raise MedbenchError(f"{folder}: cannot be locked ({error.strerror})") from None
    return lock


def cannot_write(path: Path, error: OSError) -> Interrupted:
    mend = "make room" if error.errno in FULL else "mend that"
    return Interrupted(f"{path}: cannot be written ({error.strerror}): {mend}, then run again with --resume")
