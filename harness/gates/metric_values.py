"""The value of a gated metric in one sample, and for a question that has several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from medbench.harness.contracts import Sample
from medbench.harness.gates.rules import JUDGED


def value_of(sample: Sample, metric: str) -> float | None:
    """The metric's value for one question; None where it is unknown because the request failed."""
    if metric == "errors":
        return float(sample.outcome == "error")
    if sample.outcome == "error":
        return None
    if metric == "accuracy" or metric in JUDGED:  # judged_gate has put a judge's score there
        return sample.score
    if metric == "unparsed":
        return float(sample.outcome != "answered")
    if metric == "truncated":
        return float(sample.finish_reason == "length")
    assert metric == "tokens_per_answer", metric
    return float(sample.completion_tokens)


def value_of_question(samples: Sequence[Sample], metric: str) -> float | None:
    """The mean over the question's samples; None where it is unknown because a request failed."""
    values = [value for sample in samples if (value := value_of(sample, metric)) is not None]
    return fmean(values) if len(values) == len(samples) else None


@dataclass(slots=True)
class SamplingNoise:
    """The variance of a metric's value between samples of the same question, as the mean over questions."""

    metric: str
    _total: float = 0.0
    _questions: int = 0

    def observe(self, samples: Sequence[Sample]) -> None:
        """Take the samples of one more question."""
        values = [value for sample in samples if (value := value_of(sample, self.metric)) is not None]
        if len(values) > 1:
            mean = fmean(values)
            self._total += math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
            self._questions += 1

    @property
    def variance(self) -> float | None:
        """None without a question that has two samples."""
        return self._total / self._questions if self._questions else None
