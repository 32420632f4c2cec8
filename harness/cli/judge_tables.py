"""Tables of judged steps for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from medbench.harness.cli.tables import rendered, shown
from medbench.harness.judges.contracts import VERDICTS, Judge
from medbench.harness.judges.judge_run import JudgedTask
from medbench.harness.judges.scores import Figure, ReplyScores, TaskScores
from medbench.harness.text import percent

MOST_FAULTS = 3


def scores_table(judge: Judge, scores: Sequence[TaskScores], judged: Sequence[JudgedTask]) -> str:
    """What `medbench judge RUN` prints; ends with a newline."""
    table = Table(title=shown(f"judge {judge.name} · {judge.fingerprint[:12]}"), title_justify="left", show_edge=False)
    table.add_column("task", no_wrap=True)
    for heading in ("replies", "steps", "failed", *(f"{verdict} %" for verdict in VERDICTS), *ReplyScores.__slots__):
        table.add_column(heading, justify="right")
    for one in scores:
        cells = [one.shares.get(verdict) for verdict in VERDICTS]
        cells += [one.scores.get(name) for name in ReplyScores.__slots__]
        counts = (one.replies, one.steps, one.failed)
        table.add_row(shown(one.task), *map(str, counts), *map(_with_interval, cells))
    lines = [line for one in scores for line in _details(one)]
    lines += ["uncalibrated: how far this judge agrees with people is not known here: medbench judge check RUN LABELS"]
    lines += [f"verdicts: {one.file}" for one in judged]
    return rendered(table, *map(shown, lines))


def _with_interval(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{percent(figure.value)}\n{percent(figure.low)} to {percent(figure.high)}"


def _details(one: TaskScores) -> list[str]:
    counts = {
        "replies have no steps before their answer": one.without_steps,
        "replies are to questions without a source and are left out": one.without_source,
        "requests failed and have no reply": one.unanswered,
    }
    lines = [f"{one.task}: {count} {what}" for what, count in counts.items() if count]
    for fault, count in list(one.faults.items())[:MOST_FAULTS]:
        lines.append(f"{one.task}: {count} steps without a verdict: {fault}")
    return lines
