"""The answers that one gate is about, as shares from 0 to 1 of which more is always better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.gates.metric_values import value_of
from medbench.harness.gates.rules import Gate
from medbench.harness.gates.token_limits import Reply
from medbench.harness.gates.verdict import GateResult, Status, gate_result

MOST_ERRORS = 0.05
"""With a larger share of failed requests a gate is not gateable; fewer count as wrong for a pass, right for a fail."""
UNCOUNTED = 32
"""Answers without a single token count after which none is expected to come with one."""


@dataclass(frozen=True, slots=True)
class Scale:
    """From a metric's own values to the shares that are tested, and back."""

    unit: float = 1.0
    """The value that becomes 1: the token limit for tokens, else 1."""
    mirrored: bool = False
    """Whether less of the metric is better; then the share is 1 minus it, and a ceiling becomes a floor."""

    def share(self, value: float) -> float:
        """Within 0..1 unless the value is above the unit."""
        share = value / self.unit
        return 1.0 - share if self.mirrored else share

    def value(self, share: float) -> float:
        return (1.0 - share if self.mirrored else share) * self.unit

    def difference(self, of_shares: float) -> float:
        """The difference of two values from the difference of their shares."""
        return (-of_shares if self.mirrored else of_shares) * self.unit


@dataclass(slots=True)
class Answers:
    """One gate's answers so far, in the fixed order of its questions."""

    gate: Gate
    order: Sequence[str]
    """Ids of all the gate's questions."""
    unit: float = 1.0
    """See Scale."""
    baseline: Mapping[str, float] | None = None
    """The metric's value for each id of `order`; for a paired gate only."""
    samples: list[Sample] = field(default_factory=list)
    shares: list[float | None] = field(default_factory=list)
    """For each sample; None for a failed request."""
    longer: dict[int, list[bool]] = field(default_factory=dict)
    """Token limit -> for each question along the order so far, whether its reply did not end within it."""
    ahead: int = 0
    """Most questions along the order of which all, or the first tokens, are known."""
    failed: int = 0
    """Failed requests among these."""
    scale: Scale = field(init=False)
    _ids: frozenset[str] = field(init=False)
    baseline_mean: float = field(init=False)
    """Mean share of the baseline over `order`; 0 for a gate that is not paired."""

    def __post_init__(self) -> None:
        if not self.order:
            raise MedbenchError(f"{self.gate.rule}: no question of this kind")
        self.scale = Scale(self.unit, self.gate.less_is_better)
        self._ids = frozenset(self.order)
        self.baseline_mean = math.fsum(map(self.baseline_share, self.order)) / len(self.order)

    def observe(self, task: str, samples: Sequence[Sample]) -> None:
        """Take the next answers of any task; those that the gate is not about are ignored."""
        if task != self.gate.task:
            return
        category = self.gate.category or {}
        for sample in samples:
            if all(sample.category.get(key) == value for key, value in category.items()):
                value = value_of(sample, self.gate.metric)
                self.samples.append(sample)
                self.shares.append(None if value is None else self.scale.share(value))
        if self.used >= self.ahead:
            self.ahead, self.failed = self.used, self.shares.count(None)

    def within(self, limit: int, replies: Sequence[Reply]) -> list[tuple[float, float]]:
        """Lowest and highest share of each of the next replies that the gate is about, known within `limit` tokens."""
        longer, found = self.longer.setdefault(limit, []), []
        for reply in replies:
            if reply.id not in self._ids:
                continue
            share = self._share_within(reply.sample, limit)
            longer.append(share is None)
            found.append((0.0, 1.0) if share is None else (share, share))
            if len(longer) > self.ahead:
                self.ahead = len(longer)
                self.failed += reply.sample is not None and value_of(reply.sample, self.gate.metric) is None
        return found

    def _share_within(self, sample: Sample | None, limit: int) -> float | None:
        """None for a reply that did not end within the limit, or that failed: it may fail after the limit too."""
        if sample is None or sample.outcome == "error" or sample.completion_tokens > limit:
            return None
        value = value_of(sample, self.gate.metric)
        return None if value is None else self.scale.share(value)

    @property
    def used(self) -> int:
        return len(self.samples)

    @property
    def whole(self) -> bool:
        """Whether every question of the gate has an answer."""
        return self.used == len(self.order) and not self.failed

    @property
    def hopeless(self) -> bool:
        """Whether the gate will not become gateable, whatever else is answered."""
        return self.failed > MOST_ERRORS * len(self.order) or (self._uncounted and self.used >= UNCOUNTED)

    @property
    def goal(self) -> float:
        """What the mean share must reach; for a paired gate, the mean difference of the shares to the baseline's."""
        if not self.gate.paired:
            return self.scale.share(self.gate.threshold)
        return self.gate.better_by if self.gate.better_by is not None else -(self.gate.margin or 0.0)

    def baseline_share(self, id: str) -> float:
        return self.scale.share(self.baseline[id]) if self.gate.paired and self.baseline is not None else 0.0

    def reported(self, mean: float) -> float:
        """The metric, or for a paired gate its difference to the baseline's, where the mean share is `mean`."""
        return self.scale.difference(mean - self.baseline_mean) if self.gate.paired else self.scale.value(mean)

    def measured(self, mean: float) -> float:
        """The same, where for a paired gate `mean` is the mean difference of the shares to the baseline's."""
        return self.scale.difference(mean) if self.gate.paired else self.scale.value(mean)

    @property
    def observed(self) -> float | None:
        """The metric, or its difference to the baseline's, on the questions that got an answer; None without any."""
        known = [
            share - self.baseline_share(sample.id)
            for sample, share in zip(self.samples, self.shares, strict=True)
            if share is not None
        ]
        return self.measured(math.fsum(known) / len(known)) if known else None

    def unjudged(self) -> GateResult | None:
        """The result where nothing can be said of the answers; None where there is something to test."""
        if not self.ahead:
            ends = sorted((self.reported(0.0), self.reported(1.0)))
            return self.result("undecided", None, "no question asked yet", interval=(ends[0], ends[1]))
        why = self._fault()
        return self.result("not gateable", None, why) if why else None

    def _fault(self) -> str:
        if self.failed == self.ahead:
            return f"none of {self.ahead} questions got an answer"
        if self.failed > MOST_ERRORS * self.ahead:
            return f"{self.failed} of {self.ahead} requests failed"
        return "no answer has a token count" if self._uncounted else ""

    @property
    def _uncounted(self) -> bool:
        counted = self.gate.metric == "tokens_per_answer"
        return counted and self.used > self.failed and not any(sample.completion_tokens for sample in self.samples)

    def result(
        self,
        status: Status,
        estimate: float | None,
        why: str,
        *,
        interval: tuple[float, float] | None = None,
        **evidence: Any,
    ) -> GateResult:
        """`estimate` and `interval` in the metric's own unit; `evidence` are further fields of GateResult."""
        found = {"status": status, "estimate": estimate, "interval": interval, "why": why, **evidence}
        observed = self.observed if estimate is not None else None
        counts = {"used": self.used, "total": len(self.order), "observed": observed}
        return gate_result(self.gate, **{**counts, **found})
