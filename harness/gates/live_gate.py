"""A gate file's gates while the answers come in: what they show so far, and what they need to be decided.

The answers are observed along each task's fixed order. Each gate's test is valid over all positions of its order at
once, so neither the choice of the task whose answers come next nor stopping early increases the error rates. With
limits in tokens, replies are also observed while they run (see token_limits.py). What is sent to the engine meanwhile
is schedule.py's affair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medbench.harness.contracts import Sample, Task, sample_key
from medbench.harness.evaluation.repeatability import Noise
from medbench.harness.evaluation.requests import permuted
from medbench.harness.gates.baseline import Reference
from medbench.harness.gates.build import Builder
from medbench.harness.gates.gate_test import GateTest
from medbench.harness.gates.judged_gate import Judging
from medbench.harness.gates.rules import GateFile
from medbench.harness.gates.token_limits import NO_LIMITS, Limits, Reply
from medbench.harness.gates.verdict import (
    CORRECTION,
    GateResult,
    Verdict,
    beyond_the_census,
    overall_of,
    warnings_of,
    within_sampling_noise,
)
from medbench.harness.runs.comparability import protocol_warnings, setup_warnings
from medbench.harness.runs.records import RunRecord

FIRST_LOOK = 32
"""Answers of a task that are looked at first: fewer would decide only what is far off, with a poor estimate of it."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A task whose further answers can bring the verdict nearer."""

    task: str
    more: float
    """Further answers that the verdict likely needs, at most all that are left."""
    tokens: float
    """The tokens of these, prompts included."""
    fails: bool
    """Whether they would likely bring a fail."""
    seen: bool
    """Whether any answer of the task has been looked at."""


@dataclass(slots=True)
class _Progress:
    """How far one task has been asked."""

    task: Task
    order: list[str]
    position: int = 0
    tokens: int = 0
    within: dict[int, int] = field(default_factory=dict)
    """Token limit -> position up to which replies have been looked at within it."""

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
    seed: int | str
    """Of the order in which each task's questions are looked at."""
    baseline: Reference | None
    controls: Sequence[Reference] = ()
    unit: float = 1.0
    """Most tokens that a reply may have."""
    known_orders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """task -> all ids in order, where that is not the permutation of the task's questions (a limited run)."""
    alpha_fail: float | None = None
    """Chance of a wrong fail; None is the rules' alpha. A training loop divides alpha over its passes only."""
    samples: int = 1
    """Of each question, whose mean is what is judged."""
    fractional: bool = False
    """Whether the score of one sample may lie between 0 and 1, as lm-eval's own can."""
    limits: Limits = NO_LIMITS
    """For an engine that reports running replies."""
    judgings: Mapping[int, Judging] = field(default_factory=dict)
    """Of a finished run: place of a gate on a judge's scores -> these scores."""
    _progress: dict[str, _Progress] = field(init=False)
    _tests: list[GateTest] = field(init=False)

    def __post_init__(self) -> None:
        """Raises MedbenchError for a gate that has no questions or lacks its baseline."""
        self._progress = {
            task.name: _Progress(task, list(self.known_orders.get(task.name) or _order(task, self.seed)))
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
            samples=self.samples,
            limits=self.limits,
            judgings=self.judgings,
        ).tests()

    def observe(self, task: str, samples: Sequence[Sample], *, seconds: float = 0.0) -> None:
        """Take the next answers of `task`, in its order; all samples of a question together, the first repeat first.

        `seconds`: time that all answers so far took, of all tasks, these included. Raises ValueError for answers that
        are not the next ones.
        """
        progress = self._progress[task]
        if [sample.key for sample in samples] != self._next_keys(progress, progress.position, len(samples)):
            raise ValueError(f"{task}: answers out of the fixed order")
        progress.position += len(samples) // self.samples
        progress.tokens += sum(sample.prompt_tokens + sample.completion_tokens for sample in samples)
        for test in self._tests:
            test.observe(task, samples, seconds)

    def observe_within(self, task: str, limit: int, replies: Sequence[Reply]) -> None:
        """Take what is known within `limit` tokens of the next replies of `task`, in its order; all samples of a
        question together.

        Raises ValueError for replies that are not the next ones.
        """
        progress, position = self._progress[task], self.position(task, limit)
        if [reply.key for reply in replies] != self._next_keys(progress, position, len(replies)):
            raise ValueError(f"{task}: replies out of the fixed order")
        progress.within[limit] = position + len(replies) // self.samples
        for test in self._tests:
            if task in test.tasks:
                test.observe_within(task, limit, replies)

    def _next_keys(self, progress: _Progress, position: int, count: int) -> list[str]:
        """The keys of the next `count` samples, which is made up to whole questions."""
        ids = progress.order[position : position + math.ceil(count / self.samples)]
        return [sample_key(id, repeat) for id in ids for repeat in range(self.samples)]

    def results(self) -> list[GateResult]:
        """One per gate, in the file's order."""
        results = [test.result() for test in self._tests]
        return [_held_back(one) for one in results] if self.rules.decide_after == "all" else results

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """task -> ids of all its questions, in the order in which they are looked at."""
        return {name: one.order for name, one in self._progress.items()}

    def position(self, task: str, limit: int | None = None) -> int:
        """How many answers of `task` have been observed, whole or within `limit` tokens."""
        progress = self._progress[task]
        return progress.position if limit is None else progress.within.get(limit, 0)

    @property
    def asked(self) -> dict[str, list[str]]:
        """task -> ids of the questions observed so far, in order."""
        return {name: one.order[: one.position] for name, one in self._progress.items()}

    @property
    def used(self) -> int:
        """Questions observed so far, of all tasks."""
        return sum(one.position for one in self._progress.values())

    def demands(self) -> list[Demand]:
        """The tasks that can bring the verdict nearer; none when it is certain or nothing is left to ask."""
        results = self.results()
        final = [result for result, test in zip(results, self._tests, strict=True) if not test.provisional]
        failed = overall_of(final)[0] == "fail" and not self.rules.asks_everything
        spent = self.rules.budget is not None and self.used >= self.rules.budget
        if failed or spent or any(test.hopeless for test in self._tests):
            return []
        waiting = [
            test
            for result, test in zip(results, self._tests, strict=True)
            if result.status in ("undecided", "not gateable") or self.rules.asks_everything
        ]
        found = (self._demand(name, [test for test in waiting if name in test.tasks]) for name in self._progress)
        demands = [demand for demand in found if demand is not None]
        # a mean may need nothing of a task until another has as many answers
        return [demand for demand in demands if demand.more > 0] or demands

    def _demand(self, name: str, waiting: Sequence[GateTest]) -> Demand | None:
        progress = self._progress[name]
        if not waiting or not progress.remaining:
            return None
        if not progress.position:
            return Demand(name, FIRST_LOOK, 0.0, fails=False, seen=False)
        outlooks = [test.outlook(name) for test in waiting]
        fails = [one.more for one in outlooks if one.fails and one.more > 0]
        more = min(fails) if fails else max(one.more for one in outlooks)
        questions = min(float(progress.remaining), more * progress.position)
        return Demand(name, questions, progress.cost * questions, fails=bool(fails), seen=True)


