"""Gate files: what is sound, and every fault told by its key path; the example that --init writes.

pytest tests/gates/test_rules.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gate_runs import answers, stored_run, write_gates

from medbench.harness.cli.main import run
from medbench.harness.cli.validate import faults_of
from medbench.harness.contracts import MedbenchError
from medbench.harness.gates.rules import EXAMPLE, read_gate_file


def faults(tmp_path: Path, text: str) -> list[str]:
    """The file's faults without its name, which each is checked to open with."""
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    kind, found = faults_of(path)
    assert kind == "gate file"
    assert all(fault.startswith(f"{path}: ") and "\n" not in fault for fault in found)
    return [fault.removeprefix(f"{path}: ") for fault in found]


def test_the_example_is_sound_and_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["gate", "--init"]) == 0
    assert Path("gates.yaml").read_text() == EXAMPLE
    assert run(["validate", "gates.yaml"]) == 0
    assert capfd.readouterr().out == "gates.yaml: valid gate file\n"
    Path("gates.yaml").write_text("mine\n")
    assert run(["gate", "--init"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "already exists" in line
    assert Path("gates.yaml").read_text() == "mine\n"


def test_the_example_names_every_kind_of_rule() -> None:
    for key in ("at_least", "at_most", "margin", "better_by", "category", "budget", "partition", "decide", "alpha"):
        assert f"{key}:" in EXAMPLE


def test_what_is_commented_out_in_the_example_is_sound_too(tmp_path: Path) -> None:
    text = EXAMPLE.replace("  # - {", "  - {").replace("# budget", "budget").replace("# protocol", "protocol")
    assert faults(tmp_path, text) == []
    assert len(read_gate_file(tmp_path / "gates.yaml").gates) == 7


@pytest.mark.parametrize(
    ("gate", "key", "says"),
    [
        ("{task: medqa, margin: -0.02}", "gates.0.margin", "greater than or equal to 0"),
        ("{task: medqa, better_by: -0.02}", "gates.0.better_by", "greater than or equal to 0"),
        ("{task: medqa, margin: 2}", "gates.0.margin", "less than or equal to 1"),
        ("{task: medqa, at_least: -1}", "gates.0.at_least", "greater than or equal to 0"),
        ("{task: medqa, at_least: .nan}", "gates.0.at_least", "finite"),
        ("{task: medqa, metric: tokens_per_answer, at_most: .inf}", "gates.0.at_most", "finite"),
        ("{task: medqa, at_least: 60}", "gates.0", "write 0.6 for 60 %"),
        ("{task: medqa, metric: unparsed, at_most: 5}", "gates.0", "at_most: unparsed is a share"),
        ("{task: medqa, margin: 0.02, at_least: 0.6}", "gates.0", "exactly one of"),
        ("{task: medqa}", "gates.0", "found none"),
        ("{at_least: 0.6}", "gates.0.task", "missing"),
        ("{task: medqa, metric: acuracy, at_least: 0.6}", "gates.0.metric", "'accuracy'"),
        ("{task: medqa, metirc: accuracy, at_least: 0.6}", "gates.0.metirc", "unknown key; did you mean metric?"),
        ("{task: medqa, at_least: '0.6'}", "gates.0.at_least", "valid number"),
        ("{task: medqa, metric: tokens_per_answer, margin: 0.1}", "gates.0", "use at_most"),
        ("{task: medqa, metric: seconds_per_question, better_by: 0.1}", "gates.0", "use at_most"),
        ("{task: medqa, category: {a: x, b: y}, at_least: 0.6}", "gates.0", "one field and its value"),
        ("{task: medqa, category: step1, at_least: 0.6}", "gates.0.category", "dictionary"),
        ("{task: medqa, metric: seconds_per_question, category: {a: x}, at_most: 2}", "gates.0", "whole run"),
        ("{task: mean, metric: unparsed, at_most: 0.1}", "gates.0", "must be on accuracy"),
        ("medqa", "gates.0", "valid dictionary"),
    ],
)
def test_a_faulty_gate_is_told_by_its_key_path(tmp_path: Path, gate: str, key: str, says: str) -> None:
    (fault,) = faults(tmp_path, f"gates:\n  - {gate}\n")
    assert fault.startswith(f"{key}: ")
    assert says in fault


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("alpha: 0", "alpha"),
        ("alpha: 0.5", "alpha"),
        ("alpha: 5", "alpha"),
        ("decide: both", "decide"),
        ("partition: half", "partition"),
        ("budget: 0", "budget"),
        ("budget: 1.5", "budget"),
        ("max_new_tokens: 0", "max_new_tokens"),
        ("max_new_tokens: 99999999999", "max_new_tokens"),
        ("thinking_tokens: 99999999999", "thinking_tokens"),
        ("alhpa: 0.1", "alhpa"),
    ],
)
def test_a_faulty_setting_is_told_by_its_key(tmp_path: Path, line: str, key: str) -> None:
    (fault,) = faults(tmp_path, f"{line}\ngates:\n  - {{task: medqa, at_least: 0.6}}\n")
    assert fault.startswith(f"{key}: ")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    found = faults(
        tmp_path, "alhpa: 0.1\nbudget: 0\ngates:\n  - {task: medqa, at_least: 60}\n  - {task: medqa, margin: -1}\n"
    )
    assert {fault.split(": ")[0] for fault in found} == {"alhpa", "budget", "gates.0", "gates.1.margin"}
    assert "did you mean alpha?" in next(fault for fault in found if "alhpa" in fault)


