"""Runs -> the tables of the leaderboard: never two protocols, task versions or data in one.

python -c "from medbench.reports.views.leaderboard import tables_of; print(tables_of(()))"
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from medbench.harness.benchmarks.rows import SAMPLE
from medbench.harness.benchmarks.task_folders import core_tasks, task_labels
from medbench.harness.runs.records import RunRecord, TaskRecord
from medbench.harness.scoring.summary import TaskResult
from medbench.reports.read.collect import state_of
from medbench.reports.read.records import RunView
from medbench.reports.views.axis import Axis, axis_over
from medbench.reports.views.formats import parameters
from medbench.reports.views.ranking import ranks

SIZE = re.compile(r"(?:^|[-_ /])(\d{1,4}(?:\.\d{1,3})?)\s?([bm])(?![a-z0-9])", re.IGNORECASE)
"""A number of parameters in a model's name: "Qwen3-32B", "smollm2-135m"; not "8x7B"."""


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one run: accuracy and its 95 % interval, as shares."""

    accuracy: float
    interval: tuple[float, float]
    of: tuple[int, int] | None = None
    """(questions answered, questions of the task) where not all were."""


@dataclass(frozen=True, slots=True)
class Column:
    """One task of a table."""

    task: str
    label: str
    record: TaskRecord
    chance: float | None

    @property
    def about(self) -> str:
        source = (
            "built-in sample"
            if self.record.source == SAMPLE
            else ("official rows" if self.record.official else "unofficial rows")
        )
        return f"version {self.record.version}, {self.record.split}, {self.record.n:,} questions, {source}"


@dataclass(frozen=True, slots=True)
class Row:
    """One run in a table."""

    run: RunView
    rank: int | None
    """One more than the number of runs of the table that are significantly better; None without a mean."""
    opens_group: bool
    """Whether its rank differs from that of the row above."""
    scores: tuple[Score | None, ...]
    """One a column."""
    mean: Score | None
    marks: tuple[str, ...]
    """What to know before the scores are read: incomplete, stale, built-in sample, ..."""
    asked: int
    unparsed: int
    truncated: int
    errors: int
    tokens: float | None
    """Completion tokens a scored reply."""
    speed: float | None
    """Questions a second over the whole run; None for stored replies, which took no time to generate."""
    size: float | None
    """Parameters."""
    size_is_named: bool
    """Whether `size` was read off the model's name."""
    weight_bytes: int | None
    """Of the weight files."""
    memory: float | None
    """GiB at the peak."""
    precision: str

    @property
    def size_text(self) -> str:
        return parameters(self.size)


@dataclass(frozen=True, slots=True)
class Table:
    """Runs that may be compared."""

    key: str
    """Short and stable: an anchor."""
    label: str
    protocol: str
    about: str
    asked: str
    columns: tuple[Column, ...]
    core: tuple[str, ...]
    """Labels of the tasks of the mean."""
    rows: tuple[Row, ...]
    axis: Axis

    @property
    def has_mean(self) -> bool:
        return len(self.core) > 1


def tables_of(runs: Sequence[RunView]) -> list[Table]:
    """Official data first, then the tables with most runs."""
    groups = [group for some in _by_protocol(runs).values() for group in _by_data(some)]
    tables = [_table(group, tasks) for group, tasks in groups]
    tables.sort(
        key=lambda table: (not all(c.record.official for c in table.columns), -len(table.rows), table.label, table.key)
    )
    return _with_distinct_labels(tables)


def _by_protocol(runs: Sequence[RunView]) -> Mapping[str, list[RunView]]:
    alike: dict[str, list[RunView]] = defaultdict(list)
    for run in runs:
        record = run.record
        alike[json.dumps([record.protocol, record.partition, record.shuffle_options], sort_keys=True)].append(run)
    return alike


