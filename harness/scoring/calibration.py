"""Calibration of a model's confidence in its answers: ECE, Brier score, risk by coverage.

For protocols that compare the choices' log-likelihoods (direct-v1).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from medbench.harness.contracts import Sample
from medbench.harness.scoring.bounds import Amount, Count, Share

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Places = NDArray[np.intp]

BINS = 15
POINTS = 50
COVERAGES = (80, 90)


class Bin(BaseModel):
    """Answers with confidence in (low, high]; the lowest bin includes 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Share
    high: Share
    n: Count
    confidence: Share
    """Mean, 0..1."""
    accuracy: Share


class Calibration(BaseModel):
    """Confidence compared with correctness, one row per sample: repeats and shuffled orders are rows of their own.

    Confidence is the softmax of the choices' log-likelihoods at the answer. A log-likelihood of -inf is probability 0.
    A row without a score (engine error), without log-likelihoods, with NaN or +inf among them, or with nothing but
    -inf is an abstention: it counts only in `n`, `n_abstained` and coverages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: Count
    """Rows, abstentions included."""
    n_abstained: Count
    confidence: Share
    """Mean over the answered rows, as are all figures below; 0..1."""
    accuracy: Share
    ece: Share
    """Expected calibration error of the answer given: mean |accuracy - confidence| over `bins`, weighted by size.

    15 bins of equal width. Guo et al. 2017, arXiv 1706.04599, equation 3. 0..1. Biased upwards where bins are small.
    """
    ece_adaptive: Share
    """ECE over 15 bins of equal size (Nixon et al. 2019, arXiv 1904.01685); equal confidences share a bin."""
    brier: Amount | None
    """Mean squared distance of the choices' probabilities from the truth, summed over choices: 0..2 (Brier 1950).

    For two choices, twice the 0..1 score of the binary definition. None, like `nll`, where some gold answer is not
    among the choices (possible for lm-eval's own tasks).
    """
    nll: Amount | None
    """Mean negative log-probability of the gold answer, in nats; also None where it is infinite."""
    bins: list[Bin]
    """Non-empty bins of `ece`."""
    risk_coverage: list[tuple[Share, Share]]
    """(coverage, risk) when answers are taken from the most confident down, at most 50 points.

    Coverage is the share of all rows, so it ends below 1 where some abstained; risk is 1 - accuracy of those taken.
    Ties in confidence count as taken in random order, on average.
    """
    aurc: float
    """Mean risk over all coverages reached (Geifman and El-Yaniv 2017, arXiv 1705.08500), so that abstaining cannot
    lower it by shortening the curve. 0..1, lower is better.
    """
    selective: dict[int, float | None]
    """Coverage in per cent -> accuracy of the most confident answers; None where too many abstained to reach it."""


def summarize_calibration(samples: Iterable[Sample]) -> Calibration | None:
    """One pass over a task's samples in any order, 32 bytes per row; None where none has usable log-likelihoods."""
    import numpy as np

    n = 0
    confidences, scores, briers, nlls = array("d"), array("d"), array("d"), array("d")
    for sample in samples:
        n += 1
        logs = log_softmax(sample.logprobs or {})
        if logs is None or sample.score is None:
            continue
        gold = next((log for choice, log in logs.items() if choice.strip() == sample.gold), math.nan)
        distances = ((math.exp(log) - (choice.strip() == sample.gold)) ** 2 for choice, log in logs.items())
        confidences.append(math.exp(max(logs.values())))
        scores.append(sample.score)
        briers.append(math.nan if math.isnan(gold) else math.fsum(distances))
        nlls.append(-gold)
    if not confidences:
        return None
    surest_first = np.lexsort((np.array(scores), np.negative(np.array(confidences))))
    confidence, score = np.array(confidences)[surest_first], np.array(scores)[surest_first]
    risks = _risks(confidence, score)
    bins = [
        Bin(low=number / BINS, high=(number + 1) / BINS, n=n, confidence=mean, accuracy=accuracy)
        for number, n, mean, accuracy in _binned(confidence, score, _by_width(confidence))
    ]
    return Calibration(
        n=n,
        n_abstained=n - len(score),
        confidence=_mean(confidence),
        accuracy=_mean(score),
        ece=math.fsum(one.n * abs(one.accuracy - one.confidence) for one in bins) / len(score),
        ece_adaptive=math.fsum(
            size * abs(accuracy - mean) for _, size, mean, accuracy in _binned(confidence, score, _by_size(confidence))
        )
        / len(score),
        brier=_finite(math.fsum(briers) / len(briers)),
        nll=_finite(math.fsum(nlls) / len(nlls)),
        bins=bins,
        risk_coverage=[(taken / n, float(risks[taken - 1])) for taken in _steps(len(risks))],
        aurc=_mean(risks),
        selective={percent: _accuracy_at(percent, risks, n) for percent in COVERAGES},
    )


def log_softmax(logprobs: Mapping[str, float]) -> dict[str, float] | None:
    """choice -> log of its probability among the choices.

    None where they form no distribution: no choices, a NaN or +inf, or all -inf.
    """
    most = max(logprobs.values(), default=-math.inf)
    if not math.isfinite(most) or any(map(math.isnan, logprobs.values())):
        return None
    total = math.log(math.fsum(math.exp(log - most) for log in logprobs.values()))
    return {choice: log - most - total for choice, log in logprobs.items()}


def _by_width(confidence: Floats) -> Places:
    """Bin number of each row, shape [rows]: (0, 1/15], (1/15, 2/15], ..."""
    import numpy as np

    return np.searchsorted(np.arange(1, BINS + 1) / BINS, confidence, side="left")


def _by_size(confidence: Floats) -> Places:
    """Bin number of each row, shape [rows], by the middle rank of its group of equal confidences."""
    import numpy as np

    starts, sizes = _ties(confidence)
    return np.repeat(BINS * (2 * starts + sizes) // (2 * len(confidence)), sizes)


def _binned(confidence: Floats, score: Floats, where: Places) -> list[tuple[int, int, float, float]]:
    """(bin number, rows, mean confidence, accuracy) of each non-empty bin."""
    import numpy as np

    inside = [(int(number), where == number) for number in np.unique(where)]
    return [(number, int(rows.sum()), _mean(confidence[rows]), _mean(score[rows])) for number, rows in inside]


def _risks(confidence: Floats, score: Floats) -> Floats:
    """Risk of the first 1, 2, 3, ... rows, shape [rows]; a row counts as the mean of its group of equal confidences."""
    import numpy as np

    starts, sizes = _ties(confidence)
    wrong = np.repeat(np.add.reduceat(1 - score, starts) / sizes, sizes)
    return np.cumsum(wrong) / np.arange(1, len(wrong) + 1)


def _ties(confidence: Floats) -> tuple[Places, Places]:
    """(first row, number of rows) of each group of equal confidences in a sorted array; both of shape [groups]."""
    import numpy as np

    starts = np.flatnonzero(np.concatenate(([True], confidence[1:] != confidence[:-1])))
    return starts, np.diff(starts, append=len(confidence))


def _steps(rows: int) -> list[int]:
    """At most POINTS evenly spaced numbers up to and including `rows`."""
    return sorted({-(-step * rows // POINTS) for step in range(1, POINTS + 1)})


def _accuracy_at(percent: int, risks: Floats, n: int) -> float | None:
    taken = -(-percent * n // 100)
    return 1 - float(risks[taken - 1]) if taken <= len(risks) else None


def _mean(values: Floats) -> float:
    return math.fsum(values) / len(values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
