"""Folders of runs and trainings on disk: finding them, seeing that they changed, and never reading outside them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import slug
from medbench.harness.gates.verdict import KEPT, LATEST
from medbench.harness.judges.judgements import FOLDER
from medbench.harness.runs.synth_record import SYNTH
from medbench.harness.sweeps.record import SWEEP
from medbench.harness.training.checkpoint_folder import METRICS
from medbench.harness.training.journal import JOURNAL, TRAINING

RUN = "run.json"

MOST_BYTES = 16 * 2**20
"""A run.json, result or verdict larger than this was not written by medbench."""
USUAL_BYTES = 2**16
LONGEST_SLUG = 80


def run_folders(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """(folder, "" or what is wrong with it), each folder once however often it is named.

    Raises MedbenchError for a path that is no folder.
    """
    yield from _folders_with(RUN, paths)


def training_folders(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The same for trainings: a path may be one, or hold some beside its runs."""
    yield from _folders_with(TRAINING, paths)


def synth_folders(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The same for folders of `medbench synth`."""
    yield from _folders_with(SYNTH, paths)


def sweep_folders(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The same for sweeps. The trainings of one are found only where its folder is named itself."""
    yield from _folders_with(SWEEP, paths)


def metrics_files(training: Path) -> list[Path]:
    """metrics.jsonl of each attempt of a training, where there is one."""
    return sorted(training.glob(f"*/attempt-*/{METRICS}"))


def _folders_with(name: str, paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    def is_one(folder: Path) -> bool:
        return os.path.lexists(folder / name)  # a link that leads nowhere is a fault to be told, too

    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise MedbenchError(f"{path}: no such folder: name a run or training folder, or a folder of such folders")
        root = path.resolve()
        for folder in [root] if is_one(root) else sorted(filter(is_one, _children(root))):
            real = folder.resolve()
            if real in seen:
                continue
            seen.add(real)
            leaves = folder != root and root not in real.parents
            yield folder, "a link that leads out of its folder: name that folder itself" if leaves else ""


def verdicts_of(run: Path) -> list[str]:
    """The verdict of each gate file, as names below the run's folder, in natural order."""
    names = [file.name for file in _children(run / KEPT) if file.suffix == ".json" and is_file_name(file.name)]
    return [f"{KEPT}/{name}" for name in sorted(names, key=natural) if not name.startswith(".")]


def signature(paths: Sequence[Path]) -> str:
    """Changes when a file that the pages read does. Looks at names, sizes and times alone, so it can be polled."""
    digest = hashlib.sha256()
    for folder, fault in run_folders(paths):
        parts = () if fault else (folder / "results", folder / "samples", folder / KEPT, folder / FOLDER)
        files = [folder / RUN, folder / LATEST, *(file for part in parts for file in _children(part))]
        for file in sorted(files):
            digest.update(f"{file}\0{times_of(file)}\n".encode("utf-8", "replace"))
    for folder, fault in training_folders(paths):
        for file in [folder / TRAINING, folder / JOURNAL, *([] if fault else metrics_files(folder))]:
            digest.update(f"{file}\0{times_of(file)}\n".encode("utf-8", "replace"))
    for folder, _ in synth_folders(paths):
        digest.update(f"{folder / SYNTH}\0{times_of(folder / SYNTH)}\n".encode("utf-8", "replace"))
    for folder, _ in sweep_folders(paths):
        digest.update(f"{folder / SWEEP}\0{times_of(folder / SWEEP)}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def times_of(file: Path | str) -> str:
    """Size and time of change, "" for what is not there."""
    try:
        status = os.stat(file)  # noqa: PTH116 - thousands of files, and Path takes longer than the disk
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def read_checked(folder: Path, name: str, most: int = MOST_BYTES) -> bytes | None:
    """A file of such a folder, None if there is none. Raises MedbenchError as `inside`, and for a very large one."""
    path = inside(folder, name)
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as in times_of
            content = file.read(USUAL_BYTES)
            if len(content) == USUAL_BYTES:
                content += file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > most:
        raise MedbenchError(f"{path}: larger than {most >> 20} MiB, medbench writes no such file")
    return content


def inside(folder: Path, name: str) -> str:
    """Path of `folder`/`name`, with at most one "/". Raises MedbenchError if that is elsewhere or no plain file."""
    part, _, file = name.rpartition("/")
    if not is_file_name(file) or (part and not is_file_name(part)):
        raise MedbenchError(f"{folder}: {name!r} is not a file name")
    path = f"{folder}/{name}"
    try:
        modes = os.lstat(f"{folder}/{part}").st_mode, os.lstat(path).st_mode
    except OSError:
        return path  # whoever opens it learns that it is not there
    if any(map(stat.S_ISLNK, modes)):
        refuse_outside(folder, Path(path))
    if not stat.S_ISREG(modes[1]) and not os.path.isfile(path):  # noqa: PTH113 - a pipe would never end
        raise MedbenchError(f"{path}: not a plain file")
    return path


def refuse_outside(folder: Path, path: Path) -> None:
    """Raises MedbenchError for a link that leads out of `folder`, or back to itself."""
    try:
        leaves = folder.resolve() not in path.resolve().parents
    except (OSError, RuntimeError):  # Python 3.13 has neither for a loop, whose opening then fails
        raise MedbenchError(f"{path}: a link that leads back to itself") from None
    if leaves:
        raise MedbenchError(f"{path}: a link that leads out of its folder")


@lru_cache(maxsize=1024)
def is_file_name(name: str) -> bool:
    """Whether a folder can hold a file called so: task names come out of run.json and may be anything."""
    try:
        fits = 0 < len(name.encode()) <= 200
    except UnicodeEncodeError:
        return False
    return fits and name not in (".", "..") and not re.search(r"[/\\\0]", name)


def without_path(message: str, folder: Path) -> str:
    """An error's text for a page, which must not depend on where the runs lie."""
    return message.replace(f"{folder}/", "").replace(str(folder), folder.name)


def as_unicode(text: str) -> str:
    """`text` with "?" for each half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which q9 stands before q10."""
    parts = re.split(r"(\d{1,18})", text)
    return tuple((0, int(part), "") if n % 2 else (1, 0, part) for n, part in enumerate(parts) if part)


def unique_slugs(names: Iterable[str]) -> list[str]:
    """A file name's worth of each: letters, digits, ".", "_", "-", never "--"; unique where case does not count."""
    taken: set[str] = set()
    slugs = []
    for name in names:
        base = chosen = re.sub("-{2,}", "-", slug(name, LONGEST_SLUG))
        number = 2
        while chosen.casefold() in taken:
            chosen, number = f"{base}-{number}", number + 1
        taken.add(chosen.casefold())
        slugs.append(chosen)
    return slugs


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


class View(Protocol):
    """What the pages know of one folder."""

    @property
    def folder(self) -> Path: ...
    @property
    def contents(self) -> str: ...


V = TypeVar("V", bound=View)


def read_views(
    folders: Iterable[tuple[Path, str]], read: Callable[[Path], V], named: Callable[[V, str], V]
) -> tuple[list[V], list[tuple[str, str]]]:
    """(views in natural order, each `named` by its id; (name, reason) of what cannot be shown). `folders`: (folder,
    what is wrong with it, or ""); `read` raises MedbenchError."""
    found: list[V] = []
    faults: list[tuple[str, str]] = []
    for folder, fault in folders:
        try:
            if fault:
                raise MedbenchError(fault)
            found.append(read(folder))
        except MedbenchError as error:
            faults.append((folder.name, without_path(str(error), folder)))
    found.sort(key=lambda one: (natural(one.folder.name), one.contents))
    ids = unique_slugs(one.folder.name for one in found)
    return [named(one, id) for id, one in zip(ids, found, strict=True)], faults
