"""From an open gate and an engine to the gate's results: asks until the verdict is certain, and stores every answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from medbench.harness.contracts import Engine
from medbench.harness.evaluation.requests import Instance
from medbench.harness.evaluation.runner import Progress, RunsOn, ask, refuse_foreign_answers, seal
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.schedule import Schedule
from medbench.harness.gates.verdict import GateResult
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.run_folder import Run


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
    schedule = Schedule(gate, stored, getattr(engine, "places", None), before)

    def instances() -> Iterator[Instance | None]:
        for item in schedule.to_send():
            if item is not None and run.record.status != "running":
                run.begin(status="running", limit=None)  # a limited run that is extended is unfinished
            if item is None:
                yield None
                continue
            task, id, repeat = item
            yield Instance(tasks[task], questions[task][id], repeat)

    while not schedule.done:
        with closing(ask(run, instances(), protocol, engine, gate.limits.tokens)) as stream:
            for task, found in stream:
                if isinstance(found, RunsOn):
                    schedule.passed(task.name, found.key, found.tokens)
                else:
                    progress.advance(task.name, found)
                    schedule.arrived(task.name, found, seconds=before + time.monotonic() - started)
                if schedule.done:
                    break
    schedule.settle(run.record.totals.seconds)
    if run.record.status == "running" and all(len(stored[name]) == wanted for name, wanted in replies.items()):
        seal(run, gate.tasks, protocol)
    return gate.results()
