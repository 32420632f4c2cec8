"""The test of seconds per question."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medbench.harness.contracts import Sample
from medbench.harness.gates import wording
from medbench.harness.gates.gate_test import Outlook
from medbench.harness.gates.rules import Gate
from medbench.harness.gates.token_limits import Reply
from medbench.harness.gates.verdict import GateResult, Status, gate_result

SETTLED = 64
"""Questions before which a pace is not judged: the first ones include the engine's warm-up."""


@dataclass(slots=True)
class PaceTest:
    """Seconds per question, measured over all tasks of the run; nothing is inferred."""

    gate: Gate
    total: int
    """Questions of all tasks."""
    samples: int = 1
    """Of each question."""
    used: int = 0
    seconds: float = 0.0

    hopeless = False
    provisional = True

    @property
    def tasks(self) -> Collection[str]:
        return (self.gate.task,)

    def observe(self, task: str, samples: Sequence[Sample], seconds: float) -> None:
        self.used += len(samples) // self.samples
        self.seconds = seconds

    def observe_within(self, task: str, limit: int, replies: Sequence[Reply]) -> None:
        """It needs whole replies."""

    def outlook(self, task: str) -> Outlook:
        return Outlook(max(0, SETTLED - self.used) / self.used) if self.used else Outlook()

    def result(self) -> GateResult:
        status: Status = "undecided"
        pace = self.seconds / self.used if self.used else None
        if pace is not None and self.used >= min(SETTLED, self.total):
            within = pace <= self.gate.threshold if self.gate.less_is_better else pace >= self.gate.threshold
            status = "pass" if within else "fail"
        return gate_result(
            self.gate,
            status=status,
            estimate=pace,
            interval=None,
            used=self.used,
            total=self.total,
            why=wording.of_pace(self.gate, status, pace, self.used),
        )
