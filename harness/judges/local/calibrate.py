"""From scores to probabilities and verdicts, learnt on abstracts that the network has not been trained on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.judges.local.folder import Calibrator

FIRMNESS = 0.3
"""Inverse weight of the penalty on large coefficients: there are few abstracts to learn them from."""
THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5)


def fitted(inputs: np.ndarray, verdicts: Sequence[int], firmness: float = FIRMNESS) -> Calibrator:
    """`inputs` [steps, scores and features]; `verdicts` are places in VERDICTS, all of which must occur."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    model = LogisticRegression(C=firmness, max_iter=5000).fit((inputs - mean) / scale, verdicts)
    if list(model.classes_) != list(range(len(VERDICTS))):
        raise ValueError("a verdict does not occur")
    return Calibrator(
        mean=mean.tolist(), scale=scale.tolist(), weights=model.coef_.tolist(), bias=model.intercept_.tolist()
    )


def probabilities(calibrator: Calibrator, inputs: np.ndarray) -> np.ndarray:
    """[steps, verdicts]; NaN in a row whose inputs are not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (inputs - np.array(calibrator.mean)) / np.array(calibrator.scale)
        scores = scores @ np.array(calibrator.weights).T + np.array(calibrator.bias)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def chosen(found: np.ndarray, thresholds: dict[str, float]) -> list[int]:
    """Places in VERDICTS, one per row of probabilities."""
    return [int(place) for place in (found / np.array([thresholds[verdict] for verdict in VERDICTS])).argmax(axis=1)]


def best_thresholds(found: np.ndarray, verdicts: Sequence[int]) -> dict[str, float]:
    """Those under which the mean of the three verdicts' sensitivities is largest; the most even of equals."""
    truth = np.asarray(verdicts)

    def worth(values: tuple[float, ...]) -> tuple[float, float]:
        said = np.array(chosen(found, dict(zip(VERDICTS, values, strict=True))))
        hits = [float(np.mean(said[truth == place] == place)) for place in np.unique(truth)]
        return round(float(np.mean(hits)), 4), -(max(values) - min(values))

    best: tuple[Any, ...] = max(itertools.product(THRESHOLDS, repeat=len(VERDICTS)), key=worth)
    return dict(zip(VERDICTS, best, strict=True))
