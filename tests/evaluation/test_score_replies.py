"""`medbench score`: the run folder it writes, what it refuses, and that order and kill -9 change nothing."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gate_runs import a_task, write_gates, write_medqa, write_replies

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError, Task
from medbench.harness.evaluation.plan import Clock, utc_now
from medbench.harness.evaluation.score_replies import ScoreOptions, score_task
from medbench.harness.gates.baseline import read_controls
from medbench.harness.runs.compare import compare_runs
from medbench.harness.runs.run_folder import read_result, read_run, read_samples
from medbench.harness.runs.stored_run import StoredRun

N = 40
TEXTS = (
    "The answer is (A).",
    "The answer is (B).",
    "I cannot tell.",
    "",
    "<think>A or B</think> Answer: A",
    "<think>never",
    "so it was A</think>The answer is (A).",
    "The answer is (A).\nQuestion: what else? The answer is (B).",
)


@pytest.fixture
def ids(tmp_path: Path) -> list[str]:
    """Question ids of a made-up medqa in ./data; A is right."""
    return write_medqa(tmp_path / "data", N)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)


def score(file: str | Path, *options: str) -> int:
    return run(["score", str(file), "--task", "medqa", "--data", "data", *options])


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def scored(
    task: Task, lines: Sequence[Mapping[str, Any]], folder: Path, clock: Clock = utc_now, **options: Any
) -> StoredRun:
    """Scores without the command line, which takes a second to load tasks."""
    file = write_lines(folder / "replies.jsonl", lines)
    asked = ScoreOptions(file, task.name, **{"runs": folder / "runs"} | options)
    return score_task(asked, task, [], lambda _: None, clock=clock)


def varied(ids: Sequence[str]) -> list[dict[str, Any]]:
    """A reply of each kind in turn, some truncated."""
    return [
        {"id": id, "output": TEXTS[at % len(TEXTS)], "finish_reason": "length" if at % 7 == 0 else "stop"}
        for at, id in enumerate(ids)
    ]


def test_the_run_equals_an_evaluation_of_the_same_replies(ids: list[str], tmp_path: Path) -> None:
    write_lines(tmp_path / "mine.jsonl", varied(ids))
    assert score("mine.jsonl", "--name", "scored") == 0
    arguments = ["--replies", "mine.jsonl", "--data", "data", "--tasks", "medqa", "--name", "asked", "--quiet"]
    assert run(["eval", "mine", *arguments]) == 0
    ours, theirs = ({s.id: s for s in read_samples(Path("runs", name), "medqa")} for name in ("scored", "asked"))
    assert ours.keys() == theirs.keys()
    for id, sample in ours.items():
        for field in ("prompt", "output", "finish_reason", "extracted", "outcome", "span", "gold", "score", "category"):
            assert getattr(sample, field) == getattr(theirs[id], field)
    one, other = (read_result(Path("runs", name), "medqa") for name in ("scored", "asked"))
    assert one == other.model_copy(update={"tokens_per_answer": None})
    assert one.n_truncated == sum(line["finish_reason"] == "length" for line in varied(ids))
    record = read_run("runs/scored")
    assert (record.status, record.limit, record.samples, record.incomplete) == ("complete", None, 1, 0)
    assert (record.model.name, record.model.kind, record.engine["name"]) == ("mine", "replies", "stored")
    assert record.model.fingerprint == read_run("runs/asked").model.fingerprint


def test_the_table_and_the_json(ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_replies(tmp_path / "mine.jsonl", {id: at < 30 for at, id in enumerate(ids)})
    assert score("mine.jsonl", "--model", "org/model") == 0
    out = capfd.readouterr().out
    assert "org/model" in out
    assert "75.0" in out
    assert "tokens/s" not in out  # nothing was generated
    (row,) = [line for line in out.splitlines() if line.startswith(" medqa")]
    assert row.split()[-1] == "-"  # tokens per answer are not known
    assert score("mine.jsonl", "--model", "org/model", "--name", "other", "--json") == 0
    outcome = json.loads(capfd.readouterr().out)
    assert outcome["results"]["medqa"]["accuracy"] == 0.75
    assert Path(outcome["run"], "run.json").exists()


def test_scoring_twice_writes_the_same_bytes(ids: list[str], tmp_path: Path) -> None:
    task = TaskLoader("data").load("medqa")
    folders = [
        scored(task, varied(ids), tmp_path, runs=tmp_path / str(year), clock=lambda y=year: datetime(y, 1, 1)).folder
        for year in (2026, 2027)
    ]
    first, second = folders
    assert first.name == second.name
    for name in ("samples/medqa.jsonl", "results/medqa.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    a, b = (json.loads((folder / "run.json").read_bytes()) for folder in folders)
    assert {key for key in a if a[key] != b[key]} == {"created"}


def test_a_finished_run_is_not_overwritten(ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_replies(tmp_path / "mine.jsonl", dict.fromkeys(ids, True))
    assert score("mine.jsonl", "--name", "r") == 0
    before = Path("runs/r/run.json").stat().st_mtime_ns
    assert score("mine.jsonl", "--name", "r") == 2
    assert "--name" in capfd.readouterr().err
    assert Path("runs/r/run.json").stat().st_mtime_ns == before


def test_gate_and_compare_take_the_run(ids: list[str], tmp_path: Path) -> None:
    write_replies(tmp_path / "good.jsonl", {id: at < 36 for at, id in enumerate(ids)})
    write_replies(tmp_path / "poor.jsonl", {id: at < 20 for at, id in enumerate(ids)})
    for name in ("good", "poor"):
        assert score(f"{name}.jsonl", "--name", name) == 0
    floor = write_gates(tmp_path / "floor.yaml", "{task: medqa, at_least: 0.6}")
    paired = write_gates(tmp_path / "paired.yaml", "{task: medqa, margin: 0.02}")
    assert run(["gate", "runs/good", "--gates", str(floor)]) == 0
    assert run(["gate", "runs/poor", "--gates", str(floor)]) == 1
    assert run(["gate", "runs/poor", "--gates", str(paired), "--baseline", "runs/good"]) == 1
    assert run(["gate", "runs/good", "--gates", str(paired), "--baseline", "runs/poor"]) == 0
    (one,) = compare_runs(Path("runs/poor"), Path("runs/good")).tasks.values()
    assert (one.overall.gained, one.overall.lost, one.unpaired) == (16, 0, 0)
    # as a control variate of another model's gate
    assert [r.name for r in read_controls(Path("runs"), read_run("runs/poor"), None, ["medqa"])] == ["good"]


@pytest.mark.parametrize(
    "gate",
    [
        "{task: medqa, metric: tokens_per_answer, at_most: 900}",
        "{task: medqa, metric: seconds_per_question, at_most: 1}",
    ],
)
def test_metrics_that_were_not_measured_cannot_be_gated(
    gate: str, ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_replies(tmp_path / "mine.jsonl", dict.fromkeys(ids, True))
    assert score("mine.jsonl", "--name", "r") == 0
    assert run(["gate", "runs/r", "--gates", str(write_gates(tmp_path / "gates.yaml", gate))]) == 2
    assert "which do not have this metric" in capfd.readouterr().err


def test_several_replies_per_question(ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [{"id": id, "output": TEXTS[(at + k) % 2], "sample": k} for at, id in enumerate(ids) for k in range(3)]
    write_lines(tmp_path / "mine.jsonl", lines)
    assert score("mine.jsonl", "--name", "r") == 0
    assert read_run("runs/r").samples == 3
    samples = list(read_samples("runs/r", "medqa"))
    assert [(sample.id, sample.repeat) for sample in samples] == [(line["id"], line["sample"]) for line in lines]
    result = read_result("runs/r", "medqa")
    assert (result.n, result.accuracy) == (3 * N, 0.5)
    assert result.sampling is not None
    assert (result.sampling.k, result.sampling.n, result.sampling.maj_at_k) == (3, N, 0.5)
    gates = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.1}")
    assert run(["gate", "runs/r", "--gates", str(gates)]) == 0
    assert "mean accuracy of 3 samples per question 50.0 %" in " ".join(capfd.readouterr().out.split())


def test_missing_replies(ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_replies(tmp_path / "part.jsonl", dict.fromkeys(ids[:30], True))
    write_replies(tmp_path / "whole.jsonl", {id: at % 2 == 0 for at, id in enumerate(ids)})
    assert score("part.jsonl", "--name", "part") == 2
    assert "10 of 40 questions have no reply: add --incomplete to score the 30" in capfd.readouterr().err
    assert not Path("runs").exists()
    assert score("part.jsonl", "--name", "part", "--incomplete", "--json") == 0
    outcome = json.loads(capfd.readouterr().out)
    assert outcome["results"]["medqa"]["n"] == 30
    assert any("incomplete: 10 of 40" in note for note in outcome["notes"])
    assert read_run("runs/part").incomplete == 10
    assert score("whole.jsonl", "--name", "whole", "--incomplete") == 0  # nothing is missing: not marked
    assert read_run("runs/whole").incomplete == 0

    for pair in (["runs/part", "runs/whole"], ["runs/whole", "runs/part"]):
        assert run(["compare", *pair]) == 2
        assert "part is incomplete: 10 questions" in capfd.readouterr().err
    assert run(["compare", "runs/part", "runs/whole", "--incomplete", "--json"]) == 0
    (compared,) = json.loads(capfd.readouterr().out)["tasks"]
    assert (compared["overall"]["n"], compared["unpaired"]) == (30, 10)

    floor = write_gates(tmp_path / "floor.yaml", "{task: medqa, at_least: 0.1}")
    paired = write_gates(tmp_path / "paired.yaml", "{task: medqa, margin: 0.9}")
    for arguments in (
        ["runs/part", "--gates", str(floor)],
        ["runs/whole", "--gates", str(paired), "--baseline", "runs/part"],
    ):
        assert run(["gate", *arguments]) == 2
        assert "part is incomplete" in capfd.readouterr().err
    assert read_controls(Path("runs"), read_run("runs/whole"), None, ["medqa"]) == []


def test_missing_samples_of_some_questions(ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [{"id": id, "output": TEXTS[0], "sample": k} for id in ids for k in range(2)]
    write_lines(tmp_path / "part.jsonl", lines[:-3])
    assert score("part.jsonl", "--name", "r") == 2
    assert "2 of 40 questions lack some of their 2 replies" in capfd.readouterr().err
    assert score("part.jsonl", "--name", "r", "--incomplete") == 0
    assert read_run("runs/r").incomplete == 2


def test_all_faults_are_reported_and_nothing_is_written(
    ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"id": id, "output": "B"}) for id in ids]
    lines[3] = "{"
    lines[5] = json.dumps({"id": "nobody", "output": "B"})
    lines[7] = lines[6]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines) + "\n")
    assert score("bad.jsonl") == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    said = [line for line in printed.err.splitlines() if "bad.jsonl" in line]
    assert said[0].endswith("bad.jsonl: 3 faulty lines of 40")
    assert [line.split(":")[1] for line in said[1:]] == ["4", "6", "8"]
    assert "Traceback" not in printed.err
    assert not Path("runs").exists()


WRONG = {
    "no file": (["none.jsonl"], "no such file"),
    "a folder": (["data"], "not a file"),
    "no protocol": (["mine.jsonl", "--protocol", "cot-v3"], "did you mean cot-v"),
    "log-likelihoods": (["mine.jsonl", "--protocol", "direct-v1"], "log-likelihoods"),
    "lm-eval": (["mine.jsonl", "--protocol", "lm-eval"], "lm-eval's own tasks"),
    "bad name": (["mine.jsonl", "--name", "../up"], "--name"),
    "a name and no run": (["mine.jsonl", "--name", "up", "--protocol", "all"], "--name"),
    "no data": (["mine.jsonl", "--data", "nowhere"], "does not exist"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_each_user_error_is_one_line(
    wrong: str, ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_replies(tmp_path / "mine.jsonl", dict.fromkeys(ids, True))
    arguments, says = WRONG[wrong]
    assert score(*arguments) == 2
    printed = capfd.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("medbench:")]
    assert says in line
    assert printed.out == ""
    assert not Path("runs").exists()


@pytest.mark.slow
def test_kill_9_leaves_no_run_that_looks_sealed(
    ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "mine.jsonl", [{**line, "sample": k} for line in varied(ids) for k in range(500)])
    arguments = ["score", "mine.jsonl", "--task", "medqa", "--data", "data", "--name", "r"]
    process = subprocess.Popen([sys.executable, "-m", "medbench.harness.cli", *arguments])
    samples = Path("runs/r/samples/medqa.jsonl")
    while not (samples.exists() and samples.stat().st_size > 100_000):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = len(samples.read_bytes().splitlines())
    assert half < 500 * N
    assert read_run("runs/r").status == "running"
    assert not list(Path("runs/r/results").iterdir())
    gates = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.1}")
    assert run(["gate", "runs/r", "--gates", str(gates)]) == 2
    assert "not finished" in capfd.readouterr().err
    assert run(["compare", "runs/r", "runs/r"]) == 2
    assert "r is incomplete" in capfd.readouterr().err
    assert run(arguments) == 0  # it is scored from scratch, not continued
    assert (read_run("runs/r").status, read_run("runs/r").incomplete) == ("complete", 0)
    assert len(samples.read_bytes().splitlines()) == 500 * N


@pytest.mark.slow
def test_an_interrupted_scoring_says_how_to_continue(ids: list[str], tmp_path: Path) -> None:
    write_lines(tmp_path / "mine.jsonl", [{**line, "sample": k} for line in varied(ids) for k in range(500)])
    process = subprocess.Popen(
        [sys.executable, "-m", "medbench.harness.cli", "score", "mine.jsonl", "--task", "medqa", "--data", "data"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(Path("runs").glob("*/samples/*.jsonl")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "run the same command again" in err
    assert "Traceback" not in err


def test_another_run_under_that_name_is_left_alone(
    ids: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_replies(tmp_path / "mine.jsonl", dict.fromkeys(ids, True))
    write_replies(tmp_path / "other.jsonl", dict.fromkeys(ids, False))
    assert score("mine.jsonl", "--name", "r") == 0
    content = json.loads(Path("runs/r/run.json").read_bytes())
    Path("runs/r/run.json").write_text(json.dumps({**content, "status": "running"}))
    before = Path("runs/r/samples/medqa.jsonl").read_bytes()
    assert score("other.jsonl", "--name", "r") == 2
    assert "another run" in capfd.readouterr().err
    assert Path("runs/r/samples/medqa.jsonl").read_bytes() == before


def test_a_file_that_changes_meanwhile_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = a_task([f"q{n}" for n in range(5)])
    from medbench.harness.evaluation import score_replies

    real = score_replies.replies_to

    def then_changed(task: Task, file: Path) -> Any:
        found = real(task, file)
        with file.open("a") as more:
            more.write("{}\n")
        return found

    monkeypatch.setattr(score_replies, "replies_to", then_changed)
    with pytest.raises(MedbenchError, match="changed while it was being read"):
        scored(task, varied([q.id for q in task.questions]), tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_run(folder).status == "running"


lines_of_a_toy = st.lists(
    st.tuples(st.sampled_from(TEXTS), st.sampled_from(["stop", "length"])), min_size=8, max_size=8
)


@pytest.mark.slow
@settings(max_examples=40)
@given(lines_of_a_toy, st.randoms(use_true_random=False), st.integers(1, 2))
def test_the_order_of_lines_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, replies: list[tuple[str, str]], chance: random.Random, samples: int
) -> None:
    task = a_task([f"q{n}" for n in range(8 // samples)], category={"q0": {"kind": "x"}})
    lines = [
        {"id": f"q{at // samples}", "output": text, "finish_reason": reason, "sample": at % samples}
        for at, (text, reason) in enumerate(replies)
    ]
    shuffled = chance.sample(lines, len(lines))
    one, other = (scored(task, some, tmp_path_factory.mktemp("order")) for some in (lines, shuffled))
    assert one.results == other.results
    result = one.results["toy"]
    assert result.n == 8
    assert result.n_truncated == sum(reason == "length" for _, reason in replies)


def test_a_reply_that_closes_reasoning_opened_by_the_template(tmp_path: Path) -> None:
    task = a_task(["q0", "q1"])
    lines = [
        {"id": "q0", "output": "B is right. The answer is (B)</think>The answer is (A)."},
        {"id": "q1", "output": "<think>The answer is (A)"},
    ]
    outcome = scored(task, lines, tmp_path)
    assert [s.extracted for s in read_samples(outcome.folder, "toy")] == ["A", None]


class Foreign:
    """The parts of one of lm-eval's own tasks that scoring replies needs."""

    def __init__(self, choices: tuple[str, ...] | None) -> None:
        self._choices = choices

    def text(self, id: str, chat: Any) -> str:
        return f"What of {id}?"

    def continuations(self, id: str) -> tuple[str, ...] | None:
        return self._choices

    def generation(self) -> Mapping[str, Any]:
        return {"stop": ("\n\n",), "max_new_tokens": 9, "temperature": 0.0}

    def score(self, id: str, output: str, logprobs: Mapping[str, float] | None) -> tuple[str | None, float]:
        return output, len(output) / 10


