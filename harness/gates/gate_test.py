"""Samples + rules -> verdict. Pure: no engine, no clock, no file but the run folders it is given.

    medbench gate runs/CANDIDATE --gates gates.yaml --baseline runs/BASELINE

Family error. The verdict passes only when every gate passes, so a wrong pass needs a truly failing gate that passes:
each gate may spend the whole alpha on its pass side (intersection-union test, Berger 1982). It fails when any gate
fails, so the fail sides share alpha by Bonferroni.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scipy.special import ndtr, ndtri

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.gates.metric_values import value_of
from medbench.harness.gates.rules import MEAN, Gate
from medbench.harness.gates.verdict import GateResult, Status
from medbench.harness.stats.score_test import invert, score_test
from medbench.harness.stats.sequential import Control, Evidence, SequentialTest, lowest_total

SETTLED = 64
"""Questions after which a pace is held against its ceiling: the first ones pay for the engine's warming up."""


MOST_ERRORS = 0.05
"""A larger share of failed requests is not gateable; a smaller one counts as wrong for a pass and right for a fail."""


ROUNDING = 1e-12


@dataclass(slots=True)
class GateTest:
    """One gate's state while answers come in, in the fixed order.

    `order`: ids of all its questions along the permutation. `baseline`: the metric's value for each of them, for a
    paired gate. `unit`: what a value is divided by to lie in 0..1 (1 for shares, the token limit for tokens).
    """

    gate: Gate
    order: Sequence[str]
    alpha: float
    gates: int
    unit: float = 1.0
    baseline: Mapping[str, float] | None = None
    controls: Sequence[Control] = ()
    decide: str = "census"
    alpha_fail: float | None = None
    """Of all gates' fails together, where that is not `alpha`."""
    exact_lattice: bool = True
    """Whether each value is 0 or 1 (before a failed request leaves it open)."""
    samples: list[Sample] = field(default_factory=list)
    _tests: tuple[SequentialTest, SequentialTest] | None = None
    """Failed requests taken as wrong, and as right."""
    _fed: int = 0

    def __post_init__(self) -> None:
        if not self.order:
            raise MedbenchError(f"{self.gate.rule}: no question of this kind")

    @property
    def threshold(self) -> float:
        """In the metric's own unit; for a paired gate what the difference is held against."""
        gate = self.gate
        for value in (gate.at_least, gate.at_most):
            if value is not None:
                return value
        if gate.better_by is not None:
            return -gate.better_by if self._ceiling else gate.better_by
        assert gate.margin is not None
        return gate.margin if self._ceiling else -gate.margin

    @property
    def _ceiling(self) -> bool:
        """Whether less is better: a ceiling, or a paired gate on something one wants little of."""
        return self.gate.at_most is not None or (self.gate.paired and self.gate.metric != "accuracy")

    def wants(self, sample: Sample) -> bool:
        category = self.gate.category or {}
        return all(sample.category.get(key) == value for key, value in category.items())

    def observe(self, samples: Sequence[Sample]) -> None:
        """The next answers along the order."""
        self.samples.extend(sample for sample in samples if self.wants(sample))

    def result(self) -> GateResult:
        """What is known so far."""
        values = [value_of(sample, self.gate.metric) for sample in self.samples]
        if not values:
            ends = sorted((self._unscaled(0.0), self._unscaled(1.0)))
            return self._result("undecided", None, "no question asked yet", interval=(ends[0], ends[1]))
        if values.count(None) == len(values):
            return self._result("not gateable", None, f"none of {len(values)} questions got an answer")
        if values.count(None) > MOST_ERRORS * len(values):
            return self._result("not gateable", None, f"{values.count(None)} of {len(values)} requests failed")
        if any(value is not None and math.isnan(value) for value in values):
            return self._result("not gateable", None, "a score that is not a number")
        return self._population(values) if self.decide == "population" else self._census(values)

    @property
    def hopeless(self) -> bool:
        """Whether so many requests failed that no further answer makes it gateable."""
        failed = sum(value_of(sample, self.gate.metric) is None for sample in self.samples)
        return failed > MOST_ERRORS * len(self.order)

    @property
    def _target(self) -> float:
        """What the mean of the scaled values must reach: a ceiling is a floor on one minus the value."""
        target = self.threshold / self.unit + (self._baseline_mean() if self.gate.paired else 0.0)
        return 1.0 - target if self._ceiling else target

    @property
    def _fail_share(self) -> float:
        return (self.alpha_fail or self.alpha) / self.gates

    @property
    def _strict(self) -> bool:
        return self.gate.better_by is not None

    def _test(self) -> SequentialTest:
        return SequentialTest(
            self.order,
            at_least=self._target,
            strict=self._strict,
            alpha_pass=self.alpha,
            alpha_fail=self._fail_share,
            controls=self._scaled_controls(),
            resolution=1 if self.exact_lattice else None,
        )

    def _baseline_mean(self) -> float:
        if self.baseline is None:
            return 0.0
        return math.fsum(self.baseline[id] for id in self.order) / len(self.order) / self.unit

    def _scaled_controls(self) -> list[Control]:
        if not self._ceiling:
            return list(self.controls)
        return [Control(c.name, {id: 1.0 - score for id, score in c.scores.items()}) for c in self.controls]

    def _scaled(self, value: float | None, missing: float) -> float:
        if value is None:
            return missing
        share = value / self.unit
        return 1.0 - share if self._ceiling else share

    def _census(self, values: Sequence[float | None]) -> GateResult:
        if len(values) == len(self.order) and None not in values:
            return self._exact([self._scaled(value, missing=0.0) for value in values])
        worst, best = self._evidence(values)
        decision: Status = "pass" if worst.decision == "pass" else "fail" if best.decision == "fail" else "undecided"
        if any(value is not None and value > self.unit for value in values):
            decision = "undecided"  # a server that goes past the limit breaks what the test rests on
        bounds = sorted((self._unscaled(worst.interval[0]), self._unscaled(best.interval[1])))
        estimate = self._unscaled((worst.estimate + best.estimate) / 2)
        result = self._result(decision, estimate, "", interval=(bounds[0], bounds[1]))
        return result.model_copy(
            update={
                "log_e_pass": _finite(worst.log_e_pass),
                "log_e_fail": _finite(best.log_e_fail),
                "controls": {name: round(share, 3) for name, share in worst.controls.items() if share >= 0.001},
                "saved": worst.saved,
                "why": self._why(result, worst.saved),
            }
        )

    def _exact(self, scaled: Sequence[float]) -> GateResult:
        """All questions answered: nothing is left to infer."""
        total = math.fsum(scaled)
        need = lowest_total(self._target * len(scaled), 1.0 if self.exact_lattice else 0.0, self._strict)
        passed = total >= need - ROUNDING * len(scaled)
        value = self._unscaled(total / len(scaled))
        result = self._result("pass" if passed else "fail", value, "", interval=(value, value))
        return result.model_copy(update={"why": self._why(result, 0)})

    def _evidence(self, values: Sequence[float | None]) -> tuple[Evidence, Evidence]:
        if self._tests is None:
            self._tests = self._test(), self._test()
        for test, missing in zip(self._tests, (0.0, 1.0), strict=True):
            scaled = (self._scaled(value, missing) for value in values[self._fed :])
            test.observe([min(1.0, max(0.0, share)) for share in scaled])
        self._fed = len(values)
        return self._tests[0].evidence(), self._tests[1].evidence()

    def _population(self, values: Sequence[float | None]) -> GateResult:
        """A bound for new questions; meant for one look, when everything that will be asked has been."""
        sign = -1.0 if self._ceiling else 1.0
        wrong, right = (self.unit, 0.0) if self._ceiling else (0.0, self.unit)
        worst, best = self._score_test(values, wrong), self._score_test(values, right)
        alpha_fail = self._fail_share
        p_pass, p_fail = float(ndtr(-sign * worst(self.threshold))), float(ndtr(sign * best(self.threshold)))
        status: Status = "pass" if p_pass <= self.alpha else "fail" if p_fail <= alpha_fail else "undecided"
        ends = -self.unit if self.gate.paired else 0.0, self.unit
        bounds = sorted((invert(worst, -sign * float(ndtri(self.alpha)), *ends),
                         invert(best, sign * float(ndtri(alpha_fail)), *ends)))  # fmt: skip
        known = [value - self._base(sample.id) for value, sample in zip(values, self.samples, strict=True)
                 if value is not None]  # fmt: skip
        result = self._result(status, math.fsum(known) / len(known), "", interval=(bounds[0], bounds[1]))
        return result.model_copy(update={"p_value": p_pass, "why": self._why(result, 0)})

    def _score_test(self, values: Sequence[float | None], missing: float) -> Callable[[float], float]:
        clusters: dict[str, list[float]] = {}
        for sample, value in zip(self.samples, values, strict=True):
            known = missing if value is None else value
            clusters.setdefault(sample.cluster, []).append(known - self._base(sample.id))
        return score_test(list(clusters.values()), paired=self.gate.paired, unit=self.unit)

    def _base(self, id: str) -> float:
        return self.baseline[id] if self.gate.paired and self.baseline else 0.0

    def _unscaled(self, share: float) -> float:
        """Back from the tested mean to the metric (for a paired gate, to the difference)."""
        value = (1.0 - share if self._ceiling else share) * self.unit
        return value - (self._baseline_mean() * self.unit if self.gate.paired else 0.0)

    def _why(self, result: GateResult, saved: int) -> str:
        assert result.estimate is not None
        what = "difference to the baseline" if self.gate.paired else self.gate.metric.replace("_", " ")
        bound = f"{_shown(self.threshold, self.gate)}"
        side = {"pass": "surely", "fail": "surely not", "undecided": "not surely"}[result.status]
        relation = "at most" if self._ceiling else "more than" if self.gate.better_by is not None else "at least"
        extent = f"all {result.total} questions" if result.used == result.total else (
            f"{result.used} of {result.total} questions")  # fmt: skip
        spared = f"; controls spared about {saved} questions" if saved > 0 and result.status != "undecided" else ""
        return f"{what} {_shown(result.estimate, self.gate)} on {extent}: {side} {relation} {bound}{spared}"

    def _result(
        self, status: Status, estimate: float | None, why: str, interval: tuple[float, float] | None = None
    ) -> GateResult:
        used, total = len(self.samples), len(self.order)
        return GateResult(
            rule=self.gate.rule,
            task=self.gate.task,
            metric=self.gate.metric,
            kind=self.gate.kind,
            unit=self.gate.unit,
            status=status,
            estimate=estimate,
            interval=interval,
            threshold=self.threshold,
            used=used,
            total=total,
            why=why,
        )


