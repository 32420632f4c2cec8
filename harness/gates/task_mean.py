"""The test of the mean of several tasks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medbench.harness.contracts import Sample
from medbench.harness.gates import wording
from medbench.harness.gates.gate_test import ROUNDING, GateTest, Outlook
from medbench.harness.gates.rules import Gate
from medbench.harness.gates.token_limits import Reply
from medbench.harness.gates.verdict import GateResult, Status, gate_result


@dataclass(slots=True)
class MeanTest:
    """The mean of the tasks' estimates, each task with the same weight, between the means of their bounds.

    The bounds hold for all tasks at once if each task's test has its level divided by the number of tasks.
    """

    gate: Gate
    by_task: Mapping[str, GateTest]
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
        self.by_task[task].observe_within(task, limit, replies)

    def outlook(self) -> Outlook:
        return Outlook()

    def result(self) -> GateResult:
        results = [test.result() for test in self.by_task.values()]
        faults = [f"{one.task}: {one.why}" for one in results if one.status == "not gateable"]
        if faults:
            return self._result(results, "not gateable", None, None, "; ".join(faults))
        low, high = (math.fsum(ends) / len(results) for ends in zip(*map(_bounds, results), strict=True))
        worst, best = (high, low) if self.gate.less_is_better else (low, high)
        status: Status = "pass" if self._reached_by(worst) else "undecided" if self._reached_by(best) else "fail"
        estimates = [one.estimate for one in results if one.estimate is not None]
        estimate = math.fsum(estimates) / len(results) if len(estimates) == len(results) else None
        interval = None if all(one.interval is None for one in results) else (low, high)
        used, total = sum(one.used for one in results), sum(one.total for one in results)
        seen = [one.observed for one in results if one.observed is not None]
        observed = math.fsum(seen) / len(results) if len(seen) == len(results) else None
        new = _new_questions(results)
        why = wording.of_mean(self.gate, status, estimate, observed, interval, new, list(self.by_task), used, total)
        return self._result(results, status, estimate, interval, why, observed=observed, new_questions=new)

    def _reached_by(self, mean: float) -> bool:
        above = mean - self.gate.threshold
        if self.gate.less_is_better:
            above = -above
        return above > ROUNDING if self.gate.strict else above >= -ROUNDING

    def _result(
        self,
        results: Sequence[GateResult],
        status: Status,
        estimate: float | None,
        interval: tuple[float, float] | None,
        why: str,
        **more: Any,
    ) -> GateResult:
        if interval is not None and all(one.interval is None or one.interval_level for one in results):
            more["interval_level"] = wording.level(*(1 - one.interval_level for one in results if one.interval_level))
            more["interval_kind"] = next(one.interval_kind for one in results if one.interval_kind)
        return gate_result(
            self.gate,
            status=status,
            estimate=estimate,
            interval=interval,
            used=sum(one.used for one in results),
            total=sum(one.total for one in results),
            saved=sum(one.saved for one in results),
            why=why,
            **more,
        )


def _new_questions(results: Sequence[GateResult]) -> tuple[float, float] | None:
    """95 % interval of the mean, from those of the tasks: their half widths add up like independent errors."""
    below, above = [], []
    for one in results:
        if one.new_questions is None or one.observed is None:
            return None
        below.append(one.observed - one.new_questions[0])
        above.append(one.new_questions[1] - one.observed)
    mean = math.fsum(one.observed for one in results if one.observed is not None) / len(results)
    return mean - math.hypot(*below) / len(results), mean + math.hypot(*above) / len(results)


def _bounds(result: GateResult) -> tuple[float, float]:
    """The interval; where there is none, the estimate is exact."""
    if result.interval is not None:
        return result.interval
    assert result.estimate is not None
    return result.estimate, result.estimate
