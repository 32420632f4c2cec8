"""The SITE folder: only ours, written file by file aside and renamed, and a manifest of what was made from what.

    python -c "from medbench.reports.write.manifest import MARKER; print(MARKER)"

A folder that holds anything but has no MARKER is somebody else's, and refused. Only files that the manifest lists are
ever removed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import msgspec
from filelock import FileLock, Timeout

from medbench.harness.contracts import Interrupted, MedbenchError

MARKER = ".medbench-site.json"
LOCK = ".medbench-site.lock"
ASIDE = ".medbench-aside"
SCHEMA_VERSION = 1
NAME = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*){0,6}", re.ASCII)
"""What a file under a site may be called: no "..", no dot file, nothing that a URL would have to escape."""


class Unit(msgspec.Struct, frozen=True):
    """A piece of work."""

    stamp: str
    """Hash of its inputs."""
    files: list[str]


class _Stored(msgspec.Struct, frozen=True):
    """MARKER's content."""

    schema_version: int
    kind: str
    units: dict[str, Unit]


class Writer:
    """Writes files under a site. Each process has its own."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._folders: set[Path] = {site}
        self._aside = site / ASIDE / str(os.getpid())

    def put(self, name: str, content: bytes) -> None:
        """Raises Interrupted where it cannot be written, e.g. when the disk is full."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a file name of a site")
        path = self._site / name
        try:
            self._make(path.parent)
            self._aside.write_bytes(content)
            self._aside.replace(path)
        except OSError as error:
            raise Interrupted(f"{path}: cannot be written ({error.strerror}): fix the cause, then run again") from None

    def _make(self, folder: Path) -> None:
        if folder in self._folders:
            return
        self._make(folder.parent)
        if folder.is_symlink():
            raise MedbenchError(f"{folder}: a link where the site needs a folder: remove it")
        folder.mkdir(exist_ok=True)
        self._folders.add(folder)


class Manifest:
    """The units that a site consists of. A context manager: claims the folder, and in the end writes MARKER.

    Entering raises MedbenchError for a folder that is not ours, or being built by another process.
    """

    def __init__(self, site: Path, kind: str = "site") -> None:
        self.site = site
        self.kind = kind
        """What is built: a folder of another kind is not ours to overwrite."""
        self.written = self.skipped = self.removed = 0
        """Files."""
        self._lock = FileLock(site / LOCK)
        self._before: dict[str, Unit] = {}
        self._now: dict[str, Unit] = {}

    def fresh(self, name: str, stamp: str) -> bool:
        """Whether the unit was made from the same inputs and its files are still there; keeps it if so."""
        known = self._before.get(name)
        if known is None or known.stamp != stamp or not all(map(self._is_there, known.files)):
            return False
        self._now[name] = known
        self.skipped += len(known.files)
        return True

    def record(self, name: str, stamp: str, files: Iterable[str]) -> None:
        """The unit was rebuilt, with these files."""
        self._now[name] = Unit(stamp, sorted(files))
        self.written += len(self._now[name].files)

    def _is_there(self, file: str) -> bool:
        return os.path.isfile(f"{self.site}/{file}")  # noqa: PTH113 - ten thousand files, and Path takes a second

    def __enter__(self) -> Manifest:
        try:
            _claim(self.site, self.kind)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise MedbenchError(f"{self.site} is being built by another process: wait for it") from None
        except OSError as error:
            raise MedbenchError(f"{self.site}: cannot be written ({error.strerror}): correct -o") from None
        try:
            self._before = _read(self.site / MARKER, self.kind)
            shutil.rmtree(self.site / ASIDE, ignore_errors=True)
            (self.site / ASIDE).mkdir()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            gone = _files(self._before) - _files(self._now)
            if kind is None:
                self._remove(gone)
            elif gone:  # an interrupted build: they stay known, so that the next one can remove them
                self._now["left over"] = Unit("", sorted(gone))
            _save(self.site, self.kind, self._now)
            shutil.rmtree(self.site / ASIDE, ignore_errors=True)
        finally:
            self._lock.release()

    def _remove(self, files: set[str]) -> None:
        for name in sorted(files):
            path = self.site / name
            path.unlink(missing_ok=True)
            self.removed += 1
            for folder in path.parents:
                if folder == self.site or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()


def _claim(site: Path, kind: str) -> None:
    """Make the folder ours; raises MedbenchError if it holds other files."""
    marked = (site / MARKER).is_file()
    if not marked and site.is_dir() and any(child.name not in (LOCK, ASIDE) for child in site.iterdir()):
        raise MedbenchError(f"{site} holds other files, none of a report's: name a new or an empty folder")
    site.mkdir(parents=True, exist_ok=True)
    if not marked:
        (site / ASIDE).mkdir(exist_ok=True)
        _save(site, kind, {})


def _read(path: Path, kind: str) -> dict[str, Unit]:
    fix = "remove the folder and build it again"
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except (OSError, ValueError, RecursionError):
        raise MedbenchError(f"{path}: cannot be read, or is damaged: {fix}") from None
    if stored.schema_version > SCHEMA_VERSION:
        raise MedbenchError(f"{path}: written by a newer medbench: upgrade, or {fix}")
    if stored.kind != kind:
        raise MedbenchError(f"{path.parent} holds {stored.kind} files, not {kind}: name another folder")
    if not all(map(NAME.fullmatch, _files(stored.units))):
        raise MedbenchError(f"{path}: lists files that do not belong to a site: {fix}")
    return stored.units


def _save(site: Path, kind: str, units: dict[str, Unit]) -> None:
    aside = site / ASIDE / "manifest"
    content = msgspec.json.encode(_Stored(SCHEMA_VERSION, kind, dict(sorted(units.items()))))
    try:
        aside.write_bytes(msgspec.json.format(content, indent=1))
        aside.replace(site / MARKER)
    except OSError as error:
        raise Interrupted(
            f"{site / MARKER}: cannot be written ({error.strerror}): fix the cause, then run again"
        ) from None


def _files(units: dict[str, Unit]) -> set[str]:
    return {file for unit in units.values() for file in unit.files}
