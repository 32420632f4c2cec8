"""One training -> what its page shows: how it went, every judged checkpoint, what the judging cost.

The charts are drawn by the browser from trajectory_charts; the tables here say the same without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from medbench.harness.contracts import MedbenchError
from medbench.harness.gates import costs
from medbench.harness.gates.rules import MEAN
from medbench.harness.gates.verdict import GateResult, Verdict
from medbench.harness.runs.records import RunRecord
from medbench.harness.training.checkpoint_folder import METRICS
from medbench.harness.training.journal import AlarmRaised, Confirmed, Gated, Measured
from medbench.harness.training.state import Attempt, StageState
from medbench.reports.read.folders import without_path
from medbench.reports.read.metrics import Series, read_series
from medbench.reports.read.trainings import TrainingView
from medbench.reports.views.axis import Axis, axis_around_zero, axis_over
from medbench.reports.views.formats import flat
from medbench.reports.views.run import GateLine, gate_line

MOST_GATES = 30
"""Columns of a table; a page with more helps nobody."""
MOST_POINTS = 1_200
"""Of one metric over all attempts of a stage: more than a screen has pixels."""
FEWEST_POINTS = 40
"""Of one metric of one attempt."""
START = "the stage's start"


@dataclass(frozen=True, slots=True)
class Column:
    """One gate over all checkpoints of a stage."""

    rule: str
    task: str
    metric: str
    unit: str
    """ "percent", "points" (of difference to the stage's start), or "" for what is no share."""
    threshold: float
    shown_threshold: str
    axis: Axis | None


@dataclass(frozen=True, slots=True)
class Row:
    """One judged checkpoint; or the stage's starting checkpoint (not part of any attempt)."""

    attempt: int | None
    step: int
    status: str
    why: str
    gates: tuple[GateLine | None, ...]
    """One a column."""
    asked: int
    total: int
    seconds: float
    alpha: float | None
    note: str = ""
    """ "promoted", "best of its attempt" where that failed, "not confirmed", or ""."""
    run: str = ""
    """Id of its run's page, where that run is on the site."""
    is_baseline: bool = False
    """Whether paired gates compare with it: the start, where the stage names no other."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one gate's answers cost, over all checkpoints of a stage."""

    gate: Column
    checkpoints: int
    used: int
    total: int
    saved_by_controls: int
    """By stored runs as controls, estimated."""
    controls: tuple[str, ...]

    @property
    def saved(self) -> int:
        return max(0, self.total - self.used)


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model takes, by a run that asked it."""

    model: str
    """ "baseline", "start", or a checkpoint."""
    name: str
    """Of the model."""
    questions: int
    cost: costs.Cost


@dataclass(frozen=True, slots=True)
class AttemptBlock:
    """One attempt: a band of the charts."""

    number: int
    outcome: str
    """ "passed", "failed", or "running"."""
    reason: str
    seed: int
    start: str
    changes: tuple[tuple[str, str, str], ...]
    """(setting, before, now) against the attempt before."""
    alpha: float
    checkpoints: int
    offset: int
    """Steps of the attempts before it."""
    length: int
    """Its own steps, as far as anything was logged or judged."""
    training_seconds: float
    alarms: tuple[AlarmRaised, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class StageBlock:
    """One stage."""

    number: int
    name: str
    trainer: str
    outcome: str
    columns: tuple[Column, ...]
    left_out: int
    """Gates beyond MOST_GATES."""
    rows: tuple[Row, ...]
    """Judged while training, the start first."""
    confirmations: tuple[Row, ...]
    """Judged on the questions that the loop never looks at."""
    report_columns: tuple[Column, ...]
    attempts: tuple[AttemptBlock, ...]
    costs: tuple[Cost, ...]
    beside: tuple[ModelCost, ...]
    """Of a stage with a baseline of its own: baseline, start, and the promoted or last judged checkpoint."""
    prepared: tuple[str, ...]
    promoted: tuple[int, int] | None
    """(attempt, step)"""
    seconds: float
    training_seconds: float
    judging_seconds: float
    faults: tuple[str, ...]
    """Files of metrics that could not be read."""

    @property
    def length(self) -> int:
        return sum(one.length for one in self.attempts)

    @property
    def judged(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.attempt is not None)

    @property
    def asked(self) -> int:
        return sum(row.asked for row in (*self.rows, *self.confirmations))

    @property
    def thinned(self) -> int:
        """Steps to a point of the charts, at most."""
        return max((series.bucket for attempt in self.attempts for series in attempt.series), default=1)


def stages_of(training: TrainingView, runs: Mapping[str, str]) -> list[StageBlock]:
    """`runs`: run folder, relative to the training's -> id of its page on the site."""
    ends = [*(stage.started.elapsed for stage in training.stages[1:]), training.seconds]
    return [
        _stage(training, stage, number, end, runs)
        for number, (stage, end) in enumerate(zip(training.stages, ends, strict=False), 1)
    ]


def asked_of_all(verdict: Verdict) -> int:
    """Questions there were to ask: gates of one task share them."""
    tasks: dict[str, int] = {}
    for gate in verdict.gates:
        if gate.task != MEAN:
            tasks[gate.task] = max(tasks.get(gate.task, 0), gate.total)
    return sum(tasks.values())


def _stage(training: TrainingView, stage: StageState, number: int, end: float, runs: Mapping[str, str]) -> StageBlock:
    gated = [one for attempt in stage.attempts for one in attempt.gated]
    confirmed = [attempt.confirmed for attempt in stage.attempts if attempt.confirmed]
    measured = [stage.measured[one] for one in ("gate", "report") if one in stage.measured]
    measuring = {  # nothing else is done between the event before and this one
        id(now): max(0.0, now.elapsed - before.elapsed)
        for before, now in pairwise(training.events)
        if isinstance(now, Measured)
    }
    judged: list[Gated | Measured] = [*gated, *measured]
    rules = _rules([*judged, *confirmed])
    here = [one for one in measured if one.partition == "gate"]
    there = [one for one in measured if one.partition == "report"]
    columns = _columns(rules, [*here, *gated])
    report_columns = _columns(rules, [*there, *confirmed])
    blocks, faults = _attempts(training, stage, number)
    promoted = (stage.promoted.attempt, stage.promoted.step) if stage.promoted else None
    stages = training.record.recipe.get("stages")
    wanted = stages[number - 1] if isinstance(stages, list) and number <= len(stages) else {}
    return StageBlock(
        number=number,
        name=stage.started.stage,
        trainer=str(wanted.get("trainer", "")) if isinstance(wanted, Mapping) else "",
        outcome="passed" if promoted else "failed" if training.ended else "running",
        columns=columns,
        left_out=len({gate.rule for one in judged if one.verdict for gate in one.verdict.gates}) - len(rules),
        rows=(
            *(_start_row(one, columns, runs, measuring[id(one)]) for one in here),
            *(_row(one, attempt, columns, runs, promoted) for attempt in stage.attempts for one in attempt.gated),
        ),
        confirmations=(
            *(_start_row(one, report_columns, runs, measuring[id(one)]) for one in there),
            *(
                _row(attempt.confirmed, attempt, report_columns, runs, promoted)
                for attempt in stage.attempts
                if attempt.confirmed
            ),
        ),
        report_columns=report_columns,
        attempts=tuple(blocks),
        costs=tuple(_costs(columns, gated)),
        beside=tuple(_beside(training.compared, here, gated, promoted)),
        prepared=(*stage.started.prepared, *([f"difficulty: {stage.probed.said}"] if stage.probed else [])),
        promoted=promoted,
        seconds=max(0.0, end - stage.started.elapsed),
        training_seconds=sum(one.training_seconds for one in blocks),
        judging_seconds=sum(one.seconds for one in gated)
        + sum(one.seconds for one in confirmed)
        + sum(measuring[id(one)] for one in measured),
        faults=tuple(faults),
    )


def _rules(judged: Sequence[Gated | Measured | Confirmed]) -> dict[str, GateResult]:
    """Rule -> one of its results, in the order in which they first stand."""
    found: dict[str, GateResult] = {}
    for one in judged:
        for gate in one.verdict.gates if one.verdict else ():
            found.setdefault(gate.rule, gate)
    return dict(list(found.items())[:MOST_GATES])


def _columns(rules: Mapping[str, GateResult], judged: Sequence[Gated | Measured | Confirmed]) -> tuple[Column, ...]:
    seen: dict[str, list[tuple[float, float]]] = {rule: [] for rule in rules}
    for one in judged:
        for gate in one.verdict.gates if one.verdict else ():
            if gate.interval and gate.rule in seen:
                seen[gate.rule].append(gate.interval)
    return tuple(_column(gate, seen[rule]) for rule, gate in rules.items())


def _column(gate: GateResult, intervals: Sequence[tuple[float, float]]) -> Column:
    drawn = [*intervals, (gate.threshold, gate.threshold)]
    unit = {"share": "percent", "difference": "points"}.get(gate.unit, "")
    axis = {"percent": axis_over, "points": axis_around_zero}.get(unit)
    return Column(
        rule=gate.rule,
        task=gate.task,
        metric=gate.metric,
        unit=unit,
        threshold=gate.threshold,
        shown_threshold=gate_line(gate).threshold.strip(),
        axis=axis(drawn) if axis else None,
    )


def _lines(verdict: Verdict | None, columns: Sequence[Column]) -> tuple[GateLine | None, ...]:
    found = {gate.rule: gate for gate in verdict.gates} if verdict else {}
    return tuple(
        replace(gate_line(found[column.rule]), axis=column.axis) if column.rule in found else None for column in columns
    )


def _start_row(one: Measured, columns: Sequence[Column], runs: Mapping[str, str], seconds: float) -> Row:
    return Row(
        attempt=None,
        step=0,
        status=one.verdict.overall if one.verdict else "",
        why=one.verdict.why if one.verdict else "",
        gates=_lines(one.verdict, columns),
        asked=one.questions,
        total=max(one.questions, asked_of_all(one.verdict) if one.verdict else 0),
        seconds=seconds,
        alpha=None,
        run=runs.get(one.run or "", ""),
        is_baseline=one.baseline is None,
    )


def _row(
    one: Gated | Confirmed,
    attempt: Attempt,
    columns: Sequence[Column],
    runs: Mapping[str, str],
    promoted: tuple[int, int] | None,
) -> Row:
    ended = attempt.ended
    if promoted == (one.attempt, one.step):
        note = "promoted"
    elif isinstance(one, Confirmed):
        note = "" if one.verdict.overall == "pass" else "not confirmed"
    else:
        note = "best of its attempt" if ended and ended.outcome == "failed" and ended.step == one.step else ""
    return Row(
        attempt=one.attempt,
        step=one.step,
        status=one.verdict.overall,
        why=one.verdict.why,
        gates=_lines(one.verdict, columns),
        asked=one.questions,
        total=max(one.questions, asked_of_all(one.verdict)),
        seconds=one.seconds,
        alpha=one.alpha,
        note=note,
        run=runs.get(one.run or "", ""),
    )


def _costs(columns: Iterable[Column], gated: Sequence[Gated]) -> Iterator[Cost]:
    for column in columns:
        found = [gate for one in gated for gate in one.verdict.gates if gate.rule == column.rule]
        if found:
            yield Cost(
                gate=column,
                checkpoints=len(found),
                used=sum(gate.used for gate in found),
                total=sum(gate.total for gate in found),
                saved_by_controls=sum(gate.saved for gate in found),
                controls=tuple(sorted({name for gate in found for name in gate.controls})),
            )


def _beside(
    records: Mapping[str, RunRecord],
    measured: Sequence[Measured],
    gated: Sequence[Gated],
    promoted: tuple[int, int] | None,
) -> Iterator[ModelCost]:
    if not measured or measured[0].baseline is None:
        return
    judged = [one for one in gated if one.run is not None]
    last = next((one for one in judged if (one.attempt, one.step) == promoted), judged[-1] if judged else None)
    baseline = records.get(measured[0].baseline)
    whole = sum(task.n for task in baseline.tasks.values()) if baseline is not None else 0
    models = [("baseline", measured[0].baseline, whole), ("start", measured[0].run, measured[0].questions - whole)]
    if last is not None:
        models.append((f"attempt {last.attempt}, step {last.step:,}", last.run or "", last.questions))
    for model, run, asked in models:
        if run in records and asked > 0:
            yield ModelCost(model, records[run].model.name, asked, costs.cost_of(records[run], asked))


def _attempts(training: TrainingView, stage: StageState, number: int) -> tuple[list[AttemptBlock], list[str]]:
    blocks: list[AttemptBlock] = []
    faults: list[str] = []
    most = max(FEWEST_POINTS, MOST_POINTS // max(1, len(stage.attempts)))
    for attempt in stage.attempts:
        started, ended = attempt.started, attempt.ended
        path = training.folder / f"{number}-{stage.started.stage}" / f"attempt-{started.attempt}" / METRICS
        series: list[Series] = []
        try:
            series = read_series(training.folder, path, most)
        except MedbenchError as error:
            faults.append(without_path(str(error), training.folder))
        steps = [one.step for one in attempt.gated] + [one.step for one in attempt.alarms]
        steps += [one.last_step for one in series]
        blocks.append(
            AttemptBlock(
                number=started.attempt,
                outcome=ended.outcome if ended else "running",
                reason=ended.reason if ended else "",
                seed=started.seed,
                start=_start_of(started.start, stage),
                changes=tuple(_changes(stage.attempts, attempt)),
                alpha=started.alpha,
                checkpoints=len(attempt.gated),
                offset=sum(block.length for block in blocks),
                length=max(steps, default=0),
                training_seconds=ended.training_seconds if ended else 0.0,
                alarms=tuple(attempt.alarms),
                series=tuple(series),
            )
        )
    return blocks, faults


def _start_of(start: str, stage: StageState) -> str:
    if start == stage.started.start:
        return START
    known = (one for attempt in stage.attempts for one in attempt.gated if one.checkpoint == start)
    found = next(known, None)
    return f"attempt {found.attempt}, step {found.step:,}" if found else start


def _changes(attempts: Sequence[Attempt], attempt: Attempt) -> Iterator[tuple[str, str, str]]:
    place = attempts.index(attempt)
    if place == 0:
        return
    before, now = dict(flat(attempts[place - 1].started.config)), dict(flat(attempt.started.config))
    for setting in dict.fromkeys([*before, *now]):
        if before.get(setting) != now.get(setting):
            yield setting, before.get(setting, "not set"), now.get(setting, "not set")
