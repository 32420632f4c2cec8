"""The journal of a training: finished work, one line per event, so that a killed loop resumes where it was.

    runs/train-NAME/training.json                the recipe as it was read, and the start checkpoint
    runs/train-NAME/journal.jsonl                the events below; a line is written and synced when the work is done
    runs/train-NAME/1-sft/contamination.json     rows of the stage's data that overlap a benchmark
    runs/train-NAME/1-sft/attempt-1/             see checkpoint_folder.py: checkpoints, metrics.jsonl, log.txt
    runs/train-NAME/1-sft/promoted/              the stage's result, a full checkpoint (adapters merged)
    runs/train-NAME/runs/                        run folders of all evaluations during training

Every event carries `elapsed`: seconds of work on this training so far, over all sessions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.files import write_atomically
from medbench.harness.gates.verdict import Verdict

SCHEMA_VERSION = 1
TRAINING, JOURNAL = "training.json", "journal.jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Training(_Line):
    """training.json"""

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    command: list[str]
    recipe: dict[str, Any]
    """As in the file, with defaults filled in except under `watchdogs`."""
    recipe_sha256: str
    start: str
    """As named in the recipe; `fingerprint` is that of its weights."""
    fingerprint: str
    packages: dict[str, str] = {}
    git_commit: str | None = None


class _Event(_Line):
    elapsed: float = 0.0


class StageStarted(_Event):
    event: Literal["stage_started"] = "stage_started"
    stage: str
    start: str
    """Folder of the full checkpoint that the stage starts from; relative to the training's folder if inside it."""
    fingerprint: str
    prepared: list[str] = []
    """What the trainer reported about its data and memory."""


class Measured(_Event):
    """The stage's start, evaluated before any attempt: the baseline of paired gates, and step 0 of the trajectory."""

    event: Literal["measured"] = "measured"
    stage: str
    partition: Literal["gate", "report"]
    verdict: Verdict | None
    """By the gates that need no baseline; None if all need one."""
    run: str
    """Run folder, relative to the training's folder."""
    whole: bool
    """Whether every question was asked, as a baseline must be."""
    questions: int
    baseline: str | None = None
    """Run folder of the stage's own `baseline`, with every question; None where paired gates compare with the start."""

    @property
    def compared(self) -> str | None:
        """Run folder that paired gates compare with."""
        return self.baseline or (self.run if self.whole else None)


class Probed(_Event):
    """The stage's start has answered questions that the stage trains on: see difficulty.py."""

    event: Literal["probed"] = "probed"
    stage: str
    run: str
    """Run folder, relative to the training's folder."""
    questions: int
    said: str
    """How many of the replies are right, in words."""
    seconds: float


class AttemptStarted(_Event):
    event: Literal["attempt_started"] = "attempt_started"
    stage: str
    attempt: int
    seed: int
    start: str
    config: dict[str, Any]
    alpha: float
    """The attempt's share of the error budget: 6 alpha / (pi^2 attempt^2)."""


class AlarmRaised(_Event):
    event: Literal["alarm"] = "alarm"
    stage: str
    attempt: int
    step: int
    kind: str
    reason: str
    stop: bool


class Gated(_Event):
    """A checkpoint judged on the `gate` half of the questions, which the loop sees."""

    event: Literal["gated"] = "gated"
    stage: str
    attempt: int
    step: int
    checkpoint: str
    """Folder, relative to the training's folder."""
    verdict: Verdict
    alpha: float
    """Spent on it: the attempt's alpha times 6 / (pi^2 n^2), for the attempt's n-th checkpoint."""
    run: str | None
    """Run folder, relative to the training's folder; None for a checkpoint that could not be loaded."""
    seconds: float
    questions: int


class Confirmed(_Event):
    """A checkpoint that passed, judged once on the `report` half of the questions, which the loop never sees."""

    event: Literal["confirmed"] = "confirmed"
    stage: str
    attempt: int
    step: int
    verdict: Verdict
    alpha: float
    run: str | None
    seconds: float
    questions: int


