"""Ranks that tell chance from difference: a run's rank is one more than the number of runs that are shown to beat it.

    python -c "from medbench.reports.views.ranking import ranks; print(ranks([[Entry]]))"

"Shown to beat": the 95 % interval of the difference of their scores lies above 0. Where two runs answered the same
questions the difference is paired: with r the clustered residuals of each run, scaled by its number of questions, its
variance is |r_i - r_j|^2 (the linearised variance of a difference of means, Miller 2024, "Adding Error Bars to Evals",
2.2), so one matrix product gives that of every pair. Where they did not, the two variances add up. One win and one
loss are added to each pair (Bonett and Price 2012), which keeps a handful of questions from deciding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medbench.harness.scoring.summary import TaskResult
from medbench.reports.read.scores import Scores

Z = 1.959964


def ranks(results: Sequence[Mapping[str, TaskResult]], scores: Sequence[Mapping[str, Scores]]) -> list[int]:
    """Rank of each run on the mean of its tasks; all of `results` have the same tasks, each with an accuracy."""
    runs, tasks = len(results), list(results[0]) if results else []
    difference = np.zeros((runs, runs))
    variance = np.zeros((runs, runs))
    for task in tasks:
        some = [one[task] for one in results]
        shrunk, spread = _differences(some, [one.get(task) for one in scores])
        difference += shrunk / len(tasks)
        variance += spread / len(tasks) ** 2
    beaten = difference < -Z * np.sqrt(variance)
    return [1 + int(row.sum()) for row in beaten]


def _differences(results: Sequence[TaskResult], scores: Sequence[Scores | None]) -> tuple[Any, Any]:
    """Difference of row and column on one task, and its variance, with a win and a loss added."""
    n = np.array([max(1, one.n - one.n_error) for one in results], dtype=float)
    mean = np.array([one.accuracy for one in results], dtype=float)
    own, shared = _variances(results, scores)
    pairs = 2 / (1 / n[:, None] + 1 / n[None, :])
    raw = mean[:, None] - mean[None, :]
    squares = np.maximum(0.0, own[:, None] + own[None, :] - 2 * shared) * pairs**2
    total = pairs + 2
    return raw * pairs / total, (squares + 2 + 2 * pairs * raw**2 / total) / total**2


def _variances(results: Sequence[TaskResult], scores: Sequence[Scores | None]) -> tuple[Any, Any]:
    """Clustered variance of each run's accuracy, and the covariance of each pair that answered the same questions."""
    runs = len(results)
    own, shared = np.zeros(runs), np.zeros((runs, runs))
    alike: dict[tuple[str, bytes], list[int]] = defaultdict(list)
    for place, (result, one) in enumerate(zip(results, scores, strict=True)):
        if one is None or not one.values:
            low, high = result.interval or (0.0, 1.0)
            own[place] = ((high - low) / (2 * Z)) ** 2
        else:
            alike[one.digest, one.clusters].append(place)
    for places in alike.values():
        residuals = _residuals([one for place in places if (one := scores[place]) is not None])
        products = residuals @ residuals.T
        own[places] = np.diag(products)
        shared[np.ix_(places, places)] = products
    return own, shared


def _residuals(scores: Sequence[Scores]) -> Any:
    """A row a run: per cluster the sum of (score - mean) over the number of scores; a failed request adds nothing."""
    values = np.stack([one.array() for one in scores]).astype(float)
    known = ~np.isnan(values)
    n = np.maximum(1, known.sum(axis=1, keepdims=True))
    values[~known] = 0.0
    residuals = np.where(known, values - values.sum(axis=1, keepdims=True) / n, 0.0) / n
    if not scores[0].clusters:
        return residuals
    clusters = scores[0].cluster_array()
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    return np.add.reduceat(residuals[:, order], starts, axis=1)
