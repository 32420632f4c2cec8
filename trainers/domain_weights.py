r"""Weights of advantages by domain and difficulty, after QoQ-Med's DRPO (arXiv 2506.00711).

Where most questions come from one domain, or from one that is already mastered, they make most of the gradient. DRPO
divides the advantages of a question in domain d and cluster c by

    sqrt(N_d) mu_d sqrt(N_c) mu_c

N_d: questions seen of the domain; its clusters are made by k-means of the questions' rewards, N_c and mu_c are size and
mean reward of one, and mu_d is the mean of the mu_c, weighted by 1 / N_c. So rare and hard questions weigh more. The
released code (DDVD233/QoQ_Med, verl/trainer/core_algos.py) divides by 0 where all rewards are 0, turns the sign of the
advantages where they are below, and remembers every question. Here:

- difficulty is the share of right replies, from 0 to 1; shares below `floor` count as `floor`
- N_d counts all questions seen; the vectors of a domain's last `memory` questions are clustered, and N_c is the
  cluster's share of these times N_d
- clusters are made at every step, from the sorted vectors of right (1) and wrong (0), of which there are few different
  ones: as many clusters, up to `clusters`, as each lower the squared distances by at least 10 % of those of one
  cluster; below 20 questions there is one
- weights are divided by their mean over all remembered questions, so that the learning rate keeps its meaning, then cut
  to [1 / cap, cap]; they are 1 until `warmup` questions have been seen
- the division by the batch's deviation that follows in DRPO is left to TRL's `scale_rewards`, before the weights

Weights are positive, so no advantage changes its sign.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from medbench.harness.config import Record

FEW = 20
"""Questions of a domain below which it has one cluster."""
WORTH = 0.1
"""What a further cluster must take off the squared distances, as a share of those of a single cluster."""

Rights = tuple[float, ...]
"""1 for each right reply to a question and 0 for each wrong one, sorted."""


class AdvantageSettings(Record):
    """The `loss.advantage` of a grpo stage. All defaults but `clusters` are medbench's own."""

    kind: Literal["group", "domain"] = "group"
    """group: as GRPO; domain: weighted by domain and difficulty."""
    by: str | None = Field(None, min_length=1)
    """What tells domains apart: "source", the data set that a prompt is from, or a column of the rows."""
    clusters: int = Field(10, ge=1, le=100)
    """Most clusters of a domain's questions."""
    floor: float = Field(0.05, gt=0, le=1)
    cap: float = Field(4.0, ge=1, le=100)
    warmup: int = Field(50, ge=0)
    memory: int = Field(2000, ge=1, le=100_000)

    @model_validator(mode="after")
    def _domains_are_told_apart(self) -> Self:
        if self.kind == "domain" and self.by is None:
            raise ValueError('kind: domain needs by: "source", or a column of the rows')
        fields = type(self).model_fields
        others = [name for name, field in fields.items() if name != "kind" and getattr(self, name) != field.default]
        if self.kind == "group" and others:
            raise ValueError(f"{others[0]} belongs to kind: domain")
        return self


@dataclass(slots=True)
class _Domain:
    seen: int = 0
    recent: deque[Rights] = field(default_factory=deque)


@dataclass(slots=True)
class DomainWeights:
    """What has been seen of each domain, and the weights that follow."""

    settings: AdvantageSettings
    _domains: dict[str, _Domain] = field(default_factory=dict)

    def weights(self, groups: Sequence[tuple[str, Sequence[float]]]) -> list[float]:
        """One weight per group of a batch; remembers the groups first.

        groups: (domain, 1 or 0 for each of its replies: right or wrong).
        """
        keys = [(domain, tuple(sorted(rights))) for domain, rights in groups]
        for domain, rights in keys:
            known = self._domains.setdefault(domain, _Domain(recent=deque(maxlen=self.settings.memory)))
            known.seen += 1
            known.recent.append(rights)
        if sum(known.seen for known in self._domains.values()) <= self.settings.warmup:
            return [1.0] * len(keys)
        found = {name: self._raw(known) for name, known in self._domains.items()}
        everything = [found[name][rights] for name, known in self._domains.items() for rights in known.recent]
        mean, cap = math.fsum(everything) / len(everything), self.settings.cap
        return [min(cap, max(1 / cap, found[domain][rights] / mean)) for domain, rights in keys]

    def state(self) -> dict[str, Any]:
        """As JSON, see `restore`."""
        return {
            name: {"seen": known.seen, "recent": list(map(list, known.recent))} for name, known in self._domains.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""
        self._domains = {
            name: _Domain(known["seen"], deque(map(tuple, known["recent"]), maxlen=self.settings.memory))
            for name, known in state.items()
        }

    def _raw(self, known: _Domain) -> dict[Rights, float]:
        """DRPO's weight of each vector of right and wrong that the domain has."""
        counts = Counter(known.recent)
        floor = self.settings.floor
        scale = known.seen / len(known.recent)
        clusters = [
            (scale * sum(counts[one] for one in members), max(floor, _mean_share(members, counts)), members)
            for members in clustered(counts, self.settings.clusters)
        ]
        per_size = [1 / size for size, _, _ in clusters]
        domain = math.fsum(share * by for (_, share, _), by in zip(clusters, per_size, strict=True)) / sum(per_size)
        return {
            one: 1 / (math.sqrt(known.seen) * domain * math.sqrt(size) * share)
            for size, share, members in clusters
            for one in members
        }


def clustered(counts: Mapping[Rights, int], most: int) -> list[list[Rights]]:
    """The different vectors in clusters, see the module's docstring; deterministic."""
    points = sorted(counts)
    if sum(counts.values()) < FEW or len(points) == 1:
        return [points]
    from sklearn.cluster import KMeans

    weights = [counts[one] for one in points]
    best, before, whole = [0] * len(points), math.inf, 0.0
    for number in range(1, min(most, len(points)) + 1):
        found = KMeans(number, n_init=10, random_state=0).fit(points, sample_weight=weights)
        whole = whole or found.inertia_
        if before - found.inertia_ < WORTH * whole:
            break
        best, before = found.labels_.tolist(), found.inertia_
    return [[one for one, label in zip(points, best, strict=True) if label == at] for at in sorted(set(best))]


def _mean_share(members: Iterable[Rights], counts: Mapping[Rights, int]) -> float:
    """Share of right replies over the questions of a cluster."""
    shares = [(counts[one], math.fsum(one) / len(one)) for one in members]
    return math.fsum(count * share for count, share in shares) / sum(count for count, _ in shares)
