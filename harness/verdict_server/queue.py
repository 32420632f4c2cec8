"""Checkpoints to judge, in the order in which they were accepted; what was accepted survives a kill.

    with JudgingQueue(Path("runs"), rules_key) as queue:
        item = queue.accept(Path("checkpoints/step-800"))
        queue.wait(item.id).status                      # "pass", once another thread has judged it

RUNS/judging.jsonl has a line for each checkpoint accepted and one for what came of it. Accepting the same files again
gives the same item, so that a client may repeat a request whose answer was lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import as_text, cannot_write
from medbench.harness.text import without_halves

FILE = "judging.jsonl"
LOCK = ".judging.lock"
SCHEMA_VERSION = 1
MOST_WAITING = 1000
ID_LENGTH = 16
"""Hexadecimal digits."""

State = Literal["queued", "running", "judged", "error"]


class Full(MedbenchError):
    """As many checkpoints are waiting as a queue holds."""


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    id: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{ID_LENGTH}}}$")]
    time: str
    """UTC, ISO 8601."""


class Accepted(_Event):
    event: Literal["accepted"] = "accepted"
    checkpoint: str


class Judged(_Event):
    event: Literal["judged"] = "judged"
    exit: int
    """Exit status that `medbench gate` would have: 0, 1 or 3."""
    verdict: dict[str, Any]
    """verdict.json with "run" and "seconds"."""


class Failed(_Event):
    """There is no verdict; accepting the checkpoint again tries again."""

    event: Literal["failed"] = "failed"
    exit: int
    """2 for a fault of the input, 4 for an interruption, 70 for a fault of medbench."""
    error: str


Event = Accepted | Judged | Failed
_event: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


@dataclass(frozen=True, slots=True)
class Item:
    """One checkpoint and what is known about it."""

    id: str
    checkpoint: str
    accepted: str
    state: State = "queued"
    ended: str | None = None
    exit: int | None = None
    verdict: dict[str, Any] | None = None
    error: str | None = None

    @property
    def status(self) -> str | None:
        """The verdict in a word: pass, fail, undecided or not gateable; None where there is none."""
        return None if self.verdict is None else str(self.verdict.get("overall"))

    @property
    def over(self) -> bool:
        return self.state in ("judged", "error")

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "checkpoint": self.checkpoint,
            "state": self.state,
            "status": self.status,
            "exit": self.exit,
            "error": self.error,
            "accepted": self.accepted,
            "ended": self.ended,
            "verdict": self.verdict,
        }


class JudgingQueue:
    """The only user of a runs folder's queue; its methods may be called from any thread. Use as a context manager."""

    def __init__(self, runs: Path, rules: str) -> None:
        """`rules` is the key of the gate file and baseline, see `GateFile.key`: under others, the same checkpoint is
        another item.

        Raises MedbenchError where another process uses the queue, or its file is damaged.
        """
        self._path, self._rules = runs / FILE, rules
        self._changed = threading.Condition()
        self._lock = FileLock(runs / LOCK)
        try:
            runs.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise MedbenchError(
                f"{runs}: another medbench watch --serve uses it: ask that one, or give another --runs"
            ) from None
        except OSError as error:
            raise MedbenchError(f"{runs}: cannot be used ({error.strerror}): correct --runs") from None
        try:
            self._items = _read(self._path)
            _cut_torn_line(self._path)
        except BaseException:
            self._lock.release()
            raise

    def accept(self, checkpoint: Path) -> Item:
        """The checkpoint's item, which waits to be judged unless it was before; a failed one waits again.

        It is on disk when this returns. Raises Full, and Interrupted where it cannot be written.
        """
        if as_text(checkpoint) != str(checkpoint):
            raise MedbenchError(f"{as_text(checkpoint)}: the path is not UTF-8: rename the folder")
        id = self._id_of(checkpoint)
        with self._changed:
            known = self._items.get(id)
            if known is not None and known.state != "error":
                return known
            if sum(not item.over for item in self._items.values()) >= MOST_WAITING:
                raise Full(f"{MOST_WAITING} checkpoints are waiting: ask again later")
            event = Accepted(id=id, time=_now(), checkpoint=str(checkpoint))
            self._append(event)
            self._items.pop(id, None)  # a failed one goes to the end
            self._items[id] = Item(id, event.checkpoint, event.time)
            self._changed.notify_all()
            return self._items[id]

    def take(self, seconds: float) -> Item | None:
        """The next one, which counts as running from now on; None if none has come within `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._next() is not None, seconds)
            item = self._next()
            if item is not None:
                item = self._items[item.id] = replace(item, state="running")
            return item

    def judged(self, id: str, exit: int, verdict: dict[str, Any]) -> Item:
        return self._end(Judged(id=id, time=_now(), exit=exit, verdict=without_halves(verdict)))

    def failed(self, id: str, exit: int, error: str) -> Item:
        return self._end(Failed(id=id, time=_now(), exit=exit, error=as_text(error)))

    def find(self, id: str) -> Item | None:
        with self._changed:
            return self._items.get(id)

    def wait(self, id: str) -> Item:
        """The item once it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._items[id].over)
            return self._items[id]

    def items(self) -> list[Item]:
        """All of them, in the order in which they were accepted."""
        with self._changed:
            return list(self._items.values())

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> JudgingQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> Item | None:
        return next((item for item in self._items.values() if item.state == "queued"), None)

    def _end(self, event: Judged | Failed) -> Item:
        with self._changed:
            item = self._items[event.id] = _ended(self._items[event.id], event)
            self._changed.notify_all()  # before it is written: a full disk must not keep anyone waiting
            self._append(event)
            return item

    def _append(self, event: Event) -> None:
        line = json.dumps(event.model_dump(), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            with self._path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def _id_of(self, checkpoint: Path) -> str:
        lines = [self._rules, os.fspath(checkpoint)]
        try:
            for file in sorted(checkpoint.iterdir()):
                found = file.stat()
                lines.append(f"{file.name} {found.st_size} {found.st_mtime_ns}")
        except OSError as error:
            raise MedbenchError(f"{as_text(checkpoint)}: cannot be read ({error.strerror})") from None
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:ID_LENGTH]


def _read(path: Path) -> dict[str, Item]:
    items: dict[str, Item] = {}
    for event in _events(path):
        if isinstance(event, Accepted):
            items.pop(event.id, None)
            items[event.id] = Item(event.id, event.checkpoint, event.time)
        elif event.id in items:
            items[event.id] = _ended(items[event.id], event)
    return items


def _events(path: Path) -> Iterator[Event]:
    try:
        *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror}): fix that and run again") from None
    for number, line in enumerate(lines, 1):
        try:
            yield _event.validate_json(line)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]["msg"].lower()
            raise MedbenchError(
                f"{path}:{number}: {fault}: the queue is damaged, or of a newer medbench: correct the line, or move "
                f"the file away to start with an empty queue"
            ) from None


def _cut_torn_line(path: Path) -> None:
    """Remove what a killed process left of a line."""
    try:
        content = path.read_bytes() if path.exists() else b""
        if not content.endswith(b"\n") and content:
            os.truncate(path, content.rfind(b"\n") + 1)
    except OSError as error:
        raise cannot_write(path, error) from None


def _ended(item: Item, event: Judged | Failed) -> Item:
    if isinstance(event, Judged):
        return replace(item, state="judged", ended=event.time, exit=event.exit, verdict=event.verdict, error=None)
    return replace(item, state="error", ended=event.time, exit=event.exit, error=event.error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