def _by_data(runs: Sequence[RunView]) -> list[tuple[list[RunView], dict[str, TaskRecord]]]:
    """Runs that agree on version, split and data of every task that they share; the fullest ones decide first."""
    groups: list[tuple[list[RunView], dict[str, TaskRecord]]] = []
    for run in sorted(runs, key=lambda run: (-len(run.record.tasks), run.id)):
        for some, tasks in groups:
            if all(_same(tasks[name], task) for name, task in run.record.tasks.items() if name in tasks):
                some.append(run)
                tasks.update(run.record.tasks)
                break
        else:
            groups.append(([run], dict(run.record.tasks)))
    return groups


def _same(a: TaskRecord, b: TaskRecord) -> bool:
    return (a.version, a.split, a.sha256) == (b.version, b.split, b.sha256)


def _table(runs: Sequence[RunView], tasks: Mapping[str, TaskRecord]) -> Table:
    names = in_order(tasks)
    # a table without any core task takes the mean of all that it has
    core = [name for name in names if name in core_tasks()] or names
    columns = tuple(Column(name, label_of(name), tasks[name], _chance(runs, name)) for name in names)
    means = {run.id: mean_score(run, core) for run in runs}
    ranked = [run for run in runs if means[run.id] is not None and run.record.status == "complete"]
    places = ranks([{name: run.results[name] for name in core} for run in ranked], [run.scores for run in ranked])
    rank = {run.id: place for run, place in zip(ranked, places, strict=True)}
    newest = _newest_weights(runs)
    rows: list[Row] = []
    for run in sorted(runs, key=lambda run: _order(run, means[run.id], rank.get(run.id))):
        above = rows[-1].rank if rows else None
        rows.append(_row(run, names, means[run.id], rank.get(run.id), above, newest))
    record = runs[0].record
    found = [one.interval for row in rows for one in (*row.scores, row.mean) if one]
    return Table(
        key=_key(runs[0], columns),
        label=_label(runs[0], columns),
        protocol=runs[0].protocol,
        about=str(record.protocol.get("about") or ""),
        asked=f"{record.shuffle_options} orders of the options" if record.shuffle_options else "",
        columns=columns,
        core=tuple(label_of(name) for name in core),
        rows=tuple(rows),
        axis=axis_over(found),
    )


def _row(
    run: RunView,
    names: Sequence[str],
    mean: Score | None,
    rank: int | None,
    above: int | None,
    newest: Mapping[str, str],
) -> Row:
    results = list(run.results.values())
    asked = sum(one.n for one in results)
    scored = [(one.tokens_per_answer, one.n - one.n_error) for one in results if one.tokens_per_answer is not None]
    seconds = run.record.totals.seconds
    size, named = size_of(run)
    settings = run.record.engine.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    quantization = run.record.model.quantization or settings.get("quantization")
    return Row(
        run=run,
        rank=rank,
        opens_group=rank != above,
        scores=tuple(score_of(run, name) for name in names),
        mean=mean,
        marks=tuple(filter(None, [state_of(run), *_not_as_asked(run.record), *_stale(run, newest)])),
        asked=asked,
        unparsed=sum(one.n_unparsed for one in results),
        truncated=sum(one.n_truncated for one in results),
        errors=sum(one.n_error for one in results),
        tokens=sum(tokens * n for tokens, n in scored) / sum(n for _, n in scored) if scored else None,
        speed=asked / seconds if seconds > 0 and asked and run.record.engine.get("name") != "fake" else None,
        size=size,
        size_is_named=named,
        weight_bytes=run.record.model.weight_bytes,
        memory=run.record.totals.peak_memory_gib,
        precision=", ".join(str(one) for one in (settings.get("dtype"), quantization) if one),
    )


def in_order(tasks: Iterable[str]) -> list[str]:
    """The core tasks first, in the order of their columns, then the others by name."""
    core = core_tasks()
    return sorted(set(tasks), key=lambda name: (core.index(name) if name in core else len(core), name))


def label_of(task: str) -> str:
    known = task_labels().get(task)
    return known.label if known else task


def score_of(run: RunView, task: str) -> Score | None:
    result = run.results.get(task)
    if result is None or result.accuracy is None or result.interval is None:
        return None
    total = run.record.tasks[task].n
    return Score(result.accuracy, result.interval, (result.n, total) if result.n < total else None)


