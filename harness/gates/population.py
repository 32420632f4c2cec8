"""The test of what new questions of the same kind would say of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from scipy.special import ndtr, ndtri

from medbench.harness.contracts import Sample
from medbench.harness.gates import wording
from medbench.harness.gates.answers import Answers
from medbench.harness.gates.gate_test import Outlook
from medbench.harness.gates.token_limits import Reply
from medbench.harness.gates.verdict import GateResult, Status
from medbench.harness.stats.score_test import invert, score_test


@dataclass(slots=True)
class PopulationTest:
    """A score test, valid for a single look: when everything that will be asked has been."""

    answers: Answers
    alpha_pass: float
    alpha_fail: float

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
        """It needs whole replies."""

    def outlook(self) -> Outlook:
        return Outlook()

    def result(self) -> GateResult:
        return self.answers.unjudged() or self._judged()

    def _judged(self) -> GateResult:
        answers, goal = self.answers, self.answers.goal
        worst, best = self._z(failed=0.0), self._z(failed=1.0)
        p_pass, p_fail = float(ndtr(-worst(goal))), float(ndtr(best(goal)))
        status: Status = "pass" if p_pass <= self.alpha_pass else "fail" if p_fail <= self.alpha_fail else "undecided"
        least = -1.0 if answers.gate.paired else 0.0
        bounds = (
            invert(worst, -float(ndtri(self.alpha_pass)), least, 1.0),
            invert(best, float(ndtri(self.alpha_fail)), least, 1.0),
        )
        low, high = sorted(map(self._reported, bounds))
        known = [
            share - answers.baseline_share(sample.id)
            for sample, share in zip(answers.samples, answers.shares, strict=True)
            if share is not None
        ]
        estimate = self._reported(math.fsum(known) / len(known))
        alpha = self.alpha_fail if status == "fail" else self.alpha_pass
        used, total = answers.used, len(answers.order)
        why = wording.of_population(answers.gate, status, estimate, used, total, answers.failed, alpha)
        return answers.result(status, estimate, why, interval=(low, high), p_value=p_pass)

    def _reported(self, mean: float) -> float:
        """The metric, or its difference to the baseline's, of a mean share or mean difference of shares."""
        scale = self.answers.scale
        return scale.difference(mean) if self.answers.gate.paired else scale.value(mean)

    def _z(self, failed: float) -> Callable[[float], float]:
        """The score test with failed requests taken to have the share `failed`."""
        clusters: dict[str, list[float]] = {}
        for sample, share in zip(self.answers.samples, self.answers.shares, strict=True):
            known = failed if share is None else share
            clusters.setdefault(sample.cluster, []).append(known - self.answers.baseline_share(sample.id))
        return score_test(list(clusters.values()), paired=self.answers.gate.paired)
