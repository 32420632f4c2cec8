"""The test of the mean of several tasks, each task with the same weight, about these benchmarks' questions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medbench.harness.contracts import Sample
from medbench.harness.gates import wording
from medbench.harness.gates.answers import Answers
from medbench.harness.gates.gate_test import ROUNDING, Outlook, finite
from medbench.harness.gates.population import population_interval
from medbench.harness.gates.population_mean import mean_noise, mean_of_new_questions, reaches
from medbench.harness.gates.rules import Gate
from medbench.harness.gates.token_limits import NO_LIMITS, Limits, Reply
from medbench.harness.gates.verdict import GateResult, Status, gate_result
from medbench.harness.stats.sequential import Control
from medbench.harness.stats.stratified import StratifiedTest, Stratum, positions

HORIZON = 1.25
"""The most that an outlook looks ahead, as a multiple of the answers so far."""


@dataclass(slots=True)
class MeanTest:
    """A stratified sequential test while questions are open, exact once all are answered.

    Limits in tokens: for each limit the replies known within it have a test of their own, at its weight's part of
    alpha, so that by the union bound any of them errs with a chance of at most alpha (see token_limits.py for why such
    a test is valid).
    """

    gate: Gate
    by_task: Mapping[str, Answers]
    alpha_pass: float
    alpha_fail: float
    controls: Mapping[str, Sequence[Control]] = field(default_factory=dict)
    """Per task; their scores are shares on the scale of its answers."""
    resolution: int | None = 1
    """Each share is a multiple of 1 / resolution; None: any share from 0 to 1."""
    limits: Limits = NO_LIMITS
    _tests: tuple[list[StratifiedTest], list[StratifiedTest]] | None = None
    """Of a pass and of a fail: one per limit, then one of whole replies. What is not known counts against both."""
    _fed: dict[str, int] = field(default_factory=dict)

    provisional = False

    @property
    def tasks(self) -> Collection[str]:
        return self.by_task.keys()

    @property
    def hopeless(self) -> bool:
        return any(answers.hopeless for answers in self.by_task.values())

    def observe(self, task: str, samples: Sequence[Sample], seconds: float = 0.0) -> None:
        if task in self.by_task:
            self.by_task[task].observe(task, samples)

    def observe_within(self, task: str, limit: int, replies: Sequence[Reply]) -> None:
        if task in self.by_task:
            bounds = self.by_task[task].within(limit, replies)
            stratum, version = list(self.by_task).index(task), self.limits.tokens.index(limit)
            passing, failing = self._both()
            passing[version].observe(stratum, [low for low, _ in bounds])
            failing[version].observe(stratum, [1 - high for _, high in bounds])

    def outlook(self, task: str) -> Outlook:
        """Counted along the path of the test, so that the task that it waits for is asked."""
        if self._unjudged() or self.by_task[task].used == 0:
            return Outlook()
        passing, failing = self._evidence()
        likely = [
            (one.consumed * one.needed / one.log_e, fails)
            for tests, fails in ((passing, False), (failing, True))
            for one in tests
            if one.log_e > 0
        ]
        # a far forecast would ask all of the larger task first, without whose partner it says nothing
        consumed = passing[-1].consumed
        total, fails = min(likely, default=(math.inf, False))
        total = max(consumed + 1, min(total, HORIZON * consumed))
        wanted = positions([len(answers.order) for answers in self.by_task.values()], total)
        used = self.by_task[task].used
        return Outlook(max(0, wanted[list(self.by_task).index(task)] - used) / used, fails)

    def result(self) -> GateResult:
        if faults := self._unjudged():
            return self._result("not gateable", None, None, "; ".join(faults))
        return self._on_all() if self._used == self._total else self._sequential()

    def _unjudged(self) -> list[str]:
        found = {task: answers.unjudged() for task, answers in self.by_task.items()}
        return [f"{task}: {one.why}" for task, one in found.items() if one is not None and one.status == "not gateable"]

    def _on_all(self) -> GateResult:
        """Every question has been asked, which failed requests alone can leave open."""
        ends = [
            _mean(_mean(failed if x is None else x for x in one.shares) for one in self._answers) for failed in (0, 1)
        ]
        low, high = sorted(map(self._reported, ends))
        worst, best = (high, low) if self.gate.less_is_better else (low, high)
        status: Status = "pass" if reaches(self.gate, worst) else "undecided" if reaches(self.gate, best) else "fail"
        new = mean_of_new_questions(
            [(one.observed or 0.0, population_interval(one, 0.025, 0.025)) for one in self._answers]
        )
        whole = all(one.whole for one in self._answers)
        return self._result(status, (low + high) / 2, None if whole else (low, high), new=new)

    def _sequential(self) -> GateResult:
        passing, failing = self._evidence()
        status, used = _first(passing, failing)
        low, high = max(one.low for one in passing), 1 - max(one.low for one in failing)
        low, high = min(low, high), max(low, high)
        estimate = None
        if all(one.ahead for one in self._answers):
            version = next(at for at in range(-1, -1 - len(passing), -1) if passing[at].started)
            middle = (passing[version].estimate + 1 - failing[version].estimate) / 2
            estimate = self._reported(max(low, min(high, middle)))
        ends = sorted((self._reported(low), self._reported(high)))
        return self._result(
            status,
            estimate,
            (ends[0], ends[1]),
            used=max(used, self._used),
            log_e_pass=self._log_e(passing),
            log_e_fail=self._log_e(failing),
            saved=passing[-1].saved,
        )

    def _evidence(self) -> tuple[list[StratifiedTest], list[StratifiedTest]]:
        """The tests, after the whole replies so far."""
        tests = self._both()
        for stratum, (task, answers) in enumerate(self.by_task.items()):
            new = answers.shares[self._fed.get(task, 0) :]
            self._fed[task] = len(answers.shares)
            tests[0][-1].observe(stratum, [0.0 if share is None else share for share in new])
            tests[1][-1].observe(stratum, [0.0 if share is None else 1 - share for share in new])
        return tests

    def _log_e(self, tests: Sequence[StratifiedTest]) -> float:
        """Of all versions together, by their weights."""
        return finite(float(np.logaddexp.reduce([one.log_e for one in tests] + np.log(self.limits.weights))))

    def _both(self) -> tuple[list[StratifiedTest], list[StratifiedTest]]:
        if self._tests is None:
            target = _mean(one.goal + one.baseline_mean for one in self._answers)
            edge = ROUNDING if self.gate.strict else -ROUNDING
            passes, fails = target + edge, 1 - target - edge
            weights = self.limits.weights
            self._tests = (
                [self._test(passes, self.alpha_pass * weight, mirrored=False) for weight in weights],
                [self._test(fails, self.alpha_fail * weight, mirrored=True) for weight in weights],
            )
        return self._tests

    def _test(self, above: float, alpha: float, *, mirrored: bool) -> StratifiedTest:
        """That the mean share, or for a fail 1 minus it, is above so much."""
        strata = []
        for task, answers in self.by_task.items():
            controls = self.controls.get(task, ())
            if mirrored:
                controls = [Control(one.name, {id: 1 - x for id, x in one.scores.items()}) for one in controls]
            strata.append(Stratum(answers.order, controls, self.resolution))
        return StratifiedTest(strata, above=above, alpha=alpha)

    @property
    def _answers(self) -> Collection[Answers]:
        return self.by_task.values()

    @property
    def _used(self) -> int:
        return sum(one.used for one in self._answers)

    @property
    def _total(self) -> int:
        return sum(len(one.order) for one in self._answers)

    def _reported(self, mean: float) -> float:
        """The metric, or its difference to the baseline's, where the mean share of all tasks is `mean`."""
        return _mean(one.reported(mean) for one in self._answers)

    def _result(
        self,
        status: Status,
        estimate: float | None,
        interval: tuple[float, float] | None,
        why: str = "",
        *,
        new: tuple[float, float] | None = None,
        used: int = 0,
        **evidence: Any,
    ) -> GateResult:
        used = used or self._used
        seen = [one.observed for one in self._answers if one.observed is not None]
        observed = _mean(seen) if len(seen) == len(self.by_task) and estimate is not None else None
        if interval is not None and self._used:
            evidence["interval_level"] = wording.level(self.alpha_pass, self.alpha_fail)
            evidence["interval_kind"] = "anytime"
        tasks = list(self.by_task)
        noise = mean_noise([one.sampling_noise for one in self._answers]) if estimate is not None else None
        sampled = wording.Sampled(next(iter(self._answers)).per_question, noise)
        text = wording.of_mean(self.gate, status, estimate, observed, interval, new, tasks, used, self._total, sampled)
        return gate_result(
            self.gate,
            status=status,
            estimate=estimate,
            interval=interval,
            observed=observed,
            sampling_noise=noise,
            new_questions=new,
            used=used,
            total=self._total,
            why=why or text,
            **evidence,
        )


def _first(passing: Sequence[StratifiedTest], failing: Sequence[StratifiedTest]) -> tuple[Status, int]:
    """What is certain; else what was decided first; and how many answers that took."""
    sides: tuple[tuple[Status, Sequence[StratifiedTest]], ...] = (("pass", passing), ("fail", failing))
    for status, tests in sides:
        if any(one.certain for one in tests):
            return status, 0
    decided = [(one.decided_at, status) for status, tests in sides for one in tests if one.decided_at is not None]
    used, status = min(decided, key=lambda one: one[0], default=(0, "undecided"))
    return status, used


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
