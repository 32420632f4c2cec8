"""The command as users meet it: what it prints where, exit statuses, and one line for each fault of theirs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medbench.harness.cli.main import run

SAMPLE = Path(__file__).parents[2] / "tasks" / "medqa" / "sample" / "test.jsonl"
EVAL = ["eval", "stored", "--data", "sample", "--tasks", "medqa", "--quiet"]


@pytest.fixture
def replies(tmp_path: Path) -> Path:
    from medbench.harness.benchmarks.rows import content_id

    path = tmp_path / "replies.jsonl"
    with path.open("w") as file:
        for row in map(json.loads, SAMPLE.open()):
            id = content_id(row["question"], *(row["options"][label] for label in "ABCD"))
            file.write(json.dumps({"id": id, "output": f"So the answer is ({row['answer_idx']})."}) + "\n")
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medbench.harness.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_json_is_alone_on_standard_output(replies: Path) -> None:
    done = command(*EVAL, "--replies", replies, "--json")
    outcome = json.loads(done.stdout)
    assert done.returncode == 0
    assert outcome["results"]["medqa"]["accuracy"] == 1.0
    assert outcome["results"]["medqa"]["source"] == "sample"
    assert {"n_unparsed", "n_truncated"} <= outcome["results"]["medqa"].keys()
    assert Path(outcome["run"], "run.json").exists()


def test_the_table_and_where_the_run_lies(replies: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*EVAL, "--replies", str(replies)]) == 0
    out = capfd.readouterr().out
    assert "medqa (sample)" in out
    assert "100.0" in out
    assert Path(re.findall(r"run: (.*)", out)[0], "samples", "medqa.jsonl").exists()


def test_worked_examples_do_not_change_with_limit_or_resumption(
    replies: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def prompts(name: str) -> dict[str, str]:
        lines = Path("runs", name, "samples", "medqa.jsonl").read_text().splitlines()
        return {line["id"]: line["prompt"] for line in map(json.loads, lines)}

    arguments = [*EVAL, "--replies", str(replies), "--shots", "3"]
    assert run([*arguments, "--name", "whole"]) == 0
    assert run([*arguments, "--name", "part", "--limit", "4"]) == 0
    few = prompts("part")
    assert run([*arguments, "--name", "part", "--resume", "--json"]) == 0
    assert len(few) == 4
    assert few.items() <= prompts("part").items()
    assert prompts("part") == prompts("whole")
    assert {prompt.count("Question: ") for prompt in prompts("whole").values()} == {4}
    captured = capfd.readouterr()
    assert "evaluated split itself" in captured.err
    outcome = json.loads(captured.out[captured.out.index("{") :])
    assert outcome["protocol"] == "cot-v2+shots=3"
    assert any("evaluated split itself" in note for note in outcome["notes"])


def test_more_worked_examples_than_there_are_rows_is_one_line(replies: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*EVAL, "--replies", str(replies), "--shots", "30"]) == 2
    said = capfd.readouterr().err
    assert "medqa: 30 rows of split test are too few for 30 few-shot examples" in said
    assert not Path("runs").exists()


def test_a_finished_run_is_not_written_over_but_resumed(replies: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [*EVAL, "--replies", str(replies), "--name", "r"]
    assert run(arguments) == 0
    before = Path("runs/r/samples/medqa.jsonl").stat().st_mtime_ns
    assert run(arguments) == 2
    assert "--resume" in capfd.readouterr().err
    assert run([*arguments, "--resume", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["status"] == "complete"
    assert Path("runs/r/samples/medqa.jsonl").stat().st_mtime_ns == before


def test_a_limited_run_is_extended_by_resuming_without_the_limit(replies: Path) -> None:
    arguments = [*EVAL, "--replies", str(replies), "--name", "r"]
    assert run([*arguments, "--limit", "4"]) == 0
    first = Path("runs/r/samples/medqa.jsonl").read_bytes()
    assert run([*arguments, "--resume"]) == 0
    assert Path("runs/r/samples/medqa.jsonl").read_bytes().startswith(first)
    assert len(Path("runs/r/samples/medqa.jsonl").read_bytes().splitlines()) == 30


@pytest.mark.parametrize(
    ("change", "named"),
    [(["--seed", "1"], "seed"), (["--protocol", "direct-v1"], "protocol"), (["--tasks", "pubmedqa"], "task")],
)
def test_another_run_in_the_folder_is_refused_with_the_difference(
    replies: Path, change: list[str], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*EVAL, "--replies", str(replies), "--name", "r"]
    assert run(arguments) == 0
    assert run([*arguments, *change, "--resume"]) == 2
    assert named in capfd.readouterr().err


def test_other_replies_are_another_model(replies: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [*EVAL, "--replies", str(replies), "--name", "r", "--resume"]
    assert run(arguments) == 0
    replies.write_text(replies.read_text().replace("So the", "Then the", 1))
    assert run(arguments) == 2
    assert "model" in capfd.readouterr().err


def test_nothing_scored_is_not_gateable(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.jsonl").write_text('{"id": "nobody", "output": "B"}\n')
    assert run([*EVAL, "--replies", str(tmp_path / "other.jsonl")]) == 3
    assert "not gateable" in capfd.readouterr().err


def faults(tmp_path: Path, tiny_model: Path) -> dict[str, tuple[list[str], str]]:
    """name -> (arguments, what the line must say)"""
    data = tmp_path / "data"
    for broken, line in (("field", '{"question": "Q?", "options": {"A": "a", "B": "b"}}'),
                         ("gold", '{"question": "Q?", "options": {"A": "a", "B": "b"}, "answer_idx": "C"}'),
                         ("twice", '{"question": "Q?", "options": {"A": "a", "B": "b"}, "answer_idx": "A"}'),
                         ("json", "{"), ("empty", "")):  # fmt: skip
        (data / broken / "medqa").mkdir(parents=True)
        count = 2 if broken == "twice" else 1
        (data / broken / "medqa" / "test.jsonl").write_text(f"{line}\n" * count if line else "")
    (data / "missing").mkdir()
    (tmp_path / "empty").mkdir()
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cut = tmp_path / "cut"
    shutil.copytree(tiny_model, cut)
    os.truncate(cut / "model.safetensors", 100_000)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "./gone"}')
    shutil.copy(tiny_model / "model.safetensors", adapter / "adapter_model.safetensors")
    (tmp_path / "typo.yaml").write_text("limt: 3\n")
    rules = {"thinking_tokens": 9, "gates": [{"task": "medqa", "at_least": 0.5}]}
    (tmp_path / "budget.yaml").write_text(json.dumps(rules))
    budget, budgeted = ["--thinking-tokens", "9"], ["--gates", str(tmp_path / "budget.yaml")]
    model, sample = str(tiny_model), ["--data", "sample", "--tasks", "medqa"]
    server = ["--base-url", "http://127.0.0.1:9/v1"]
    return {
        "unknown task": (["eval", model, "--data", "sample", "--tasks", "medqaa"], "did you mean medqa"),
        "no task": (["eval", model, "--tasks", ","], "--tasks"),
        "unknown protocol": (["eval", model, *sample, "--protocol", "cot-v3"], "did you mean cot-v"),
        "limit 0": (["eval", model, "--limit", "0"], "--limit"),
        "config key": (["eval", model, "--config", str(tmp_path / "typo.yaml")], "did you mean limit"),
        "no such path": (["eval", "./nothing", *sample], "no such folder"),
        "hub id": (["eval", "no-such-org/no-such-model", *sample], "no-such-org/no-such-model"),
        "empty folder": (["eval", str(tmp_path / "empty"), *sample], "empty"),
        "pickled weights": (["eval", str(pickled), *sample], "pytorch_model.bin"),
        "truncated weights": (["eval", str(cut), *sample], "truncated"),
        "adapter without base": (["eval", str(adapter), *sample], "./gone"),
        "data folder": (["eval", model, "--data", str(tmp_path / "nope"), "--tasks", "medqa"], "does not exist"),
        "data file": (["eval", model, "--data", str(data / "missing"), "--tasks", "medqa"], "test.jsonl"),
        "data field": (["eval", model, "--data", str(data / "field"), "--tasks", "medqa"], "test.jsonl:1: answer_idx"),
        "data gold": (["eval", model, "--data", str(data / "gold"), "--tasks", "medqa"], "test.jsonl:1: answer_idx"),
        "data twice": (["eval", model, "--data", str(data / "twice"), "--tasks", "medqa"], "test.jsonl:2"),
        "data json": (["eval", model, "--data", str(data / "json"), "--tasks", "medqa"], "test.jsonl:1"),
        "data empty": (["eval", model, "--data", str(data / "empty"), "--tasks", "medqa"], "empty"),
        "server down": (["eval", "m", *sample, "--base-url", "http://127.0.0.1:9/v1"], "127.0.0.1:9"),
        "budget of a server": (["eval", "m", *sample, *server, *budget], "which a chat server cannot do"),
        "gate of a server's budget": (["gate", "m", *sample[:2], *server, *budgeted], "which a chat server cannot do"),
        "budget of all": (["eval", model, *sample, *budget, "--max-new-tokens", "9"], "lower thinking_tokens"),
        "base of a full model": (["eval", model, *sample, "--base", "smollm2-135m"], "is no adapter"),
        "base of a served model": (["eval", "m", *sample, *server, "--base", "smollm2-135m"], "loads no adapter"),
        "engine without url": (["eval", "m", *sample, "--engine", "openai"], "--base-url"),
        "replies missing": (["eval", "m", *sample, "--replies", str(tmp_path / "none.jsonl")], "no such file"),
        "bad name": (["eval", "m", *sample, "--name", "../up"], "--name"),
        "unknown command": (["evil"], "evil"),
    }  # fmt: skip


FAULTS = """
unknown task
no task
unknown protocol
limit 0
config key
no such path
hub id
empty folder
pickled weights
truncated weights
adapter without base
data folder
data file
data field
data gold
data twice
data json
data empty
server down
budget of a server
gate of a server's budget
budget of all
base of a full model
base of a served model
engine without url
replies missing
bad name
unknown command
""".strip().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_users_is_one_line_and_nothing_is_written(
    fault: str, tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, says = faults(tmp_path, tiny_model)[fault]
    assert run([*arguments, *(["--quiet"] if arguments[0] == "eval" else [])]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("medbench:")]
    assert says in line
    assert "Traceback" not in printed.err
    assert not Path("runs").exists()


def test_the_list_of_faults_is_whole(tmp_path: Path, tiny_model: Path) -> None:
    assert sorted(faults(tmp_path, tiny_model)) == sorted(FAULTS)


@pytest.mark.slow
def test_a_fault_seen_by_the_shell(tiny_model: Path) -> None:
    done = command("eval", tiny_model, "--tasks", "medqaa", "--data", "sample")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_and_kill_seal_and_exit_4(name: str, replies: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text("engine_config: {delay: 0.3}\n")
    arguments = [*EVAL, "--replies", str(replies), "--config", str(tmp_path / "slow.yaml"), "--name", "r"]
    process = subprocess.Popen(
        [sys.executable, "-m", "medbench.harness.cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs this suite in the background has SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    samples = Path("runs/r/samples/medqa.jsonl")
    while not (samples.exists() and samples.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.Signals[name])
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "--resume" in err
    assert "Traceback" not in err
    assert json.loads(Path("runs/r/run.json").read_text())["totals"]["seconds"] > 0
    assert command(*EVAL, "--replies", replies, "--name", "r", "--resume").returncode == 0


@pytest.mark.slow
def test_two_processes_never_write_one_run(replies: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text("engine_config: {delay: 0.5}\n")
    arguments = [*EVAL, "--replies", str(replies), "--config", str(tmp_path / "slow.yaml"), "--name", "r"]
    first = subprocess.Popen([sys.executable, "-m", "medbench.harness.cli", *arguments])
    while not Path("runs/r/run.json").exists():
        time.sleep(0.02)
    second = command(*arguments, "--resume")
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert "another process" in second.stderr


@pytest.mark.engine
def test_a_real_checkpoint_through_vllm(tiny_model: Path) -> None:
    done = command("eval", tiny_model, "--data", "sample", "--limit", "4", "--max-new-tokens", "8", "--json")
    outcome = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert [result["n"] for result in outcome["results"].values()] == [4, 4, 4]
    assert outcome["protocol"] == "cot-v2+max_new_tokens=8"
    record = json.loads(Path(outcome["run"], "run.json").read_text())
    assert record["engine"]["name"] == "vllm"
    assert record["engine"]["chat_template"] == "model"


@pytest.mark.engine
def test_direct_scoring_through_transformers(tiny_model: Path) -> None:
    done = command(
        "eval", tiny_model, "--engine", "hf", "--data", "sample", "--limit", "4", "--protocol", "direct-v1", "--json"
    )
    results = json.loads(done.stdout)["results"]
    assert [result["n_unparsed"] for result in results.values()] == [0, 0, 0]


@pytest.mark.engine
def test_a_model_without_a_chat_template_is_asked_in_plain_text_and_the_run_says_so(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain, ignore=shutil.ignore_patterns("chat_template*"))
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    arguments = ["eval", str(plain), "--engine", "hf", "--data", "sample", "--tasks", "medqa", "--limit", "2"]
    assert run([*arguments, "--max-new-tokens", "4", "--json", "--quiet"]) == 0
    outcome = json.loads(capfd.readouterr().out)
    assert any("no chat template" in note for note in outcome["notes"])
    sample = json.loads(Path(outcome["run"], "samples", "medqa.jsonl").read_text().splitlines()[0])
    assert sample["prompt"].startswith("Question:")
