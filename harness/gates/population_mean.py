"""The mean of several tasks, each task with the same weight, about new questions of the same kinds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medbench.harness.contracts import Sample
from medbench.harness.gates import wording
from medbench.harness.gates.gate_test import ROUNDING, Outlook
from medbench.harness.gates.population import PopulationTest
from medbench.harness.gates.rules import Gate
from medbench.harness.gates.token_limits import Reply
from medbench.harness.gates.verdict import GateResult, Status, gate_result


@dataclass(slots=True)
class PopulationMeanTest:
    """The mean of the tasks' estimates, between the means of their bounds.

    The bounds hold for all tasks at once if each task's test has its level divided by the number of tasks.
    """

    gate: Gate
    by_task: Mapping[str, PopulationTest]
    """One test of the same rule per task."""

    provisional = False

    @property
    def tasks(self) -> Collection[str]:
        return self.by_task.keys()

    @property
    def hopeless(self) -> bool:
        return any(test.hopeless for test in self.by_task.values())

    def observe(self, task: str, samples: Sequence[Sample], seconds: float = 0.0) -> None:
        self.by_task[task].observe(task, samples, seconds)

    def observe_within(self, task: str, limit: int, replies: Sequence[Reply]) -> None:
        """It needs whole replies."""

    def outlook(self, task: str) -> Outlook:
        return Outlook()

    def result(self) -> GateResult:
        results = [test.result() for test in self.by_task.values()]
        faults = [f"{one.task}: {one.why}" for one in results if one.status == "not gateable"]
        if faults:
            return self._result(results, "not gateable", None, None, "; ".join(faults))
        ends = [one.interval for one in results if one.interval is not None]
        low, high = (math.fsum(side) / len(results) for side in zip(*ends, strict=True))
        worst, best = (high, low) if self.gate.less_is_better else (low, high)
        status: Status = "pass" if reaches(self.gate, worst) else "undecided" if reaches(self.gate, best) else "fail"
        known = [one.estimate for one in results if one.estimate is not None]
        estimate = math.fsum(known) / len(known) if len(known) == len(results) else None
        used, total = sum(one.used for one in results), sum(one.total for one in results)
        tasks = list(self.by_task)
        noise = mean_noise([one.sampling_noise for one in results])
        sampled = wording.Sampled(next(iter(self.by_task.values())).answers.per_question, noise)
        why = wording.of_mean(self.gate, status, estimate, estimate, (low, high), None, tasks, used, total, sampled)
        return self._result(results, status, estimate, (low, high), why, observed=estimate, sampling_noise=noise)

    def _result(
        self,
        results: Sequence[GateResult],
        status: Status,
        estimate: float | None,
        interval: tuple[float, float] | None,
        why: str,
        **more: Any,
    ) -> GateResult:
        if interval is not None and all(one.interval_level for one in results):
            more["interval_level"] = wording.level(*(1 - one.interval_level for one in results if one.interval_level))
            more["interval_kind"] = "population"
        return gate_result(
            self.gate,
            status=status,
            estimate=estimate,
            interval=interval,
            used=sum(one.used for one in results),
            total=sum(one.total for one in results),
            why=why,
            **more,
        )


def reaches(gate: Gate, mean: float) -> bool:
    """Whether a mean of the tasks' metrics, or of their differences to the baseline's, is what the gate asks for."""
    above = mean - gate.threshold
    if gate.less_is_better:
        above = -above
    return above > ROUNDING if gate.strict else above >= -ROUNDING


def mean_noise(tasks: Sequence[float | None]) -> float | None:
    """Sampling noise of the mean, from that of each task; None where one is not known."""
    known = [noise for noise in tasks if noise is not None]
    return math.hypot(*known) / len(known) if len(known) == len(tasks) else None


def mean_of_new_questions(tasks: Sequence[tuple[float, tuple[float, float]]]) -> tuple[float, float]:
    """95 % interval of the mean, from each task's (observed, interval): half widths add up like independent errors."""
    mean = math.fsum(observed for observed, _ in tasks) / len(tasks)
    below = math.hypot(*(observed - low for observed, (low, _) in tasks))
    above = math.hypot(*(high - observed for observed, (_, high) in tasks))
    return mean - below / len(tasks), mean + above / len(tasks)
