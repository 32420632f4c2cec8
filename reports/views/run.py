"""One run -> what its page shows: scores by task, category and length, failures, gates, settings, how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from medbench.harness.gates.costs import CostRow, rows_of
from medbench.harness.gates.verdict import GateResult, Verdict
from medbench.harness.runs.comparability import describe_repeats
from medbench.harness.runs.experts import answered_by
from medbench.harness.runs.records import RunRecord, TaskRecord
from medbench.harness.scoring.summary import TaskResult
from medbench.harness.secrets import redacted, redacted_command
from medbench.harness.stats.intervals import wilson_interval
from medbench.harness.sweeps.record import SweepRecord
from medbench.harness.training.journal import Training
from medbench.reports.read.collect import state_of
from medbench.reports.read.pairs import page_name
from medbench.reports.read.records import RunView
from medbench.reports.views.axis import Axis, axis_around_zero, axis_over
from medbench.reports.views.formats import (
    duration,
    file_size,
    flat,
    interval,
    number,
    parameters,
    percent,
    points,
    points_interval,
)
from medbench.reports.views.judged import JudgedBlock, judged_block
from medbench.reports.views.leaderboard import Score, label_of, score_of

FAILURES = {
    "unparsed": "no statement of an answer found",
    "ambiguous": "names several answers",
    "truncated": "cut off by the token limit before an answer",
    "empty": "nothing replied",
    "refused": "declined to answer",
    "error": "request failed: in no score",
}
"""Outcomes that are no answer, in words; any other is shown by its name."""


@dataclass(frozen=True, slots=True)
class Line:
    """A named score with its interval."""

    name: str
    n: int
    score: Score


@dataclass(frozen=True, slots=True)
class Failure:
    """Replies without an answer, for one reason."""

    outcome: str
    reason: str
    n: int


@dataclass(frozen=True, slots=True)
class TaskBlock:
    """One task of the run."""

    name: str
    label: str
    slug: str
    record: TaskRecord
    result: TaskResult | None
    score: Score | None
    categories: tuple[tuple[str, tuple[Line, ...]], ...]
    """(field, its values)."""
    lengths: tuple[Line, ...]
    """Named by the range of tokens."""
    failures: tuple[Failure, ...]
    axis: Axis
    """Of categories and lengths."""
    judged: tuple[JudgedBlock, ...]
    answered_by: tuple[str, ...]
    """In words, where tasks were asked of adapters of their own."""


@dataclass(frozen=True, slots=True)
class GateLine:
    """One gate, its numbers as text."""

    result: GateResult
    estimate: str
    interval: str
    new_questions: str
    """The interval of new questions beside an exact result; "" where there is none."""
    threshold: str
    axis: Axis | None
    """None for a metric that is no share: nothing is drawn."""


@dataclass(frozen=True, slots=True)
class VerdictBlock:
    """The verdict by one gate file."""

    verdict: Verdict
    gates: tuple[GateLine, ...]
    settings: tuple[tuple[str, str], ...]
    """What it rests on besides its gates: (name, value)."""
    costs: tuple[CostRow, ...] = ()
    """Beside the baseline's."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """All that templates/run.html.j2 needs."""

    run: RunView
    state: str
    tasks: tuple[TaskBlock, ...]
    axis: Axis
    """Of the scores of the tasks."""
    verdicts: tuple[VerdictBlock, ...]
    facts: tuple[tuple[str, str], ...]
    protocol: tuple[tuple[str, str], ...]
    engine: tuple[tuple[str, str], ...]
    packages: tuple[tuple[str, str], ...]
    command: str
    compared: tuple[tuple[str, str, str], ...]
    """(id of A, id of B, path under the site) of the compare pages that the run is in."""


def view_of(run: RunView, pairs: Sequence[tuple[str, str]]) -> RunPage:
    """`pairs`: see collect.Collection; those of other runs are left out."""
    tasks = tuple(_task_block(run, name, record) for name, record in run.record.tasks.items())
    return RunPage(
        run=run,
        state=state_of(run),
        tasks=tasks,
        axis=axis_over(task.score.interval for task in tasks if task.score),
        verdicts=tuple(map(verdict_block, run.verdicts)),
        facts=tuple(_facts(run)),
        protocol=tuple(flat(run.record.protocol)),
        engine=tuple(flat(redacted(run.record.engine))),
        packages=tuple(sorted(run.record.packages.items())),
        command=command_of(run.record),
        compared=tuple((a, b, page_name(a, b)) for a, b in pairs if run.id in (a, b)),
    )


def gate_line(gate: GateResult) -> GateLine:
    """Shares in percent, differences in points, anything else as it is."""
    drawn = [*([gate.interval] if gate.interval else []), (gate.threshold, gate.threshold)]
    shown: Callable[[float | None], str]
    shown_interval: Callable[[tuple[float, float]], str]
    axis: Axis | None
    if gate.unit in ("tokens", "seconds"):
        shown, shown_interval, axis = partial(number, digits=1), _plain_interval, None
    elif gate.unit == "difference":
        shown, shown_interval, axis = points, points_interval, axis_around_zero(drawn)
    else:
        shown, shown_interval, axis = percent, interval, axis_over(drawn)
    spread, beyond = (shown_interval(pair) if pair else "" for pair in (gate.interval, gate.new_questions))
    return GateLine(gate, shown(gate.estimate), spread, beyond, shown(gate.threshold), axis)