def _held_back(result: GateResult) -> GateResult:
    """The result where a verdict must wait for every question."""
    if result.used == result.total or result.status not in ("pass", "fail"):
        return result
    why = f"{result.why} by the evidence; undecided until all questions are asked (decide_after: all)"
    return result.model_copy(update={"status": "undecided", "why": why})


def _order(task: Task, seed: int | str) -> list[str]:
    return permuted((question.id for question in task.questions), seed=seed, task=task.name)


def _unmeasured_noise(record: RunRecord, noise: Mapping[str, Noise]) -> list[str]:
    """A line on sampled replies of which there is only one a question."""
    temperature = record.protocol.get("decoding", {}).get("temperature", 0)
    if record.protocol.get("method") != "generate" or not temperature or record.samples > 1 or noise:
        return []
    return [
        f"replies are sampled at temperature {temperature:g}, one a question: how far another run of the same "
        f"checkpoint would differ is not known; ask for samples: 2 or more in the gate file, or add --aa 100"
    ]


def verdict_of(
    gate: LiveGate,
    results: Sequence[GateResult],
    record: RunRecord,
    noise: Mapping[str, Noise] | None = None,
    *,
    number: int | None = None,
) -> Verdict:
    """The verdict on the run `record`; `noise`: measured, per task; `number`: the checkpoint's in the ledger."""
    overall, why = overall_of(results)
    reference = gate.baseline.record if gate.baseline else None
    setup = setup_warnings(reference, record) if reference is not None else protocol_warnings(record)
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
        number=number,
        samples=gate.samples,
        order_seed=str(gate.seed),
        noise=dict(noise or {}),
        warnings=[
            *warnings_of(noise or {}, gate.rules, results, gate.samples),
            *beyond_the_census(results),
            *within_sampling_noise(results),
            *_unmeasured_noise(record, noise or {}),
            *setup,
        ],
    )
