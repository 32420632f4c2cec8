"""From the rules of a gate file to their tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from medbench.harness.contracts import MedbenchError, Task
from medbench.harness.gates.answers import Answers
from medbench.harness.gates.baseline import Reference
from medbench.harness.gates.census import CensusTest
from medbench.harness.gates.constant_answer import with_constant
from medbench.harness.gates.gate_test import GateTest
from medbench.harness.gates.judged_gate import JudgedTest, Judging
from medbench.harness.gates.metric_values import SamplingNoise, value_of_question
from medbench.harness.gates.pace import PaceTest
from medbench.harness.gates.population import PopulationTest
from medbench.harness.gates.population_mean import PopulationMeanTest
from medbench.harness.gates.rules import CONSTANT, JUDGED, MEAN, Gate, GateFile, refuse_judged
from medbench.harness.gates.task_mean import MeanTest
from medbench.harness.gates.token_limits import Limits
from medbench.harness.stats.sequential import Control


@dataclass(frozen=True, slots=True)
class Builder:
    """What the tests of one gate file are made from."""

    rules: GateFile
    tasks: Mapping[str, Task]
    orders: Mapping[str, Sequence[str]]
    """task -> all its question ids in the order in which they are asked."""
    baseline: Reference | None
    controls: Sequence[Reference]
    token_limit: float
    alpha_fail: float
    fractional: bool
    """Whether the score of a single sample may lie between 0 and 1."""
    samples: int
    """Of each question."""
    limits: Limits
    judgings: Mapping[int, Judging] = field(default_factory=dict)
    """Place of a gate on a judge's scores -> these scores."""

    def tests(self) -> list[GateTest]:
        """One per gate, in the file's order. Raises MedbenchError for a gate that has no questions or no baseline."""
        return [
            self._test(gate) if gate.judge is None else self._judged_test(gate, self.judgings.get(place))
            for place, gate in enumerate(self.rules.gates)
        ]

    def _judged_test(self, gate: Gate, judging: Judging | None) -> GateTest:
        if judging is None:
            refuse_judged(self.rules)
        assert judging is not None
        total = len(self._order(gate))
        if judging.fault is not None:
            return JudgedTest(gate, judging, total, None)
        own = replace(self, baseline=judging.of_baseline(self.baseline, gate.task), judgings={})
        return JudgedTest(gate, judging, total, own._test_of_answers(gate))

    def _test(self, gate: Gate) -> GateTest:
        if gate.at_least == CONSTANT:
            gate = self._with_constant(gate)
        if gate.metric == "seconds_per_question":
            return PaceTest(gate, sum(map(len, self.orders.values())), self.samples)
        if gate.task != MEAN:
            return self._test_of_answers(gate)
        return self._test_of_mean(gate)

    def _test_of_answers(self, gate: Gate) -> GateTest:
        answers = self._answers(gate)
        if self.rules.decide == "population":
            return PopulationTest(answers, self.rules.alpha, self._alpha_fail)
        resolution = None if gate.metric in ("tokens_per_answer", *JUDGED) else self._resolution
        return CensusTest(answers, self.rules.alpha, self._alpha_fail, self._controls(answers), resolution, self.limits)

    def _test_of_mean(self, gate: Gate) -> GateTest:
        answers = {name: self._answers(gate.model_copy(update={"task": name})) for name in self.rules.tasks}
        if self.rules.decide == "population":
            alpha_pass, alpha_fail = self.rules.alpha / len(answers), self._alpha_fail / len(answers)
            parts = {name: PopulationTest(one, alpha_pass, alpha_fail) for name, one in answers.items()}
            return PopulationMeanTest(gate, parts)
        controls = {name: self._controls(one) for name, one in answers.items()}
        return MeanTest(gate, answers, self.rules.alpha, self._alpha_fail, controls, self._resolution, self.limits)

    @property
    def _resolution(self) -> int | None:
        """Of the scores: see CensusTest."""
        return None if self.fractional else self.samples

    @property
    def _alpha_fail(self) -> float:
        return self.alpha_fail / len(self.rules.gates)

    def _answers(self, gate: Gate) -> Answers:
        order = self._order(gate)
        unit = self.token_limit if gate.metric == "tokens_per_answer" else 1.0
        return Answers(
            gate, order, unit, self.samples, self._baseline_values(gate, order), self._baseline_noise(gate, order)
        )

    def _order(self, gate: Gate) -> list[str]:
        """The ids of the gate's questions."""
        task, order = self.tasks[gate.task], list(self.orders[gate.task])
        if not gate.category:
            return order
        by_id = {question.id: question for question in task.questions}
        if len(by_id) < len(order):
            raise MedbenchError(
                f"gate '{gate.rule}': the number of questions in this category is known only when all of {gate.task} "
                f"is answered: finish the run with medbench eval --resume"
            )
        ((key, value),) = gate.category.items()
        known = sorted({key for question in task.questions for key in question.category})
        if key not in known:
            raise MedbenchError(f"gate on {gate.task}: no category {key!r}; it has {', '.join(known) or 'none'}")
        found = [id for id in order if id in by_id and by_id[id].category.get(key) == value]
        if not found:
            raise MedbenchError(f"gate on {gate.task}: no question with {gate.category}")
        return found

    def _with_constant(self, gate: Gate) -> Gate:
        task, order = self.tasks[gate.task], self._order(gate)
        by_id = {question.id: question for question in task.questions}
        golds = [by_id[id].gold if id in by_id else None for id in order]
        labelled = task.foreign is None and all(question.labels for question in task.questions)
        return with_constant(gate, golds, labelled)

    def _baseline_values(self, gate: Gate, order: Sequence[str]) -> dict[str, float] | None:
        if not gate.paired:
            return None
        if self.baseline is None:
            raise MedbenchError(f"gate '{gate.rule}' needs --baseline RUN")
        values = self.baseline.values(gate.task, order, gate.metric)
        if values is None:
            have = self.baseline.samples.get(gate.task, {})
            match = sum(id in have and value_of_question(have[id], gate.metric) is not None for id in order)
            raise MedbenchError(
                f"baseline {self.baseline.name} answers {match} of the {len(order)} questions of {gate.task}: "
                f"finish it with medbench eval --resume"
            )
        return values

    def _baseline_noise(self, gate: Gate, order: Sequence[str]) -> tuple[int, float | None] | None:
        """How many samples of each question the baseline has, and the variance between those of one question."""
        if not gate.paired or self.baseline is None:
            return None
        noise = SamplingNoise(gate.metric)
        for id in order:
            noise.observe(self.baseline.samples[gate.task][id])
        return len(self.baseline.samples[gate.task][order[0]]), noise.variance

    def _controls(self, answers: Answers) -> list[Control]:
        """The baseline and other runs that have a value for every question, as control variates."""
        gate, found = answers.gate, []
        for run in (*([self.baseline] if self.baseline else []), *self.controls):
            values = run.values(gate.task, answers.order, gate.metric)
            if values is not None:
                shares = {id: answers.scale.share(min(answers.unit, value)) for id, value in values.items()}
                found.append(Control(run.name, shares))
        return found
