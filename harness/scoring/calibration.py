"""How far a model's confidence in its answers can be trusted: ECE, Brier score, risk over coverage.

For protocols that compare the choices' log-likelihoods (direct-v1):
python -c "from medbench.harness.scoring.calibration import log_softmax; print(log_softmax({' A': -0.1, ' B': -2.3}))"
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from medbench.harness.contracts import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Places = NDArray[np.intp]

BINS = 15
POINTS = 50
COVERAGES = (80, 90)


class Bin(BaseModel):
    """Answers whose confidence lies in (low, high]; the lowest bin holds 0 too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    n: int
    confidence: float
    """Mean, 0..1."""
    accuracy: float


class Calibration(BaseModel):
    """Confidence against truth, over all askings: repeats and shuffled orders are a row each.

    Confidence is the softmax of the choices' log-likelihoods at the answer. A log-likelihood of -inf is probability 0.
    A row without a score (engine error), without log-likelihoods, with a NaN or +inf among them, or with -inf alone
    is an abstention: in no figure but `n`, `n_abstained` and every coverage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    """Rows, abstentions included."""
    n_abstained: int
    confidence: float
    """Mean over the rows answered, as are all figures below; 0..1."""
    accuracy: float
    ece: float
    """Expected calibration error of the answer given: mean |accuracy - confidence| over `bins`, weighted by size.

    15 bins of equal width. Guo et al. 2017, arXiv 1706.04599, equation 3. 0..1. Biased upwards where bins are small.
    """
    ece_adaptive: float
    """The same over 15 bins of equal size (Nixon et al. 2019, arXiv 1904.01685); equal confidences share a bin."""
    brier: float | None
    """Mean squared distance of the choices' probabilities from the truth, summed over choices: 0..2 (Brier 1950).

    For two choices twice the 0..1 score of the binary definition. None, as `nll`, where some gold answer is not
    among the choices (a foreign task's may not be).
    """
    nll: float | None
    """Mean negative log of the gold answer's probability, in nats; None where it is infinite, too."""
    bins: list[Bin]
    """Of `ece`; the ones that hold anything."""
    risk_coverage: list[tuple[float, float]]
    """(coverage, risk) as answers are taken from the surest down, at most 50 points.

    Coverage is the share of all rows, so it ends below 1 where some abstained; risk is 1 - accuracy of those taken.
    Among equal confidences the risk is what taking them in random order gives on average.
    """
    aurc: float
    """Mean risk over all coverages reached (Geifman and El-Yaniv 2017, arXiv 1705.08500): abstaining cannot lower it
    by shortening the curve. 0..1, the less the better.
    """
    selective: dict[int, float | None]
    """Coverage in per cent -> accuracy of the surest answers that make it up; None where too many abstained."""


def summarize_calibration(samples: Iterable[Sample]) -> Calibration | None:
    """One pass over a task's samples in any order, 32 bytes a row; None when none has usable log-likelihoods."""
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
    """choice -> log of its probability among the choices, which need not be all that a model could say.

    None where they make no distribution: there are none, one is NaN or +inf, or all are -inf.
    """
    most = max(logprobs.values(), default=-math.inf)
    if not math.isfinite(most) or any(map(math.isnan, logprobs.values())):
        return None
    total = math.log(math.fsum(math.exp(log - most) for log in logprobs.values()))
    return {choice: log - most - total for choice, log in logprobs.items()}


def _by_width(confidence: Floats) -> Places:
    """Bin of each row: (0, 1/15], (1/15, 2/15], ..."""
    import numpy as np

    return np.searchsorted(np.arange(1, BINS + 1) / BINS, confidence, side="left")


def _by_size(confidence: Floats) -> Places:
    """Bin of each row by the rank of the middle of its group of equal confidences."""
    import numpy as np

    starts, sizes = _ties(confidence)
    return np.repeat(BINS * (2 * starts + sizes) // (2 * len(confidence)), sizes)


def _binned(confidence: Floats, score: Floats, where: Places) -> list[tuple[int, int, float, float]]:
    """(bin, rows, mean confidence, accuracy) of each bin that holds anything."""
    import numpy as np

    inside = [(int(number), where == number) for number in np.unique(where)]
    return [(number, int(rows.sum()), _mean(confidence[rows]), _mean(score[rows])) for number, rows in inside]


def _risks(confidence: Floats, score: Floats) -> Floats:
    """Risk of the first 1, 2, 3, ... rows; each of a group of equal confidences counts as the group's mean."""
    import numpy as np

    starts, sizes = _ties(confidence)
    wrong = np.repeat(np.add.reduceat(1 - score, starts) / sizes, sizes)
    return np.cumsum(wrong) / np.arange(1, len(wrong) + 1)


def _ties(confidence: Floats) -> tuple[Places, Places]:
    """(first row, rows) of each group of equal confidences in a sorted array."""
    import numpy as np

    starts = np.flatnonzero(np.concatenate(([True], confidence[1:] != confidence[:-1])))
    return starts, np.diff(starts, append=len(confidence))


def _steps(rows: int) -> list[int]:
    """At most POINTS evenly spaced numbers up to `rows`, the last one always."""
    return sorted({-(-step * rows // POINTS) for step in range(1, POINTS + 1)})


def _accuracy_at(percent: int, risks: Floats, n: int) -> float | None:
    taken = -(-percent * n // 100)
    return 1 - float(risks[taken - 1]) if taken <= len(risks) else None


def _mean(values: Floats) -> float:
    return math.fsum(values) / len(values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
