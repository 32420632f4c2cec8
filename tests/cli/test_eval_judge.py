"""`medbench eval --judge`, and what compare and gate make of judged runs: output, exit status, wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.judge_programs import OVERLAP, judge, program, pubmedqa_run

from medbench.harness.cli.main import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, judged by nobody yet, its data and its replies."""
    pubmedqa_run(tmp_path)
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(folder: Path, *more: str, source: str = OVERLAP) -> int:
    judge = ["--judge", "command", "--judge-command", program(folder, source)]
    asked = [
        "eval",
        "stored",
        "--replies",
        "replies.jsonl",
        "--tasks",
        "pubmedqa",
        "--limit",
        "3",
        "--name",
        "evaluated",
    ]
    return run([*asked, "--quiet", *judge, *more])


def test_eval_judges_the_run_that_it_has_made(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder) == 0
    out = capfd.readouterr().out
    assert "run: runs/evaluated" in out
    assert "judge command" in out
    assert "uncalibrated" in out
    assert (folder / "runs/evaluated/judgements/pubmedqa.command.scores.json").exists()


def test_resuming_a_complete_run_judges_what_is_left_and_asks_nothing_twice(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = folder / "asked"
    noting = OVERLAP.replace("    item =", f"    open({str(asked)!r}, 'a').write('x')\n    item =")
    assert evaluate(folder, source=noting) == 0
    assert evaluate(folder, "--resume", source=noting) == 0
    assert asked.read_text() == "x" * 9
    assert "judge command" in capfd.readouterr().out


def test_eval_prints_one_object_with_run_and_verdicts(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, "--json") == 0
    content = json.loads(capfd.readouterr().out)
    assert content["judged"]["judge"] == "command"
    assert content["judged"]["tasks"]["pubmedqa"]["steps"] == 9


def test_too_many_failed_steps_are_the_exit_status_of_eval_too(folder: Path) -> None:
    assert evaluate(folder, source=OVERLAP.replace('else "not covered"', "else 'dunno'")) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--judge", "command"], "--judge command needs --judge-command"),
        (["--judge", "llm"], "--judge llm needs --judge-model"),
        (["--judge", "comand"], "did you mean command?"),
        (["--judge-command", "true"], "--judge-command belongs to --judge NAME"),
        (["--judge", "command", "--judge-engine", "hf"], "belong to --judge-model"),
        (["--judge", "command", "--judge-command", "no-such-9"], "judge command no-such-9: no such program"),
        (["--judge", "command", "--judge-command", "true", "--judge-sources", "none.jsonl"], "no such file"),
        (["--judge", "command", "--judge-command", "true", "--tasks", "medqa", "--data", "sample"], "no step can be"),
    ],
)
def test_a_judge_that_cannot_judge_is_told_before_anything_is_asked(
    folder: Path, words: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["eval", "stored", "--replies", "replies.jsonl", "--tasks", "pubmedqa", "--name", "evaluated", "--quiet"]
    assert run([*asked, *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert told in err.splitlines()[-1]
    assert not (folder / "runs/evaluated").exists()


# --- compare and gate ---


def test_compare_shows_the_differences_of_judged_runs_or_why_not(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder, "--limit", "2") == 0
    capfd.readouterr()
    assert run(["compare", "runs/judged", "runs/evaluated"]) == 0
    assert "judge command is not compared: only B was judged by it" in capfd.readouterr().out
    assert judge(folder) == 0
    capfd.readouterr()
    assert run(["compare", "runs/judged", "runs/evaluated", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["judged"]
    assert {name: one["n"] for name, one in found["scores"].items()} == dict.fromkeys(
        ("factuality", "effectiveness", "completeness"), 2
    )
    assert run(["compare", "runs/judged", "runs/evaluated"]) == 0
    assert "reasoning as judged, B minus A" in capfd.readouterr().out


def test_a_gate_by_an_unchecked_judge_is_exit_status_3_with_what_to_do(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert judge(folder) == 0
    (folder / "gates.yaml").write_text(
        "gates:\n  - {task: pubmedqa, metric: factuality, judge: command, at_least: 0.4}\n"
    )
    capfd.readouterr()
    assert run(["gate", "runs/judged", "--gates", "gates.yaml", "--json"]) == 3
    content = json.loads(capfd.readouterr().out)
    assert "medbench judge check RUN LABELS" in content["verdicts"][0]["why"]
    assert run(["gate", "smollm2-135m", "--gates", "gates.yaml"]) == 2
    assert "medbench eval CHECKPOINT --judge command, then medbench gate RUN" in capfd.readouterr().err
