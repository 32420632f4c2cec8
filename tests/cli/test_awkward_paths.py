"""Names of files that are too long, not UTF-8, of nobody's home, or that no one may read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.gate_runs import answers, stored_run

from medbench.harness.cli.main import run

LONG = "x" * 300
SAMPLE = Path(__file__).parents[2] / "tasks" / "medqa" / "sample" / "test.jsonl"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)
    (tmp_path / "gates.yaml").write_text("gates: [{task: medqa, at_least: 0.5}]\n")
    stored_run(tmp_path, "good", {"medqa": answers(38, 2)})
    write_replies(tmp_path / "replies.jsonl")
    return tmp_path


def write_replies(path: Path) -> None:
    from medbench.harness.benchmarks.rows import content_id

    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    ids = [content_id(row["question"], *(row["options"][label] for label in "ABCD")) for row in rows]
    path.write_text("".join(json.dumps({"id": id, "output": "The answer is (A)."}) + "\n" for id in ids))


EVAL = "eval m --replies replies.jsonl --data sample --tasks medqa --quiet"
GATE = "gate good --gates gates.yaml"
FAULTY = [
    "eval m --replies replies.jsonl --data ~nouser --tasks medqa --quiet",
    "score replies.jsonl --task medqa --data ~nouser",
    "tasks medqa --data ~nouser",
    f"eval m --replies replies.jsonl --data {LONG} --tasks medqa --quiet",
    f"{EVAL} --runs {LONG}",
    f"{EVAL} --runs {LONG}/below",
    f"score replies.jsonl --task medqa --data sample --runs {LONG}",
    f"score {LONG} --task medqa --data sample",
    f"score replies.jsonl --task medqa --data sample --protocol {LONG}.yaml",
    f"{EVAL} --name {LONG}",
    f"{EVAL} --config {LONG}",
    f"eval {LONG} --data sample --tasks medqa --quiet",
    f"eval ./{LONG} --data sample --tasks medqa --quiet",
    f"eval {'y/' * 3000} --data sample --tasks medqa --quiet",
    f"gate {LONG} --gates gates.yaml --data sample",
    f"gate good --gates {LONG}",
    f"{GATE} --baseline {LONG}",
    f"{GATE} --junit {LONG}",
    f"{GATE} --summary {LONG}",
    f"{GATE} --junit {LONG}/a.xml",
    f"{GATE} --junit .",
    f"{GATE} --junit good/run.json/a.xml",
    f"compare good {LONG}",
    f"compare {LONG} good",
    f"report {LONG} -o site",
    f"report good -o {LONG}",
    f"watch {LONG} --gates gates.yaml --idle 0",
    f"validate {LONG}",
    f"train {LONG}",
    f"tasks {LONG}",
    f"tasks medqa --protocol {LONG}.yaml",
]


@pytest.mark.parametrize("line", FAULTY, ids=lambda line: line.replace(LONG, "LONG")[:70])
def test_a_path_that_cannot_be_is_one_line(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    printed = capfd.readouterr()
    lines = (printed.err or printed.out).splitlines()
    told = [line for line in lines if line.startswith("medbench: ") or LONG in line]
    assert len(told) == 1, lines
    assert "a fault of medbench" not in printed.err
    assert "\n### " not in printed.out


def test_no_verdict_is_reached_that_cannot_be_written(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*GATE.split(), "--junit", f"{LONG}.xml"]) == 2
    assert not Path("good/verdict.json").exists()


STRANGE = os.fsdecode(b"caf\xe9")


def command(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "medbench.harness.cli", *arguments],
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("folder", [STRANGE, "küche 診断"], ids=["not UTF-8", "not ASCII"])
def test_folders_of_any_name_can_be_used(folder: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path(folder).mkdir()
    write_replies(Path(folder, "r.jsonl"))
    stored_run(Path(folder), "good", {"medqa": answers(38, 2)})
    asked = ["--data", "sample", "--tasks", "medqa", "--quiet", "--json"]
    gate = ["gate", f"{folder}/good", "--gates", "gates.yaml"]
    for arguments in (
        ["eval", "m", "--replies", f"{folder}/r.jsonl", "--runs", folder, *asked],
        ["eval", folder, "--replies", f"{folder}/r.jsonl", "--runs", folder, *asked],
        ["score", f"{folder}/r.jsonl", "--task", "medqa", "--data", "sample", "--runs", folder],
        [*gate, "--junit", f"{folder}/j.xml", "--summary", f"{folder}/s.md"],
        [*gate, "--json"],
        ["compare", f"{folder}/good", "good"],
        ["report", folder, "-o", f"{folder}/site", "--json"],
    ):
        status = run(arguments)
        printed = capfd.readouterr()
        assert status == 0, printed.err


@pytest.mark.slow
def test_folders_of_any_name_can_be_used_where_the_locale_is_ascii() -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    Path("küche").mkdir()
    for arguments in (
        f"{EVAL} --runs küche --json",
        "score replies.jsonl --task medqa --data sample --runs küche",
        "gate good --gates gates.yaml --junit küche/j.xml",
    ):
        done = command(arguments.split(), **plain)
        assert done.returncode == 0, done.stderr
        if "--json" in arguments:
            printed = json.loads(done.stdout)["run"].encode(errors="surrogateescape")
            assert Path(os.fsdecode(printed)).exists()
    done = command(["score", "replies.jsonl", "--task", "dönitz", "--data", "sample"], **plain)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["half \ud83d", "\udce9"])
def test_a_model_with_half_a_character_in_its_name(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", name, "--name", "r", *EVAL.split()[2:], "--json"]) == 0
    stored = json.loads(Path("runs/r/run.json").read_text())
    stored["model"]["name"].encode()  # is text
    assert json.loads(capfd.readouterr().out)["status"] == "complete"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MEDBENCH_CACHE")
    monkeypatch.delenv("HOME", raising=False)

    def no_such_user(uid: object) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", no_such_user)
    assert run(["doctor"]) == 0
    assert "MEDBENCH_CACHE" in capfd.readouterr().out
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["cache"]["path"] is None
    assert run(EVAL.split()) == 0
    assert run(["eval", "smollm2-135m", "--data", "sample", "--tasks", "medqa", "--quiet"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("medbench:")]
    assert "home" in line
    assert "MEDBENCH_CACHE" in line
