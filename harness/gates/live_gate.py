"""Gates while the answers come in: blocks along each task's fixed order, until the verdict is certain.

    medbench gate checkpoints/step-800 --gates gates.yaml --baseline runs/step-600

A block is sent, answered and only then looked at, so that short answers, which finish first, are never over-
represented. The next block goes to the task whose open gate promises a decision for the fewest tokens, a leaning fail
before a leaning pass: one fail settles the verdict. Which task comes next depends on answers already consumed only,
and each gate's test is valid at any stopping time, so neither the order of the tasks nor stopping early costs
anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medbench.harness.contracts import Engine, MedbenchError, Sample, Task
from medbench.harness.evaluation.repeatability import Noise
from medbench.harness.evaluation.requests import Instance, permuted
from medbench.harness.evaluation.runner import Progress, ask, seal
from medbench.harness.gates.baseline import Reference
from medbench.harness.gates.gate_test import GateTest, PaceTest, mean_result
from medbench.harness.gates.metric_values import value_of
from medbench.harness.gates.rules import MEAN, Gate, GateFile
from medbench.harness.gates.verdict import CORRECTION, GateResult, Verdict, overall_of, warnings_of
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import Run, read_samples
from medbench.harness.stats.sequential import Control

BLOCK = 32
"""Questions sent at a time: enough to fill a batch, few enough that a decision wastes little."""


@dataclass(slots=True)
class _Line:
    """One task's questions in their order, and the tests that watch it."""

    task: Task
    order: list[str]
    tests: list[GateTest]
    position: int = 0
    tokens: int = 0

    @property
    def cost(self) -> float:
        """Tokens a question, so far."""
        return self.tokens / self.position if self.position else 0.0


