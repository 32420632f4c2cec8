"""Two runs and their paired differences -> what the compare page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medbench.harness.judges.compare import JudgedComparison
from medbench.harness.runs.comparability import setup_warnings
from medbench.harness.runs.compare import Difference, TaskComparison
from medbench.harness.runs.experts import answered_by
from medbench.reports.read.collect import state_of
from medbench.reports.read.flips import Flip
from medbench.reports.read.records import RunView
from medbench.reports.views.axis import Axis, axis_around_zero
from medbench.reports.views.leaderboard import label_of


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """One task of both runs."""

    comparison: TaskComparison
    label: str
    answered_by: tuple[str, str] | None
    """Who answered in A and in B, in words; None where neither asked its tasks of adapters of their own."""
    slugs: tuple[str, str]
    """The task's data folder in A and in B."""
    axis: Axis
    """Of its categories."""
    lost: tuple[Flip, ...]
    gained: tuple[Flip, ...]

    @property
    def verdict(self) -> str:
        """Which run the interval speaks for."""
        return winner(self.comparison.overall)


@dataclass(frozen=True, slots=True)
class JudgedDifference:
    """What one judge says of one task of both runs."""

    comparison: JudgedComparison
    label: str
    axis: Axis


@dataclass(frozen=True, slots=True)
class ComparePage:
    """All that templates/compare.html.j2 needs."""

    a: RunView
    b: RunView
    states: tuple[str, str]
    tasks: tuple[TaskDifference, ...]
    axis: Axis
    """Of the tasks' overall differences."""
    fault: str
    warnings: tuple[str, ...]
    """What differs in how the replies were computed."""
    judged: tuple[JudgedDifference, ...]


def view_of(
    a: RunView,
    b: RunView,
    comparisons: Sequence[TaskComparison],
    flips: Mapping[str, Sequence[Flip]],
    fault: str,
    judged: Sequence[JudgedComparison] = (),
) -> ComparePage:
    tasks = tuple(
        TaskDifference(
            comparison=one,
            label=label_of(one.task),
            answered_by=_answered_by(a, b, one.task),
            slugs=(a.slugs.get(one.task, ""), b.slugs.get(one.task, "")),
            axis=axis_around_zero(each.interval for values in one.categories.values() for each in values.values()),
            lost=tuple(flip for flip in flips.get(one.task, ()) if not flip.gained),
            gained=tuple(flip for flip in flips.get(one.task, ()) if flip.gained),
        )
        for one in comparisons
    )
    axis = axis_around_zero(one.comparison.overall.interval for one in tasks)
    warnings = tuple(setup_warnings(a.record, b.record))
    reasoning = tuple(
        JudgedDifference(
            one, label_of(one.task), axis_around_zero(each.interval for each in (one.scores or {}).values())
        )
        for one in judged
    )
    return ComparePage(a, b, (state_of(a), state_of(b)), tasks, axis, fault, warnings, reasoning)


def _answered_by(a: RunView, b: RunView, task: str) -> tuple[str, str] | None:
    if a.record.model.experts is None and b.record.model.experts is None:
        return None
    ours, theirs = ("; ".join(answered_by(run.record, task)) or run.record.model.name for run in (a, b))
    return ours, theirs


def winner(difference: Difference) -> str:
    """ "A", "B" or "": whom the 95 % interval of B - A puts ahead."""
    low, high = difference.interval
    return "B" if low > 0 else "A" if high < 0 else ""
