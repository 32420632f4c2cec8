"""The `command` trainer with real programs: their checkpoints are published complete, in order, and once.

pytest tests/trainers/test_command.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from medbench.harness.contracts import MedbenchError
from medbench.harness.training.checkpoint_folder import LOG, checkpoints, last_lines
from medbench.harness.training.process import TrainingProcess
from medbench.harness.training.trainer_plugins import GROUP, FailedAttempt, find_trainer
from medbench.trainers import command
from medbench.trainers.command import Config, adapt, prepare, train

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file

def save(folder, value=0.0, adapter=False):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("adapter_config.json" if adapter else "config.json")).write_text("{}")
    save_file({"w": np.full(4, value)}, folder / ("adapter_model.safetensors" if adapter else "model.safetensors"))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    (folder / "state").mkdir(exist_ok=True)
    (folder / "state" / "rank_0.pt").write_bytes(b"pickle")
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "start").mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / "start" / name).write_text("the start's")
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Config]:
    def program(body: str, *arguments: str, **config: Any) -> Config:
        (tmp_path / "program.py").write_text(PROGRAM + body)
        return Config(
            command=[sys.executable, str(tmp_path / "program.py"), *arguments], **{"settled_seconds": 0.3, **config}
        )

    return program


def run(config: Config, work: Path, seed: int = 0) -> None:
    train(config, start=work.parent / "start", folder=work, seed=seed)


def steps(work: Path) -> list[int]:
    return [one.step for one in checkpoints(work)]


def files(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir())


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_is_a_trainer() -> None:
    assert find_trainer("command", [EntryPoint("command", "medbench.trainers.command", GROUP)]) is command


def test_checkpoints_are_published_by_step_without_the_pickles(work: Path, program: Callable[..., Config]) -> None:
    run(program("for step in (5, 10, 100): save(f'checkpoint-{step}', step)"), work)
    assert steps(work) == [5, 10, 100]
    assert files(work / "step-000100") == ["config.json", "model.safetensors", "tokenizer.json"]
    first = (work / "checkpoint-100" / "model.safetensors").stat()
    assert (work / "step-000100" / "model.safetensors").stat().st_ino == first.st_ino  # no disk space for a second copy


def test_an_adapter_and_a_nested_folder_are_checkpoints_too(work: Path, program: Callable[..., Config]) -> None:
    body = "save('out/global_step_20/actor/huggingface', adapter=True)"
    run(program(body, checkpoints="out/*/actor/huggingface"), work)
    assert steps(work) == [20]
    assert "adapter_model.safetensors" in files(work / "step-000020")


def test_a_checkpoint_without_a_tokenizer_gets_that_of_the_start(work: Path, program: Callable[..., Config]) -> None:
    run(program("save('checkpoint-1'); os.remove('checkpoint-1/tokenizer.json')"), work)
    assert files(work / "step-000001") == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert (work / "step-000001" / "tokenizer.json").read_text() == "the start's"


def test_a_checkpoint_is_published_while_the_program_runs(work: Path, program: Callable[..., Config]) -> None:
    body = """
save("checkpoint-1")
while not Path("go-on").exists(): time.sleep(0.05)
save("checkpoint-2")
"""
    training = threading.Thread(target=run, args=(program(body), work), daemon=True)
    training.start()
    until = time.monotonic() + 30
    while steps(work) != [1]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert training.is_alive()
    (work / "go-on").touch()
    training.join(30)
    assert steps(work) == [1, 2]


def test_a_checkpoint_that_is_still_being_written_is_not_published_yet(
    work: Path, program: Callable[..., Config]
) -> None:
    body = """
