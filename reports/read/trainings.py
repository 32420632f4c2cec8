"""Training folders -> what the pages know of them: the record, the journal's events, the stages that were begun.

    python -c "from medbench.reports.read.trainings import *; print(read_trainings([Path('runs')]))"

A training under way is as good as a finished one. Of a damaged journal the events before the damage are shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import read_run
from medbench.harness.training.journal import (
    JOURNAL,
    TRAINING,
    AlarmRaised,
    AttemptEnded,
    AttemptStarted,
    Confirmed,
    Event,
    Gated,
    Measured,
    Probed,
    Promoted,
    StageStarted,
    Training,
    TrainingEnded,
    read_events,
    read_training,
)
from medbench.harness.training.state import StageState, ended, stages_of
from medbench.reports.read.folders import (
    is_file_name,
    metrics_files,
    natural,
    read_checked,
    times_of,
    training_folders,
    unique_slugs,
    without_path,
)

MOST_JOURNAL = 128 * 2**20
"""Bytes; a checkpoint with its verdict takes about two thousand."""
MOST_COUNT = 2**53
"""Steps, attempts and questions beyond this are no counts, and a page's script could not hold them."""


@dataclass(frozen=True, slots=True)
class TrainingView:
    """One readable training."""

    id: str
    """As RunView.id."""
    folder: Path
    record: Training
    events: tuple[Event, ...]
    stages: tuple[StageState, ...]
    compared: Mapping[str, RunRecord]
    """Run folder, as in the journal -> its record, for the runs of stages with a baseline of their own."""
    fault: str
    """What is wrong with the journal behind these events; "" for a sound one."""
    contents: str
    """Hash of training.json and journal."""
    stamp: str
    """Changes when anything that the training's page shows may have changed; never printed into a page."""

    @property
    def ended(self) -> TrainingEnded | None:
        return ended(self.events)

    @property
    def state(self) -> str:
        """ "passed", "failed", or "running", which is also one that was stopped and can be resumed."""
        return self.ended.outcome if self.ended else "running"

    @property
    def seconds(self) -> float:
        """Of work, over all sessions."""
        return self.events[-1].elapsed if self.events else 0.0

    @property
    def wanted(self) -> int:
        """Stages of the recipe; 0 where it does not say."""
        stages = self.record.recipe.get("stages")
        return len(stages) if isinstance(stages, list) else 0


def read_trainings(paths: Sequence[Path]) -> tuple[list[TrainingView], list[tuple[str, str]]]:
    """(trainings by id, (name, reason) of what cannot be shown). Raises MedbenchError for a path that is no folder."""
    read: list[TrainingView] = []
    faults: list[tuple[str, str]] = []
    for folder, fault in training_folders(paths):
        try:
            if fault:
                raise MedbenchError(fault)
            read.append(_read(folder))
            if read[-1].fault:
                faults.append((f"{folder.name}: {JOURNAL}", read[-1].fault))
        except MedbenchError as error:
            faults.append((folder.name, without_path(str(error), folder)))
    read.sort(key=lambda one: (natural(one.folder.name), one.contents))
    ids = unique_slugs(one.folder.name for one in read)
    return [replace(one, id=id) for id, one in zip(ids, read, strict=True)], faults


def last_event(training: TrainingView) -> str:
    """In words."""
    if not training.events:
        return "begun"
    return _words(training.events[-1])


def _words(event: Event) -> str:
    match event:
        case StageStarted():
            return f"stage {event.stage} begun"
        case Measured():
            return f"start of stage {event.stage} asked on the {event.partition} questions"
        case Probed():
            return f"start of stage {event.stage} asked questions to train on"
        case AttemptStarted():
            return f"attempt {event.attempt} of {event.stage} begun"
        case AlarmRaised():
            return f"alarm at step {event.step:,} of attempt {event.attempt} of {event.stage}: {event.kind}"
        case Gated():
            return f"step {event.step:,} of attempt {event.attempt} of {event.stage} judged: {event.verdict.overall}"
        case Confirmed():
            found = "confirmed" if event.verdict.overall == "pass" else "not confirmed"
            return f"step {event.step:,} of attempt {event.attempt} of {event.stage} {found}"
        case AttemptEnded():
            return f"attempt {event.attempt} of {event.stage} {event.outcome}"
        case Promoted():
            return f"step {event.step:,} of attempt {event.attempt} of {event.stage} promoted"
        case TrainingEnded():
            return f"{event.outcome}: {event.reason}"


def _read(folder: Path) -> TrainingView:
    record_bytes = read_checked(folder, TRAINING) or b""
    journal_bytes = read_checked(folder, JOURNAL, MOST_JOURNAL) or b""
    contents = hashlib.sha256(record_bytes + b"\0" + journal_bytes).hexdigest()
    record = read_training(folder)
    events: list[Event] = []
    fault = ""
    try:
        for event in read_events(folder):
            if wrong := _wrong(event, events):
                raise MedbenchError(f"{folder / JOURNAL}:{len(events) + 1}: {wrong}: the journal is damaged")
            events.append(event)
    except MedbenchError as error:
        fault = without_path(str(error), folder)
    times = [f"{path.relative_to(folder)} {times_of(path)}" for path in metrics_files(folder)]
    stamp = hashlib.sha256("\n".join([contents, *times]).encode("utf-8", "replace")).hexdigest()
    stages = tuple(stages_of(events))
    return TrainingView("", folder, record, tuple(events), stages, _compared(folder, stages), fault, contents, stamp)


def _compared(folder: Path, stages: Sequence[StageState]) -> dict[str, RunRecord]:
    """Of runs that can be read."""
    found = {}
    for stage in stages:
        measured = stage.measured.get("gate")
        if measured is None or measured.baseline is None:
            continue
        judged = [one.run for attempt in stage.attempts for one in attempt.gated]
        for run in (measured.baseline, measured.run, *judged):
            parent, _, name = (run or "").rpartition("/")
            if parent == "runs" and is_file_name(name):
                with suppress(MedbenchError):
                    found[str(run)] = read_run(folder / "runs" / name)
    return found


def _wrong(event: Event, before: Sequence[Event]) -> str:
    """Why the event cannot stand behind these; "" where it can."""
    if not all(0 <= number < MOST_COUNT for number in _counts(event)):  # which NaN is not
        return "a value that is not a number"
    if isinstance(event, StageStarted | TrainingEnded):
        return ""
    attempt = getattr(event, "attempt", None)
    needed = StageStarted if isinstance(event, Measured | Probed | AttemptStarted) else AttemptStarted
    last = next((one for one in reversed(before) if isinstance(one, needed)), None)
    stage = next((one for one in reversed(before) if isinstance(one, StageStarted)), None)
    if last is None or stage is None or not last.stage == stage.stage == event.stage:
        return f"{event.event} of a stage or attempt that was not begun"
    if isinstance(last, AttemptStarted) and last.attempt != attempt:
        return f"{event.event} of another attempt than the one begun"
    return ""


def _counts(event: Event) -> Iterator[float]:
    """Times, steps and the like: nought or more; and the figures of a verdict by their size."""
    content = event.model_dump(exclude={"config", "verdict"})
    yield from (value for value in content.values() if isinstance(value, int | float))
    verdict = getattr(event, "verdict", None)
    yield from map(abs, numbers_in(verdict.model_dump(exclude={"noise"}))) if verdict else ()


def numbers_in(value: Any) -> Iterator[float]:
    """All numbers of a JSON value, at any depth."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from numbers_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from numbers_in(each)