def _plain_interval(pair: tuple[float, float]) -> str:
    return f"{number(pair[0], 1)}–{number(pair[1], 1)}"


def verdict_block(verdict: Verdict) -> VerdictBlock:
    """What templates show of a verdict."""
    controls = dict.fromkeys(name for gate in verdict.gates for name in gate.controls)
    settings = {
        "checkpoint of this gate file": "" if verdict.number is None else str(verdict.number),
        "alpha": f"{verdict.alpha:.3g}",
        "inference to the": verdict.decide,
        "partition": verdict.partition,
        "baseline": verdict.baseline or "",
        "controls": ", ".join(controls),
        "order seed": verdict.order_seed or "",
    }
    known = tuple((name, value) for name, value in settings.items() if value)
    return VerdictBlock(verdict, tuple(map(gate_line, verdict.gates)), known, tuple(rows_of(verdict.costs)))


def command_of(record: RunRecord | Training | SweepRecord) -> str:
    """What was typed, ready for a shell but for secrets; the program by its name alone."""
    if not record.command:
        return ""
    program, *arguments = redacted_command(record.command)
    return shlex.join([program.replace("\\", "/").rpartition("/")[2] or program, *arguments])


def _task_block(run: RunView, name: str, record: TaskRecord) -> TaskBlock:
    result = run.results.get(name)
    categories = tuple(_categories(result)) if result else ()
    lengths = tuple(_lengths(run, name))
    seen = [line.score.interval for lines in (lengths, *(lines for _, lines in categories)) for line in lines]
    return TaskBlock(
        name=name,
        label=label_of(name),
        slug=run.slugs[name],
        record=record,
        result=result,
        score=score_of(run, name),
        categories=categories,
        lengths=lengths,
        failures=tuple(_failures(result.outcomes)) if result else (),
        axis=axis_over(seen),
        judged=tuple(map(judged_block, run.judged.get(name, ()))),
        answered_by=tuple(answered_by(run.record, name)),
    )


def _categories(result: TaskResult) -> Iterable[tuple[str, tuple[Line, ...]]]:
    for field, values in result.categories.items():
        yield field, tuple(Line(value, one.n, Score(one.accuracy, one.interval)) for value, one in values.items())


def _lengths(run: RunView, task: str) -> Iterable[Line]:
    for one in run.scores[task].lengths if task in run.scores else ():
        spread = number(one.fewest) if one.fewest == one.most else f"{number(one.fewest)}–{number(one.most)}"
        yield Line(spread, one.n, Score(one.accuracy, wilson_interval(one.accuracy * one.n, one.n)))


def _failures(outcomes: Mapping[str, int]) -> Iterable[Failure]:
    for outcome, n in sorted(outcomes.items(), key=lambda pair: (-pair[1], pair[0])):
        if outcome != "answered" and n:
            yield Failure(outcome, FAILURES.get(outcome, ""), n)


def _facts(run: RunView) -> Iterable[tuple[str, str]]:
    record = run.record
    model = record.model
    yield "Model", model.name
    yield "Kind", model.kind
    if model.base:
        yield "Base", model.base
    for target, one in model.experts.adapters.items() if model.experts else ():
        commit = f", commit {one.commit}" if one.commit else ""
        yield f"Adapter of {target}", f"{one.name}{commit}, rank {one.rank}, {one.fingerprint}"
    if model.experts:
        yield (
            "Adapters served",
            "beside their base" if model.experts.served == "lora" else "merged, one after the other",
        )
    if model.commit:
        yield "Commit on the Hub", model.commit
    if model.path:
        yield "Path", model.path
    size = [parameters(model.parameters)] if model.parameters else []
    size += [file_size(model.weight_bytes)] if model.weight_bytes else []
    if size or model.quantization:
        yield "Size", ", ".join([*size, model.quantization or "not quantised"])
    yield "Weights (sha256)", model.fingerprint
    if model.tokenizer_sha256:
        yield "Tokenizer (sha256)", model.tokenizer_sha256
    if model.merge_deviation is not None:
        yield "Moved by merging", f"{model.merge_deviation:.2g} nats at most"
    yield "Run", record.run_id
    yield "Status", record.status
    yield "Started", record.created
    yield "Seed", str(record.seed)
    yield "Questions", "all" if record.limit is None else f"the first {record.limit:,} of each task"
    yield "Partition", record.partition
    yield "Asked", describe_repeats(record)
    yield "Time", duration(record.totals.seconds)
    counted = record.totals.prompt_tokens or record.totals.completion_tokens  # stored replies have no counts
    yield (
        "Tokens",
        f"{record.totals.prompt_tokens:,} in prompts, {record.totals.completion_tokens:,} in replies"
        if counted
        else "-",
    )
    yield "Commit", record.git_commit or "unknown"