def mean_score(run: RunView, tasks: Sequence[str]) -> Score | None:
    """Mean over `tasks`; None unless each has an accuracy.

    The interval combines the tasks' own as of independent estimates (MOVER: Zou and Donner 2008, doi 10.1002/sim.3095).
    """
    scores = [score for task in tasks if (score := score_of(run, task)) is not None]
    if not tasks or len(scores) < len(tasks):
        return None
    k = len(scores)
    mean = math.fsum(one.accuracy for one in scores) / k
    below = math.sqrt(math.fsum((one.accuracy - one.interval[0]) ** 2 for one in scores)) / k
    above = math.sqrt(math.fsum((one.interval[1] - one.accuracy) ** 2 for one in scores)) / k
    return Score(mean, (max(0.0, mean - below), min(1.0, mean + above)))


def size_of(run: RunView) -> tuple[float | None, bool]:
    """(parameters, whether they were read off the model's name)."""
    recorded = run.record.model.parameters
    if recorded:
        return float(recorded), False
    for name in (run.record.model.name, run.record.model.base or ""):
        if found := SIZE.search(name):
            return float(found[1]) * (1e9 if found[2].lower() == "b" else 1e6), True
    return None, False


SizeClass = Literal["", "s", "m", "l", "xl"]


def size_class(size: float | None) -> SizeClass:
    """For the filter: below 1B, below 10B, below 40B, above."""
    if size is None:
        return ""
    return "s" if size < 1e9 else "m" if size < 1e10 else "l" if size < 4e10 else "xl"


def _newest_weights(runs: Sequence[RunView]) -> dict[str, str]:
    """Model name -> fingerprint of the run that was made last."""
    return {
        run.record.model.name: run.record.model.fingerprint
        for run in sorted(runs, key=lambda run: (run.record.created, run.id))
    }


def _not_as_asked(record: RunRecord) -> list[str]:
    return [f"not applied: {', '.join(record.not_applied)}"] if record.not_applied else []


def _stale(run: RunView, newest: Mapping[str, str]) -> list[str]:
    record, found = run.record, []
    if newest[record.model.name] != record.model.fingerprint:
        found.append("stale: this name has newer weights")
    if any(_outdated(result, record.tasks[name]) for name, result in run.results.items()):
        found.append("stale: results of another task version")
    if any(verdict.fingerprint != record.model.fingerprint for verdict in run.verdicts):
        found.append("stale verdict: it judged other weights")
    return found


def _outdated(result: TaskResult, task: TaskRecord) -> bool:
    return (result.version, result.split) != (task.version, task.split)


def _order(run: RunView, mean: Score | None, rank: int | None) -> tuple[bool, float, str]:
    return rank is None, -(mean.accuracy if mean else -1.0), run.id


def _chance(runs: Sequence[RunView], task: str) -> float | None:
    return next((run.results[task].chance for run in runs if task in run.results), None)


def _key(run: RunView, columns: Sequence[Column]) -> str:
    record = run.record
    what = [
        record.protocol,
        record.partition,
        record.shuffle_options,
        [[c.task, c.record.version, c.record.split, c.record.sha256] for c in columns],
    ]
    return "t" + hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def _label(run: RunView, columns: Sequence[Column]) -> str:
    parts = [run.protocol, ", ".join(column.label for column in columns) or "no task"]
    if any(column.record.source == SAMPLE for column in columns):
        parts.append("built-in sample")
    elif not all(column.record.official for column in columns):
        parts.append("unofficial rows")
    if run.record.partition != "all":
        parts.append(f"{run.record.partition} half")
    if run.record.shuffle_options:
        parts.append(f"{run.record.shuffle_options} option orders")
    return " · ".join(parts)


def _with_distinct_labels(tables: list[Table]) -> list[Table]:
    """Tables of the same label get their key behind it: they differ in a prompt, a version or the data."""
    labels = [table.label for table in tables]
    return [
        replace(table, label=f"{table.label} · {table.key[1:]}") if labels.count(table.label) > 1 else table
        for table in tables
    ]
