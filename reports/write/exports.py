"""The leaderboard for other programs and for a README, and a badge for each gate.

    medbench report runs -o site       # writes leaderboard.json, leaderboard.csv, leaderboard.md, badges/*.svg

For lm-eval's format see lm_eval_format.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any

import msgspec

from medbench.harness.gates.verdict import GateResult
from medbench.harness.scoring.summary import TaskResult
from medbench.harness.text import markdown_cell, percent, printable
from medbench.reports.read.collect import state_of
from medbench.reports.read.folders import unique_slugs
from medbench.reports.read.pairs import mean_accuracy
from medbench.reports.read.records import Collection, RunView

SCHEMA_VERSION = 1
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula."""
LONGEST = 120
"""Characters of a foreign name in a table or badge."""
COLUMNS = (
    "run",
    "model",
    "protocol",
    "partition",
    "created",
    "state",
    "verdict",
    "task",
    "version",
    "split",
    "source",
    "official",
    "n",
    "errors",
    "unparsed",
    "truncated",
    "accuracy",
    "low",
    "high",
    "chance",
    "tokens_per_answer",
)
"""Of leaderboard.csv; from "version" on those of `_figures`."""
COLOURS = {"pass": "#1b6e32", "fail": "#b3261e", "undecided": "#7a5b00", "not gateable": "#5f6368"}


def leaderboard(collection: Collection) -> dict[str, bytes]:
    """Name -> content of the three files."""
    broken = [{"name": one.name, "reason": one.reason} for one in collection.broken]
    content = {"schema_version": SCHEMA_VERSION, "runs": list(map(_as_json, collection.runs)), "broken": broken}
    return {
        "leaderboard.json": msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n",
        "leaderboard.csv": _csv(collection.runs),
        "leaderboard.md": _markdown(collection.runs),
    }


def badges(run: RunView) -> dict[str, bytes]:
    """Path under the site -> SVG: the verdict, and each of its gates."""
    if run.verdict is None:
        return {}
    gates = run.verdict.gates
    names = unique_slugs(["verdict", *(gate.rule for gate in gates)])
    images = [_badge("medbench", run.verdict.overall, run.verdict.overall)]
    images += [_badge(gate.rule, f"{gate.status} {_estimate(gate)}".strip(), gate.status) for gate in gates]
    return {f"badges/{run.id}--{name}.svg": image for name, image in zip(names, images, strict=True)}


def _as_json(run: RunView) -> dict[str, Any]:
    """Shares are 0..1."""
    record = run.record
    return {
        "id": run.id,
        "run_id": record.run_id,
        "model": record.model.name,
        "fingerprint": record.model.fingerprint,
        "protocol": run.protocol,
        "partition": record.partition,
        "created": record.created,
        "status": record.status,
        "state": state_of(run),
        "verdict": run.verdict.overall if run.verdict else None,
        "verdicts": [
            {"gate_file": one.gate_file, "baseline": one.baseline, "overall": one.overall} for one in run.verdicts
        ],
        "mean": mean_accuracy(run),
        "seconds": record.totals.seconds,
        "prompt_tokens": record.totals.prompt_tokens,
        "completion_tokens": record.totals.completion_tokens,
        "tasks": {task: _figures(result) for task, result in run.results.items()},
    }


def _figures(result: TaskResult) -> dict[str, Any]:
    return {
        "version": result.version,
        "split": result.split,
        "source": result.source,
        "official": result.official,
        "n": result.n,
        "errors": result.n_error,
        "unparsed": result.n_unparsed,
        "truncated": result.n_truncated,
        "accuracy": result.accuracy,
        "low": result.interval[0] if result.interval else None,
        "high": result.interval[1] if result.interval else None,
        "chance": result.chance,
        "tokens_per_answer": result.tokens_per_answer,
    }


def _csv(runs: Sequence[RunView]) -> bytes:
    """A row a run and task, so that protocols and task versions stay apart; shares are 0..1."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")  # pandas would take longer to import than all else takes
    writer.writerow(COLUMNS)
    for run in runs:
        verdict = run.verdict.overall if run.verdict else ""
        known = [run.id, run.record.model.name, run.protocol, run.record.partition, run.record.created, state_of(run)]
        for task, result in run.results.items():
            row = [*known, verdict, task, *_figures(result).values()]
            writer.writerow([_cell_of_a_spreadsheet(value) if isinstance(value, str) else value for value in row])
    return file.getvalue().encode("utf-8", "replace")


def _cell_of_a_spreadsheet(text: str) -> str:
    """Text that no spreadsheet runs: a formula gets an apostrophe in front."""
    return printable(f"'{text}" if text.startswith(FORMULA) else text)


def _markdown(runs: Sequence[RunView]) -> bytes:
    """A table for each kind of run, best first."""
    kinds: dict[str, list[RunView]] = defaultdict(list)
    for run in runs:
        if run.results:
            kinds[run.kind].append(run)
    tables = [_table(some) for some in kinds.values()]
    return "\n".join(sorted(tables)).encode("utf-8", "replace")


def _table(runs: Sequence[RunView]) -> str:
    record = runs[0].record
    tasks = list(record.tasks)
    versions = ", ".join(f"{name} version {task.version}" for name, task in record.tasks.items())
    lines = [
        f"**{_cell(runs[0].protocol)}, {_cell(versions)}** (accuracy in %, 95 % interval)",
        "",
        "| " + " | ".join(["model", *map(_cell, tasks), "mean", "verdict", "note"]) + " |",
        "|" + "---|" * (len(tasks) + 4),
    ]
    for run in sorted(runs, key=lambda run: (-(mean_accuracy(run) or -1.0), run.id)):
        verdict = run.verdict.overall if run.verdict else ""
        cells = [
            _cell(run.record.model.name),
            *(_score(run.results.get(task)) for task in tasks),
            percent(mean_accuracy(run)),
            verdict,
            _cell(state_of(run)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _score(result: TaskResult | None) -> str:
    if result is None or result.accuracy is None or result.interval is None:
        return "-"
    low, high = result.interval
    return f"{percent(result.accuracy)} ({percent(low)} to {percent(high)})"


def _cell(text: str) -> str:
    return markdown_cell(_clipped(text))


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _estimate(gate: GateResult) -> str:
    """The metric in the gate's unit."""
    if gate.estimate is None:
        return ""
    if gate.unit == "difference":
        return f"{100 * gate.estimate:+.1f} points"
    return f"{100 * gate.estimate:.1f} %" if gate.unit == "share" else f"{gate.estimate:.1f}"


def _badge(left: str, right: str, status: str) -> bytes:
    left, right = _svg_text(left), _svg_text(right)
    widths = [round(7 * len(text)) + 12 for text in (left, right)]
    total = sum(widths)
    middles = widths[0] / 2, widths[0] + widths[1] / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="20" role="img" '
        f'aria-label="{escape(left)}: {escape(right)}">\n'
        f"<title>{escape(left)}: {escape(right)}</title>\n"
        f'<rect width="{widths[0]}" height="20" fill="#444"/>\n'
        f'<rect x="{widths[0]}" width="{widths[1]}" height="20" fill="{COLOURS[status]}"/>\n'
        f'<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">\n'
        f'<text x="{middles[0]}" y="14">{escape(left)}</text>\n<text x="{middles[1]}" y="14">{escape(right)}</text>\n'
        "</g>\n</svg>\n"
    ).encode()


def _svg_text(text: str) -> str:
    """One line of characters that XML allows."""
    line = " ".join(printable(_clipped(text)).split())
    return re.sub("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", line)
