"""Questions that two runs answered differently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.runs.comparability import refuse_unlike
from medbench.harness.runs.compare import TaskComparison, compare_task
from medbench.reports.read.folders import inside, without_path
from medbench.reports.read.lines import Line, decode, head_of, order_of
from medbench.reports.read.records import RunView

FLIPS_SHOWN = 15
LONGEST_REPLY = 6_000
"""Characters: enough for a chain of thought, and a page of flips stays under two megabytes."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """One side of a flip."""

    output: str
    """At most LONGEST_REPLY characters; the viewer has the rest."""
    cut: bool
    extracted: str | None
    outcome: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Flip:
    """A question that one run got right and the other wrong (with repeats: whose mean score changed)."""

    id: str
    gained: bool
    """Better in B."""
    head: str
    """The question's first words (see viewer_data)."""
    prompt: str
    """As B was asked it, at most LONGEST_REPLY characters."""
    gold: str
    a: Reply
    b: Reply


@dataclass(frozen=True, slots=True)
class Compared:
    """What a compare page shows; the arguments of pages.compare_page after the two runs."""

    comparisons: tuple[TaskComparison, ...] = ()
    flips: Mapping[str, tuple[Flip, ...]] = field(default_factory=dict)
    """Task -> the first FLIPS_SHOWN lost ones, then the first FLIPS_SHOWN gained ones, each in natural order of id."""
    fault: str = ""
    """Why there is no comparison: the runs were asked differently, or samples are damaged."""


def compared(a: RunView, b: RunView) -> Compared:
    """Both runs on the tasks they share."""
    shared = [task for task in a.record.tasks if task in b.record.tasks]
    comparisons: list[TaskComparison] = []
    flips: dict[str, tuple[Flip, ...]] = {}
    try:
        refuse_unlike(a.record, b.record, shared)
        for task in shared:
            one = compare_task(task, _each(a, task, _sample), _each(b, task, _sample))
            lost, gained = (sorted(ids, key=order_of)[:FLIPS_SHOWN] for ids in (one.lost_ids, one.gained_ids))
            comparisons.append(one)
            flips[task] = tuple(_flips(a, b, task, lost, gained))
    except MedbenchError as error:
        return Compared(fault=without_path(without_path(str(error), a.folder), b.folder))
    return Compared(tuple(comparisons), flips)


class _Bare(msgspec.Struct, gc=False):
    """What comparing needs of a line."""

    id: str
    cluster: str
    score: float | None
    category: dict[str, str]

    def sample(self) -> Sample:
        return Sample(
            self.id, self.cluster, "", "", "stop", None, "answered", None, "", self.score, None, 0, 0, self.category
        )


class _Id(msgspec.Struct, gc=False):
    id: str


_bare = msgspec.json.Decoder(_Bare).decode
_id = msgspec.json.Decoder(_Id).decode


def _sample(raw: bytes) -> Sample:
    try:
        return _bare(raw).sample()
    except (ValueError, RecursionError):
        line = decode(raw)
        return _Bare(line.id, line.cluster, line.score, line.category).sample()


def _each(run: RunView, task: str, read: Callable[[bytes], T]) -> Iterator[T]:
    """What `read` makes of each line. Raises MedbenchError for a file that cannot be read, and for a damaged line."""
    path = Path(inside(run.folder, f"samples/{task}.jsonl"))
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if raw.endswith(b"\n"):  # else torn: the last line of an evaluation that runs
                    try:
                        found = read(raw)
                    except ValueError as error:
                        raise MedbenchError(f"{path}: line {number}: {error}") from None
                    yield found
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None


def _flips(a: RunView, b: RunView, task: str, lost: Sequence[str], gained: Sequence[str]) -> Iterator[Flip]:
    wanted = {*lost, *gained}
    ours, theirs = _lines(a, task, wanted), _lines(b, task, wanted)
    for id in (*lost, *gained):
        one, two = ours[id], theirs[id]
        prompt = two.prompt[:LONGEST_REPLY]
        yield Flip(id, id in gained, head_of(two.prompt, ""), prompt, two.gold, _reply(one), _reply(two))


def _lines(run: RunView, task: str, wanted: set[str]) -> dict[str, Line]:
    """The first repeat of each wanted question that got an answer."""

    def read(raw: bytes) -> Line | None:
        try:
            if _id(raw).id not in wanted:
                return None
        except (ValueError, RecursionError):
            pass  # `decode` knows better
        line = decode(raw)
        return line if line.id in wanted and line.score is not None else None

    lines: dict[str, Line] = {}
    for line in filter(None, _each(run, task, read)):
        lines.setdefault(line.id, line)
    return lines


def _reply(line: Line) -> Reply:
    return Reply(
        output=line.output[:LONGEST_REPLY],
        cut=len(line.output) > LONGEST_REPLY,
        extracted=line.extracted,
        outcome=line.outcome,
        finish_reason=line.finish_reason,
    )
