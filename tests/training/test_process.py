"""A training as a child process: what it receives, how it ends, and that no process stays behind.

pytest tests/training/test_process.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from medbench.harness.training import process as training_process
from medbench.harness.training.checkpoint_folder import LOG, checkpoints, last_lines
from medbench.harness.training.process import TrainingProcess
from medbench.harness.training.recipe import Launch
from medbench.harness.training.worker import MARK, accelerate_command

pytestmark = pytest.mark.slow

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux reports a parent's death")

TOY = '''
import atexit, json, os, signal, subprocess, sys, time
from pathlib import Path
from pydantic import BaseModel
from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError
from medbench.harness.training.checkpoint_folder import publish, wait_until_judged

class Config(Record):
    do: str
    pair: tuple[int, int] = (1, 2)

def train(config, *, start, folder, seed):
    globals()[config.do](config, start, folder, seed)

def finish(config, start, folder, seed):
    told = {"pair": config.pair, "start": str(start), "folder": str(folder), "seed": seed, "env": dict(os.environ)}
    publish(folder, 1, lambda aside: (aside / "told.json").write_text(json.dumps(told)))
    wait_until_judged(folder, 1)
    print("finished")

def fault(config, start, folder, seed):
    raise MedbenchError("rank 0: write rank 1\\nor more")

def crash(config, start, folder, seed):
    print("loss 0.7")
    raise RuntimeError("out of memory")

def family(config, start, folder, seed):
    """Children inside and outside the group, a grandchild, and a child whose parent has exited."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
    nested = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True); "
    subprocess.Popen([sys.executable, "-c", nested + "import time; time.sleep(600)", *sleep])
    subprocess.run([sys.executable, "-c", nested, *sleep])
    (folder / "ready").touch()
    time.sleep(600)

def stubborn(config, start, folder, seed):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    family(config, start, folder, seed)

def leave(config, start, folder, seed):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)

def group(config, start, folder, seed):
    from accelerate import Accelerator
    from accelerate.utils import gather_object
    state = Accelerator().state
    ranks = gather_object([state.process_index])
    if state.is_main_process:
        told = {"ranks": ranks, "backend": state.backend}
        publish(folder, 1, lambda aside: (aside / "told.json").write_text(json.dumps(told)))

def abort_on_exit(config, start, folder, seed):
    finish(config, start, folder, seed)
    atexit.register(os.abort)

def abort_before(config, start, folder, seed):
    finish(config, start, folder, seed)
    os.abort()

def hang_on_exit(config, start, folder, seed):
    finish(config, start, folder, seed)
    atexit.register(time.sleep, 600)

def exit_early(config, start, folder, seed):
    sys.exit(0)

def vanish(config, start, folder, seed):
    os._exit(0)

def group_lose_one(config, start, folder, seed):
    """Rank 0 returns; rank 1, no longer in a process group, dies before it does."""
    import torch
    group(config, start, folder, seed)
    torch.distributed.destroy_process_group()
    if os.environ["RANK"] == "1":
        while not (folder / ".done-0").exists():
            time.sleep(0.05)
        os.abort()

def group_abort_on_exit(config, start, folder, seed):
    group(config, start, folder, seed)
    if os.environ["RANK"] == "1":
        atexit.register(os.abort)

def group_fault(config, start, folder, seed):
    if os.environ["RANK"] == "1":
        raise MedbenchError("rank 1 has no rows: give it some")
    time.sleep(600)

def group_sleep(config, start, folder, seed):
    (folder / f"ready-{os.environ['RANK']}").touch()
    time.sleep(600)
