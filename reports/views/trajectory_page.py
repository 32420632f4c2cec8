"""One training -> the whole of its page, and its row on the first page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from medbench.harness.gates.verdict import Verdict
from medbench.harness.training.journal import Training
from medbench.harness.training.state import StageState
from medbench.reports.read.folders import as_unicode
from medbench.reports.read.trainings import TrainingView, last_event
from medbench.reports.views.formats import duration, number, percent
from medbench.reports.views.leaderboard import label_of
from medbench.reports.views.run import GateLine, command_of, gate_line
from medbench.reports.views.trajectory import Column, StageBlock, stages_of

MOST_RECIPE = 200_000
"""Characters; a longer recipe is cut on the page."""


@dataclass(frozen=True, slots=True)
class TrajectoryPage:
    """All that templates/training.html.j2 needs."""

    training: TrainingView
    state: str
    summary: tuple[tuple[str, ...], ...]
    """Paragraphs of sentences."""
    stages: tuple[StageBlock, ...]
    recipe: str
    """As YAML."""
    facts: tuple[tuple[str, str], ...]
    packages: tuple[tuple[str, str], ...]
    command: str


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One training on the first page."""

    id: str
    name: str
    state: str
    last: str
    """The journal's last event, in words."""
    stages: str
    attempts: int
    promoted: str
    """Which checkpoint, "" for none."""
    scores: tuple[str, ...]
    """Of the promoted checkpoint on the report partition, a line a gate."""
    time: str


def view_of(training: TrainingView, runs: Mapping[str, str]) -> TrajectoryPage:
    """`runs`: see trajectory.stages_of."""
    stages = stages_of(training, runs)
    record = training.record
    return TrajectoryPage(
        training=training,
        state=training.state,
        summary=tuple(
            filter(None, map(tuple, (_outcome(training), _promotions(training, stages), _cost(training, stages))))
        ),
        stages=tuple(stages),
        recipe=recipe_text(record),
        facts=tuple(_facts(record)),
        packages=tuple(sorted(record.packages.items())),
        command=command_of(record),
    )


def index_row(training: TrainingView) -> IndexRow:
    begun, wanted = len(training.stages), training.wanted
    stage = _last_promoted(training)
    promoted = stage.promoted if stage else None
    return IndexRow(
        id=training.id,
        name=training.record.name,
        state=training.state,
        last=last_event(training),
        stages=f"{begun} of {max(begun, wanted)}",
        attempts=sum(len(stage.attempts) for stage in training.stages),
        promoted=f"step {promoted.step:,} of {promoted.stage}" if promoted else "",
        scores=tuple(scores_of(_confirmed(stage))) if stage else (),
        time=duration(training.seconds),
    )


def scores_of(verdict: Verdict | None) -> Iterator[str]:
    """A line a gate: "MedQA accuracy 64.2 % (61.0–67.3, 95 %, whole benchmark, anytime)"."""
    for gate in verdict.gates if verdict else ():
        yield f"{label_of(gate.task)} {gate.metric.replace('_', ' ')} {in_words(gate_line(gate))}"


def in_words(line: GateLine) -> str:
    """Estimate, unit and interval with its level and kind."""
    unit = "" if line.axis is None else " points" if line.axis.low < 0 else " %"
    spread = ", ".join(filter(None, (line.interval, line.result.interval_about)))
    shown = f" ({spread})" if line.interval and line.interval != line.estimate.strip() else ""
    return f"{line.estimate.strip()}{unit}{shown}"


def recipe_text(record: Training) -> str:
    try:
        text = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True, width=100)
    except RecursionError:
        return "# nested too deeply to be shown: see training.json"
    text = as_unicode(text)
    if len(text) <= MOST_RECIPE:
        return text
    return f"{text[:MOST_RECIPE]}\n# cut here: the whole of it is in training.json"


def label(column: Column) -> str:
    """The heading of a gate: its rule, tasks by their usual names."""
    task, name = column.task, label_of(column.task)
    rule = column.rule.replace(task, name, 1) if task and column.rule.startswith(task) else column.rule
    return rule.replace(column.metric, column.metric.replace("_", " ")) if column.metric else rule


def gate_label(stage: StageBlock, place: int) -> str:
    """What a screen reader says of the chart of one gate."""
    column = stage.columns[place]
    seen = [(row.step, line.estimate.strip()) for row in stage.rows if (line := row.gates[place])]
    text = f"Chart of {label(column)}: {_counted(len(seen), 'point')} in {_counted(len(stage.attempts), 'attempt')}"
    if seen:
        text += f", from {seen[0][1]} at step {seen[0][0]:,} to {seen[-1][1]} at step {seen[-1][0]:,}"
    return f"{text}; threshold {column.shown_threshold}. The table of checkpoints has the same numbers."


def _last_promoted(training: TrainingView) -> StageState | None:
    return next((stage for stage in reversed(training.stages) if stage.promoted), None)


def _confirmed(stage: StageState) -> Verdict | None:
    promoted = stage.promoted
    for attempt in stage.attempts:
        if promoted and attempt.confirmed and attempt.started.attempt == promoted.attempt:
            return attempt.confirmed.verdict
    return None


def _outcome(training: TrainingView) -> Iterator[str]:
    ended = training.ended
    if ended is None:
        yield f"The training has not ended. The last thing in its journal: {last_event(training)}."
        return
    yield f"The training {ended.outcome}: {ended.reason}."
    if ended.outcome == "failed" and ended.checkpoint:
        yield f"The best checkpoint is {ended.checkpoint}."


def _promotions(training: TrainingView, stages: Sequence[StageBlock]) -> Iterator[str]:
    for stage in stages:
        if stage.promoted:
            attempt, step = stage.promoted
            of = _counted(len(stage.attempts), "attempt")
            yield f"Stage {stage.name} promoted step {step:,} of attempt {attempt}, after {of}."
    last = _last_promoted(training)
    if last and (scores := list(scores_of(_confirmed(last)))):
        yield f"On questions that the loop never looked at, the promoted checkpoint has {'; '.join(scores)}."


def _cost(training: TrainingView, stages: Sequence[StageBlock]) -> Iterator[str]:
    attempts = sum(len(stage.attempts) for stage in stages)
    rows = [row for stage in stages for row in stage.judged]
    seconds = sum(stage.training_seconds for stage in stages)
    judging = sum(stage.judging_seconds for stage in stages)
    yield (
        f"It took {duration(training.seconds)}: {duration(seconds)} of training in {_counted(attempts, 'attempt')}, "
        f"{duration(judging)} of judging."
    )
    asked, total = sum(row.asked for row in rows), sum(row.total for row in rows)
    if total:
        saved = percent(1 - asked / total, 0).strip()
        yield (
            f"{_counted(len(rows), 'checkpoint')} judged while training used {number(asked)} of {number(total)} "
            f"questions: stopping early saved {saved} %."
        )


def _facts(record: Training) -> Iterator[tuple[str, str]]:
    yield "Name", record.name
    yield "Started", record.created
    yield "From", record.start
    yield "Its weights (sha256)", record.fingerprint
    yield "Recipe (sha256)", record.recipe_sha256
    yield "Commit", record.git_commit or "unknown"


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
