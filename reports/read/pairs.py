"""Which runs get a page that compares them, and what that page shows.

    python -c "from medbench.reports.read.pairs import page_name; print(page_name('base', 'tuned'))"

All pairs of a thousand runs would be half a million pages. So: each run against the baseline that it was gated
against, and the best MOST_RUNS of each kind of run against each other.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from medbench.harness.runs.records import RunRecord

if TYPE_CHECKING:
    from medbench.reports.read.records import RunView

MOST_RUNS = 12
"""Runs of one kind that are compared each with each: 66 pages."""
MOST_BASELINES = 60
"""Pages of runs against their baselines, the newest runs first."""


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
        for name in dict.fromkeys(verdict.baseline or "" for verdict in run.verdicts):
            baseline = by_name.get(name)
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
