"""The file of a judge's verdicts beside a task's samples: runs/<run>/judgements/<task>.<judge>.jsonl.

A line per ruling, appended as it comes: kill -9 leaves at most one torn last line, which the next writer cuts off. Of
several lines on the same item by the same judge (by fingerprint) the last one counts. An item with a verdict is never
asked again; one that failed is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import LineLog, locked, parse_json, remove_leftovers, write_atomically
from medbench.harness.runs.records import SCHEMA_VERSION

FOLDER = "judgements"
AGAIN = "run the same command again"


class Judgement(msgspec.Struct, frozen=True):
    """A line."""

    judge: str
    """The judge's fingerprint."""
    item: str
    """See contracts.item_id."""
    id: str
    """Of the question."""
    step: str
    verdict: Literal["supported", "contradicted", "not covered"] | None
    fault: str | None
    """Why there is no verdict."""
    schema_version: Annotated[int, msgspec.Meta(ge=1)] = SCHEMA_VERSION


def judgements_path(folder: Path, task: str, judge: str) -> Path:
    return folder / FOLDER / f"{task}.{judge}.jsonl"


def read_judgements(path: Path) -> list[Judgement]:
    """The line that counts of each judge and item, in order; without the torn last line of a running judge.

    Raises MedbenchError for a file that cannot be read, and naming a line that is damaged or too new.
    """
    found: dict[tuple[str, str], Judgement] = {}
    for line in _whole_lines(path):
        found.pop(key := (line.judge, line.item), None)
        found[key] = line
    return list(found.values())


class JudgementLog:
    """The file open for writing, its folder locked against other processes. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises MedbenchError as read_judgements, and where another process writes; Interrupted for a full disk."""
        self._path = path
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise MedbenchError(f"{path.parent}: cannot be created ({error.strerror}): fix the cause") from None
        self._lock = locked(path.parent, "wait for it")
        try:
            remove_leftovers(path.parent)
            self.before = read_judgements(path) if path.exists() else []
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                write_atomically(path, b"".join(map(_line, self.before)))
            self._log = LineLog(path, AGAIN)
        except BaseException:
            self._lock.release()
            raise

    def append(self, judgement: Judgement) -> None:
        """Raises Interrupted where it cannot be written; what was appended before is kept."""
        self._log.append(_line(judgement))

    def __enter__(self) -> JudgementLog:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._log.close()
        finally:
            self._lock.release()


def _line(judgement: Judgement) -> bytes:
    content = {name: getattr(judgement, name) for name in judgement.__struct_fields__}
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _whole_lines(path: Path) -> Iterator[Judgement]:
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if not raw.endswith(b"\n"):
                    return
                yield _decoded(raw, f"{path}:{number}")
    except FileNotFoundError:
        raise MedbenchError(
            f"{path}: no such file: judge the run first, with medbench judge RUN --judge NAME"
        ) from None
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None


def _decoded(raw: bytes, where: str) -> Judgement:
    try:
        line = msgspec.convert(parse_json(raw), Judgement)
    except (ValueError, RecursionError):  # msgspec's own is a ValueError
        raise MedbenchError(
            f"{where}: not a judgement written by medbench, or damaged: remove the line, and its step is asked again"
        ) from None
    if line.schema_version > SCHEMA_VERSION:
        raise MedbenchError(
            f"{where}: schema version {line.schema_version} is newer than {SCHEMA_VERSION}: upgrade medbench"
        )
    if (line.verdict is None) != (line.fault is not None):
        raise MedbenchError(f"{where}: a verdict with a fault, or neither: remove the line: its step is asked again")
    return line
