"""An anytime-valid test of a checkpoint's mean score over a fixed list of questions, sharpened by control runs.

    test = SequentialTest(order, at_least=0.80, alpha_pass=0.05, alpha_fail=0.05, controls=[Control("base", scores)])
    test.observe([1, 0, 1])            # the next questions along the order
    test.evidence().decision           # "pass", "fail" or None

What is decided is the census: whether the mean of the N scores x_i in [0, 1], fixed but unknown, is at least
`at_least`. Non-inferiority to a baseline whose every score is known is the same test with
at_least = mean(baseline) - margin, and superiority is at_least = mean(baseline) + margin with strict=True. A control
run never changes what is decided, only how soon. Questions are revealed along a uniformly random permutation, drawn
independently of the checkpoint and of the controls: a fresh one for each attempt, and no control made from a run that
was itself stopped early along it (where its scores end would tell the order).

Why it may stop at any time. Before question t is answered, the past fixes a number n_i for each of the remaining
questions and a stake s >= 0. The n_i are shifted by a common amount until their mean over the remaining questions is
mu = (B - sum so far) / (questions remaining), B being the largest total that the null allows. Each remaining question
is as likely as any other to come next, so the answer changes the wealth by a factor 1 + s (x_i - n_i) of mean
1 + s (mean of the remaining x - mu), which is at most 1 under "the total is at most B". As s is held below
1 / max n_i, the factor is positive: the wealth is a nonnegative supermartingale under the null whatever the n_i and s,
so the chance that it ever reaches 1 / alpha is at most alpha (Ville). A fixed mixture of such wealths is one as well.
The other side bets that x is low, against "the total is at least B". Where a null has become impossible its wealth
is infinite, which is exact curtailment.

Versions. Where scores become known late, the same questions may be given in several versions, each a fixed number per
question that is at most the true score (for the pass side; at least, for the fail side), and known earlier the worse
it bounds. If the true total obeys the null, so does each version's, so each has its own wealth, planned from its own
scores of earlier positions, and each is a supermartingale over the common past (the full scores of earlier questions).
So is their mixture at equal positions, with weights fixed beforehand that sum to 1. Where not every version has come as
far as position q yet, the terms of those that have are at most the whole mixture at q: the test decides when they reach
1 / alpha, whichever came first, and errs only if the mixture itself ever does, which has a chance of at most alpha.

Only the growth of the wealth depends on n_i and s. n_i is a logistic forecast of x_i from the controls, fitted on the
questions already consumed and moved on the logit scale onto the null; the factor is then the likelihood ratio of a
chance n + s n (1 - n) to n, the log-optimal bet if those are the chances. Without controls n_i = mu, and the wealth is
the hypergeometric likelihood ratio of a larger total to B, but for a stake that is held within a block and bounded. s
aims at a distance of the mean from the null; four are mixed.

Sources: Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement" (2020) and "Estimating means
of bounded random variables by betting" (2024); Stark, "ALPHA: audit that learns from previously hand-audited ballots"
(2023); Waudby-Smith, Stark and Ramdas, "RiLACS: risk-limiting audits via confidence sequences" (2021).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from medbench.harness.contracts import MedbenchError
from medbench.harness.stats.forecast import Forecaster

Array = npt.NDArray[np.float64]
Side = Literal["pass", "fail"]

BLOCK = 16
"""Questions between two fits. Counted from the first question, so how scores are handed over changes nothing."""
DISTANCES = 0.6 * 2.0 ** np.arange(4)
"""Distances of the mean from the null that are betted on, in units of 1 / sqrt(N)."""
BOLDEST = 0.7
"""The most of the wealth that one answer may cost."""
GRID = 101
"""Thresholds that the interval is made from."""
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Control:
    """A stored run on the same questions, or the mean of several."""

    name: str
    scores: Mapping[str, float]
    """question id -> 0..1, for every question of the order."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the questions consumed so far say about the mean over all of them."""

    used: int
    total: int
    estimate: float
    """Of the mean over all questions: what was seen, and the forecast for the rest moved by its past error."""
    interval: tuple[float, float]
    """Holds the mean over all questions at every stopping time, but for a chance of alpha_pass + alpha_fail."""
    log_e_pass: float
    """Natural logarithm of the evidence against "below the threshold"; inf when that has become impossible."""
    log_e_fail: float
    decision: Side | None
    """Taken at the first question at which either side's evidence suffices; exact once the rest cannot change it."""
    decided_at: int | None
    """How many questions that took, at most `used`."""
    version: int
    """Of the scores, which the estimate is from: see SequentialTest.weights. -1 is the last, the true ones."""
    certain: bool
    """Whether the rest cannot change the decision."""
    controls: Mapping[str, float]
    """Control -> its share in the present forecast; what is missing to 1 goes to no control."""
    saved: int
    """Questions saved by control variates so far, estimated from how much of the scores' variance they explain."""