def test_one_of_lm_evals_own_tasks_is_scored_by_its_rules(tmp_path: Path) -> None:
    task = replace(a_task(["q0", "q1"]), foreign=Foreign(None))
    outcome = scored(task, [{"id": "q0", "output": "1234"}, {"id": "q1", "output": "12\n\n3"}], tmp_path)
    assert [s.score for s in read_samples(outcome.folder, "toy")] == [0.4, 0.2]
    assert outcome.record.protocol["name"] == "lm-eval"
    twice = [{"id": "q0", "output": "", "sample": k} for k in range(2)]
    with pytest.raises(MedbenchError, match="asked once"):
        scored(task, twice, tmp_path)
    with pytest.raises(MedbenchError, match="log-likelihoods"):
        scored(replace(task, foreign=Foreign((" A", " B"))), twice[:1], tmp_path)


def test_published_scripts_read_the_whole_text_and_medbench_stops_at_the_next_question(tmp_path: Path) -> None:
    task = a_task(["q0"])
    lines = [{"id": "q0", "output": "So I take (A).\nQuestion: And next?\nAnswer: B"}]
    read = {}
    for protocol in ("cot-v2", "mmlu-pro-official"):
        outcome = scored(task, lines, tmp_path, protocol=protocol)
        (sample,) = read_samples(outcome.folder, "toy")
        read[protocol] = sample.extracted
    assert read == {"cot-v2": "A", "mmlu-pro-official": "B"}


@pytest.mark.parametrize("model", ["Meta-Llama-3_1-8B-Instruct", "Qwen1.5-7B-Chat"])
def test_the_official_script_read_the_same_letters(model: str, data_dir: Path, tmp_path: Path) -> None:
    file = data_dir / "replay" / f"mmlu_pro_health_{model}.jsonl"
    official = {str(row["question_id"]): row["official_pred"] for row in map(json.loads, file.open())}
    task = TaskLoader(str(data_dir)).load("mmlu_pro_health")
    options = ScoreOptions(file, task.name, protocol="mmlu-pro-official", runs=tmp_path / "runs")
    outcome = score_task(options, task, [], lambda _: None)
    samples = list(read_samples(outcome.folder, task.name))
    assert len(samples) == 818
    assert {sample.id: sample.extracted for sample in samples} == official
    with (data_dir / "replay" / "mmlu_pro_health_correct.csv").open() as table:
        right = {row["question_id"]: float(row[model]) for row in csv.DictReader(table)}
    # by this key 6392's answer is B, which Qwen gave and the table counts as wrong: it may use an older key
    assert {s.id: s.score for s in samples if s.id != "6392"} == {id: right[id] for id in right if id != "6392"}
