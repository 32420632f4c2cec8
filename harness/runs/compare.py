"""Two runs on the same questions: paired difference with score interval and test, flips, per category.

medbench compare runs/BASELINE runs/CANDIDATE
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.special import ndtr, ndtri

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.runs.comparability import refuse_incomplete, refuse_unlike, setup_warnings
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import read_run, read_samples
from medbench.harness.runs.sample_check import refuse_other_answer, right_option
from medbench.harness.stats.score_test import invert, score_test

FLIPS_KEPT = 1000
"""Most ids of flipped questions that are kept in each direction."""
LEVEL = -float(ndtri(0.025))
"""z at the ends of a 95 % interval."""
MULTIPLICITY = (
    "Each interval holds with 95 % for itself. With several categories, some of them leave out 0 by chance: judge a "
    "category by the p that is corrected for the number of categories (Holm)."
)
"""For readers of categories."""


@dataclass(frozen=True, slots=True)
class Difference:
    """B minus A on the questions that both answered, as shares (0.02 is two points)."""

    n: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    """95 %, paired: a score interval, clustered by duplicate question; Tango's where scores are 0 or 1."""
    p_value: float
    """Two-sided, of no difference: the same score test at 0, so below 0.05 where the interval leaves out 0.

    Where scores are 0 or 1 it is McNemar's test without continuity correction, divided by the design effect of the
    duplicates; for the means of several replies see stats.score_test.
    """
    lost: int
    """Right in A, wrong in B."""
    gained: int
    p_holm: float | None = None
    """Of a category: `p_value` corrected by Holm's method for the number of categories of the task."""


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task of both runs."""

    task: str
    overall: Difference
    categories: Mapping[str, Mapping[str, Difference]]
    lost_ids: tuple[str, ...]
    gained_ids: tuple[str, ...]
    unpaired: int
    """Questions that only one of the runs answered; no figure includes them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """B minus A, task by task."""

    a: RunRecord
    b: RunRecord
    tasks: Mapping[str, TaskComparison]
    """Tasks that both runs asked."""
    warnings: tuple[str, ...] = ()
    """What else differs between the runs and moves scores, see comparability.setup_warnings."""

    def as_json(self) -> dict[str, Any]:
        tasks = [asdict(one) for one in self.tasks.values()]
        return {
            "a": self.a.run_id,
            "b": self.b.run_id,
            "protocol": self.a.protocol["name"],
            "tasks": tasks,
            "warnings": list(self.warnings),
        }


def compare_runs(a: Path, b: Path, *, incomplete: bool = False) -> Comparison:
    """Raises MedbenchError where the runs cannot be compared, saying what differs.

    `incomplete` also accepts runs of stored replies that lack some: only questions that both answered count.
    """
    first, second = read_run(a), read_run(b)
    shared = [task for task in first.tasks if task in second.tasks]
    if not incomplete:
        refuse_incomplete(first)
        refuse_incomplete(second)
    refuse_unlike(first, second, shared)
    compared = {task: compare_task(task, read_samples(a, task), read_samples(b, task)) for task in shared}
    return Comparison(first, second, compared, tuple(setup_warnings(first, second)))


def compare_task(task: str, a: Iterable[Sample], b: Iterable[Sample]) -> TaskComparison:
    """Raises MedbenchError when no question was answered by both, or one has another right answer in each."""
    first, second = _by_question(a), _by_question(b)
    pairs = [(first[id], second[id]) for id in sorted(first.keys() & second.keys())]
    if not pairs:
        raise MedbenchError(f"{task}: no question was answered by both runs")
    for one, two in pairs:
        refuse_other_answer(task, one, right_option(two))
    by_category: dict[str, dict[str, list[tuple[Sample, Sample]]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        for field, value in pair[0].category.items():
            by_category[field][value].append(pair)
    flips = [(one.id, _score(two) - _score(one)) for one, two in pairs]
    return TaskComparison(
        task=task,
        overall=difference_of(pairs),
        categories=_corrected(
            {
                field: {value: difference_of(some) for value, some in sorted(values.items())}
                for field, values in sorted(by_category.items())
            }
        ),
        lost_ids=tuple(id for id, change in flips if change < 0)[:FLIPS_KEPT],
        gained_ids=tuple(id for id, change in flips if change > 0)[:FLIPS_KEPT],
        unpaired=len(first.keys() ^ second.keys()),
    )


def difference_of(pairs: Sequence[tuple[Sample, Sample]]) -> Difference:
    """The paired difference of samples that both have a score; at least one pair."""
    return paired_difference([(one.cluster, _score(one), _score(two)) for one, two in pairs])


def paired_difference(rows: Sequence[tuple[str, float, float]]) -> Difference:
    """B minus A of (cluster, score in A, score in B) of each question; at least one."""
    clusters: dict[str, list[float]] = defaultdict(list)
    for cluster, a, b in rows:
        clusters[cluster].append(b - a)
    z = score_test(list(clusters.values()), paired=True)
    n = len(rows)
    return Difference(
        n=n,
        a=math.fsum(a for _, a, _ in rows) / n,
        b=math.fsum(b for _, _, b in rows) / n,
        difference=math.fsum(b - a for _, a, b in rows) / n,
        interval=(invert(z, LEVEL, -1.0, 1.0), invert(z, -LEVEL, -1.0, 1.0)),
        p_value=2 * float(ndtr(-abs(z(0.0)))),
        lost=sum(b < a for _, a, b in rows),
        gained=sum(b > a for _, a, b in rows),
    )


def _corrected(categories: Mapping[str, Mapping[str, Difference]]) -> dict[str, dict[str, Difference]]:
    """The same with `p_holm` of each, over all of them."""
    ranked = sorted(
        ((field, value, one) for field, values in categories.items() for value, one in values.items()),
        key=lambda each: each[2].p_value,
    )
    found: dict[str, dict[str, Difference]] = {field: dict(values) for field, values in categories.items()}
    highest = 0.0
    for rank, (field, value, one) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * one.p_value))
        found[field][value] = replace(one, p_holm=highest)
    return found


def _by_question(samples: Iterable[Sample]) -> dict[str, Sample]:
    """One sample per question that has a score; with repeats, the first with the mean score of all."""
    scored: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.score is not None:
            scored[sample.id].append(sample)
    return {
        id: replace(some[0], score=fmean(map(_score, some))) if len(some) > 1 else some[0]
        for id, some in scored.items()
    }


def _score(sample: Sample) -> float:
    assert sample.score is not None
    return sample.score