save("aside", 1.0)
os.rename("aside", "checkpoint-1")
whole = Path("checkpoint-1/model.safetensors").read_bytes()
Path("checkpoint-1/model.safetensors").write_bytes(whole[:-8])
time.sleep(2)  # settled, by the clock, but its weights are cut off
Path("seen").write_text(str(sorted(path.name for path in Path().glob("step-*"))))
Path("checkpoint-1/model.safetensors").write_bytes(whole)
"""
    run(program(body), work)
    assert (work / "seen").read_text() == "[]"
    assert steps(work) == [1]
    assert (work / "step-000001" / "model.safetensors").read_bytes() == (
        work / "checkpoint-1" / "model.safetensors"
    ).read_bytes()


def test_a_checkpoint_that_stays_incomplete_is_reported_and_not_published(
    work: Path, program: Callable[..., Config], capfd: pytest.CaptureFixture[str]
) -> None:
    run(program("save('checkpoint-1'); save('checkpoint-2'); os.remove('checkpoint-2/model.safetensors')"), work)
    assert steps(work) == [1]
    assert "not published: " in capfd.readouterr().out


def test_a_checkpoint_that_the_program_publishes_is_left_alone(work: Path, program: Callable[..., Config]) -> None:
    body = "save('.aside', 1); os.rename('.aside', 'step-000007'); save('checkpoint-7', 2)"
    run(program(body), work)
    assert steps(work) == [7]
    assert "optimizer.pt" in files(work / "step-000007")


def test_hidden_folders_names_without_a_number_and_files_are_not_checkpoints(
    work: Path, program: Callable[..., Config]
) -> None:
    run(program("save('.checkpoint-1'); save('best'); open('checkpoint-3', 'w')", checkpoints="*"), work)
    assert steps(work) == []


def test_placeholders_are_filled_in(work: Path, program: Callable[..., Config]) -> None:
    body = "Path('told').write_text(json.dumps([sys.argv[1:], os.environ['MINE'], os.getcwd()]))"
    arguments = ("{start}", "{folder}", "--seed={seed}", "{here}/x", "{rate}:{n}:{s}", "${{HOME}}", '{"a": {"b": {}}}')
    config = program(body, *arguments, settings={"rate": 1e-5, "n": 3, "s": "x y"}, env={"MINE": "{seed} {s}"})
    run(config, work, seed=11)
    told, env, cwd = json.loads((work / "told").read_text())
    start = str(work.parent / "start")
    assert told == [start, str(work), "--seed=11", f"{Path.cwd()}/x", "1e-05:3:x y", "${HOME}", '{"a": {"b": {}}}']
    assert (env, cwd) == ("11 x y", str(work))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"command": []}, "at least 1 item"),
        ({"command": [" "]}, "must name the program"),
        ({"command": ["x", "{strat}"]}, "unknown placeholder {strat} in '{strat}'; did you mean start?"),
        ({"command": ["x", "{lr}"], "settings": {"learning_rate": 1}}, "unknown placeholder {lr}"),
        ({"command": ["x"], "env": {"A": "{nothing}"}}, "unknown placeholder {nothing}"),
        ({"command": ["x"], "settings": {"seed": 1}}, "settings.seed: {seed} is reserved"),
        ({"command": ["x"], "settings": {"a": [1]}}, "settings.a"),
        ({"command": ["x"], "settings": {"a": True}}, "settings.a"),
        ({"command": ["x"], "checkpoints": "/tmp/*"}, "a glob below the work folder"),
        ({"command": ["x"], "checkpoints": "../*"}, "a glob below the work folder"),
        ({"command": ["x"], "checkpoints": ""}, "at least 1 character"),
        ({"command": ["x"], "settled_seconds": 0}, "greater than 0"),
        ({"command": "train.sh"}, "valid array"),
        ({"commnad": ["x"]}, "commnad"),
    ],
)
def test_a_faulty_config_is_refused(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate_json(json.dumps(config))
    assert told in str(caught.value)


def test_a_missing_program_is_refused_before_training(tmp_path: Path) -> None:
    config = Config(command=["no-such-program-here", "{start}"])
    with pytest.raises(MedbenchError, match="'no-such-program-here': no such program") as caught:
        prepare(config, start=tmp_path, folder=tmp_path, benchmarks={})
    assert "\n" not in str(caught.value)


def test_prepare_shows_the_command(tmp_path: Path) -> None:
    config = Config(command=[sys.executable, "{start}", "a b"])
    lines = prepare(config, start=tmp_path, folder=tmp_path / "1-sft", benchmarks={})
    assert lines[0] == f"runs {sys.executable} {tmp_path} 'a b'"
    assert not (tmp_path / "1-sft").exists()


def test_a_relative_program_is_found_from_the_folder_medbench_runs_in(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.sh"
    script.write_text("#!/bin/sh\npwd > ran\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    run(Config(command=["./train.sh"], settled_seconds=0.1), work)
    assert (work / "ran").read_text().strip() == str(work)


@pytest.mark.parametrize(
    ("body", "told"), [("sys.exit(3)", "exited with 3"), ("os.kill(os.getpid(), 9)", "was killed by signal 9")]
)
def test_a_program_that_fails_fails_the_training_and_keeps_its_checkpoints(
    work: Path, program: Callable[..., Config], capfd: pytest.CaptureFixture[str], body: str, told: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(program(f"save('checkpoint-1'); print('no memory', flush=True); {body}"), work)
    assert caught.value.code == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-2:] == ["no memory", f"command {sys.executable!r} {told}"]
    assert steps(work) == [1]


def test_a_program_that_cannot_be_started_is_one_line(work: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch(mode=0o755)
    (tmp_path / "empty").write_bytes(b"\x7fELF")
    with pytest.raises(MedbenchError, match="cannot be started"):
        run(Config(command=[str(tmp_path / "empty")]), work)


def test_only_a_second_call_sets_resume(work: Path, program: Callable[..., Config]) -> None:
    for name in ("job.json", "log.txt", ".training.lock"):  # what the loop leaves there
        (work / name).touch()
    body = """
