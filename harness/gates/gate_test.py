"""What a gate's test is: it takes answers along the fixed order and says at any time what they show.

Family error. The verdict passes only when every gate passes, so a wrong pass needs a truly failing gate that passes:
each gate may spend the whole alpha on its pass side (intersection-union test, Berger 1982). The verdict fails when any
gate fails, so the fail sides share alpha by Bonferroni.

- census.CensusTest: about this benchmark's questions; sequential, and exact once all are answered
- population.PopulationTest: about new questions of the same kind; a single look
- task_mean.MeanTest: the mean of several tasks, as the census; population_mean.PopulationMeanTest: as the population
- pace.PaceTest: seconds per question
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from medbench.harness.contracts import Sample
from medbench.harness.gates.token_limits import Reply
from medbench.harness.gates.verdict import GateResult

ROUNDING = 1e-12
"""Error per addend of a sum of shares: a mean this close to its threshold is taken to be the threshold."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a gate's decision needs at the evidence's present pace."""

    more: float = math.inf
    """Further answers of a task, as a multiple of its answers so far; infinite where unknown."""
    fails: bool = False
    """Whether the decision would be a fail."""


class GateTest(Protocol):
    """One gate's test while answers come in. No engine, no clock, no files."""

    @property
    def tasks(self) -> Collection[str]:
        """The tasks whose answers can decide it."""

    @property
    def hopeless(self) -> bool:
        """Whether it will not become gateable, whatever else is answered."""

    @property
    def provisional(self) -> bool:
        """Whether its decision can still change with further answers."""

    def observe(self, task: str, samples: Sequence[Sample], seconds: float) -> None:
        """Take the next answers of any task, in that task's order.

        `seconds`: time that all answers so far took, of all tasks, these included.
        """

    def observe_within(self, task: str, limit: int, replies: Sequence[Reply]) -> None:
        """Take the next replies of any task, in that task's order, as far as they are known within `limit` tokens."""

    def result(self) -> GateResult:
        """What the answers so far show."""

    def outlook(self, task: str) -> Outlook:
        """What a decision likely needs of a task, of which there is an answer."""


def finite(value: float) -> float:
    """JSON has no infinity: evidence against an impossible hypothesis is stored as 1e9 nats."""
    return max(-1e9, min(1e9, value))
