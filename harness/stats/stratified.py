"""An anytime-valid lower bound of the mean of several tasks' means, each task a list of questions of its own.

    test = StratifiedTest([Stratum(order_a), Stratum(order_b)], above=0.65, alpha=0.05)
    test.observe(0, [1, 0, 1])         # the next scores of the first task, along its order
    test.decided_at                    # the question at which "the mean is at most 0.65" was rejected, or None
    test.low                           # a lower bound of the mean at every stopping time, but for a chance of alpha

The mean is (1/T) sum_t c_t / N_t, where c_t is the total of the N_t scores of task t, fixed but unknown. Each task's
questions are revealed along a uniformly random permutation of its own, independent of the others' and of the scores.
An upper bound is the lower bound of 1 - x.

Why it may stop at any time.

1. One task. For any total a, stats/sequential.py bets on task t so that its wealth W_t(a) is a nonnegative
   supermartingale if c_t <= a, whatever the stakes, as long as the past fixes them.
2. All tasks. The past of all tasks also fixes which task is asked next (see "Path"). Given it, each remaining question
   of that task is as likely as any other to come next: the orders are independent. So each answer multiplies
   M(a) = W_1(a_1) ... W_T(a_T) by a factor of mean at most 1 if c_t <= a_t for every t, even where the stakes of one
   task are chosen by the answers of another. A mixture of such products, with weights fixed beforehand, is a
   supermartingale as well.
3. The null hypothesis "the mean is at most B" does not say how it splits over the tasks. Divide the totals of each task
   into cells, [e, e + step), and let M(cells) be the mixture above at the largest total of each task's cell. Under the
   null the truth c lies in some cells whose lower edges have (1/T) sum e_t / N_t <= B, and for those M is a
   supermartingale that starts at 1. The evidence is

       E(B) = min of M(cells) over all cells whose lower edges have a mean of at most B

   which is at most that supermartingale. By Ville's inequality it reaches 1 / alpha with a chance of at most alpha.
   Cells that the scores seen have ruled out are left out of the minimum: the truth is in none of them. Where scores are
   multiples of 1 / K and a task has at most CELLS possible totals, each cell is one total, and nothing is rounded.
4. The minimum is bounded from below, which keeps the evidence valid however rough the bound. With components j of
   prior weight p_j (below), any weights q_j that sum to 1 and any slope l >= 0,

       log sum_j p_j exp(f_j) >= sum_j q_j (f_j + log p_j - log q_j)                    (Jensen)
       min {F(cells): mean of edges <= B} >= min over all cells of (F + l mean of edges) - l B      (Lagrange)

   and the last minimum is the sum of one minimum per task. The best q and l are searched for; a worse one only loses
   evidence. No monotony or convexity in the totals is assumed. With g(l) = the bound without its term - l B, E(B)
   reaches 1 / alpha for every B up to (g(l) - log(1 / alpha)) / l: that gives `low`, and the decision at B = `above`.
   The errors at all B are one event, "E of the true mean reaches 1 / alpha", so test and bound err together.

Path. The next TURN scores are those of the task of which fewest are consumed, the first one of several, until it is
used up. Scores of other tasks wait. This matters: to consume what arrives first would let the speed of replies, which
depends on what they say, choose the path, and the products over all paths have no common bound. The evidence is a
function of the scores along the orders alone, and equal numbers are the best allocation for tasks of equal variance.

Components. Only the growth depends on them.
- "common" stakes, one component for each distance d of the mean from B that is aimed at. Against the hardest split the
  best stakes make M depend on the totals through their mean only, to first order, like a bet on the mean itself. As
  total a_t is a_t / (questions left) per question, that needs s_t in proportion to r_t, the share of the task's
  questions that is left; growth sets the size: s_t = d r_t / T / sum_u (r_u / T)^2 v_u, with v_u the variance per
  question that the forecast leaves.
- "own" stakes of each task, mixed within the task with not betting at all, so that the product is robust where the
  tasks' variances or sizes differ: a task that is used up keeps at least the weight of no bet.

Sources: Spertus and Stark, "Sweeter than SUITE: Supermartingale stratified union-intersection tests of elections"
(2022); Spertus, Sridhar and Stark, "Sequential stratified inference for the mean" (2024); and those of sequential.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from medbench.harness.contracts import MedbenchError
from medbench.harness.stats.forecast import Forecaster
from medbench.harness.stats.sequential import BLOCK, DISTANCES, TOLERANCE, Array, Control, Wealth, column_of

TURN = 8
"""Scores that one task gives at a time; BLOCK is a multiple of it."""
CELLS = 1000
"""Most cells per task, in which its total may lie."""
NO_BET = 0.25
"""Weight of not betting, among a task's own stakes."""
LOG_PRIOR = np.log([*np.full(len(DISTANCES), 0.5 / len(DISTANCES)), 0.5])
"""Of the common stakes, and of the product of the own ones."""
SLOPES = np.logspace(0, 5, 24)
"""Where the search for the slope starts, per unit of the mean."""
NEARBY = np.exp(np.linspace(-0.6, 0.6, 9))
"""Multiples of the last slope that are tried next."""
ROUNDS = 6
"""Of the search for the bound."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """One task's questions."""

    order: Sequence[str]
    """Ids of all its questions."""
    controls: Sequence[Control] = ()
    resolution: int | None = 1
    """Scores are multiples of 1 / resolution; None: any number from 0 to 1."""


