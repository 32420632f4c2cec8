"""Questions that two runs answered differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.judges.compare import JudgedComparison, comparison_of
from medbench.harness.judges.scored import ScoredTask
from medbench.harness.runs.comparability import refuse_unlike
from medbench.harness.runs.compare import TaskComparison, compare_task
from medbench.harness.runs.sample_check import checked_lines
from medbench.harness.runs.sample_line import Line
from medbench.reports.read.folders import inside, without_path
from medbench.reports.read.judged import scored_of
from medbench.reports.read.lines import head_of, order_of
from medbench.reports.read.records import RunView

FLIPS_SHOWN = 15
LONGEST_REPLY = 6_000
"""Characters: enough for a chain of thought, and a page of flips stays under two megabytes."""


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
    judged: tuple[JudgedComparison, ...] = ()
    """Of the tasks that a judge has judged in either run."""


def compared(a: RunView, b: RunView) -> Compared:
    """Both runs on the tasks they share."""
    shared = [task for task in a.record.tasks if task in b.record.tasks]
    comparisons: list[TaskComparison] = []
    flips: dict[str, tuple[Flip, ...]] = {}
    try:
        refuse_unlike(a.record, b.record, shared)
        for task in shared:
            one = compare_task(task, _samples(a, task), _samples(b, task))
            lost, gained = (sorted(ids, key=order_of)[:FLIPS_SHOWN] for ids in (one.lost_ids, one.gained_ids))
            comparisons.append(one)
            flips[task] = tuple(_flips(a, b, task, lost, gained))
    except MedbenchError as error:
        return Compared(fault=without_path(without_path(str(error), a.folder), b.folder))
    return Compared(tuple(comparisons), flips, judged=tuple(_judged(a, b, shared)))


def _judged(a: RunView, b: RunView, tasks: Sequence[str]) -> Iterator[JudgedComparison]:
    """Of the judges that the pages show; a damaged file has been told of."""
    for task in tasks:
        for judge in sorted({one.judge for run in (a, b) for one in run.judged.get(task, ())}):
            first, second = (_scored(run, task, judge) for run in (a, b))
            if first is not None or second is not None:
                yield comparison_of(task, judge, first, second)


def _scored(run: RunView, task: str, judge: str) -> ScoredTask | None:
    try:
        return scored_of(run.folder, task, judge)
    except MedbenchError:
        return None


def _each(run: RunView, task: str) -> Iterator[Line]:
    """The task's lines. Raises MedbenchError for a file that cannot be read, and for a damaged line."""
    path = Path(inside(run.folder, f"samples/{task}.jsonl"))
    try:
        with path.open("rb") as lines:
            yield from checked_lines(lines, run.record, task)
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise MedbenchError(f"{path}: line {error}") from None


def _samples(run: RunView, task: str) -> Iterator[Sample]:
    return (line.sample() for line in _each(run, task))


def _flips(a: RunView, b: RunView, task: str, lost: Sequence[str], gained: Sequence[str]) -> Iterator[Flip]:
    wanted = {*lost, *gained}
    ours, theirs = _lines(a, task, wanted), _lines(b, task, wanted)
    for id in (*lost, *gained):
        one, two = ours[id], theirs[id]
        prompt = two.prompt[:LONGEST_REPLY]
        yield Flip(id, id in gained, head_of(two.prompt, ""), prompt, two.gold, _reply(one), _reply(two))


def _lines(run: RunView, task: str, wanted: set[str]) -> dict[str, Line]:
    """The first repeat of each wanted question that got an answer."""

    lines: dict[str, Line] = {}
    for line in _each(run, task):
        if line.id in wanted and line.score is not None:
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
