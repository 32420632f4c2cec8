"""From an open gate and an engine to the gate's results: asks until the verdict is certain, and stores every answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from medbench.harness.contracts import Engine
from medbench.harness.evaluation.requests import Instance
from medbench.harness.evaluation.runner import Progress, RunsOn, ask, refuse_foreign_answers, seal
from medbench.harness.gates.expected_time import ExpectedTime
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.schedule import Schedule
from medbench.harness.gates.verdict import GateResult
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.run_folder import Run

EXPECT_SECONDS = 2.0
"""Time before the verdict's is first expected, and until it is expected anew."""


def run_gate(gate: LiveGate, run: Run, protocol: Protocol, engine: Engine, progress: Progress) -> list[GateResult]:
    """Ask until the verdict is certain. What the run already has is not asked again; what is under way at the verdict
    is aborted, and answers that had finished are kept for another gate.
    """
    refuse_foreign_answers(run, gate.tasks)
    tasks = {task.name: task for task in gate.tasks}
    questions = {task.name: {question.id: question for question in task.questions} for task in gate.tasks}
    stored = {name: {sample.key: sample for sample in run.answered(name)} for name in tasks}
    replies = {name: len(by_id) * gate.samples for name, by_id in questions.items()}
    for name, wanted in replies.items():
        progress.start(name, wanted, len(stored[name]))
    before, started = run.record.totals.seconds, time.monotonic()
    places = getattr(engine, "places", None)
    schedule = Schedule(gate, stored, places, before)
    expected, told = ExpectedTime(places, protocol.most_tokens), started

    def instances() -> Iterator[Instance | None]:
        for item in schedule.to_send():
            if item is not None and run.record.status != "running":
                run.begin(status="running", limit=None)  # a limited run that is extended is unfinished
            if item is None:
                yield None
                continue
            task, id, repeat = item
            instance = Instance(tasks[task], questions[task][id], repeat)
            expected.sent(task, instance.key, time.monotonic())
            yield instance

    while not schedule.done:
        with closing(ask(run, instances(), protocol, engine, gate.limits.tokens)) as stream:
            for task, found in stream:
                if isinstance(found, RunsOn):
                    schedule.passed(task.name, found.key, found.tokens)
                else:
                    progress.advance(task.name, found)
                    now = time.monotonic()
                    expected.arrived(task.name, found, now)
                    schedule.arrived(task.name, found, seconds=before + now - started)
                if schedule.done:
                    break
                if time.monotonic() - told > EXPECT_SECONDS:
                    told = time.monotonic()
                    until = expected.expected(gate, schedule.demands, schedule.answered, told)
                    if until is not None:
                        progress.expect(str(until))
    schedule.settle(run.record.totals.seconds)
    if run.record.status == "running" and all(len(stored[name]) == wanted for name, wanted in replies.items()):
        seal(run, gate.tasks, protocol)
    return gate.results()
