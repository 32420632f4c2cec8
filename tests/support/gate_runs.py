"""Runs, tasks and benchmark files made up for the tests of gates: who was right where is all that matters.

from support.gate_runs import answers, stored_run
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.rows import content_id
from medbench.harness.contracts import Data, Question, Sample, Task
from medbench.harness.evaluation.requests import permuted
from medbench.harness.gates.baseline import Reference, by_question
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.records import ModelRecord, RunRecord, TaskRecord, Totals
from medbench.harness.runs.run_folder import create_run
from medbench.harness.scoring.summary import summarize

SHA = "0" * 64


def answer(id: str, score: float | None = 1.0, **changes: Any) -> Sample:
    """One answered question; score None is a failed request."""
    failed = score is None
    values = {
        "id": id,
        "cluster": id,
        "prompt": "Q?",
        "output": "" if failed else "The answer is (A).",
        "finish_reason": "error" if failed else "stop",
        "extracted": None if failed else "A",
        "outcome": "error" if failed else "answered",
        "span": None,
        "gold": "A",
        "score": score,
        "error": "no reply" if failed else None,
        "prompt_tokens": 0 if failed else 5,
        "completion_tokens": 0 if failed else 10,
        "category": {},
    }
    return Sample(**(values | changes))


def answers(right: int, wrong: int = 0, failed: int = 0, **changes: Any) -> list[Sample]:
    """So many right ones, then wrong ones, then failed requests; ids q0, q1, ..."""
    scores = [1.0] * right + [0.0] * wrong + [None] * failed
    return [answer(f"q{number}", score, **changes) for number, score in enumerate(scores)]


def a_task(ids: Sequence[str], name: str = "toy", category: Mapping[str, Mapping[str, str]] | None = None) -> Task:
    """The task whose questions have these ids; the gold answer is always A."""
    questions = tuple(
        Question(id, id, f"Which is {id}?", ("Iron", "Zinc"), ("A", "B"), "A", category=(category or {}).get(id, {}))
        for id in ids
    )
    return Task(name, "1", "test", 0.5, questions, Data("local", SHA, True))


def a_record(name: str, tasks: Mapping[str, int], **changes: Any) -> RunRecord:
    """run.json of a run on `tasks` (name -> number of questions); `described` of `changes` is what differs in them."""
    task_record = {"version": "1", "split": "test", "source": "local", "sha256": SHA, "official": True}
    task_record |= changes.pop("described", {})
    values = {
        "run_id": name,
        "status": "running",
        "created": "2026-01-01T00:00:00+00:00",
        "command": ["medbench"],
        "model": ModelRecord(name=name, kind="replies", fingerprint=name),
        "tasks": {task: TaskRecord(n=n, **task_record) for task, n in tasks.items()},
        "protocol": load_protocol("cot-v2").model_dump(mode="json"),
        "seed": 0,
        "limit": None,
        "engine": {"name": "fake"},
        "packages": {},
        "git_commit": None,
        "totals": Totals(seconds=1.0),
    }
    return RunRecord(**(values | changes))


def stored_run(root: Path, name: str, samples: Mapping[str, Sequence[Sample]], /, **changes: Any) -> Path:
    """A finished run; `n` of `changes` is how many questions each task has where not all are answered."""
    total = changes.pop("n", None)
    status = changes.pop("status", "complete")
    record = a_record(
        name, {task: total or len({sample.id for sample in some}) for task, some in samples.items()}, **changes
    )
    with create_run(root, record) as run:
        for task, some in samples.items():
            place = {id: at for at, id in enumerate(permuted({s.id for s in some}, seed=record.seed, task=task))}
            for sample in sorted(some, key=lambda sample: place[sample.id]):
                run.append(task, sample)
            run.write_result(summarize(a_task([], task), "cot-v2", some))
        run.update(status=status)
    return root / name


def a_reference(name: str, samples: Mapping[str, Mapping[str, Sample]], **changes: Any) -> Reference:
    """A baseline or control with one sample per question; `samples`: task -> id -> sample."""
    return Reference(name, {task: by_question(some.values(), 1) for task, some in samples.items()}, **changes)


def write_medqa(folder: Path, n: int) -> list[str]:
    """A made-up medqa of n questions under `folder`, for --data; the ids of its questions, whose answer is A."""
    (folder / "medqa").mkdir(parents=True, exist_ok=True)
    options = {"A": "Iron", "B": "Zinc", "C": "Copper", "D": "Lead"}
    ids = []
    with (folder / "medqa" / "test.jsonl").open("w") as file:
        for number in range(n):
            question = f"Which metal is number {number}?"
            step = "step1" if number % 4 == 0 else "step2&3"
            row = {"question": question, "options": options, "answer_idx": "A", "meta_info": step}
            file.write(json.dumps(row) + "\n")
            ids.append(content_id(question, *options.values()))
    return ids


def write_replies(path: Path, right: Mapping[str, bool]) -> Path:
    """Stored replies for --replies: A where right, else B."""
    lines = [json.dumps({"id": id, "output": f"The answer is ({'A' if ok else 'B'})."}) for id, ok in right.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_gates(path: Path, *gates: str, **settings: Any) -> Path:
    """A gate file from gates in YAML's short form, e.g. "{task: medqa, at_least: 0.6}"."""
    lines = [f"{key}: {value}" for key, value in settings.items()]
    path.write_text("\n".join([*lines, "gates:", *(f"  - {gate}" for gate in gates)]) + "\n")
    return path
