"""The run folder on disk: create, append, seal, read.

    runs/<run_id>/run.json              records.RunRecord: which model, asked how, by what software, how far
    runs/<run_id>/samples/<task>.jsonl  contracts.Sample, one line per completion, appended as they finish
    runs/<run_id>/results/<task>.json   scoring.summary.TaskResult

JSON files are written to a temporary file, then renamed. Samples are appended as whole lines, so kill -9 leaves at most
one torn last line, which the next writer cuts off.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.files import cannot_write, locked, remove_leftovers, write_atomically
from medbench.harness.runs.comparability import describe_differences
from medbench.harness.runs.records import SCHEMA_VERSION, RunRecord
from medbench.harness.runs.sample_check import SeenLines, checked_lines, refuse_unearned
from medbench.harness.runs.sample_line import NewerSample, decode
from medbench.harness.scoring.summary import TaskResult
from medbench.harness.text import without_halves

SYNC_SECONDS = 1.0
"""Samples are synced to disk at least this often, in case the machine crashes; a crash of the process loses none."""
UNREADABLE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.EIO)
"""Errors of a file that is there, or in a folder that may not be searched."""

SAMPLE_FIELDS = tuple(field.name for field in fields(Sample))

log = logging.getLogger("medbench")

R = TypeVar("R", bound=BaseModel)


class Run:
    """A run folder open for writing, locked against other processes. Use as a context manager."""

    def __init__(self, folder: Path, record: RunRecord, lock: FileLock, *, is_new: bool = False) -> None:
        self.folder = folder
        self.record = record
        self._lock = lock
        self._as_opened = None if is_new else record
        self._before: dict[str, int] = {}
        """task -> lines of its samples before the first answer of this session."""
        self._logs: dict[str, _SampleLog] = {}
        self._changes: dict[str, Any] = {}

    def answered(self, task: str) -> list[Sample]:
        """The stored samples that have no error. Damaged lines and a torn last one are left out; nothing is changed."""
        path = samples_path(self.folder, task)
        if task in self._logs:
            self._logs.pop(task).close()  # the next answer may take the place of one that failed since
        return _sorted_lines(path, self.record).answered if path.exists() else []

    def done(self, task: str) -> set[str]:
        """Keys (see contracts.Sample.key) of `answered`."""
        return {sample.key for sample in self.answered(task)}

    def begin(self, **changes: Any) -> None:
        """Change fields of run.json just before the next answer is stored: until then, nothing of the run changes."""
        self._changes = changes

    def append(self, task: str, sample: Sample) -> None:
        """Store an answer. The first one of a task takes the place of its failed requests, which are asked again.

        Raises Interrupted when the disk is full; samples appended before are kept. Raises MedbenchError for a sample
        that could not be read back.
        """
        if self._changes:
            self.update()
        if task not in self._logs:
            path = samples_path(self.folder, task)
            _tidy(path, self.record)
            self._before.setdefault(task, len(_lines(path)))
            self._logs[task] = _SampleLog(path, self.record)
        self._logs[task].append(sample)

    def update(self, **changes: Any) -> None:
        """Change fields of run.json, `record` included."""
        self.record = self.record.model_copy(update=self._changes | changes)
        self._changes = {}
        write_atomically(self.folder / "run.json", _json_bytes(self.record))

    def write_result(self, result: TaskResult) -> None:
        with suppress(OSError):  # git keeps no empty folder; where it cannot be made, writing says why
            (self.folder / "results").mkdir(exist_ok=True)
        write_atomically(results_path(self.folder, result.task), _json_bytes(result))

    def withdraw(self) -> None:
        """Take back every answer stored since the run was opened, and the run itself if it is new: for answers that
        turn out to be of another model. Failed requests that they took the place of stay removed."""
        for log in self._logs.values():
            log.close()
        self._logs.clear()
        for task, number in self._before.items():
            path = samples_path(self.folder, task)
            if number:
                write_atomically(path, b"".join(_lines(path)[:number]))
            else:
                path.unlink(missing_ok=True)
        self._before.clear()
        if self._as_opened is None:
            (self.folder / "run.json").unlink(missing_ok=True)
            for folder in ("samples", "results"):
                with suppress(OSError):  # something that was there before
                    (self.folder / folder).rmdir()
            return
        self.record, self._changes = self._as_opened, {}
        self.update()

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create_run(root: Path, record: RunRecord) -> Run:
    """Raises MedbenchError if the folder exists."""
    folder = root / record.run_id
    refuse_existing(folder)
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "results").mkdir(exist_ok=True)
    except OSError as error:
        raise MedbenchError(f"{folder}: cannot be created ({error.strerror}): correct --runs") from None
    run = Run(folder, record, locked(folder), is_new=True)
    run.update()
    return run


def is_run(folder: str | Path) -> bool:
    """Whether the folder holds a run.json, readable or not: a folder with a faulty one is no checkpoint."""
    try:
        os.lstat(Path(folder) / "run.json")
    except OSError as error:
        return error.errno in UNREADABLE
    except ValueError:  # a name with a null byte
        return False
    return True


def refuse_existing(folder: Path) -> None:
    """Raises MedbenchError if the folder holds a run."""
    if is_run(folder):
        raise MedbenchError(f"{folder} already exists: add --resume to continue it, or --name for a new run")


def reopen_run(folder: Path, wanted: RunRecord) -> Run:
    """Open a run to add samples. Raises MedbenchError naming the differences where it is not the run `wanted`."""
    lock = locked(folder)
    remove_leftovers(folder, folder / "samples", folder / "results")
    try:
        record = read_run(folder)
        differences = describe_differences(record, wanted)
        if differences:
            hint = "use another --name"
            if any(difference.startswith("protocol ") for difference in differences):
                hint = f"go on with --protocol {str(record.protocol.get('name')).partition('+')[0]}, or {hint}"
            raise MedbenchError(f"{folder} is another run ({'; '.join(differences)}): {hint}")
    except BaseException:
        lock.release()
        raise
    return Run(folder, record, lock)


def read_run(folder: str | Path) -> RunRecord:
    """Raises MedbenchError where there is no run, or a damaged one, or one of a newer schema."""
    return read_json(Path(folder) / "run.json", RunRecord)


def read_result(folder: str | Path, task: str) -> TaskResult:
    """Raises MedbenchError as read_run."""
    return read_json(results_path(Path(folder), task), TaskResult)


def read_samples(folder: str | Path, task: str) -> Iterator[Sample]:
    """Samples in the order in which they finished, without the torn last line of a running evaluation.

    Raises MedbenchError at once where the file is missing, and while iterating at a damaged line.
    """
    path = samples_path(Path(folder), task)
    if not path.exists():
        raise MedbenchError(f"{path}: no such file; the run has no samples of {task}")
    record = read_run(folder) if is_run(folder) else None
    return _read_samples(path, record)


def samples_path(folder: Path, task: str) -> Path:
    return folder / "samples" / f"{task}.jsonl"


def results_path(folder: Path, task: str) -> Path:
    return folder / "results" / f"{task}.json"


class _SampleLog:
    def __init__(self, path: Path, record: RunRecord) -> None:
        self._path, self._record = path, record
        self._synced = time.monotonic()
        try:
            path.parent.mkdir(exist_ok=True)  # git keeps no empty folder
            # unbuffered: a line is in the kernel's hands, safe from kill -9, as soon as append returns
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from None

    def append(self, sample: Sample) -> None:
        line = _line(sample)
        try:
            refuse_unearned(decode(line), self._record)
        except ValueError as error:
            raise MedbenchError(
                f"{self._path}: the answer to {sample.id[:60]!r} cannot be stored ({error}): "
                f"the engine or the task gave a value that it must not give"
            ) from None
        start = self._file.seek(0, os.SEEK_END)  # after a failed append, tell() is past the end
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space left on device")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            self._file.truncate(start)
            raise cannot_write(self._path, error) from None

    def close(self) -> None:
        if not self._file.closed:
            try:
                self._sync()
            except OSError as error:
                raise cannot_write(self._path, error) from None
            finally:
                self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _line(sample: Sample) -> bytes:
    content = {name: getattr(sample, name) for name in SAMPLE_FIELDS}  # asdict copies, which is slower than the JSON
    content["schema_version"] = SCHEMA_VERSION
    if sample.note is None:
        del content["note"]  # most have none
    # a lone surrogate (from a stored reply) cannot be encoded as UTF-8; the replacement is visible and harmless
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


@dataclass(frozen=True, slots=True)
class _Sorted:
    """The lines of a file of samples."""

    answered: list[Sample]
    damaged: list[bytes]
    tidy: bool
    """Whether all lines are whole and none is of a failed request."""


def _sorted_lines(path: Path, record: RunRecord) -> _Sorted:
    """Raises MedbenchError where lines contradict each other, are of a newer schema, or cannot be read at all."""
    seen = SeenLines(record, path.stem)
    answered: list[Sample] = []
    damaged: list[bytes] = []
    number, tidy = 0, True
    try:
        with path.open("rb") as lines:
            for raw in lines:
                number += 1
                if not raw.endswith(b"\n"):
                    tidy = False
                    break
                try:
                    line = decode(raw)
                    refuse_unearned(line, record)
                except NewerSample:
                    raise
                except ValueError:
                    damaged.append(raw)
                    continue
                if line.error is not None or line.score is None:
                    tidy = False
                elif seen.add(raw, line, line.id, line.repeat):
                    answered.append(line.sample())
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise MedbenchError(f"{path}:{number}: {error}") from None
    return _Sorted(answered, damaged, tidy and not damaged)


def _tidy(path: Path, record: RunRecord) -> None:
    """Before new samples: drop failed requests and a torn last line, and keep damaged lines in a file of their own."""
    if not path.exists():
        return
    found = _sorted_lines(path, record)
    if found.damaged:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            with aside.open("ab") as file:
                file.writelines(found.damaged)
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(aside, error) from None
        number = f"{len(found.damaged)} damaged line{'s' * (len(found.damaged) > 1)}"
        log.warning("%s: set aside in %s and asked again: %s", path, aside.name, number)
    if not found.tidy:
        write_atomically(path, b"".join(map(_line, found.answered)))


def _read_samples(path: Path, record: RunRecord | None) -> Iterator[Sample]:
    try:
        with path.open("rb") as lines:
            for line in checked_lines(lines, record, path.stem):
                yield line.sample()
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror}): the file is damaged") from None
    except ValueError as error:
        raise MedbenchError(f"{path}:{error}") from None


def read_json(
    path: Path, model: type[R], *, newest: int = SCHEMA_VERSION, hint: str = "is {parent} a finished run folder?"
) -> R:
    """A record with a schema_version from a JSON file; `hint` ends the message for a missing file.

    Raises MedbenchError for a file that is missing, unreadable, not a `model`, or of a schema newer than `newest`.
    """
    try:
        content = without_halves(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise MedbenchError(f"{path}: no such file; {hint.format(parent=path.parent)}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise MedbenchError(f"{path}: cannot be read ({type(error).__name__}): the file is damaged") from None
    if not isinstance(content, dict):
        raise MedbenchError(f"{path}: expected a JSON object: not written by medbench, or damaged")
    check_version(content.get("schema_version"), str(path), newest=newest)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise MedbenchError(f"{path}: {key}: {fault['msg'].lower()}: not written by medbench, or damaged") from None


def check_version(version: object, where: str, *, newest: int = SCHEMA_VERSION) -> None:
    """Raises MedbenchError, beginning with `where`, unless `version` is a schema version that this medbench reads."""
    if type(version) is not int or version < 1:  # true is an int for Python
        raise MedbenchError(f"{where}: no schema_version: not written by medbench, or damaged")
    if version > newest:
        raise MedbenchError(f"{where}: schema version {version} is newer than {newest}: upgrade medbench")


def _json_bytes(record: BaseModel) -> bytes:
    content = record.model_dump(mode="json")
    return json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def results_of(folder: Path, tasks: Iterable[str]) -> dict[str, TaskResult]:
    """Task name -> its result. Raises MedbenchError as read_run."""
    return {task: read_result(folder, task) for task in tasks}
