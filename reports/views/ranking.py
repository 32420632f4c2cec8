"""Ranks that tell chance from difference: a run's rank is one more than the number of runs that are shown to beat it.

    python -c "from medbench.reports.views.ranking import ranks; print(ranks([[Entry]]))"

"Shown to beat": the 95 % interval of the difference of their scores lies above 0. As on compare pages this is a score
interval, which leaves out 0 where the difference exceeds Z times its standard error *if there were no difference*.
Where two runs answered the same questions the difference is paired. Its variance then is the mean square of the
questions' differences over their number (McNemar's, where scores are 0 or 1), times the design effect of the
duplicates. That is the variance about the mean difference seen plus the square of that mean over the number: with r the
residuals of each run over its number of questions the former is |r_i - r_j|^2 (Miller 2024, "Adding Error Bars to
Evals", 2.2), so one matrix product gives that of every pair, and with residuals summed by cluster the clustered one.
Where two runs answered other questions their variances add up. The mean of tasks adds those of its tasks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medbench.harness.scoring.summary import TaskResult
from medbench.reports.read.scores import Scores

Z = 1.959964
TINY = 1e-15
"""A variance below this is that of equal differences, but for rounding."""


def ranks(results: Sequence[Mapping[str, TaskResult]], scores: Sequence[Mapping[str, Scores]]) -> list[int]:
    """Rank of each run on the mean of its tasks; all of `results` have the same tasks, each with an accuracy."""
    runs, tasks = len(results), list(results[0]) if results else []
    difference = np.zeros((runs, runs))
    variance = np.zeros((runs, runs))
    for task in tasks:
        found, spread = _differences([one[task] for one in results], [one.get(task) for one in scores])
        difference += found / len(tasks)
        variance += spread / len(tasks) ** 2
    beaten = difference < -Z * np.sqrt(variance)
    return [1 + int(row.sum()) for row in beaten]


def _differences(results: Sequence[TaskResult], scores: Sequence[Scores | None]) -> tuple[Any, Any]:
    """Difference of row and column on one task, and its variance if there were none."""
    n = np.array([max(1, one.n - one.n_error) for one in results], dtype=float)
    mean = np.array([one.accuracy for one in results], dtype=float)
    found = mean[:, None] - mean[None, :]
    alone, clustered, alike = _variances(results, scores)
    effect = np.where(alone > TINY, np.maximum(1.0, clustered / np.maximum(alone, TINY)), alike)
    pairs = 2 / (1 / n[:, None] + 1 / n[None, :])
    return found, effect * (alone + found**2 / pairs)


def _variances(results: Sequence[TaskResult], scores: Sequence[Scores | None]) -> tuple[Any, Any, Any]:
    """Of each pair of runs: the variance of the difference with every question by itself, the same by cluster, and the
    design effect where no two questions differ differently."""
    runs = len(results)
    alone, clustered, alike = np.zeros((runs, runs)), np.zeros((runs, runs)), np.ones((runs, runs))
    groups: dict[tuple[str, bytes], list[int]] = defaultdict(list)
    for place, (result, one) in enumerate(zip(results, scores, strict=True)):
        if one is None or not one.values:
            low, high = result.interval or (0.0, 1.0)
            alone[place, place] = clustered[place, place] = ((high - low) / (2 * Z)) ** 2
        else:
            groups[one.digest, one.clusters].append(place)
    for places in groups.values():
        some = [one for place in places if (one := scores[place]) is not None]
        residuals, here = _residuals(some), np.ix_(places, places)
        alone[here] = clustered[here] = residuals @ residuals.T
        if some[0].clusters:
            clusters = some[0].cluster_array()
            order = np.argsort(clusters, kind="stable")
            starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
            sums = np.add.reduceat(residuals[:, order], starts, axis=1)
            clustered[here] = sums @ sums.T
            alike[here] = np.sum(np.diff(starts, append=len(clusters)) ** 2) / len(clusters)
    return _of_differences(alone), _of_differences(clustered), alike


def _of_differences(products: Any) -> Any:
    """The variance of each pair's difference from the runs' variances and covariances."""
    own = np.diag(products)
    return np.maximum(0.0, own[:, None] + own[None, :] - 2 * products)


def _residuals(scores: Sequence[Scores]) -> Any:
    """A row a run: (score - mean) over the number of scores; a failed request adds nothing."""
    values = np.stack([one.array() for one in scores]).astype(float)
    known = ~np.isnan(values)
    n = np.maximum(1, known.sum(axis=1, keepdims=True))
    values[~known] = 0.0
    return np.where(known, values - values.sum(axis=1, keepdims=True) / n, 0.0) / n
