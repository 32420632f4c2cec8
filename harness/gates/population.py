"""The test of what new questions of the same kind would say of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from scipy.special import ndtr, ndtri

from medbench.harness.contracts import Sample
from medbench.harness.gates import wording
from medbench.harness.gates.answers import Answers
from medbench.harness.gates.gate_test import Outlook
from medbench.harness.gates.rules import SHARES
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
        worst, best = _z(answers, failed=0.0), _z(answers, failed=1.0)
        p_pass, p_fail = float(ndtr(-worst(goal))), float(ndtr(best(goal)))
        status: Status = "pass" if p_pass <= self.alpha_pass else "fail" if p_fail <= self.alpha_fail else "undecided"
        estimate = answers.observed
        assert estimate is not None, "too many failed requests are not gateable"
        alpha = self.alpha_fail if status == "fail" else self.alpha_pass
        used, total = answers.used, len(answers.order)
        why = wording.of_population(answers.gate, status, estimate, used, total, answers.failed, alpha)
        return answers.result(
            status,
            estimate,
            why,
            interval=population_interval(answers, self.alpha_pass, self.alpha_fail),
            interval_level=wording.level(self.alpha_pass, self.alpha_fail),
            interval_kind="population",
            p_value=p_pass,
        )


def population_interval(answers: Answers, alpha_pass: float, alpha_fail: float) -> tuple[float, float]:
    """Of the metric, or its difference to the baseline's, on new questions; valid for a single look.

    The end that a pass must reach misses with a chance of `alpha_pass`, the other one with `alpha_fail`. Failed
    requests widen it in both directions.
    """
    known = [share for share in answers.shares if share is not None]
    least = min(-1.0 if answers.gate.paired else 0.0, *known)  # a server can exceed the token limit
    worst = invert(_z(answers, failed=0.0), -float(ndtri(alpha_pass)), least, 1.0)
    best = invert(_z(answers, failed=1.0), float(ndtri(alpha_fail)), least, 1.0)
    low, high = sorted((answers.measured(worst), answers.measured(best)))
    return low, high


def _z(answers: Answers, failed: float) -> Callable[[float], float]:
    """The score test with failed requests taken to have the share `failed`."""
    clusters: dict[str, list[float]] = {}
    for sample, share in zip(answers.samples, answers.shares, strict=True):
        known = failed if share is None else share
        clusters.setdefault(sample.cluster, []).append(known - answers.baseline_share(sample.id))
    bounded = answers.gate.metric in SHARES
    return score_test(list(clusters.values()), paired=answers.gate.paired, bounded=bounded)
