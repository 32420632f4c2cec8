"""The rule by which cells are compared and dropped: successive halving, where evidence decides instead of a quota.

    rule = Halving(["a", "b"], order, alpha=0.05)
    rule.observe({"a": [1, 0, ...], "b": [1, 1, ...]})      # the next questions of the order, for each that is left
    rule.left, rule.dropped

All cells are asked the same questions in one order, a uniformly random permutation of the task's N questions that is
drawn after every cell's checkpoint is fixed, so independently of all their answers. After rounds of 32, 64, 128, ...
questions those cells are dropped, and asked nothing more, that are shown to be worse than another one that was left
when the round began.

What a drop needs. For two cells i and j let z be (1 + x_i - x_j) / 2 at each question, a fixed number in [0, 1]. "i is
at least as good as j on all N questions" says that the mean of z is at least 1/2. That is the null hypothesis of the
fail side of stats.sequential.SequentialTest with at_least = 1/2 (z is a multiple of 1 / (2 s) with s samples a
question), which is the paired test behind the gates: its wealth is a nonnegative supermartingale under the null, so the
chance that it ever reaches 1 / a is at most a (Ville), whenever it is looked at. i is dropped for j when it reaches
(K - 1) / alpha, K being the number of cells that entered, or when the questions that are left cannot change who is
ahead, which is exact.

Why the best cell is dropped with probability at most alpha. Let b be a cell with the highest mean on all N questions
(any, if several are). For each of the K - 1 others, "b is at least as good" is true, so the test of b against it ever
rejects with probability at most alpha / (K - 1); exact decisions never reject what is true. b is dropped only if one of
these K - 1 tests has rejected: by the union bound at most alpha, whatever the answers' dependence among cells, in
whatever rounds and against whomever b is tested, and whichever others were dropped before. Hence alpha is divided by
K - 1 and not by the K (K - 1) pairs: no test between two other cells can drop b. It follows too that with probability
at least 1 - alpha a best cell is among those left at the end.

What it does not say. It is about these N questions; the interval that is shown for new questions is another matter. A
cell that is left is not shown to be as good as the best. Failed requests count for the cell that would be dropped and
against the other, so they can only delay a drop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medbench.harness.stats.sequential import Evidence, SequentialTest

FIRST_ROUND = 32
"""Questions."""
ROUNDING = 1e-9
Score = float | None
"""Of a question: a share from 0 to 1, None where a request failed."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a cell was dropped."""

    cell: str
    by: str
    """The cell that it is shown to be worse than."""
    after: int
    """Questions, along the order, that it took."""
    exact: bool
    """Whether no answers to the other questions could have changed it."""
    log_e: float
    """Natural logarithm of the evidence; what it needs is log((K - 1) / alpha). Infinite where it is exact."""


@dataclass(slots=True)
class Halving:
    """Pure: no engine, no clock, no files. The same answers give the same drops."""

    cells: Sequence[str]
    """Those that enter."""
    order: Sequence[str]
    """Ids of all N questions."""
    alpha: float = 0.05
    samples: int = 1
    """Replies to a question, of which the mean is its score."""
    dropped: list[Drop] = field(default_factory=list)
    scores: dict[str, list[Score]] = field(init=False)

    def __post_init__(self) -> None:
        self.scores = {cell: [] for cell in self.cells}

    @property
    def alpha_each(self) -> float:
        """What the test of one cell against another may spend."""
        return self.alpha / max(1, len(self.cells) - 1)

    @property
    def left(self) -> list[str]:
        """In the order in which they entered."""
        gone = {drop.cell for drop in self.dropped}
        return [cell for cell in self.cells if cell not in gone]

    def observe(self, new: Mapping[str, Sequence[Score]]) -> list[Drop]:
        """End a round: the scores of the next questions of the order, as many for each cell that is left. Returns who
        is dropped. Raises ValueError for other cells or another number."""
        left = self.left
        if set(new) != set(left) or len({len(scores) for scores in new.values()}) > 1:
            raise ValueError("a round has the same questions for all cells that are left, and for no others")
        for cell in left:
            self.scores[cell] += new[cell]
        ranked = sorted(left, key=lambda cell: -total(self.scores[cell]))  # who is ahead most likely drops others
        found = [drop for cell in left if (drop := self._drop_of(cell, ranked)) is not None]
        self.dropped += found
        return found

    def _drop_of(self, cell: str, ranked: Sequence[str]) -> Drop | None:
        own = self.scores[cell]
        for other in ranked:
            if other == cell or total(self.scores[other], failed=0.0) <= total(own, failed=1.0):
                continue  # no evidence against one that is not behind
            shares = [_share(x, y) for x, y in zip(own, self.scores[other], strict=True)]
            evidence = self._tested(shares)
            if evidence.decision == "fail":
                after = evidence.decided_at or evidence.used
                rest = len(self.order) - after
                exact = 2 * (math.fsum(shares[:after]) + rest) < len(self.order) - ROUNDING
                return Drop(cell, other, after, exact, self._tested(shares[:after]).log_e_fail)
        return None

    def _tested(self, shares: Sequence[float]) -> Evidence:
        test = SequentialTest(
            self.order, at_least=0.5, alpha_pass=None, alpha_fail=self.alpha_each, resolution=2 * self.samples
        )
        test.observe(shares)
        return test.evidence()


def total(scores: Sequence[Score], failed: float = 0.0) -> float:
    """The sum; `failed`: what a failed request counts."""
    return math.fsum(failed if one is None else one for one in scores)


def rounds(questions: int) -> list[int]:
    """After how many questions of each cell the rounds end, at most `questions`."""
    ends = []
    end = FIRST_ROUND
    while end < questions:
        ends.append(end)
        end *= 2
    return [*ends, questions]


def _share(x: Score, y: Score) -> float:
    """(1 + x - y) / 2, the highest that it may be where one is not known."""
    return (1 + (1.0 if x is None else x) - (0.0 if y is None else y)) / 2