def mean_result(gate: Gate, by_task: Mapping[str, GateTest]) -> GateResult:
    """A gate on the mean of tasks: their simultaneous intervals averaged.

    `by_task` holds one test a task whose intervals are at level alpha / number of tasks; `estimate` of a paired gate is
    the mean difference.
    """
    results = [test.result() for test in by_task.values()]
    threshold = next(iter(by_task.values())).threshold
    known = [r.interval for r in results if r.interval is not None]
    estimates = [r.estimate for r in results if r.estimate is not None]
    estimate = math.fsum(estimates) / len(results) if len(estimates) == len(results) else None
    interval = None
    status: Status = "not gateable"
    if len(known) < len(results):
        why = "; ".join(f"{r.task}: {r.why}" for r in results if r.interval is None)
    else:
        low, high = interval = (
            math.fsum(i[0] for i in known) / len(known),
            math.fsum(i[1] for i in known) / len(known),
        )
        # averaging rounds: a mean that is the threshold to the last digit but one is the threshold
        below, above = low - threshold, high - threshold
        if gate.at_most is not None:
            status = "pass" if above <= ROUNDING else "fail" if below > ROUNDING else "undecided"
        elif gate.better_by is not None:
            status = "pass" if below > ROUNDING else "fail" if above <= ROUNDING else "undecided"
        else:
            status = "pass" if below >= -ROUNDING else "fail" if above < -ROUNDING else "undecided"
        about = f"{_shown(estimate, gate)} " if estimate is not None else ""
        why = f"mean {about}of {', '.join(by_task)}, between {_shown(low, gate)} and {_shown(high, gate)}"
    return GateResult(
        rule=gate.rule,
        task=MEAN,
        metric=gate.metric,
        kind=gate.kind,
        unit=gate.unit,
        status=status,
        estimate=estimate,
        interval=interval,
        threshold=threshold,
        used=sum(r.used for r in results),
        total=sum(r.total for r in results),
        saved=sum(r.saved for r in results),
        why=why,
    )


