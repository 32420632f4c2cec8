"""Progress while questions are answered: one bar per task on a terminal, plain lines elsewhere, or nothing.

with progress_for(quiet=False) as progress: evaluate(..., progress=progress)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medbench.harness.contracts import Sample
from medbench.harness.evaluation.runner import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_SECONDS = 10.0
"""Least number of seconds between plain lines."""


@dataclass
class _Count:
    total: int
    done: int
    started: float
    answered: int = 0
    right: float = 0.0
    errors: int = 0
    tokens: int = 0

    def add(self, sample: Sample) -> None:
        self.done += 1
        self.tokens += sample.prompt_tokens + sample.completion_tokens
        if sample.score is None:
            self.errors += 1
        else:
            self.answered += 1
            self.right += sample.score

    def line(self, verdict: str | None) -> str:
        """`verdict`: the time to it, in words; None where all questions are asked."""
        seconds = max(time.monotonic() - self.started, 1e-6)
        rate = (self.answered + self.errors) / seconds
        left = self.total - self.done
        end = f"verdict in {verdict}" if verdict and left else f"{_clock(left / rate if rate else 0.0)} left"
        accuracy = f"accuracy {self.right / self.answered:.3f}" if self.answered else "accuracy -"
        errors = f", {self.errors} errors" if self.errors else ""
        tokens = f"{self.tokens / seconds:.0f}" if self.tokens else "-"  # stored replies have none
        return f"{rate:.1f} questions/s, {tokens} tokens/s, {accuracy}{errors}, {end}"


class _Counts:
    """Counts by task. All tasks share one stream, so a task's clock starts where the previous task's stopped."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}
        self._last = time.monotonic()

    def start(self, task: str, total: int, done: int) -> None:
        self._counts[task] = _Count(total, done, self._last)

    def add(self, task: str, sample: Sample) -> _Count:
        count = self._counts[task]
        if not count.answered and not count.errors:
            count.started = self._last
        count.add(sample)
        self._last = time.monotonic()
        return count


class _Silent:
    def start(self, task: str, total: int, done: int) -> None: ...
    def advance(self, task: str, sample: Sample) -> None: ...
    def expect(self, time: str) -> None: ...


class _Plain:
    def __init__(self) -> None:
        self._counts = _Counts()
        self._verdict: str | None = None
        self._printed = time.monotonic()

    def start(self, task: str, total: int, done: int) -> None:
        self._counts.start(task, total, done)
        resumed = f", {done} answered before" if done else ""
        print(f"{task}: {total} questions{resumed}", file=sys.stderr, flush=True)

    def advance(self, task: str, sample: Sample) -> None:
        count = self._counts.add(task, sample)
        if count.done == count.total or time.monotonic() - self._printed > PLAIN_SECONDS:
            self._printed = time.monotonic()
            print(f"{task}: {count.done}/{count.total}, {count.line(self._verdict)}", file=sys.stderr, flush=True)

    def expect(self, time: str) -> None:
        if self._verdict is None:
            print(f"verdict in {time}", file=sys.stderr, flush=True)
        self._verdict = time


class _Bars:
    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._counts = _Counts()
        self._ids: dict[str, TaskID] = {}
        self._verdict: str | None = None

    def start(self, task: str, total: int, done: int) -> None:
        self._counts.start(task, total, done)
        self._ids[task] = self._bars.add_task(task, total=total, completed=done, line="")

    def advance(self, task: str, sample: Sample) -> None:
        count = self._counts.add(task, sample)
        self._bars.update(self._ids[task], completed=count.done, line=count.line(self._verdict))

    def expect(self, time: str) -> None:
        self._verdict = time


@contextmanager
def progress_for(*, quiet: bool) -> Iterator[Progress]:
    """Bars where standard error is a terminal, otherwise a line every PLAIN_SECONDS."""
    if quiet:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Plain()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}", markup=False),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as bars:
            yield _Bars(bars)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
