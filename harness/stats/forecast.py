"""What a checkpoint will score on questions not asked yet, from other runs' scores and from those so far.

forecaster = Forecaster(controls)     # questions x controls, along the order
forecaster.fit(scores_so_far)
forecaster.chances                    # one per question
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, softmax

Array = npt.NDArray[np.float64]

PRIORS: tuple[list[tuple[Array, Array]], ...] = (
    [],
    [(np.array([0.0, 2.0, 0.0]), np.array([2.0, 1.5, 1e-3]))],
    [
        (np.array([0.0, 0.0, 1.0]), np.array([2.0, 1e-3, 1.0])),
        (np.array([0.0, 1.0, 0.5]), np.array([2.0, 1.5, 0.7])),
    ],
)
"""For 0, 1, more controls: prior mean and sd of the regressions' coefficients (constant, nearest control, all)."""


class Forecaster:
    """Each question's expected score, from the controls and what has been consumed: predictable, never sure.

    Averages the plain mean and logistic regressions on how many controls answer right and on the nearest control, the
    one closest to the scores consumed (the first given, to begin with), weighted by how well each forecast so far.
    """

    def __init__(self, controls: Array) -> None:
        """`controls` is questions x controls, along the order."""
        total, count = controls.shape
        self._controls = controls
        self._easiness = logit((controls.sum(axis=1) + 0.5) / (count + 1))
        self._priors = PRIORS[min(count, 2)]
        self._coefficients = [mean for mean, _ in self._priors]
        self._forecasts = [np.full(total, 0.5)] * (1 + len(self._priors))
        self._log_scores = np.zeros(1 + len(self._priors))
        self._nearest, self._distance = 0, np.zeros(count)
        self._consumed = 0
        self._squares = np.full(3, 5.0)  # of errors: expected by the forecast, made by it, made by the plain mean
        self.chances = self._forecasts[0]

    @property
    def spread(self) -> float:
        """Variance of the errors over what right/wrong answers would make; below 1 where scores are fractional."""
        return float(self._squares[1] / self._squares[0])

    def fit(self, seen: Array) -> None:
        """Recompute the forecast from the scores consumed so far."""
        self._settle(seen)
        fits = [np.full(len(self.chances), (seen.sum() + 0.5) / (len(seen) + 1))]
        if self._priors:
            nearest = 2.2 * self._controls[:, self._nearest] - 1.1
            features = np.column_stack([np.ones(len(nearest)), nearest, self._easiness])
            starts = zip(self._priors, self._coefficients, strict=True)
            past = features[: len(seen)]
            self._coefficients = [_logistic(past, seen, mean, sd, start) for (mean, sd), start in starts]
            fits += [expit(features @ coefficients) for coefficients in self._coefficients]
        self._forecasts = [np.clip(fit, 0.01, 0.99) for fit in fits]
        self.chances = np.average(self._forecasts, axis=0, weights=self._weights)

    def _settle(self, seen: Array) -> None:
        """Judge the forecasts of the questions consumed since the last fit."""
        new = slice(self._consumed, len(seen))
        scores, chances, plain = seen[new], self.chances[new], self._forecasts[0][new]
        self._log_scores += [scores @ np.log(p[new]) + (1 - scores) @ np.log1p(-p[new]) for p in self._forecasts]
        self._squares += [chances @ (1 - chances), ((scores - chances) ** 2).sum(), ((scores - plain) ** 2).sum()]
        self._consumed = len(seen)
        if self._priors:
            self._distance += ((self._controls[new] - scores[:, None]) ** 2).sum(axis=0)
            nearest = int(self._distance.argmin())
            if nearest != self._nearest:
                self._nearest, self._coefficients[-1] = nearest, self._priors[-1][0]

    @property
    def _weights(self) -> Array:
        return np.asarray(softmax(self._log_scores))

    def rest(self, seen: Array) -> float:
        """Expected total of the questions not consumed yet."""
        used = len(seen)
        error = (seen - self.chances[:used]).sum() / (used + 1)
        return float(np.clip(self.chances[used:] + error, 0, 1).sum())

    def shares(self) -> list[float]:
        """Each control's part in the present forecast, by how far its answer alone moves it."""
        shares = np.zeros(len(self._distance))
        for weight, (_, near, easiness) in zip(self._weights[1:], self._coefficients, strict=True):
            effect = np.full(len(shares), 4 * abs(easiness) / (len(shares) + 1))
            effect[self._nearest] += 2.2 * abs(near)
            shares += weight * effect / effect.sum()
        return [float(share) for share in shares]

    def saved(self, used: int) -> int:
        """Questions spared so far: the odds used / (N - used) are in proportion to the variance left unforetold."""
        if not used:
            return 0
        total = len(self.chances)
        without = total * used / (used + (total - used) * float(self._squares[1] / self._squares[2]))
        return round(without - used)


def _logistic(features: Array, scores: Array, mean: Array, sd: Array, start: Array) -> Array:
    """Posterior mode of the coefficients under independent normal priors: Newton's method, three steps from `start`."""
    at = start
    for _ in range(3 if len(scores) else 0):
        p = expit(features @ at)
        slope = features.T @ (scores - p) - (at - mean) / sd**2
        curvature = (features.T * (p * (1 - p))) @ features + np.diag(1 / sd**2)
        at = at + np.clip(np.linalg.solve(curvature, slope), -2, 2)
    return at
