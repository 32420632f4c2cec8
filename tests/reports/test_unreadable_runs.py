"""The report goes on without what it cannot read, and says what and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import answers, stored_run
from support.made_trainings import a_training, two_stages

from medbench.harness.cli.main import run


def record(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> object:
        path = folder / "run.json"
        return path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def loop(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> object:
        path = folder / name
        if path.is_dir():
            path.rename(folder.parent.parent / "elsewhere")
        else:
            path.unlink()
        return path.symlink_to(path)

    return change


def folder_instead(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> object:
        (folder / name).unlink()
        return (folder / name).mkdir()

    return change


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


HUGE = 10**400
RUNS: dict[str, Callable[[Path], object]] = {
    "protocol without a name": record(protocol={"about": "x"}),
    "protocol without about": record(protocol={"name": "x"}),
    "shots a list": record(protocol={"name": "x", "shots": [1]}),
    "newer schema": record(schema_version=99),
    "boolean schema": record(schema_version=True),
    "huge totals": record(totals={"seconds": 1.0, "prompt_tokens": HUGE, "completion_tokens": HUGE}),
    "endless seconds": record(totals={"seconds": float("inf"), "prompt_tokens": 1, "completion_tokens": 1}),
    "half a surrogate in the protocol": record(protocol={"name": "x\ud800", "about": "\udfff"}),
    "half a surrogate everywhere": record(
        created="\ud800", command=["medbench", "\ud800"], notes=["\ud800"], packages={"\ud800": "\ud800"},
        engine={"name": "\ud800", "settings": {"\ud800": ["\ud800"]}}, run_id="\ud800", git_commit="\ud800",
        model={"name": "\ud800", "kind": "\ud800", "fingerprint": "\ud800", "path": "\ud800"},
    ),
    "half a surrogate as a task": record(tasks={"\ud800": {"version": "1", "split": "t", "source": "l", "sha256": "0",
                                                          "official": True, "n": 5}}),
    "settings a list": record(engine={"name": "x", "settings": [1]}),
    "samples a folder": folder_instead("samples/medqa.jsonl"),
    "results a folder": folder_instead("results/medqa.json"),
    "samples a loop": loop("samples/medqa.jsonl"),
    "all samples a loop": loop("samples"),
    "all results a loop": loop("results"),
    "results a loop": loop("results/medqa.json"),
    "run.json a loop": loop("run.json"),
    "verdict a folder": lambda folder: (folder / "verdict.json").mkdir(),
    "verdict a loop": lambda folder: (folder / "verdict.json").symlink_to("verdict.json"),
    "verdict of true": text("verdict.json", '{"schema_version": true}'),
    "samples are text": text("samples/medqa.jsonl", "text\n"),
    "results of huge numbers": text("results/medqa.json", json.dumps({"schema_version": 1, "n": HUGE})),
}  # fmt: skip
TRAININGS: dict[str, Callable[[Path], object]] = {
    "training.json a loop": loop("training.json"),
    "training.json newer": text("training.json", '{"schema_version": 99}'),
    "training.json a list": text("training.json", "[1]"),
    "training.json deep": text("training.json", "[" * 100_000),
    "training.json of huge digits": text("training.json", '{"schema_version": 1' + "0" * 5000 + "}"),
    "journal a folder": lambda folder: [(folder / "journal.jsonl").unlink(missing_ok=True),
                                        (folder / "journal.jsonl").mkdir()],
    "journal a loop": lambda folder: [(folder / "journal.jsonl").unlink(missing_ok=True),
                                      (folder / "journal.jsonl").symlink_to("journal.jsonl")],
    "stage a loop": lambda folder: (folder / "1-sft").symlink_to("1-sft"),
}  # fmt: skip


def half_in_training(folder: Path) -> None:
    """Half a surrogate pair in every text of the record, and in the journal's first reason."""
    path = folder / "training.json"
    content = json.loads(path.read_text())
    changes: dict[str, Any] = {key: "\ud800" for key, value in content.items() if isinstance(value, str)}
    path.write_text(json.dumps(content | changes | {"recipe": {"\ud800": "\ud800"}, "packages": {"\ud800": "\ud800"}}))
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"sft"', '"\\ud800"'))


def looping(pattern: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in list(folder.glob(pattern)):
            path.rename(folder.parent.parent / path.name)
            path.symlink_to(path)

    return change


LOGGED: dict[str, Callable[[Path], object]] = {
    "metrics a loop": looping("*/attempt-1/metrics.jsonl"),
    "attempt a loop": looping("1-*/attempt-1"),
    "stage a loop": looping("1-*"),
    "half a surrogate": half_in_training,
}


def reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The front page, which shows the sound run and counts the others."""
    assert run(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "site")]) == 0
    assert "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "site" / "runs" / "sound" / "index.html").exists()
    assert run(["report", str(tmp_path / "runs"), "--format", "lm-eval", "-o", str(tmp_path / "exported")]) == 0
    assert "Traceback" not in capfd.readouterr().err
    assert list((tmp_path / "exported" / "sound").glob("results_*.json"))
    return (tmp_path / "site" / "index.html").read_text()


@pytest.mark.parametrize("name", RUNS)
def test_the_report_goes_on_without_a_run(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored_run(tmp_path / "runs", "sound", {"medqa": answers(4, 1)})
    RUNS[name](stored_run(tmp_path / "runs", "odd", {"medqa": answers(3, 2)}))
    assert "odd" in reported(tmp_path, capfd)


@pytest.mark.parametrize("name", TRAININGS)
def test_the_report_goes_on_without_a_training(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored_run(tmp_path / "runs", "sound", {"medqa": answers(4, 1)})
    TRAININGS[name](a_training(tmp_path / "runs", "train-odd"))
    assert "train-odd" in reported(tmp_path, capfd)


@pytest.mark.parametrize("name", LOGGED)
def test_the_report_goes_on_without_the_metrics_of_a_training(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stored_run(tmp_path / "runs", "sound", {"medqa": answers(4, 1)})
    LOGGED[name](two_stages(tmp_path / "runs"))
    assert "train-smollm2" in reported(tmp_path, capfd)


@pytest.mark.parametrize("link", ["loop", "x/loop"])
def test_a_link_loop_among_the_runs_is_no_run(link: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored_run(tmp_path / "runs", "sound", {"medqa": answers(4, 1)})
    path = tmp_path / "runs" / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(path)
    reported(tmp_path, capfd)
    assert run(["report", str(path), "-o", str(tmp_path / "other")]) == 2
    assert "Traceback" not in capfd.readouterr().err