class _Part:
    """One task's scores and the bets on them."""

    def __init__(self, stratum: Stratum, tasks: int) -> None:
        total, unit = len(stratum.order), 1 / stratum.resolution if stratum.resolution else 0.0
        columns = [column_of(control, stratum.order) for control in stratum.controls]
        self.forecaster = Forecaster(np.column_stack(columns) if columns else np.empty((total, 0)))
        step = unit * math.ceil(total / unit / CELLS - TOLERANCE) if unit else total / CELLS
        self._edges = np.arange(math.floor(total / step + TOLERANCE) + 1, dtype=np.float64) * step
        self._needs = self._edges + step
        self.wealth = Wealth(total, self._needs, unit, (True, False), len(DISTANCES))
        self.total, self.scores = total, np.empty(0)
        self.resolution, self._scale = stratum.resolution, 1 / (total * tasks)
        self._forecast_of = -1

    @property
    def consumed(self) -> int:
        return self.total - self.wealth.remaining

    @property
    def left(self) -> float:
        """Share of the questions that is not consumed."""
        return self.wealth.remaining / self.total

    def forecast(self) -> float:
        """Variance per question that is left, as expected after the last whole block."""
        at = self.consumed - self.consumed % BLOCK
        if at > self._forecast_of:
            self.forecaster.fit(self.scores[:at])
            self._forecast_of = at
        rest = self.forecaster.chances[self.consumed :]
        return max(0.01, float(np.mean(rest * (1 - rest))) * self._spread) if len(rest) else 0.0

    @property
    def _spread(self) -> float:
        return 1.0 if self.resolution == 1 else self.forecaster.spread

    def consume(self, stop: int, common: Array) -> None:
        self.wealth.plan(self.forecaster.chances, self._spread, common)
        self.wealth.bet(self.scores[self.consumed : stop])

    def live(self) -> tuple[Array, Array]:
        """(what each possible cell's lower edge adds to the mean, its log wealth: cells x components)."""
        live = (self._edges <= self.wealth.most + TOLERANCE) & (self._needs > self.wealth.total_seen + TOLERANCE)
        common, own = self.wealth.log_wealth[live, len(DISTANCES) :], self.wealth.log_wealth[live, : len(DISTANCES)]
        bet = np.logaddexp.reduce(own, axis=1) + math.log((1 - NO_BET) / len(DISTANCES))
        return self._edges[live] * self._scale, np.column_stack([common, np.logaddexp(bet, math.log(NO_BET))])

    @property
    def estimate(self) -> float:
        """Of the mean of all its scores."""
        return float(self.scores.sum() + self.forecaster.rest(self.scores)) / self.total