class AttemptEnded(_Event):
    event: Literal["attempt_ended"] = "attempt_ended"
    stage: str
    attempt: int
    outcome: Literal["passed", "failed"]
    reason: str
    step: int | None
    """Of the attempt's best checkpoint; None if it left none."""
    improving: bool = False
    diverged: bool = False
    rambling: bool = False
    crashed: bool = False
    training_seconds: float = 0.0


class Promoted(_Event):
    event: Literal["promoted"] = "promoted"
    stage: str
    attempt: int
    step: int
    checkpoint: str
    """Folder of the full checkpoint, relative to the training's folder."""
    fingerprint: str


class TrainingEnded(_Event):
    event: Literal["training_ended"] = "training_ended"
    outcome: Literal["passed", "failed"]
    reason: str
    checkpoint: str | None
    """Passed: the last stage's result; failed: the best checkpoint so far. Relative to the training's folder."""


Event = (
    StageStarted
    | Measured
    | Probed
    | AttemptStarted
    | AlarmRaised
    | Gated
    | Confirmed
    | AttemptEnded
    | Promoted
    | TrainingEnded
)
_event: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class Journal:
    """The only writer of a training's journal. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Raises MedbenchError if another process holds the training, or the journal is damaged."""
        self.folder = folder
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise MedbenchError(f"{folder}: another medbench train is using it: wait for it or stop it") from None
        self._path = folder / JOURNAL
        self.events: list[Event] = list(read_events(folder))
        _cut_torn_tail(self._path)

    def append(self, event: Event) -> None:
        """Raises Interrupted if it cannot be written, as on a full disk; earlier events are kept."""
        try:
            with self._path.open("ab") as file:
                # not model_dump_json, which writes infinities as null and refuses lone surrogates in a path
                file.write(json.dumps(event.model_dump(), ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Interrupted(
                f"{self._path}: cannot be written ({error.strerror}): free some space, then rerun with --resume"
            ) from None
        self.events.append(event)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def create_training(folder: Path, training: Training) -> None:
    """Write training.json. Raises MedbenchError if the folder cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedbenchError(f"{folder}: cannot be created ({error.strerror})") from None
    text = json.dumps(training.model_dump(), ensure_ascii=False, indent=1)
    write_atomically(folder / TRAINING, text.encode("utf-8", "replace") + b"\n")


def read_training(folder: Path) -> Training:
    """Raises MedbenchError for a missing or damaged training, or one of a newer schema."""
    path = folder / TRAINING
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MedbenchError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError):
        raise MedbenchError(f"{path}: not JSON: the file is damaged") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise MedbenchError(
            f"{path}: schema version {version} is newer than this medbench's {SCHEMA_VERSION}: upgrade medbench"
        )
    try:
        return Training.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise MedbenchError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}") from None


IN_STAGE = (Measured, Probed, AttemptStarted, Promoted)
IN_ATTEMPT = (AlarmRaised, Gated, Confirmed, AttemptEnded)
"""Events that are about the stage or the attempt that began before them."""
AFTER_ATTEMPT = (StageStarted, AttemptStarted, Promoted)
"""Events that come only when the attempt before them has ended."""


def read_events(folder: Path) -> Iterator[Event]:
    """The finished events, in order, without a torn last line. Raises MedbenchError naming a damaged line."""
    path = folder / JOURNAL
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    *lines, _ = content.split(b"\n")
    stage = attempt = False
    for number, line in enumerate(lines, 1):
        try:
            event = _event.validate_json(line)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise MedbenchError(f"{path}:{number}: {where}: {fault['msg'].lower()}: the journal is damaged") from None
        if (isinstance(event, IN_STAGE) and not stage) or (isinstance(event, IN_ATTEMPT) and not attempt):
            raise MedbenchError(
                f"{path}:{number}: {event.event}: its stage or attempt was not begun: a line is missing"
            )
        if isinstance(event, AFTER_ATTEMPT) and attempt:
            raise MedbenchError(f"{path}:{number}: {event.event}: the attempt before it has no end: a line is missing")
        stage = stage or isinstance(event, StageStarted)
        attempt = isinstance(event, AttemptStarted) or (attempt and not isinstance(event, AttemptEnded))
        yield event


def _cut_torn_tail(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
            file.flush()
            os.fsync(file.fileno())