def _shown(value: float, gate: Gate) -> str:
    if gate.metric in ("tokens_per_answer", "seconds_per_question"):
        return f"{value:.1f}"
    return f"{100 * value:+.1f} points" if gate.paired else f"{100 * value:.1f} %"


def _finite(value: float) -> float:
    """JSON has no infinity: an impossible hypothesis is written as 1e9 nats."""
    return max(-1e9, min(1e9, value))


@dataclass(slots=True)
class PaceTest:
    """A ceiling on seconds a question: measured over the run, nothing is inferred from it."""

    gate: Gate
    total: int
    used: int = 0
    seconds: float = 0.0

    def result(self) -> GateResult:
        pace = self.seconds / self.used if self.used else None
        bound = self.gate.at_most if self.gate.at_most is not None else self.gate.at_least
        assert bound is not None
        within = pace is not None and (pace <= bound if self.gate.at_most is not None else pace >= bound)
        settled = self.used >= min(SETTLED, self.total)
        status: Status = "undecided" if not settled else "pass" if within else "fail"
        return GateResult(
            rule=self.gate.rule,
            task=self.gate.task,
            metric=self.gate.metric,
            kind=self.gate.kind,
            unit=self.gate.unit,
            status=status,
            estimate=pace,
            interval=None,
            threshold=bound,
            used=self.used,
            total=self.total,
            why="no question answered" if pace is None else f"{pace:.2f} seconds a question over {self.used} questions",
        )