@pytest.mark.parametrize("gates", ["[]", "null", "3", "[{task: mean, at_least: 0.6}]"])
def test_a_file_without_a_gate_on_a_task_is_faulty(tmp_path: Path, gates: str) -> None:
    assert len(faults(tmp_path, f"gates: {gates}\n")) == 1


def test_validate_prints_every_fault_and_exits_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 60}", "{task: medqa, margin: -1}", alpha=2)
    assert run(["validate", str(path)]) == 2
    assert len(capfd.readouterr().out.splitlines()) == 3


def test_the_gate_command_tells_the_same_faults_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 60}", "{task: medqa, margin: -1}")
    assert run(["gate", "anything", "--gates", str(path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "gates.0" in line
    assert "gates.1.margin" in line


def test_an_unknown_task_is_told_with_near_ones(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.6}", "{task: medqaa, at_least: 0.6}")
    assert run(["gate", "smollm2-135m", "--gates", str(path), "--data", "sample"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{path}: gates.1.task" in line
    assert "did you mean medqa" in line


def test_a_run_without_the_task_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.6}", "{task: pubmedqa, at_least: 0.6}")
    folder = stored_run(tmp_path, "c", {"medqa": answers(3)})
    assert run(["gate", str(folder), "--gates", str(path)]) == 2
    assert "has no pubmedqa" in capfd.readouterr().err


def test_tasks_stand_in_the_files_order_and_once(tmp_path: Path) -> None:
    gates = (
        "{task: mean, at_least: 0.5}",
        "{task: b, at_least: 0.5}",
        "{task: a, at_least: 0.5}",
        "{task: b, margin: 0}",
    )
    assert read_gate_file(write_gates(tmp_path / "gates.yaml", *gates)).tasks == ["b", "a"]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="no such file"):
        read_gate_file(tmp_path / "none.yaml")


def test_rules_in_words_hold_the_files_numbers(tmp_path: Path) -> None:
    gates = (
        "{task: medqa, at_least: 0.6}",
        "{task: medqa, category: {meta_info: step1}, margin: 0.04}",
        "{task: medqa, metric: unparsed, at_most: 0.05}",
        "{task: mean, better_by: 0.01}",
    )
    rules = [gate.rule for gate in read_gate_file(write_gates(tmp_path / "gates.yaml", *gates)).gates]
    assert rules == [
        "medqa: accuracy at least 0.6",
        "medqa (meta_info step1): accuracy not worse than the baseline's by more than 0.04",
        "medqa: unparsed at most 0.05",
        "mean: accuracy better than the baseline's by more than 0.01",
    ]