class StratifiedTest:
    """Deterministic; how the scores are split over calls of observe(), and which task's come first, changes nothing."""

    def __init__(self, strata: Sequence[Stratum], *, above: float, alpha: float) -> None:
        """`above`: what the mean is shown to exceed; `alpha`: the chance that this is shown wrongly."""
        if not strata or any(not one.order for one in strata):
            raise MedbenchError("a test of a mean needs at least one task, and at least one question of each")
        if not 0 < alpha < 1:
            raise MedbenchError(f"alpha must lie between 0 and 1, not {alpha}")
        self._parts = [_Part(one, len(strata)) for one in strata]
        self._above, self.needed = above, math.log(1 / alpha)
        self._path = path([part.total for part in self._parts])
        self._next = next(self._path, None)
        self._weights, self._slope = np.exp(LOG_PRIOR), float(SLOPES[len(SLOPES) // 2])
        self.log_e, self._rejected = 0.0, -math.inf
        self.decided_at: int | None = None
        self._decide()

    def observe(self, stratum: int, scores: Sequence[float]) -> None:
        """Take the next scores of one task along its order."""
        part, new = self._parts[stratum], np.asarray(scores, dtype=float)
        if new.ndim != 1 or not np.all((new >= 0) & (new <= 1)):
            raise MedbenchError("scores must be a plain list of numbers from 0 to 1")
        if part.resolution and np.any(np.abs(new * part.resolution - np.round(new * part.resolution)) > 1e-6):
            raise MedbenchError(f"scores must be multiples of 1/{part.resolution}: set resolution to None for others")
        if len(part.scores) + len(new) > part.total:
            raise MedbenchError(f"{len(part.scores) + len(new)} scores for {part.total} questions")
        part.scores = np.concatenate([part.scores, new])
        while self._next is not None and len(self._parts[self._next[0]].scores) >= self._next[1]:
            self._take(*self._next)
            self._next = next(self._path, None)

    @property
    def consumed(self) -> int:
        """Scores that the evidence is from, of all tasks."""
        return sum(part.consumed for part in self._parts)

    @property
    def low(self) -> float:
        """The mean is at least this at every stopping time, but for a chance of alpha."""
        return max(self._rejected, self._seen)

    @property
    def started(self) -> bool:
        """Whether there is a score of every task."""
        return all(len(part.scores) for part in self._parts)

    @property
    def certain(self) -> bool:
        """Whether the scores seen exceed `above`, whatever the others are."""
        return math.fsum(part.scores.sum() / part.total for part in self._parts) / len(self._parts) > self._above

    @property
    def estimate(self) -> float:
        """Of the mean."""
        return math.fsum(part.estimate for part in self._parts) / len(self._parts)

    @property
    def saved(self) -> int:
        """Questions saved by control variates so far, as in sequential.Evidence."""
        return sum(part.forecaster.saved(part.consumed) for part in self._parts)

    def _take(self, stratum: int, stop: int) -> None:
        tasks, part = len(self._parts), self._parts[stratum]
        variance = math.fsum(one.forecast() * one.left**2 for one in self._parts) / tasks**2
        distances = DISTANCES * math.sqrt(math.fsum(1 / one.total for one in self._parts)) / tasks
        part.consume(stop, distances * part.left / tasks / variance)
        self._decide()

    def _decide(self) -> None:
        self.log_e = self._bound()
        if self._seen > self._above:
            self.log_e = math.inf
        if self.log_e >= self.needed:
            self._rejected = max(self._rejected, self._above)
        if self.decided_at is None and self._rejected >= self._above:
            self.decided_at = self.consumed

    @property
    def _seen(self) -> float:
        """The mean, if every score that is not consumed were 0."""
        return math.fsum(part.wealth.total_seen / part.total for part in self._parts) / len(self._parts)

    def _bound(self) -> float:
        """Log evidence against "the mean is at most `above`"; raises what is rejected by the way."""
        live = [part.live() for part in self._parts]
        weights, slopes, best = self._weights, np.concatenate([SLOPES, self._slope * NEARBY]), -math.inf
        visited = np.zeros(len(LOG_PRIOR))
        for past in range(1, ROUNDS + 1):
            known = weights > 0
            values = np.full(len(slopes), weights[known] @ (LOG_PRIOR[known] - np.log(weights[known])))
            cells = []
            for edges, wealth in live:
                each = wealth @ weights + slopes[:, None] * edges
                cells.append(each.argmin(axis=1))
                values += each.min(axis=1)
            found = values - slopes * self._above
            at = int(found.argmax())
            if found[at] > best:
                best, self._weights = float(found[at]), weights
            self._rejected = max(self._rejected, float(((values - self.needed) / slopes).max()))
            self._slope = float(slopes[at])
            # the weights that are best against the cells that were worst for those so far
            visited += LOG_PRIOR + sum(wealth[cell[at]] for (_, wealth), cell in zip(live, cells, strict=True))
            weights, slopes = np.asarray(softmax(visited / past)), self._slope * NEARBY
        return best


def path(totals: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(task, how many of its scores are consumed then), turn by turn until all are: fewest consumed first."""
    consumed = [0] * len(totals)
    while open_ := [task for task, total in enumerate(totals) if consumed[task] < total]:
        task = min(open_, key=lambda one: consumed[one])
        consumed[task] = min(totals[task], consumed[task] + TURN)
        yield task, consumed[task]


def positions(totals: Sequence[int], scores: float) -> list[int]:
    """How many scores of each task are consumed along the path when at least so many are of all tasks."""
    reached = [0] * len(totals)
    for task, stop in path(totals):
        if sum(reached) >= scores:
            break
        reached[task] = stop
    return reached
