"""The test of what a whole benchmark would say of a checkpoint, from some of its questions or all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medbench.harness.contracts import Sample
from medbench.harness.gates import wording
from medbench.harness.gates.answers import Answers
from medbench.harness.gates.gate_test import ROUNDING, Outlook, finite
from medbench.harness.gates.population import population_interval
from medbench.harness.gates.token_limits import NO_LIMITS, Limits, Reply
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
    resolution: int | None = 1
    """Each share is a multiple of 1 / resolution; None: any share from 0 to 1."""
    limits: Limits = NO_LIMITS
    _tests: tuple[SequentialTest, SequentialTest] | None = None
    """Of a pass and of a fail. What is not known counts as wrong for a pass, as right for a fail."""
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

    def observe_within(self, task: str, limit: int, replies: Sequence[Reply]) -> None:
        if task == self.answers.gate.task:
            bounds = self.answers.within(limit, replies)
            for test, side in zip(self._both(), (0, 1), strict=True):
                test.observe([one[side] for one in bounds], self.limits.tokens.index(limit))

    def result(self) -> GateResult:
        return self.answers.unjudged() or (self._exact() if self.answers.whole else self._sequential())

    def outlook(self, task: str) -> Outlook:
        if self.answers.unjudged() or self.answers.whole:
            return Outlook()
        worst, best = self._evidence()
        sides = (
            (finite(worst.log_e_pass), math.log(1 / self.alpha_pass), False),
            (finite(best.log_e_fail), math.log(1 / self.alpha_fail), True),
        )
        nearest = [Outlook(max(0.0, needed - found) / found, fails) for found, needed, fails in sides if found > 0]
        return min(nearest, key=lambda one: one.more, default=Outlook())

    @property
    def _target(self) -> float:
        """What the mean share must reach."""
        return self.answers.goal + self.answers.baseline_mean

    def _exact(self) -> GateResult:
        """Nothing is left to infer about these questions, so there is an interval only for new ones."""
        answers, n = self.answers, len(self.answers.order)
        status = self._on_all()
        estimate = answers.reported(math.fsum(share for share in answers.shares if share is not None) / n)
        new = self._new_questions()
        why = wording.on_all(answers.gate, status, estimate, n, new, sampled=answers.sampled)
        return answers.result(status, estimate, why, new_questions=new)

    def _on_all(self) -> Status:
        """Where every question has been asked, which failed requests alone can leave open."""
        n = len(self.answers.order)
        unit = 1 / self.resolution if self.resolution else 0.0
        need = lowest_total(self._target * n, unit, self.answers.gate.strict) - ROUNDING * n
        least, most = (math.fsum(failed if one is None else one for one in self.answers.shares) for failed in (0, 1))
        return "pass" if least >= need else "fail" if most < need else "undecided"

    def _sequential(self) -> GateResult:
        answers = self.answers
        worst, best = self._evidence()
        status = self._on_all() if answers.used == len(answers.order) else _first(worst, best)
        if any(share is not None and not 0 <= share <= 1 for share in answers.shares):
            status = "undecided"  # a server that exceeds the token limit breaks the test's assumption
        decisive = best if status == "fail" else worst
        middle = math.fsum(test.estimate(decisive.version) for test in self._both()) / 2
        middle = max(worst.interval[0], min(best.interval[1], middle))
        estimate = answers.reported(middle)
        low, high = sorted((answers.reported(worst.interval[0]), answers.reported(best.interval[1])))
        new = self._new_questions() if answers.used == len(answers.order) else None
        return answers.result(
            status,
            estimate,
            self._why(status, estimate, decisive, new),
            used=decisive.used,
            interval=(low, high),
            interval_level=wording.level(self.alpha_pass, self.alpha_fail),
            interval_kind="anytime",
            new_questions=new,
            log_e_pass=finite(worst.log_e_pass),
            log_e_fail=finite(best.log_e_fail),
            controls={name: round(share, 3) for name, share in decisive.controls.items() if share >= 0.001},
            saved=decisive.saved,
        )

    def _why(self, status: Status, estimate: float, decisive: Evidence, new: tuple[float, float] | None) -> str:
        answers, gate, total, failed = self.answers, self.answers.gate, len(self.answers.order), self.answers.failed
        if new is not None:
            return wording.on_all(gate, status, estimate, total, new, failed, answers.sampled)
        alpha = self.alpha_pass if status == "pass" else self.alpha_fail
        asked = wording.Asked(
            decisive.used,
            total,
            failed,
            answers.used,
            answers.observed,
            *self._longer(decisive),
            sampled=answers.sampled,
        )
        return wording.on_some(gate, status, estimate, asked, alpha, decisive.saved)

    def _new_questions(self) -> tuple[float, float]:
        """The usual 95 % interval."""
        return population_interval(self.answers, 0.025, 0.025)

    def _longer(self, decisive: Evidence) -> tuple[int, int]:
        """How many replies the decision did not wait for, and beyond how many tokens."""
        if decisive.version == -1:
            return 0, 0
        limit = self.limits.tokens[decisive.version + 1]
        return sum(self.answers.longer[limit][: decisive.used]), limit

    def _evidence(self) -> tuple[Evidence, Evidence]:
        tests, new = self._both(), self.answers.shares[self._fed :]
        for test, failed in zip(tests, (0.0, 1.0), strict=True):
            test.observe([failed if share is None else min(1.0, max(0.0, share)) for share in new])
        self._fed = len(self.answers.shares)
        return tests[0].evidence(), tests[1].evidence()

    def _both(self) -> tuple[SequentialTest, SequentialTest]:
        if self._tests is None:
            self._tests = self._test(self.alpha_pass, None), self._test(None, self.alpha_fail)
        return self._tests

    def _test(self, alpha_pass: float | None, alpha_fail: float | None) -> SequentialTest:
        return SequentialTest(
            self.answers.order,
            at_least=self._target,
            strict=self.answers.gate.strict,
            alpha_pass=alpha_pass,
            alpha_fail=alpha_fail,
            controls=self.controls,
            resolution=self.resolution,
            weights=self.limits.weights,
        )


def _first(worst: Evidence, best: Evidence) -> Status:
    """What is certain; else what was decided at the earlier question of the order."""
    sides: tuple[tuple[Evidence, Status], ...] = ((worst, "pass"), (best, "fail"))
    for one, side in sides:
        if one.certain and one.decision == side:
            return side
    decided = [(one.decided_at, one.decision) for one in (worst, best) if one.decided_at is not None]
    status = min(decided, key=lambda one: one[0], default=(0, None))[1]
    return status or "undecided"
