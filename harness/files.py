"""Files that are complete or absent: atomic writes, folder locks, torn last lines, safe names."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.text import foreign

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SYNC_SECONDS = 1.0
"""Appended lines are synced to disk at least this often, in case the machine crashes; a crash of the process loses
none."""
RESUME = "run again with --resume"


def slug(text: str, limit: int = 60) -> str:
    """`text` as a file name: letters, digits, dot, dash, underscore; never empty, never a dot file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[-limit:].strip("-.") or "run"


def expanded(path: str | Path) -> Path:
    """`path` with ~ and ~user replaced. Raises MedbenchError where there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # an unknown user, or a user id without a passwd entry and no HOME
        fix = "write the path in full, or set HOME (for the cache, MEDBENCH_CACHE)"
        raise MedbenchError(f"{path}: no such home folder: {fix}") from None


def as_text(path: str | Path) -> str:
    """A name or path as text that can be stored: bytes that are not UTF-8 are escaped, as in caf\\udce9."""
    return str(path).encode(errors="backslashreplace").decode()


def parse_json(text: str | bytes) -> Any:
    """JSON from outside. Raises ValueError with what is wrong, also for a key that is given twice: of two values one
    would be lost, and not every program loses the same one."""
    try:
        # of bytes json.loads would guess the encoding, and read a file that other readers cannot
        text = text if isinstance(text, str) else text.decode()
        return json.loads(text, object_pairs_hook=_without_repeats)
    except _RepeatedKey:
        raise
    except (ValueError, RecursionError):
        raise ValueError("not JSON; each line must be one JSON object") from None


class _RepeatedKey(ValueError):
    pass


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise _RepeatedKey(f'the key "{foreign(twice, 80)}" is given twice: keep one')
    return found


def write_atomically(path: Path, content: bytes) -> None:
    """As `replace_file`, for a run's files: raises Interrupted, with advice, where it cannot be written."""
    try:
        replace_file(path, content)
    except OSError as error:
        raise cannot_write(path, error) from None


def replace_file(path: Path, content: bytes) -> None:
    """Write a temporary file, sync and rename it, so that readers see the old file or the new one, never a part.

    Raises OSError where it cannot be written, for instance on a full disk; nothing is left then.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")  # no longer than a name may be
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(*folders: Path) -> None:
    """Remove the temporary files of `write_atomically` whose process on this machine was killed."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            found = re.fullmatch(r"\..+\.(\d{1,9})\.tmp", path.name)
            if found and not psutil.pid_exists(int(found[1])):
                with suppress(OSError):
                    path.unlink()


def locked(folder: Path, fix: str = "wait for it, or use --name") -> FileLock:
    """The folder's lock, acquired. Raises MedbenchError where another process holds it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MedbenchError(f"{folder} is being written by another process: {fix}") from None
    except OSError as error:
        raise MedbenchError(f"{folder}: cannot be locked ({error.strerror})") from None
    return lock


class LineLog:
    """A file to which whole lines are appended: kill -9 leaves at most one torn last line. Not thread-safe."""

    def __init__(self, path: Path, again: str = RESUME) -> None:
        """`again` says what to do after a failed write. Raises Interrupted where the file cannot be written."""
        self._path, self._again = path, again
        self._synced = time.monotonic()
        try:
            path.parent.mkdir(exist_ok=True)  # git keeps no empty folder
            # unbuffered: a line is in the kernel's hands, safe from kill -9, as soon as append returns
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error, again) from None

    def append(self, line: bytes) -> None:
        """Raises Interrupted where it cannot be written; nothing of it is left then."""
        start = self._file.seek(0, os.SEEK_END)  # after a failed append, tell() is past the end
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space left on device")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            self._file.truncate(start)
            raise cannot_write(self._path, error, self._again) from None

    def close(self) -> None:
        if not self._file.closed:
            try:
                self._sync()
            except OSError as error:
                raise cannot_write(self._path, error, self._again) from None
            finally:
                self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def cannot_write(path: Path, error: OSError, again: str = RESUME) -> Interrupted:
    """The exception to raise for a failed write."""
    fix = "make room" if error.errno in FULL else "fix the cause"
    return Interrupted(f"{path}: cannot be written ({error.strerror}): {fix}, then {again}")
