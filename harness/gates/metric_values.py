"""The value of a gated metric in one sample."""

from __future__ import annotations

from medbench.harness.contracts import Sample


def value_of(sample: Sample, metric: str) -> float | None:
    """The metric's value for one question; None where it is unknown because the request failed."""
    if metric == "errors":
        return float(sample.outcome == "error")
    if sample.outcome == "error":
        return None
    if metric == "accuracy":
        return sample.score
    if metric == "unparsed":
        return float(sample.outcome != "answered")
    if metric == "truncated":
        return float(sample.finish_reason == "length")
    assert metric == "tokens_per_answer", metric
    return float(sample.completion_tokens)
