"""Gates while the answers come in: blocks along each task's fixed order, until the verdict is certain.

    medbench gate checkpoints/step-800 --gates gates.yaml --baseline runs/step-600

A block is sent, answered in full and only then looked at, so that short answers, which finish first, are not
over-represented. The next block goes to the task with the open gate that is likely to be decided for the fewest tokens;
a likely fail comes before a likely pass, because one fail settles the verdict. The choice depends only on answers
already looked at, and each gate's test is valid at any stopping time, so neither this choice nor stopping early
increases the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medbench.harness.contracts import Engine, Sample, Task
from medbench.harness.evaluation.repeatability import Noise
from medbench.harness.evaluation.requests import Instance, permuted
from medbench.harness.evaluation.runner import Progress, ask, seal
from medbench.harness.gates.baseline import Reference
from medbench.harness.gates.build import Builder
from medbench.harness.gates.gate_test import GateTest
from medbench.harness.gates.rules import GateFile
from medbench.harness.gates.verdict import CORRECTION, GateResult, Verdict, overall_of, warnings_of
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import Run, read_samples

BLOCK = 32
"""Questions sent at a time: enough to fill a batch, few enough that little is wasted after a decision."""


@dataclass(slots=True)
class _Progress:
    """How far one task has been asked."""

    task: Task
    order: list[str]
    position: int = 0
    tokens: int = 0

    @property
    def remaining(self) -> int:
        return len(self.order) - self.position

    @property
    def cost(self) -> float:
        """Tokens per question so far."""
        return self.tokens / self.position if self.position else 0.0


@dataclass(slots=True)
class LiveGate:
    """A gate file applied to one checkpoint's answers, wherever they come from."""

    rules: GateFile
    tasks: Sequence[Task]
    seed: int
    baseline: Reference | None
    controls: Sequence[Reference] = ()
    unit: float = 1.0
    """Most tokens that a reply may have."""
    orders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """task -> all ids in order, where that is not the permutation of the task's questions (a limited run)."""
    alpha_fail: float | None = None
    """Chance of a wrong fail; None is the rules' alpha. A training loop divides alpha over its passes only."""
    fractional: bool = False
    """Whether scores may lie between 0 and 1, as lm-eval's own can."""
    _progress: dict[str, _Progress] = field(init=False)
    _tests: list[GateTest] = field(init=False)

    def __post_init__(self) -> None:
        """Raises MedbenchError for a gate that has no questions or lacks its baseline."""
        self._progress = {
            task.name: _Progress(task, list(self.orders.get(task.name) or _order(task, self.seed)))
            for task in self.tasks
        }
        self._tests = Builder(
            rules=self.rules,
            tasks={task.name: task for task in self.tasks},
            orders={name: one.order for name, one in self._progress.items()},
            baseline=self.baseline,
            controls=self.controls,
            token_limit=self.unit,
            alpha_fail=self.alpha_fail or self.rules.alpha,
            fractional=self.fractional,
        ).tests()

    def observe(self, task: str, samples: Sequence[Sample], *, seconds: float = 0.0) -> None:
        """Take the next answers of `task`, in its order.

        `seconds`: time that all answers so far took, of all tasks, these included. Raises ValueError for answers that
        are not the next ones.
        """
        progress = self._progress[task]
        expected = progress.order[progress.position : progress.position + len(samples)]
        if [sample.id for sample in samples] != expected:
            raise ValueError(f"{task}: answers out of the fixed order")
        progress.position += len(samples)
        progress.tokens += sum(sample.prompt_tokens + sample.completion_tokens for sample in samples)
        for test in self._tests:
            test.observe(task, samples, seconds)

    def results(self) -> list[GateResult]:
        """One per gate, in the file's order."""
        return [test.result() for test in self._tests]

    @property
    def asked(self) -> dict[str, list[str]]:
        """task -> ids of the questions observed so far, in order."""
        return {name: one.order[: one.position] for name, one in self._progress.items()}

    @property
    def used(self) -> int:
        """Questions observed so far, of all tasks."""
        return sum(one.position for one in self._progress.values())

    def next_block(self, size: int = BLOCK) -> tuple[Task, list[str]] | None:
        """(task, question ids) to ask next; None when the verdict is certain or nothing is left to ask."""
        results = self.results()
        final = [result for result, test in zip(results, self._tests, strict=True) if not test.provisional]
        failed = overall_of(final)[0] == "fail" and self.rules.decide == "census"
        if failed or any(test.hopeless for test in self._tests):
            return None
        open_tasks = self._open_tasks(results)
        if self.rules.budget is not None:
            size = min(size, self.rules.budget - self.used)
        if not open_tasks or size <= 0:
            return None
        best = min(open_tasks, key=lambda one: (self._tokens_left(one, results), one.task.name))
        return best.task, best.order[best.position : best.position + size]

    def _open_tasks(self, results: Sequence[GateResult]) -> list[_Progress]:
        population = self.rules.decide == "population"  # its test allows a single look: all questions are asked first
        names = {
            name
            for result, test in zip(results, self._tests, strict=True)
            if result.status in ("undecided", "not gateable") or population
            for name in test.tasks
        }
        return [self._progress[name] for name in names if self._progress[name].remaining]

    def _tokens_left(self, progress: _Progress, results: Sequence[GateResult]) -> float:
        """Tokens until the nearest decision that this task can bring; negative for a task not yet looked at."""
        if not progress.position:
            return -1.0
        spent, left = progress.cost * progress.position, progress.cost * progress.remaining
        waiting = [
            test
            for result, test in zip(results, self._tests, strict=True)
            if result.status == "undecided" and progress.task.name in test.tasks
        ]
        return min((min(left, spent * test.more_needed()) for test in waiting), default=math.inf)


def _order(task: Task, seed: int) -> list[str]:
    return permuted((question.id for question in task.questions), seed=seed, task=task.name)


def run_gate(gate: LiveGate, run: Run, protocol: Protocol, engine: Engine, progress: Progress) -> list[GateResult]:
    """Ask until the verdict is certain. Every answer is stored; what the run already has is not asked again."""
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
            run.update(status="running", limit=None)  # a limited run that is extended is unfinished
        for _, sample in ask(run, new, protocol, engine) if new else ():
            stored[task.name][sample.id] = sample
        for id in ids:
            progress.advance(task.name, stored[task.name][id])
        seconds = run.record.totals.seconds * (gate.used + len(ids)) / sum(map(len, stored.values()))
        gate.observe(task.name, [stored[task.name][id] for id in ids], seconds=seconds)
    if run.record.status == "running" and all(len(stored[name]) == len(by_id) for name, by_id in questions.items()):
        seal(run, gate.tasks, protocol)
    return gate.results()


def verdict_of(
    gate: LiveGate, results: Sequence[GateResult], record: RunRecord, noise: Mapping[str, Noise] | None = None
) -> Verdict:
    """The verdict on the run `record`; `noise` is what was measured per task."""
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
