"""Which runs get a page that compares them, and what that page shows.

    python -c "from medbench.reports.pairs import page_name; print(page_name('base', 'tuned'))"

All pairs of a thousand runs would be half a million pages. So: each run against the baseline that it was gated
against, and the best MOST_RUNS of each kind of run against each other.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar

import msgspec

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.runs.comparability import refuse_unlike
from medbench.harness.runs.compare import TaskComparison, compare_task
from medbench.harness.runs.records import RunRecord
from medbench.reports.folders import inside, without_path
from medbench.reports.lines import Line, decode, order_of
from medbench.reports.viewer_data import head_of

if TYPE_CHECKING:
    from medbench.reports.collect import RunView

MOST_RUNS = 12
"""Runs of one kind that are compared each with each: 66 pages."""
MOST_BASELINES = 60
"""Pages of runs against their baselines, the newest runs first."""
FLIPS_SHOWN = 15
LONGEST_REPLY = 6_000
"""Characters: enough for a chain of thought, and a page of flips stays under two megabytes."""


def page_name(a: str, b: str) -> str:
    """Path under the site of the page on run ids `a` and `b`; no id has "--" in it."""
    return f"compare/{a}--{b}.html"


def kind_of(run: RunView) -> str:
    """Equal for runs whose scores may stand in one table."""
    return run.kind


def kind_of_record(record: RunRecord) -> str:
    """Protocol, partition, options, task versions and data, as one text."""
    tasks = sorted((name, task.version, task.split, task.sha256) for name, task in record.tasks.items())
    return json.dumps([record.protocol, record.partition, record.shuffle_options, tasks], sort_keys=True)


def mean_accuracy(run: RunView) -> float | None:
    """Mean over the tasks of run.json; None unless every one has an accuracy."""
    found = [run.results[task].accuracy if task in run.results else None for task in run.record.tasks]
    known = [accuracy for accuracy in found if accuracy is not None]
    return fmean(known) if known and len(known) == len(found) else None


def choose_pairs(runs: Sequence[RunView]) -> list[tuple[str, str]]:
    """(A, B) ids, sorted; A is the baseline of B, or else the worse one."""
    gated = set(_against_baselines(runs))
    return sorted(gated | {(a, b) for a, b in _best(runs) if (b, a) not in gated})


def _against_baselines(runs: Sequence[RunView]) -> list[tuple[str, str]]:
    by_name = {run.folder.name: run for run in reversed(runs)}
    pairs = []
    for run in sorted(runs, key=lambda run: (run.record.created, run.id), reverse=True):
        baseline = by_name.get(run.verdict.baseline or "") if run.verdict else None
        if baseline is not None and baseline is not run:
            pairs.append((baseline.id, run.id))
    return pairs[:MOST_BASELINES]


def _best(runs: Iterable[RunView]) -> list[tuple[str, str]]:
    kinds: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for run in runs:
        mean = mean_accuracy(run)
        if mean is not None:
            kinds[run.kind].append((mean, run.id))
    pairs = []
    for ranked in kinds.values():
        best = [id for _, id in sorted(ranked, reverse=True)[:MOST_RUNS]]
        pairs += [(worse, better) for place, better in enumerate(best) for worse in best[place + 1 :]]
    return pairs


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
    """A question that one run got right and the other wrong (of several askings: whose mean score changed)."""

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
        return Sample(self.id, self.cluster, "", "", "stop", None, "answered", None, "", self.score, None, 0, 0,
                      self.category)  # fmt: skip


class _Id(msgspec.Struct, gc=False):
    id: str


_bare = msgspec.json.Decoder(_Bare).decode
_id = msgspec.json.Decoder(_Id).decode
T = TypeVar("T")


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
    """The first asking of each wanted question that got an answer."""

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
