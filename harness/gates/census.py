"""The test of what a whole benchmark would say of a checkpoint, from some of its questions or all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medbench.harness.contracts import Sample
from medbench.harness.gates import wording
from medbench.harness.gates.answers import Answers
from medbench.harness.gates.gate_test import ROUNDING, Outlook
from medbench.harness.gates.population import population_interval
from medbench.harness.gates.verdict import GateResult, Status
from medbench.harness.stats.sequential import Control, Evidence, SequentialTest, lowest_total


@dataclass(slots=True)
class CensusTest:
    """A sequential test while questions are open, exact once all are answered."""

    answers: Answers
    alpha_pass: float
    alpha_fail: float
    controls: Sequence[Control] = ()
    """Their scores are shares on the scale of `answers`."""
    lattice: bool = True
    """Whether each share is 0 or 1."""
    _tests: tuple[SequentialTest, SequentialTest] | None = None
    """Failed requests counted as wrong, and as right."""
    _fed: int = 0

    provisional = False

    @property
    def tasks(self) -> Collection[str]:
        return (self.answers.gate.task,)

    @property
    def hopeless(self) -> bool:
        return self.answers.hopeless

    def observe(self, task: str, samples: Sequence[Sample], seconds: float = 0.0) -> None:
        self.answers.observe(task, samples)

    def result(self) -> GateResult:
        return self.answers.unjudged() or (self._exact() if self.answers.whole else self._sequential())

    def outlook(self) -> Outlook:
        if self.answers.unjudged() or self.answers.whole:
            return Outlook()
        worst, best = self._evidence()
        sides = (
            (_finite(worst.log_e_pass), math.log(1 / self.alpha_pass), False),
            (_finite(best.log_e_fail), math.log(1 / self.alpha_fail), True),
        )
        nearest = [Outlook(max(0.0, needed - found) / found, fails) for found, needed, fails in sides if found > 0]
        return min(nearest, key=lambda one: one.more, default=Outlook())

    @property
    def _target(self) -> float:
        """What the mean share must reach."""
        return self.answers.goal + self.answers.baseline_mean

    def _exact(self) -> GateResult:
        """Nothing is left to infer about these questions, so there is an interval only for new ones."""
        answers = self.answers
        total, n = math.fsum(share for share in answers.shares if share is not None), len(answers.order)
        need = lowest_total(self._target * n, 1.0 if self.lattice else 0.0, answers.gate.strict)
        status: Status = "pass" if total >= need - ROUNDING * n else "fail"
        estimate = answers.reported(total / n)
        new = self._new_questions()
        return answers.result(
            status, estimate, wording.on_all(answers.gate, status, estimate, n, new), new_questions=new
        )

    def _sequential(self) -> GateResult:
        answers = self.answers
        worst, best = self._evidence()
        status: Status = "pass" if worst.decision == "pass" else "fail" if best.decision == "fail" else "undecided"
        if any(share is not None and not 0 <= share <= 1 for share in answers.shares):
            status = "undecided"  # a server that exceeds the token limit breaks the test's assumption
        estimate = answers.reported((worst.estimate + best.estimate) / 2)
        low, high = sorted((answers.reported(worst.interval[0]), answers.reported(best.interval[1])))
        new = self._new_questions() if answers.used == len(answers.order) else None
        return answers.result(
            status,
            estimate,
            self._why(status, estimate, worst.saved, new),
            interval=(low, high),
            interval_level=wording.level(self.alpha_pass, self.alpha_fail),
            interval_kind="anytime",
            new_questions=new,
            log_e_pass=_finite(worst.log_e_pass),
            log_e_fail=_finite(best.log_e_fail),
            controls={name: round(share, 3) for name, share in worst.controls.items() if share >= 0.001},
            saved=worst.saved,
        )

    def _why(self, status: Status, estimate: float, saved: int, new: tuple[float, float] | None) -> str:
        answers, gate, total, failed = self.answers, self.answers.gate, len(self.answers.order), self.answers.failed
        if new is not None:
            return wording.on_all(gate, status, estimate, total, new, failed)
        alpha = self.alpha_pass if status == "pass" else self.alpha_fail
        return wording.on_some(gate, status, estimate, answers.observed, answers.used, total, failed, alpha, saved)

    def _new_questions(self) -> tuple[float, float]:
        """The usual 95 % interval."""
        return population_interval(self.answers, 0.025, 0.025)

    def _evidence(self) -> tuple[Evidence, Evidence]:
        if self._tests is None:
            self._tests = self._test(), self._test()
        new = self.answers.shares[self._fed :]
        for test, failed in zip(self._tests, (0.0, 1.0), strict=True):
            test.observe([failed if share is None else min(1.0, max(0.0, share)) for share in new])
        self._fed = len(self.answers.shares)
        return self._tests[0].evidence(), self._tests[1].evidence()

    def _test(self) -> SequentialTest:
        return SequentialTest(
            self.answers.order,
            at_least=self._target,
            strict=self.answers.gate.strict,
            alpha_pass=self.alpha_pass,
            alpha_fail=self.alpha_fail,
            controls=self.controls,
            resolution=1 if self.lattice else None,
        )


def _finite(value: float) -> float:
    """JSON has no infinity: evidence against an impossible hypothesis is stored as 1e9 nats."""
    return max(-1e9, min(1e9, value))
