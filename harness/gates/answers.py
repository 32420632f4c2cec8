"""The answers that one gate is about, as shares from 0 to 1 of which more is always better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.gates import wording
from medbench.harness.gates.metric_values import SamplingNoise, value_of, value_of_question
from medbench.harness.gates.rules import Gate
from medbench.harness.gates.token_limits import Reply
from medbench.harness.gates.verdict import GateResult, Status, gate_result

T = TypeVar("T")

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
    per_question: int = 1
    """Samples of each question, whose mean is its share."""
    baseline: Mapping[str, float] | None = None
    """The metric's value for each id of `order`; for a paired gate only."""
    baseline_noise: tuple[int, float | None] | None = None
    """The baseline's number of samples per question, and the variance of the metric between those of one question, None
    where it is unknown; for a paired gate only."""
    questions: list[Sequence[Sample]] = field(default_factory=list)
    """The samples of each question that the gate is about, in its order."""
    shares: list[float | None] = field(default_factory=list)
    """For each of these; None where a request failed."""
    longer: dict[int, list[bool]] = field(default_factory=dict)
    """Token limit -> for each question along the order so far, whether a reply did not end within it."""
    ahead: int = 0
    """Most questions along the order of which all, or the first tokens, are known."""
    failed: int = 0
    """Those with a failed request among these."""
    scale: Scale = field(init=False)
    _noise: SamplingNoise = field(init=False)
    _ids: frozenset[str] = field(init=False)
    baseline_mean: float = field(init=False)
    """Mean share of the baseline over `order`; 0 for a gate that is not paired."""

    def __post_init__(self) -> None:
        if not self.order:
            raise MedbenchError(f"{self.gate.rule}: no question of this kind")
        self.scale = Scale(self.unit, self.gate.less_is_better)
        self._noise = SamplingNoise(self.gate.metric)
        self._ids = frozenset(self.order)
        self.baseline_mean = math.fsum(map(self.baseline_share, self.order)) / len(self.order)

    def observe(self, task: str, samples: Sequence[Sample]) -> None:
        """Take the next answers of any task, all samples of a question together; those that the gate is not about are
        ignored."""
        if task != self.gate.task:
            return
        category = self.gate.category or {}
        for some in _grouped(samples, self.per_question):
            if all(some[0].category.get(key) == value for key, value in category.items()):
                value = value_of_question(some, self.gate.metric)
                self.questions.append(some)
                self._noise.observe(some)
                self.shares.append(None if value is None else self.scale.share(value))
        if self.used >= self.ahead:
            self.ahead, self.failed = self.used, self.shares.count(None)

    def within(self, limit: int, replies: Sequence[Reply]) -> list[tuple[float, float]]:
        """Lowest and highest share of each of the next questions that the gate is about, within `limit` tokens."""
        longer, found = self.longer.setdefault(limit, []), []
        for some in _grouped(replies, self.per_question):
            if some[0].id not in self._ids:
                continue
            shares = [self._share_within(reply.sample, limit) for reply in some]
            longer.append(None in shares)
            found.append((_mean(shares, unknown=0.0), _mean(shares, unknown=1.0)))
            if len(longer) > self.ahead:
                self.ahead = len(longer)
                samples = [reply.sample for reply in some if reply.sample is not None]
                self.failed += any(value_of(sample, self.gate.metric) is None for sample in samples)
        return found

    def _share_within(self, sample: Sample | None, limit: int) -> float | None:
        """None for a reply that did not end within the limit, or that failed: it may fail after the limit too."""
        if sample is None or sample.outcome == "error" or sample.completion_tokens > limit:
            return None
        value = value_of(sample, self.gate.metric)
        return None if value is None else self.scale.share(value)

    @property
    def used(self) -> int:
        return len(self.questions)

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
            share - self.baseline_share(samples[0].id)
            for samples, share in zip(self.questions, self.shares, strict=True)
            if share is not None
        ]
        return self.measured(math.fsum(known) / len(known)) if known else None

    @property
    def sampling_noise(self) -> float | None:
        """Standard deviation of the metric over all questions, or of its difference to the baseline's, between runs of
        the same checkpoints with other sampling seeds. None with one sample per question.

        A baseline with one sample per question is taken to vary as much as the candidate.
        """
        own = self._noise.variance
        if own is None:
            return None
        total = own / self.per_question
        if self.baseline_noise is not None:
            samples, noise = self.baseline_noise
            total += (own if noise is None else noise) / samples
        return math.sqrt(total / len(self.order))

    @property
    def sampled(self) -> wording.Sampled:
        return wording.Sampled(self.per_question, self.sampling_noise)

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
        tokens = (sample.completion_tokens for samples in self.questions for sample in samples)
        return counted and self.used > self.failed and not any(tokens)

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
        noise = self.sampling_noise if estimate is not None else None
        counts = {"used": self.used, "total": len(self.order), "observed": observed, "sampling_noise": noise}
        return gate_result(self.gate, **{**counts, **found})


def _grouped(found: Sequence[T], size: int) -> list[Sequence[T]]:
    return [found[at : at + size] for at in range(0, len(found), size)]


def _mean(shares: Sequence[float | None], *, unknown: float) -> float:
    return math.fsum(unknown if share is None else share for share in shares) / len(shares)