'''


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer above, installed where child processes find it."""
    site = tmp_path / "site"
    installed = site / "toy-1.0.dist-info"
    installed.mkdir(parents=True)
    (site / "toy.py").write_text(TOY)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[medbench.trainers]\ntoy = toy\n")
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *([before] if before else [])]))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., TrainingProcess]]:
    """Starts a training of the toy in tmp_path/work; stopped after the test."""
    started = []

    def start(do: str, **options: Any) -> TrainingProcess:
        training = TrainingProcess(
            "toy", {"do": do}, start=tmp_path, folder=tmp_path / "work", seed=options.pop("seed", 7), **options
        )
        started.append(training)
        return training

    yield start
    for training in started:
        training.stop(grace=0)


def ended(training: TrainingProcess, seconds: float = 120) -> int:
    until = time.monotonic() + seconds
    while (code := training.poll()) is None:
        assert time.monotonic() < until, last_lines(training.folder / LOG)
        time.sleep(0.05)
    return code


def wait_for(path: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


def mark_of(pid: int) -> str:
    until = time.monotonic() + 10
    while not (mark := psutil.Process(pid).environ().get(MARK)):  # empty just after exec
        assert time.monotonic() < until
    return mark


def marked(mark: str) -> list[psutil.Process]:
    """All processes with the mark in their environment."""
    return [process for process in psutil.process_iter() if _carries(process, mark)]


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def family_of(pid: int, members: int = 7) -> list[psutil.Process]:
    """Wait until all have started. For `family`: the child, its watcher, three children, a grandchild and an orphan."""
    mark, until = mark_of(pid), time.monotonic() + 60
    while len(found := marked(mark)) < members:
        assert time.monotonic() < until, [process.cmdline() for process in found]
        time.sleep(0.05)
    return found


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """Starts a process that starts a training. Returns (the process, the training's pid)."""
    started: list[subprocess.Popen[bytes]] = []

    def loop(do: str, processes: int = 1) -> tuple[subprocess.Popen[bytes], int]:
        command = [sys.executable, "-c", LOOP, str(tmp_path), do, str(processes)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield loop
    for process in started:
        process.kill()
        process.wait()


LOOP = """
import sys, time
from pathlib import Path
from medbench.harness.training.recipe import Launch
from medbench.harness.training.process import TrainingProcess
folder = Path(sys.argv[1])
training = TrainingProcess("toy", {"do": sys.argv[2]}, start=folder, folder=folder / "work", seed=0,
                           launch=Launch(processes=int(sys.argv[3])))
print(training.pid, flush=True)
time.sleep(600)
"""
Loop = Callable[..., tuple[subprocess.Popen[bytes], int]]


def assert_gone(processes: list[psutil.Process], seconds: float) -> None:
    until = time.monotonic() + seconds
    while left := [process for process in processes if _is_alive(process)]:
        assert time.monotonic() < until, f"alive: {[process.cmdline() for process in left]}"
        time.sleep(0.05)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def told(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((checkpoints(folder)[0].path / "told.json").read_text())
    return content


def test_the_trainer_gets_what_the_job_says(tmp_path: Path, start: Callable[..., TrainingProcess]) -> None:
    training = start("finish", launch=Launch(env={"CUDA_VISIBLE_DEVICES": "3", "MINE": "yes"}))
    assert ended(training) == 0
    found = told(tmp_path / "work")
    assert (found["pair"], found["seed"]) == ([1, 2], 7)
    assert (found["start"], found["folder"]) == (str(tmp_path), str(tmp_path / "work"))
    env = found["env"]
    assert (env["CUDA_VISIBLE_DEVICES"], env["MINE"], env["PYTHONHASHSEED"]) == ("3", "yes", "7")
    assert int(env["OMP_NUM_THREADS"]) >= 1
    assert env["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert last_lines(training.folder / LOG) == "finished"


def test_a_typed_config_reaches_the_trainer_unchanged(tmp_path: Path) -> None:
    from pydantic import BaseModel

    class Config(BaseModel):
        do: str
        pair: tuple[int, int]

    training = TrainingProcess("toy", Config(do="finish", pair=(3, 4)), start=tmp_path, folder=tmp_path / "w", seed=0)
    with training:
        assert ended(training) == 0
    assert told(tmp_path / "w")["pair"] == [3, 4]


def test_variables_of_another_process_group_are_not_inherited(
    tmp_path: Path, start: Callable[..., TrainingProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):  # as an engine in this process may do
        monkeypatch.setenv(name, "1")
    assert ended(start("finish")) == 0
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"} & set(told(tmp_path / "work")["env"])


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_user_s_settings_of_the_allocator_are_kept(
    tmp_path: Path, start: Callable[..., TrainingProcess], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:512")
    assert ended(start("finish")) == 0
    env = told(tmp_path / "work")["env"]
    assert {key: env[key] for key in env if key.endswith("ALLOC_CONF")} == {name: "max_split_size_mb:512"}


def test_it_waits_until_judged_if_asked(tmp_path: Path, start: Callable[..., TrainingProcess]) -> None:
    training = start("finish", wait_until_judged=True)
    wait_for(tmp_path / "work" / "step-000001")
    time.sleep(1)
    assert training.poll() is None
    (tmp_path / "work" / ".judged-000001").touch()
    assert ended(training) == 0


def test_a_fault_is_one_line_and_code_2(tmp_path: Path, start: Callable[..., TrainingProcess]) -> None:
    training = start("fault")
    assert ended(training) == 2
    assert (tmp_path / "work" / LOG).read_text() == "rank 0: write rank 1 or more\n"


def test_a_crash_leaves_its_traceback_and_code_1(tmp_path: Path, start: Callable[..., TrainingProcess]) -> None:
    training = start("crash")
    assert ended(training) == 1
    log = (tmp_path / "work" / LOG).read_text()
    assert log.startswith("loss 0.7\nTraceback")
    assert last_lines(training.folder / LOG).endswith("RuntimeError: out of memory")


@pytest.mark.parametrize(
    ("trainer", "config", "line"),
    [
        ("tyo", {"do": "finish"}, "trainer 'tyo': no such plugin; did you mean toy?"),
        ("toy", {"do": "finish", "pari": 1}, "trainer 'toy': config: pari: unknown key; did you mean pair?"),
    ],
)
def test_a_fault_in_the_job_is_one_line(tmp_path: Path, trainer: str, config: dict[str, Any], line: str) -> None:
    with TrainingProcess(trainer, config, start=tmp_path, folder=tmp_path / "w", seed=0) as training:
        assert ended(training) == 2
        assert last_lines(training.folder / LOG) == line


def test_the_log_is_appended_to(tmp_path: Path, start: Callable[..., TrainingProcess]) -> None:
    ended(start("fault"))
    ended(start("crash"))
    assert (tmp_path / "work" / LOG).read_text().startswith("rank 0: write rank 1 or more\nloss 0.7\n")


@pytest.mark.parametrize("do", ["family", "stubborn"])
def test_stop_leaves_nothing_behind(tmp_path: Path, start: Callable[..., TrainingProcess], do: str) -> None:
    training = start(do)
    wait_for(tmp_path / "work" / "ready")
    family = family_of(training.pid)
    training.stop(grace=1)
    assert_gone(family, 0)
    assert training.poll() == (-signal.SIGTERM if do == "family" else -signal.SIGKILL)
    training.stop()


def test_stop_after_the_end_does_nothing(start: Callable[..., TrainingProcess]) -> None:
    training = start("fault")
    assert ended(training) == 2
    training.stop()
    assert training.poll() == 2


@LINUX
def test_kill_9_of_the_loop_takes_the_training_with_it(tmp_path: Path, loop: Loop) -> None:
    process, pid = loop("family")
    wait_for(tmp_path / "work" / "ready")
    family = family_of(pid)
    process.kill()
    process.wait()
    assert_gone(family, 10)


@LINUX
@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_a_loop_killed_while_the_training_starts_leaves_nothing(loop: Loop, after: float) -> None:
    process, pid = loop("family")
    mark = mark_of(pid)
    time.sleep(after)
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while left := marked(mark):
        assert time.monotonic() < until, left
        time.sleep(0.2)
    time.sleep(0.5)
    assert marked(mark) == []


@LINUX
def test_processes_that_a_finished_training_left_running_are_killed(start: Callable[..., TrainingProcess]) -> None:
    training = start("leave")
    mark = mark_of(training.pid)
    assert ended(training) == 0
    until = time.monotonic() + 10
    while marked(mark):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path, start: Callable[..., TrainingProcess]) -> None:
    start("family")
    wait_for(tmp_path / "work" / "ready")
    impatient = (
        "import sys; from pathlib import Path; import medbench.harness.training.worker as t; "
        "t._locked.__defaults__ = (0.5,); sys.exit(t.main(Path(sys.argv[1]), worker=True))"
    )
    command = [sys.executable, "-c", impatient, str(tmp_path / "work" / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == f"{tmp_path / 'work'}: another training is using it: stop it or wait for it\n"


def test_a_successor_waits_for_a_dying_training(tmp_path: Path, start: Callable[..., TrainingProcess]) -> None:
    first = start("family")
    wait_for(tmp_path / "work" / "ready")
    second = start("finish")
    time.sleep(2)
    assert second.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    assert ended(second) == 0


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    from medbench.harness.contracts import MedbenchError

    (tmp_path / "file").touch()
    with pytest.raises(MedbenchError, match="cannot be written") as caught:
        TrainingProcess("toy", {"do": "finish"}, start=tmp_path, folder=tmp_path / "file" / "work", seed=0)
    assert "\n" not in str(caught.value)


def test_two_processes_under_accelerate_are_one_group(tmp_path: Path, start: Callable[..., TrainingProcess]) -> None:
    training = start("group", launch=Launch(processes=2, env={"CUDA_VISIBLE_DEVICES": ""}))
    assert ended(training, 240) == 0, last_lines(training.folder / LOG)
    assert told(tmp_path / "work") == {"ranks": [0, 1], "backend": "gloo"}


def test_a_crash_after_the_work_is_done_is_not_a_failure(start: Callable[..., TrainingProcess]) -> None:
    assert ended(start("abort_on_exit")) == 0


def test_a_crash_before_the_trainer_returns_is_a_failure(start: Callable[..., TrainingProcess]) -> None:
    assert ended(start("abort_before")) == -signal.SIGABRT
    assert ended(start("abort_before")) == -signal.SIGABRT


def test_an_earlier_finished_training_does_not_excuse_a_crash(start: Callable[..., TrainingProcess]) -> None:
    assert ended(start("finish")) == 0
    assert ended(start("abort_before")) == -signal.SIGABRT


def test_a_hang_after_the_work_is_done_is_not_a_failure(
    start: Callable[..., TrainingProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_process, "EXIT_SECONDS", 0.2)
    assert ended(start("hang_on_exit")) == 0


@pytest.mark.parametrize(
    ("do", "line"),
    [("exit_early", "the trainer exited with 0 before its work was done"), ("vanish", "(it printed nothing)")],
)
def test_an_exit_before_the_trainer_returns_is_a_failure(
    start: Callable[..., TrainingProcess], do: str, line: str
) -> None:
    training = start(do)
    assert ended(training) == 1
    assert last_lines(training.folder / LOG) == line


def test_a_worker_that_dies_before_it_returns_is_a_failure_though_the_first_returned(
    start: Callable[..., TrainingProcess],
) -> None:
    training = start("group_lose_one", launch=Launch(processes=2, env={"CUDA_VISIBLE_DEVICES": ""}))
    assert ended(training, 240) != 0
    assert (training.folder / ".done-0").exists()


def test_a_worker_that_crashes_on_exit_is_not_a_failure(start: Callable[..., TrainingProcess], tmp_path: Path) -> None:
    training = start("group_abort_on_exit", launch=Launch(processes=2, env={"CUDA_VISIBLE_DEVICES": ""}))
    assert ended(training, 240) == 0, last_lines(training.folder / LOG)
    assert told(tmp_path / "work")["ranks"] == [0, 1]
    assert "after the training was done: ignored" in (tmp_path / "work" / "log.txt").read_text()


def test_the_log_ends_with_the_error_of_the_failed_worker(
    tmp_path: Path, start: Callable[..., TrainingProcess]
) -> None:
    training = start("group_fault", launch=Launch(processes=2, env={"CUDA_VISIBLE_DEVICES": ""}))
    assert ended(training, 240) == 2
    assert last_lines(training.folder / LOG).endswith("| rank 1 has no rows: give it some")


@LINUX
def test_kill_9_of_the_loop_takes_accelerates_workers_with_it(tmp_path: Path, loop: Loop) -> None:
    process, pid = loop("group_sleep", processes=2)
    for rank in (0, 1):
        wait_for(tmp_path / "work" / f"ready-{rank}", 240)
    family = family_of(pid, members=5)  # the child, its watcher, accelerate, and two workers
    process.kill()
    process.wait()
    assert_gone(family, 10)


def test_an_accelerate_file_decides_what_the_recipe_does_not() -> None:
    alone = accelerate_command(Path("job.json"), Launch(processes=4))
    filed = accelerate_command(Path("job.json"), Launch(accelerate="/fsdp.yaml"))
    both = accelerate_command(Path("job.json"), Launch(processes=4, accelerate="/fsdp.yaml"))
    assert "--multi_gpu" in alone
    assert re.search("--num_processes 4", " ".join(alone))
    assert re.search("--config_file /fsdp.yaml --module", " ".join(filed))
    assert re.search("--config_file /fsdp.yaml --num_processes 4 --module", " ".join(both))
