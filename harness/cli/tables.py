"""Results as text for a terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from medbench.harness.benchmarks.catalog import TaskCard
from medbench.harness.benchmarks.rows import SAMPLE
from medbench.harness.contracts import Task
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.experts import answered_by
from medbench.harness.runs.records import RunRecord
from medbench.harness.scoring.summary import NOTES, TaskResult
from medbench.harness.text import percent, printable

FILE_WIDTH = 140
"""Width in characters of a table that goes to a file or a pipe."""

MANY_TRUNCATED = 0.05
"""Share of replies cut off by the token limit above which the table warns."""

HEADINGS = (
    "accuracy %",
    "95 % interval",
    "chance %",
    "questions",
    "unparsed %",
    "truncated %",
    "errors",
    "tokens/answer",
)


def result_table(record: RunRecord, results: Mapping[str, TaskResult]) -> str:
    """The table that `medbench eval` prints at the end."""
    table = Table(
        title=shown(f"{record.model.name} · {record.protocol['name']}"), title_justify="left", show_edge=False
    )
    table.add_column("task", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for result in results.values():
        table.add_row(*_cells(result))
    totals = record.totals
    tokens = totals.prompt_tokens + totals.completion_tokens
    answered = ((name, answered_by(record, name)) for name in results)
    details = [f"{name}: answered by {'; '.join(who)}" for name, who in answered if who]
    details += [line for result in results.values() for line in _details(result)]
    if totals.seconds:  # stored replies take none
        speed = f"{tokens} tokens, {tokens / totals.seconds:.0f} tokens/s" if tokens else "- tokens"  # not counted
        details.append(f"{totals.seconds:.0f} s, {speed}")
    return rendered(table, *map(shown, details), *(shown(f"note: {note}") for note in record.notes))


def task_table(cards: Sequence[TaskCard], protocols: Sequence[Protocol]) -> str:
    """The tables that `medbench tasks` prints."""
    tasks = Table(show_edge=False)
    tasks.add_column("task")
    tasks.add_column("version", justify="right")
    tasks.add_column("questions", justify="right")
    tasks.add_column("chance %", justify="right")
    tasks.add_column("rows")
    tasks.add_column("description")
    for card in cards:
        rows = "pinned" if "test" in card.sha256 else "not pinned"
        tasks.add_row(shown(card.name), card.version, str(card.n), percent(card.chance), rows, shown(card.about))
    asked = Table(show_edge=False)
    asked.add_column("protocol")
    asked.add_column("description")
    for protocol in protocols:
        asked.add_row(shown(protocol.name), shown(protocol.about))
    return rendered(
        tasks, Text(), asked, shown("\nAny other name is looked up among lm-eval's tasks (lm_eval ls tasks).")
    )


def task_page(task: Task, card: TaskCard | None, prompt: str) -> dict[str, Any]:
    """What `medbench tasks NAME` shows about one task."""
    return {
        "task": task.name,
        "about": card.about if card else "a task of lm-eval",
        "version": task.version,
        "split": task.split,
        "questions": len(task.questions),
        "distinct questions": len({question.cluster for question in task.questions}),
        "chance": task.chance,
        "data": task.data.source,
        "sha256": task.data.sha256,
        "official": task.data.official,
        "pinned": bool(card and task.split in card.sha256),
        "breakdown by": list(card.categories) if card else [],
        "defined in": card.path if card else "lm-eval",
        "first question": task.questions[0].id,
        "gold": task.questions[0].gold,
        "prompt": f"\n{prompt}",
    }


def shown(text: str) -> Text:
    """Literal text: markup is not interpreted, and control characters, which could drive a terminal, become visible."""
    return Text(printable(text))


def rendered(*parts: RenderableType) -> str:
    """Parts as text, in colour if standard output is a terminal; each ends with a newline."""
    terminal = os.isatty(1) or sys.stdout.isatty()
    width = max(100, shutil.get_terminal_size().columns) if terminal else FILE_WIDTH
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _details(result: TaskResult) -> Iterator[str]:
    """One line for each measurement that only some runs have."""
    if result.published is not None:
        yield f"{result.task}: as published {percent(result.published.accuracy)} %: {result.published.how}"
    if (rest := result.unflagged) is not None:
        yield (
            f"{result.task}: {percent(rest.accuracy)} % ({_interval(rest.interval)}) of {rest.n} without the "
            f"{rest.left_out} that reviewers flagged: {rest.about}"
        )
    if result.lacks_answers:
        yield (
            f"warning: {result.task}: {percent(result.n_error / result.n)} % of the questions are errors, so this is "
            f"not the task's score: rerun the same command with --resume, which asks them again"
        )
    if result.n_truncated > MANY_TRUNCATED * result.n:
        yield (
            f"warning: {result.task}: {percent(result.n_truncated / result.n)} % of the replies are cut off by the "
            f"token limit: raise --max-new-tokens, or the score is that of the limit"
        )
    for note, count in result.notes.items():
        yield f"{result.task}: {count} of {result.n} replies {NOTES[note]}"
    if (sampling := result.sampling) is not None:
        passed = ", ".join(f"pass@{k} {percent(share)}" for k, share in sampling.pass_at.items())
        yield (
            f"{result.task}: {sampling.k} samples per question, {percent(sampling.accuracy)} % "
            f"({_interval(sampling.interval)}); maj@{sampling.k} {percent(sampling.maj_at_k)} "
            f"({_interval(sampling.maj_interval)}); {passed}; agreement {percent(sampling.agreement)} %"
        )
    if (shuffling := result.shuffling) is not None:
        yield (
            f"{result.task}: {shuffling.orders} orders of the options, {percent(shuffling.accuracy)} % "
            f"({_interval(shuffling.interval)}); the answer follows the letter on "
            f"{percent(shuffling.follows_letter)} % of the questions and the text on "
            f"{percent(shuffling.follows_text)} %; it is the same text in every order on "
            f"{percent(shuffling.consistent)} %"
        )
    if (calibration := result.calibration) is not None:
        brier = "-" if calibration.brier is None else f"{calibration.brier:.3f}"
        yield (
            f"{result.task}: mean confidence {percent(calibration.confidence)} %, ECE {percent(calibration.ece)} %, "
            f"Brier {brier} (of 2), AURC {calibration.aurc:.3f}, {calibration.n_abstained} abstained"
        )


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{percent(interval[0])} - {percent(interval[1])}"


def _cells(result: TaskResult) -> list[str | Text]:
    mark = " (sample)" if result.source == SAMPLE else "" if result.official else " (unofficial rows)"
    n = max(result.n, 1)
    return [
        shown(result.task + mark),
        percent(result.accuracy),
        _interval(result.interval),
        percent(result.chance),
        str(result.n),
        percent(result.n_unparsed / n),
        percent(result.n_truncated / n),
        str(result.n_error),
        "-" if result.tokens_per_answer is None else f"{result.tokens_per_answer:.0f}",
    ]