class _Version:
    """The bets on one version of the scores."""

    def __init__(self, controls: Array, wealth: Wealth, resolution: int | None) -> None:
        self.forecaster, self.wealth, self._resolution = Forecaster(controls), wealth, resolution
        self.seen = np.empty(0)

    def observe(self, new: Array) -> Array:
        """Log e-values after each of the new scores, questions x sides."""
        start, paths = len(self.seen), []
        self.seen = np.concatenate([self.seen, new])
        while start < len(self.seen):
            if start % BLOCK == 0:
                self.forecaster.fit(self.seen[:start])
                self.wealth.plan(self.forecaster.chances, 1.0 if self._resolution == 1 else self.forecaster.spread)
            stop = min(len(self.seen), start - start % BLOCK + BLOCK)
            paths.append(self.wealth.observe(self.seen[start:stop]))
            start = stop
        return np.concatenate(paths)

    @property
    def estimate(self) -> float:
        """Of the total."""
        return float(self.wealth.total_seen + self.forecaster.rest(self.seen))


class SequentialTest:
    """Deterministic; how the scores are split over calls of observe() changes nothing.

    `resolution` is the number of samples behind each score: scores are multiples of 1 / resolution, which makes the
    test exact on that lattice. None allows any score in [0, 1].
    `weights` are those of the versions of the scores, the true scores last. With versions the test has one side, and
    the other's alpha is None.
    """

    def __init__(
        self,
        order: Sequence[str],
        *,
        at_least: float,
        strict: bool = False,
        alpha_pass: float | None,
        alpha_fail: float | None,
        controls: Sequence[Control] = (),
        resolution: int | None = 1,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        if not order or len(set(order)) < len(order):
            raise MedbenchError("a sequential test needs at least one question, and each question once")
        if not math.isfinite(at_least):
            raise MedbenchError(f"at_least must be a finite number, not {at_least}")
        for name, alpha in (("alpha_pass", alpha_pass), ("alpha_fail", alpha_fail)):
            if alpha is not None and not 0 < alpha < 1:
                raise MedbenchError(f"{name} must lie between 0 and 1, not {alpha}")
        levels = [alpha for alpha in (alpha_pass, alpha_fail) if alpha is not None]
        if not levels or (len(weights) > 1 and len(levels) > 1):
            raise MedbenchError("a test has alpha_pass, alpha_fail or both; one of them with versions of the scores")
        if resolution is not None and resolution < 1:
            raise MedbenchError(f"resolution must be at least 1 sample per question or None, not {resolution}")
        if len({control.name for control in controls}) < len(controls):
            raise MedbenchError("two controls have the same name: give each its own")
        self._names = [control.name for control in controls]
        self._resolution = resolution
        total = len(order)
        unit = 1 / resolution if resolution else 0.0
        need = lowest_total(total * at_least, unit, strict)
        steps = np.linspace(0, total, GRID)
        grid = np.unique(np.ceil(steps / unit - TOLERANCE) * unit) if unit else steps
        columns = [column_of(control, order) for control in controls]
        matrix = np.column_stack(columns) if columns else np.empty((total, 0))
        needs, sides = np.concatenate([[need], grid]), (alpha_pass is not None, alpha_fail is not None)
        self._versions = [_Version(matrix, Wealth(total, needs, unit, sides), resolution) for _ in weights]
        self._log_weights = np.log(weights)
        self._total, self._needs, self._unit = total, needs, unit
        names: tuple[Side, Side] = ("pass", "fail")
        self._side = {name: i * len(needs) for i, name in enumerate(itertools.compress(names, sides))}
        self._needed = np.log(1 / np.repeat(levels, len(needs)))
        self._log_e = np.full((total + 1, len(self._needed)), -np.inf)
        """Of the versions that have come so far, by position."""
        self._log_e[0] = self._best = self._versions[0].wealth.log_e
        self._first: tuple[Side, int] | None = None
        self._latch(self._log_e[:1], 0)

    def observe(self, scores: Sequence[float], version: int = -1) -> None:
        """Take the scores of the next questions along the order, in one of their versions."""
        new = np.asarray(scores, dtype=float)
        found = self._versions[version]
        start = len(found.seen)
        if new.ndim != 1 or not np.all((new >= 0) & (new <= 1)):
            raise MedbenchError("scores must be a plain list of numbers from 0 to 1")
        if self._resolution and np.any(np.abs(new * self._resolution - np.round(new * self._resolution)) > 1e-6):
            raise MedbenchError(f"scores must be multiples of 1/{self._resolution}: set resolution to None for others")
        if start + len(new) > self._total:
            raise MedbenchError(f"{start + len(new)} scores for {self._total} questions")
        if len(new):
            mixed = self._log_e[start + 1 : start + 1 + len(new)]
            np.logaddexp(mixed, self._log_weights[version] + found.observe(new), out=mixed)
            self._best = np.maximum(self._best, mixed.max(axis=0))
            self._latch(mixed, start + 1)

    def _latch(self, path: Array, number: int) -> None:
        """Keep the first decision along the log e-values after question `number`, the next one, and so on."""
        if self._first is None:
            columns = list(self._side.values())
            excess = path[:, columns] - self._needed[columns]
            crossed = np.flatnonzero(excess.max(axis=1) >= 0)
            if len(crossed):
                row = int(crossed[0])
                self._first = (list(self._side)[int(excess[row].argmax())], number + row)

    def estimate(self, version: int = -1) -> float:
        """Of the mean of a version of the scores over all questions."""
        return self._versions[version].estimate / self._total

    def evidence(self) -> Evidence:
        decision, decided_at = self._first or (None, None)
        # the version of most information among those that came as far as the decision
        far = decided_at or min(1, max(len(one.seen) for one in self._versions))
        version = next(at for at in range(-1, -1 - len(self._versions), -1) if len(self._versions[at].seen) >= far)
        lead = self._versions[version]
        wealth, used = lead.wealth, max(decided_at or 0, len(self._versions[-1].seen))
        low = max(one.wealth.total_seen for one in self._versions) if "pass" in self._side else 0.0
        high = min(one.wealth.most for one in self._versions) if "fail" in self._side else float(self._total)
        certain: Side | None = None
        if low >= self._needs[0] - TOLERANCE:
            certain = "pass"
        elif high < self._needs[0] - TOLERANCE:
            certain = "fail"
        if wealth.remaining:
            rejected = self._best >= self._needed
            if (at := self._side.get("pass")) is not None:
                low = max(low, self._needs[rejected[at : at + len(self._needs)]].max(initial=0.0))
            if (at := self._side.get("fail")) is not None:
                above = self._needs[rejected[at : at + len(self._needs)]].min(initial=math.inf)
                high = min(high, above - self._unit)
            low, high = min(low, high), max(low, high)
        log_e = {name: float(self._log_e[used, at]) for name, at in self._side.items()}
        return Evidence(
            used=used,
            total=self._total,
            estimate=min(max(self.estimate(version), low / self._total), high / self._total),
            interval=(float(low) / self._total, float(high) / self._total),
            log_e_pass=log_e.get("pass", 0.0),
            log_e_fail=log_e.get("fail", 0.0),
            decision=certain or decision,
            decided_at=decided_at,
            version=version,
            certain=certain is not None,
            controls=dict(zip(self._names, lead.forecaster.shares(), strict=True)),
            saved=lead.forecaster.saved(len(lead.seen)),
        )


def lowest_total(threshold: float, unit: float, strict: bool) -> float:
    """The smallest total of scores that passes, on the lattice of multiples of `unit` (0: any real number).

    Off the lattice it is off by a tolerance, so that a total that was added up in another order says the same.
    """
    if not unit:
        return threshold + 2 * TOLERANCE if strict else threshold - TOLERANCE
    steps = threshold / unit
    return unit * (math.floor(steps + TOLERANCE) + 1 if strict else math.ceil(steps - TOLERANCE))


def column_of(control: Control, order: Sequence[str]) -> Array:
    """Its scores along the order. Raises MedbenchError where one is missing or outside 0..1."""
    try:
        scores = np.array([control.scores[id] for id in order], dtype=float)
    except KeyError as missing:
        raise MedbenchError(f"control {control.name!r} has no score for question {missing}") from None
    if not np.all((scores >= 0) & (scores <= 1)):
        raise MedbenchError(f"control {control.name!r} has a score outside 0..1")
    return scores


class Wealth:
    """Log e-values of one or both sides of many thresholds at once, along one run: first all pass sides, then all fail
    sides.

    The pass side of a threshold speaks against "the total is below it", the fail side against "at least it".
    """

    def __init__(
        self, total: int, needs: Array, unit: float, sides: tuple[bool, bool] = (True, True), given: int = 0
    ) -> None:
        """`needs` are totals from lowest_total(); `unit` is what scores are multiples of, or 0; `sides`: pass, fail.

        `given` is the number of stakes that plan() is given beside its own.
        """
        self.total, self.needs, self.unit = total, np.asarray(needs, dtype=float), unit
        self.remaining, self.total_seen = total, 0.0
        self._kept = np.repeat(sides, len(self.needs))
        self._bounds = np.concatenate([self.needs - unit, self.needs])[self._kept]
        self._signs = np.repeat([1.0, -1.0], len(self.needs))[self._kept]
        self._shift = np.zeros(len(self._bounds))
        self.log_wealth = np.zeros((len(self._bounds), len(DISTANCES) + given))
        """Of each stake alone: thresholds and sides x stakes."""
        self.log_e = self._curtailed(np.zeros((1, len(self._bounds))), np.zeros(1), np.array([total]))[0]

    @property
    def most(self) -> float:
        """The largest total that is still possible."""
        return self.total_seen + self.remaining

    def plan(self, chances: Array, spread: float = 1.0, given: Array | None = None) -> None:
        """Set the bets for the next BLOCK questions from each question's forecast, consumed ones included.

        `given` are more stakes, the same ones for every threshold.
        """
        first, left = self.total - self.remaining, self.remaining
        levels, group = np.unique(np.round(2 * logit(chances)) / 2, return_inverse=True)
        counts = np.bincount(group[first:], minlength=len(levels)).astype(float)
        mean = np.clip((self._bounds - self.total_seen) / left, 1e-6, 1 - 1e-6)
        for _ in range(5):  # Newton, on the logit scale of the mean
            null = expit(levels + self._shift[:, None])
            now = np.clip(null @ counts / left, TOLERANCE, 1 - TOLERANCE)
            variance = np.maximum((null * (1 - null)) @ counts / left, TOLERANCE)
            self._shift += np.clip((logit(mean) - logit(now)) * now * (1 - now) / variance, -3, 3)
        live = null[:, counts > 0]
        self._reach = np.where(self._signs > 0, live.max(axis=1), 1 - live.min(axis=1))
        self._stakes = DISTANCES * math.sqrt(self.total) / left / (variance * spread)[:, None]
        if given is not None:
            self._stakes = np.column_stack([self._stakes, np.tile(given, (len(self._bounds), 1))])
        # for each question of the block, its null and the total of the nulls from it on
        self._block = null[:, group[first : first + BLOCK]]
        self._totals = (null @ counts)[:, None] - np.cumsum(self._block, axis=1) + self._block
        self._next = 0

    def observe(self, scores: Array) -> Array:
        """Consume scores within one plan; log e-values after each, questions x sides."""
        left, sums = self.remaining - np.arange(1, len(scores) + 1), np.cumsum([self.total_seen, *scores])[1:]
        path = self.bet(scores)
        log_e = np.logaddexp.reduce(path, axis=2).T - math.log(path.shape[2])
        log_e = self._curtailed(log_e, sums, left)
        self.log_e = log_e[-1]
        return log_e

    def bet(self, scores: Array) -> Array:
        """The same, without the mixture: log wealth of each stake after each score, sides x questions x stakes.

        `log_e` stays as it was.
        """
        ahead = slice(self._next, self._next + len(scores))
        left = self.remaining - np.arange(len(scores))
        sums = np.cumsum([self.total_seen, *scores])
        # the nulls are moved so that before each question their mean over what remains is that of the bound
        move = (self._bounds[:, None] - sums[:-1] - self._totals[:, ahead]) / left
        most = BOLDEST / np.maximum(self._reach[:, None] + self._signs[:, None] * move, TOLERANCE)
        surprise = self._signs[:, None] * (scores - self._block[:, ahead] - move)
        steps = np.log1p(np.minimum(self._stakes[:, None], most[:, :, None]) * surprise[:, :, None])
        path = np.cumsum(np.concatenate([self.log_wealth[:, None], steps], axis=1), axis=1)[:, 1:]
        self.log_wealth = path[:, -1]
        self._next += len(scores)
        self.total_seen, self.remaining = float(sums[-1]), self.remaining - len(scores)
        return path

    def _curtailed(self, log_e: Array, sums: Array, left: npt.NDArray[np.int64]) -> Array:
        passed = sums[:, None] >= self.needs - TOLERANCE
        failed = (sums + left)[:, None] < self.needs - TOLERANCE
        return np.where(np.column_stack([passed, failed])[:, self._kept], np.inf, log_e)