with open("told", "a") as file: file.write(os.environ.get("MEDBENCH_RESUME", "-"))
"""
    run(program(body), work)
    run(program(body), work)
    assert (work / "told").read_text() == "-1"


def test_rewriting_a_checkpoint_does_not_change_the_published_one(work: Path, program: Callable[..., Config]) -> None:
    run(program("save('checkpoint-1', 1.0)"), work)
    before = (work / "step-000001" / "model.safetensors").read_bytes()
    run(program("save('checkpoint-1', 2.0); save('checkpoint-2', 2.0)"), work)
    assert (work / "step-000001" / "model.safetensors").read_bytes() == before
    assert (work / "checkpoint-1" / "model.safetensors").read_bytes() != before
    assert steps(work) == [1, 2]


def test_a_checkpoint_that_a_killed_program_left_incomplete_is_not_published_on_resume(
    work: Path, program: Callable[..., Config]
) -> None:
    save_file({"w": np.zeros(4)}, work / "whole")
    for step, size in ((1, None), (2, -8)):
        (work / f"checkpoint-{step}").mkdir()
        (work / f"checkpoint-{step}" / "config.json").write_text("{}")
        (work / f"checkpoint-{step}" / "model.safetensors").write_bytes((work / "whole").read_bytes()[:size])
    run(program("time.sleep(1)"), work)
    assert steps(work) == [1]


def test_the_learning_rate_is_halved_only_after_divergence() -> None:
    config = Config(command=["x"], settings={"learning_rate": 2e-5, "n": 3})
    assert adapt(config, FailedAttempt("no", diverged=True)).settings == {"learning_rate": 1e-5, "n": 3}
    assert adapt(config, FailedAttempt("no", rambling=True)) == config
    written = Config(command=["x"], settings={"learning_rate": "2e-5"})  # YAML reads 2e-5 as text
    assert adapt(written, FailedAttempt("no", diverged=True)).settings == {"learning_rate": 1e-5}
    for settings in ({}, {"learning_rate": "low"}):
        other = Config(command=["x"], settings=settings)
        assert adapt(other, FailedAttempt("no", diverged=True)) == other


def test_a_program_runs_as_one_of_the_loops_trainings(work: Path, program: Callable[..., Config]) -> None:
    config = program(
        "save('checkpoint-1'); print('loss 0.5'); sys.exit(int(sys.argv[1]))", "{code}", settings={"code": 0}
    )
    failing = config.model_copy(update={"settings": {"code": 9}})
    for one, code, told in ((config, 0, "loss 0.5"), (failing, 1, f"command {sys.executable!r} exited with 9")):
        with TrainingProcess("command", one, start=work.parent / "start", folder=work, seed=0) as training:
            while training.poll() is None:
                time.sleep(0.05)
            assert (training.poll(), last_lines(work / LOG).split(" | ")[-1]) == (code, told)
    assert steps(work) == [1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only the Linux kernel does this")
def test_kill_9_of_the_training_takes_the_program_with_it(work: Path, program: Callable[..., Config]) -> None:
    config = program("Path('pid').write_text(str(os.getpid())); os.rename('pid', 'ready'); time.sleep(600)")
    with TrainingProcess("command", config, start=work.parent / "start", folder=work, seed=0) as training:
        until = time.monotonic() + 60
        while not (work / "ready").exists():
            assert time.monotonic() < until, last_lines(work / LOG)
            time.sleep(0.05)
        foreign = psutil.Process(int((work / "ready").read_text()))
        os.kill(training.pid, signal.SIGKILL)
        while is_alive(foreign):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_the_module_is_light() -> None:
    code = "import sys, medbench.trainers.command; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=60, check=False).returncode == 0
