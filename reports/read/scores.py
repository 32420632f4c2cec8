"""The score of each question of one task, small enough to keep for every run of a site.

    python -c "from medbench.reports.read.scores import Scores; print(Scores.of(['q1'], ['q1'], [1.0], [9]).array())"

Two runs whose `digest` is the same answered the same questions, in the same order: their arrays can be subtracted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
"""A numpy array."""
BINS = 10


@dataclass(frozen=True, slots=True)
class LengthBin:
    """Answered questions whose replies are about equally long."""

    fewest: int
    """Tokens of the shortest reply in the bin; bins are in order and hold about equally many questions."""
    most: int
    n: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Scores:
    """One task of one run, one value per question in natural order of the ids; the mean of repeats."""

    digest: str
    """Over the ids: equal for the same questions."""
    values: bytes
    """float32, little-endian; NaN where no request succeeded."""
    clusters: bytes
    """int32, little-endian: the place of the first question of the cluster; empty where no two questions share one."""
    lengths: tuple[LengthBin, ...] = ()
    """Reply length against accuracy, over replies; at most ten."""

    @staticmethod
    def of(
        ids: Sequence[str],
        clusters: Sequence[str],
        scores: Sequence[float | None],
        tokens: Sequence[int],
    ) -> Scores:
        """From parallel sequences over the samples, in natural order; those of one id stand together."""
        known = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
        names = list(dict.fromkeys(ids))
        places = {name: place for place, name in enumerate(names)}
        first: dict[str, int] = {}
        of_question = dict(zip(reversed(ids), reversed(clusters), strict=True))
        cluster = [first.setdefault(of_question[name], places[name]) for name in names]
        return Scores(
            digest=hashlib.sha256("\0".join(names).encode("utf-8", "replace")).hexdigest()[:32],
            values=(known if len(names) == len(ids) else _means(ids, places, known)).astype("<f4").tobytes(),
            clusters=np.array(cluster, dtype="<i4").tobytes() if len(first) < len(names) else b"",
            lengths=_by_length(known, np.array(tokens, dtype=np.int64)),
        )

    def array(self) -> Array:
        """The values as a read-only numpy array of float32."""
        return np.frombuffer(self.values, dtype="<f4")

    def cluster_array(self) -> Array:
        """The cluster of each question as a number; equal numbers are duplicates."""
        if self.clusters:
            return np.frombuffer(self.clusters, dtype="<i4")
        return np.arange(len(self.values) // 4, dtype="<i4")


def _means(ids: Sequence[str], places: dict[str, int], known: Array) -> Array:
    place = np.array([places[id] for id in ids])
    scored = ~np.isnan(known)
    n = np.bincount(place[scored], minlength=len(places))
    total = np.bincount(place[scored], weights=known[scored], minlength=len(places))
    return np.divide(total, n, out=np.full(len(places), np.nan), where=n > 0)


def _by_length(known: Array, tokens: Array) -> tuple[LengthBin, ...]:
    scored = ~np.isnan(known)
    order = np.argsort(tokens[scored], kind="stable")
    lengths, scores = tokens[scored][order], known[scored][order]
    parts = [part for part in np.array_split(np.arange(len(lengths)), BINS) if len(part)]
    return tuple(
        LengthBin(int(lengths[part[0]]), int(lengths[part[-1]]), len(part), float(scores[part].mean()))
        for part in parts
    )
