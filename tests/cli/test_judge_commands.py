"""`medbench judge`: what it prints, its exit status, and one line for each way of using it wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.judge_programs import OVERLAP, judge, program, pubmedqa_run

from medbench.harness.cli.main import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, judged by nobody yet, and its data."""
    pubmedqa_run(tmp_path)
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_judged_and_the_table_has_the_shares_and_says_uncalibrated(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert judge(folder) == 0
    out = capfd.readouterr().out
    assert "pubmedqa" in out
    assert "33.3" in out
    assert "uncalibrated" in out
    assert "runs/judged/judgements/pubmedqa.command.jsonl" in out


def test_json_is_one_object_with_every_figure(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert judge(folder, "--json", "--limit", "2") == 0
    content = json.loads(capfd.readouterr().out)
    found = content["tasks"]["pubmedqa"]
    assert (found["replies"], found["steps"], found["failed"]) == (2, 6, 0)
    assert found["shares"]["contradicted"]["value"] == pytest.approx(1 / 3)
    assert found["scores"]["factuality"]["value"] == 0.5
    assert len(content["fingerprint"]) == 64


def test_the_options_may_come_first_and_run_may_be_said(folder: Path) -> None:
    command = program(folder)
    assert run(["judge", "--judge", "command", "--command", command, "runs/judged"]) == 0
    assert run(["judge", "run", "runs/judged", "--judge", "command", "--command", command]) == 0


@pytest.mark.parametrize("words", [["judge", "--help"], ["judge", "run", "--help"], ["judge", "runs/x", "--help"]])
def test_help_is_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    assert "medbench judge" in capsys.readouterr().out


def test_too_many_failed_steps_are_exit_status_3_and_shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picky = OVERLAP.replace('else "not covered"', "else 'dunno'")
    assert judge(folder, source=picky) == 3
    out, err = capfd.readouterr()
    assert "3 steps without a verdict: the verdict 'dunno' is none of supported" in out
    assert "more than 2 % of the steps of pubmedqa have no verdict" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runs/judged"], "Missing option '--judge'"),
        (["runs/none", "--judge", "command", "--command", "true"], "run.json: no such file"),
        (["runs/judged", "--judge", "command"], "--judge command needs --command"),
        (["runs/judged", "--judge", "comand"], "did you mean command?"),
        (["runs/judged", "--judge", "command", "--command", "true", "--tasks", "medqa"], "no task 'medqa'"),
        (["runs/judged", "--judge", "command", "--command", "true", "--sources", "none.jsonl"], "no such file"),
        (["runs/judged", "--judge", "command", "--command", "true"], "no step of pubmedqa got a verdict"),
        (["runs/judged", "--judge", "command", "--command", "true", "--timeout", "soon"], "is no time"),
        (
            ["runs/judged", "--judge", "command", "--engine", "hf"],
            "--engine, --base-url and --config belong to --model",
        ),
        (["runs/judged", "--judge", "llm"], "--judge llm needs --model"),
        ([], "Missing argument 'RUN'"),
    ],
)
def test_wrong_use_is_one_line(folder: Path, words: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert told in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_task_without_a_text_to_judge_by_is_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from support.gate_runs import write_medqa, write_replies

    from medbench.harness.api import score

    write_replies(folder / "medqa.jsonl", dict.fromkeys(write_medqa(folder / "data", 4), True))
    score(folder / "medqa.jsonl", "medqa", runs=folder / "runs", name="medqa")
    assert run(["judge", "runs/medqa", "--judge", "command", "--command", program(folder)]) == 2
    assert "medqa: no text to read beside its questions: name a file" in capfd.readouterr().err


def test_a_checked_judge_has_its_agreement_in_later_tables(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert judge(folder) == 0
    ids = {json.loads(line)["id"] for line in (folder / "replies.jsonl").read_text().splitlines()}
    rows = [{"id": id, "step": 1, "label": "supported"} for id in ids]
    rows += [{"id": id, "step": 2, "label": "contradicted"} for id in ids]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["judge", "check", "runs/judged", "labels.jsonl"]) == 0
    out = capfd.readouterr().out
    assert "6 labelled steps of 3 questions" in out
    assert "Cohen's kappa: 1.00 (1.00 to 1.00)" in out
    assert "not covered" in out
    assert judge(folder) == 0
    out = capfd.readouterr().out
    assert "agreement with people: kappa 1.00 (1.00 to 1.00) on 6 steps of 3 questions" in out
    assert "uncalibrated" not in out
    assert run(["judge", "check", "runs/judged", "labels.jsonl", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["agreement"]["items"] == 6


def test_faulty_labels_are_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert judge(folder) == 0
    (folder / "labels.jsonl").write_text('{"id": "x", "step": 1, "label": "supported"}\n')
    capfd.readouterr()
    assert run(["judge", "check", "runs/judged", "labels.jsonl"]) == 2
    assert "labels.jsonl:1: question 'x' has no reply in the run" in capfd.readouterr().err


def test_labels_without_a_run_are_judged_themselves(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = "Drug 1 lowers blood pressure. We studied 11 patients."
    rows = [
        {"id": f"q{at}", "step": step, "source": source, "label": label}
        for at, (step, label) in enumerate(
            [("Drug 1 lowers blood pressure.", "supported"), ("Drug 1 does not lower it.", "contradicted")]
        )
    ]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["judge", "check", "labels.jsonl", "--judge", "command", "--command", program(folder)]
    assert run(words) == 0
    out = capfd.readouterr().out
    assert "2 labelled steps of 2 questions" in out
    assert "2 steps judged again with the source's sentences in reverse order: 0.0" in out
    assert run([*words, "--json"]) == 0
    content = json.loads(capfd.readouterr().out)
    assert content["order"]["changed"]["value"] == 0
    assert content["agreement"]["kappa"]["value"] == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check", "labels.jsonl"], "labels without a RUN need --judge NAME"),
        (["check", "labels.jsonl", "--judge", "llm", "--base-url", "http://x"], "belong to --model"),
        (["check", "labels.jsonl", "--judge", "command", "--task", "a"], "--task and --fingerprint belong to a RUN"),
        (["check", "runs/judged", "labels.jsonl", "--model", "m"], "a judged RUN is not judged again"),
        (["check", "a", "b", "c"], "at most two paths"),
        (["check", "none.jsonl", "--judge", "llm", "--model", "m"], "none.jsonl: no such file"),
        (["train", "--out", "runs"], "runs: exists already: name another folder with --out"),
        (["train", "--out", "new", "--data", "none"], "data folder none does not exist"),
        (["train", "--out", "new", "--data", "sample"], "name a folder with --data"),
        (["train", "--out", "new", "--layers", "0"], "0 is not in the range"),
        (["train", "--out", "new"], "pubmedqa/train.jsonl: no such file"),
        (["labels", "pubmedqa", "--out", "x/y.jsonl", "--data", "none"], "data folder none does not exist"),
        (["labels", "other"], "No such command 'other'"),
    ],
)
def test_training_and_labels_used_wrongly_are_one_line(
    folder: Path, words: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "q", "step": "It fell.", "source": "It fell by 3 points.", "label": "supported"}
    (folder / "labels.jsonl").write_text(json.dumps(row) + "\n")
    assert run(["judge", *words]) == 2
    err = capfd.readouterr().err
    assert told in err
    assert "Traceback" not in err
    assert not (folder / "new").exists()
