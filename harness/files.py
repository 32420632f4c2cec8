"""Files that are complete or absent: atomic writes, folder locks, torn last lines, safe names."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from filelock import FileLock, Timeout

from medbench.harness.contracts import Interrupted, MedbenchError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def slug(text: str, limit: int = 60) -> str:
    """`text` as a file name: letters, digits, dot, dash, underscore; never empty, never a dot file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[-limit:].strip("-.") or "run"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file, sync and rename it, so that readers see the old file or the new one, never a part.

    Raises Interrupted where it cannot be written, for instance on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def is_torn(path: Path) -> bool:
    """Whether the last line has no newline: a writer was killed in the middle of it."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def locked(folder: Path) -> FileLock:
    """The folder's lock, acquired. Raises MedbenchError where another process holds it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MedbenchError(f"{folder} is being written by another process: wait for it, or use --name") from None
    except OSError as error:
        raise MedbenchError(f"{folder}: cannot be locked ({error.strerror})") from None
    return lock


def cannot_write(path: Path, error: OSError) -> Interrupted:
    """The exception to raise for a failed write."""
    fix = "make room" if error.errno in FULL else "fix the cause"
    return Interrupted(f"{path}: cannot be written ({error.strerror}): {fix}, then run again with --resume")