@dataclass(slots=True)
class LiveGate:
    """A gate file at work on one checkpoint's answers, wherever they come from."""

    rules: GateFile
    tasks: Sequence[Task]
    seed: int
    baseline: Reference | None
    controls: Sequence[Reference] = ()
    unit: float = 1.0
    """Tokens a reply may have at most."""
    orders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """task -> all ids in order, where that is not the permutation of the task's questions (a limited run)."""
    alpha_fail: float | None = None
    """Chance of a wrong fail; None is the rules' alpha. A loop spends on its passes alone."""
    fractional: bool = False
    """Whether scores may lie between 0 and 1, as lm-eval's own can."""
    _lines: dict[str, _Line] = field(default_factory=dict)
    seconds: float = 0.0
    """Time that the questions observed so far have taken, at the run's mean pace."""
    _tests: list[GateTest | PaceTest | dict[str, GateTest]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lines = {
            task.name: _Line(task, list(self.orders.get(task.name) or _order(task, self.seed)), [])
            for task in self.tasks
        }
        for gate in self.rules.gates:
            if gate.task == MEAN:
                names = self.rules.tasks
                tests = {name: self._test(gate.model_copy(update={"task": name}), len(names)) for name in names}
                self._tests.append(tests)
            elif gate.metric == "seconds_per_question":
                self._tests.append(PaceTest(gate, sum(len(line.order) for line in self._lines.values())))
            else:
                self._tests.append(self._test(gate, 1))

    def observe(self, task: str, samples: Sequence[Sample]) -> None:
        """The next answers of `task`, in its order."""
        line = self._lines[task]
        expected = line.order[line.position : line.position + len(samples)]
        if [sample.id for sample in samples] != expected:
            raise ValueError(f"{task}: answers out of the fixed order")
        line.position += len(samples)
        line.tokens += sum(sample.prompt_tokens + sample.completion_tokens for sample in samples)
        for test in line.tests:
            test.observe(samples)

    def results(self) -> list[GateResult]:
        for test in self._tests:
            if isinstance(test, PaceTest):
                test.used, test.seconds = self.used, self.seconds
        return [
            mean_result(gate, test) if isinstance(test, dict) else test.result()
            for gate, test in zip(self.rules.gates, self._tests, strict=True)
        ]

    @property
    def used(self) -> int:
        return sum(line.position for line in self._lines.values())

    def next_block(self, size: int = BLOCK) -> tuple[Task, list[str]] | None:
        """(task, question ids) to ask next; None when the verdict is certain or nothing is left."""
        results = self.results()
        certain = [r for r in results if r.metric != "seconds_per_question"]  # a pace can still change
        if self._hopeless or (overall_of(certain)[0] == "fail" and self.rules.decide == "census"):
            return None
        open_tasks = self._open_tasks(results)
        if self.rules.budget is not None:
            size = min(size, self.rules.budget - self.used)
        if not open_tasks or size <= 0:
            return None
        line = min(open_tasks, key=lambda line: (self._promise(line, results), line.task.name))
        return line.task, line.order[line.position : line.position + size]

    @property
    def _hopeless(self) -> bool:
        tests = [test for line in self._lines.values() for test in line.tests]
        return any(test.hopeless for test in tests)

    def _open_tasks(self, results: Sequence[GateResult]) -> list[_Line]:
        population = self.rules.decide == "population"  # its bound is a fixed-sample one: all questions are asked
        names = {
            name
            for result, test in zip(results, self._tests, strict=True)
            if result.status in ("undecided", "not gateable") or population
            for name in (test if isinstance(test, dict) else [result.task])
        }
        lines = [self._lines[name] for name in names]
        return [line for line in lines if line.position < len(line.order)]

    def _promise(self, line: _Line, results: Sequence[GateResult]) -> float:
        """Tokens until the nearest decision on this task at the evidence's present pace; a leaning fail counts half."""
        if not line.position:
            return -1.0  # a first look at every task
        best = math.inf
        for result in results:
            if result.status != "undecided" or result.task not in (line.task.name, MEAN):
                continue
            left = line.cost * (len(line.order) - line.position)
            for evidence, needed, weight in (
                (result.log_e_pass, math.log(1 / self.rules.alpha), 1.0),
                (result.log_e_fail, math.log(len(self.rules.gates) / (self.alpha_fail or self.rules.alpha)), 0.5),
            ):
                if evidence is not None and evidence > 0:
                    left = min(left, weight * line.cost * line.position * (needed - evidence) / evidence)
            best = min(best, left)
        return best

    def _test(self, gate: Gate, share: int) -> GateTest:
        line = self._lines[gate.task]
        by_id = {question.id: question for question in line.task.questions}
        category = gate.category or {}
        if category and len(by_id) < len(line.order):
            raise MedbenchError(f"gate '{gate.rule}': how many questions are of this category is known only when all "
                                f"of {gate.task} are answered: finish with medbench eval --resume")  # fmt: skip
        unknown = [key for key in category if not any(key in q.category for q in line.task.questions)]
        if unknown:
            known = sorted({key for q in line.task.questions for key in q.category})
            raise MedbenchError(f"gate on {gate.task}: no category {unknown[0]!r}; it has {', '.join(known) or 'none'}")
        order = [
            id for id in line.order if not category
            or (id in by_id and all(by_id[id].category.get(key) == value for key, value in category.items()))
        ]  # fmt: skip
        if not order:
            raise MedbenchError(f"gate on {gate.task}: no question with {category}")
        unit = self.unit if gate.metric == "tokens_per_answer" else 1.0
        test = GateTest(
            gate,
            order,
            alpha=self.rules.alpha / share,
            alpha_fail=(self.alpha_fail or self.rules.alpha) / share,
            gates=len(self.rules.gates),
            unit=unit,
            baseline=self._baseline_values(gate, order),
            controls=self._control_values(gate, order, unit),
            decide=self.rules.decide,
            exact_lattice=gate.metric != "tokens_per_answer" and not self.fractional,
        )
        line.tests.append(test)
        return test

    def _baseline_values(self, gate: Gate, order: Sequence[str]) -> dict[str, float] | None:
        if not gate.paired:
            return None
        if self.baseline is None:
            raise MedbenchError(f"gate '{gate.rule}' needs --baseline RUN")
        values = self.baseline.values(gate.task, order, gate.metric)
        if values is None:
            have = self.baseline.samples.get(gate.task, {})
            match = sum(id in have and value_of(have[id], gate.metric) is not None for id in order)
            raise MedbenchError(f"baseline {self.baseline.name} answers {match} of the {len(order)} questions of "
                                f"{gate.task}: finish it with medbench eval --resume")  # fmt: skip
        return values

    def _control_values(self, gate: Gate, order: Sequence[str], unit: float) -> list[Control]:
        references = [*([self.baseline] if self.baseline else []), *self.controls]
        controls = []
        for reference in references:
            values = reference.values(gate.task, order, gate.metric)
            if values is not None:
                controls.append(Control(reference.name, {id: min(1.0, v / unit) for id, v in values.items()}))
        return controls


def _order(task: Task, seed: int) -> list[str]:
    return permuted((question.id for question in task.questions), seed=seed, task=task.name)


def run_gate(gate: LiveGate, run: Run, protocol: Protocol, engine: Engine, progress: Progress) -> list[GateResult]:
    """Ask until the verdict is certain; every answer is stored, those of an earlier attempt at this run are used."""
    stored = {
        task.name: {s.id: s for s in read_samples(run.folder, task.name)} if run.done(task.name) else {}
        for task in gate.tasks
    }
    questions = {task.name: {question.id: question for question in task.questions} for task in gate.tasks}
    for task in gate.tasks:
        progress.start(task.name, len(task.questions), 0)
    while (block := gate.next_block()) is not None:
        task, ids = block
        new = [Instance(task, questions[task.name][id]) for id in ids if id not in stored[task.name]]
        if new and run.record.status != "running":
            run.update(status="running", limit=None)  # a limited run that is extended is no longer whole
        for _, sample in ask(run, new, protocol, engine) if new else ():
            stored[task.name][sample.id] = sample
        for id in ids:
            progress.advance(task.name, stored[task.name][id])
        gate.seconds = run.record.totals.seconds * (gate.used + len(ids)) / sum(map(len, stored.values()))
        gate.observe(task.name, [stored[task.name][id] for id in ids])
    if run.record.status == "running" and all(len(stored[name]) == len(by_id) for name, by_id in questions.items()):
        seal(run, gate.tasks, protocol)
    return gate.results()


def verdict_of(
    gate: LiveGate, results: Sequence[GateResult], record: RunRecord, noise: Mapping[str, Noise] | None = None
) -> Verdict:
    """The verdict to store, show and exit with."""
    overall, why = overall_of(results)
    return Verdict(
        overall=overall,
        why=why,
        alpha=gate.rules.alpha,
        decide=gate.rules.decide,
        partition=gate.rules.partition,
        correction=CORRECTION,
        candidate=record.model.name,
        fingerprint=record.model.fingerprint,
        baseline=gate.baseline.name if gate.baseline else None,
        protocol=record.protocol["name"],
        gates=list(results),
        noise=dict(noise or {}),
        warnings=warnings_of(dict(noise or {}), gate.rules),
    )
