"""`at_least: constant`: the accuracy of the best constant answer as a floor.

pytest tests/gates/test_constant_answer.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.gate_driver import drive
from support.gate_runs import answer, stored_run, write_gates

from medbench.harness.cli.main import run
from medbench.harness.cli.validate import faults_of
from medbench.harness.contracts import Data, MedbenchError, Question, Sample, Task
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.verdict import GateResult

LABELS = ("yes", "no", "maybe")
CONSTANT = "{task: pubmedqa, at_least: constant}"


def golds_of(yes: int, no: int, maybe: int) -> list[str]:
    return ["yes"] * yes + ["no"] * no + ["maybe"] * maybe


def a_task(golds: Sequence[str], labels: tuple[str, ...] = LABELS, category: Sequence[str] = ()) -> Task:
    kinds = category or ["all"] * len(golds)
    questions = tuple(
        Question(f"q{n}", f"q{n}", "", labels, labels, gold, category={"kind": kind})
        for n, (gold, kind) in enumerate(zip(golds, kinds, strict=True))
    )
    return Task("pubmedqa", "1", "test", 0.33, questions, Data("sample", "0" * 64, official=False))


def judged(task: Task, said: Sequence[str], **gate: object) -> GateResult:
    """The verdict where the candidate gives these answers."""
    rules = GateFile(gates=[Gate("pubmedqa", at_least="constant", **gate)])  # type: ignore[arg-type]
    samples = {
        question.id: answer(question.id, float(word == question.gold), category=question.category)
        for question, word in zip(task.questions, said, strict=True)
    }
    live = LiveGate(rules, [task], 0, None)
    drive(live, {"pubmedqa": samples})
    return live.results()[0]


def test_the_threshold_is_the_share_of_the_commonest_right_answer() -> None:
    task = a_task(golds_of(276, 169, 55))
    found = judged(task, ["yes"] * 500)
    assert found.threshold == pytest.approx(0.552)
    assert found.status == "pass"  # at least as good: it is the constant answer itself
    assert "threshold 55.2 %, the accuracy of always answering yes" in found.why
    assert found.rule == "pubmedqa: accuracy at least that of the best constant answer"


def test_one_right_answer_less_than_the_constant_fails() -> None:
    task = a_task(golds_of(276, 169, 55))
    assert judged(task, ["no", *["yes"] * 499]).status == "fail"


def test_a_model_that_reads_the_questions_passes_early() -> None:
    task = a_task(golds_of(276, 169, 55))
    found = judged(task, [question.gold for question in task.questions])
    assert found.status == "pass"
    assert found.used < found.total


def test_a_category_has_its_own_constant() -> None:
    golds = [*golds_of(60, 20, 0), *golds_of(10, 30, 0)]
    kinds = ["first"] * 80 + ["second"] * 40
    found = judged(a_task(golds, category=kinds), golds, category={"kind": "second"})
    assert found.threshold == 0.75


def test_free_answers_have_no_constant() -> None:
    with pytest.raises(MedbenchError, match="no fixed answers to choose from: give at_least a number"):
        judged(a_task(["12.5", "13"], labels=()), ["12.5", "13"])


def run_of(root: Path, said_yes: int, **changes: object) -> Path:
    golds = golds_of(30, 10, 0)
    said = ["yes" if n < said_yes else "no" for n in range(len(golds))]
    samples: list[Sample] = [
        answer(f"q{n}", float(word == gold), gold=gold, extracted=word)
        for n, (word, gold) in enumerate(zip(said, golds, strict=True))
    ]
    return stored_run(root / "runs", "candidate", {"pubmedqa": samples}, **changes)


def test_a_finished_run_is_judged_by_its_own_right_answers(tmp_path: Path) -> None:
    gates = write_gates(tmp_path / "gates.yaml", CONSTANT)
    right = run_of(tmp_path / "right", 30)
    assert run(["gate", str(right), "--gates", str(gates)]) == 0
    verdict = json.loads((right / "verdict.json").read_text())
    assert verdict["gates"][0]["threshold"] == 0.75
    wrong = run_of(tmp_path / "wrong", 0)  # right on the ten, wrong on the thirty
    assert run(["gate", str(wrong), "--gates", str(gates)]) == 1


def test_a_limited_run_does_not_know_the_right_answers_of_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gates = write_gates(tmp_path / "gates.yaml", CONSTANT)
    limited = run_of(tmp_path, 30, n=100, limit=40)
    assert run(["gate", str(limited), "--gates", str(gates)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "the right answers of 60 of the 100 questions are not in this run" in line


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        ("gates: [{task: pubmedqa, metric: unparsed, at_least: constant}]", "is an accuracy of one task"),
        ("gates: [{task: mean, at_least: constant}, {task: medqa, at_least: 0.5}]", "is an accuracy of one task"),
        ("gates: [{task: medqa, at_least: constants}]", "constant"),
        ("gates: [{task: medqa, at_least: -1}]", "greater than or equal to 0"),
        ("gates: [{task: medqa, at_most: constant}]", "number"),
        ("decide: population\ngates: [{task: medqa, at_least: constant}]", "needs a number"),
    ],
)
def test_where_a_constant_makes_no_sense_the_file_is_refused(tmp_path: Path, gates: str, says: str) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(gates + "\n")
    _, faults = faults_of(path)
    assert any(says in fault for fault in faults), faults
    assert run(["validate", str(path)]) == 2
