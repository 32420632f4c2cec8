"""One attempt's training as a child process, alone or under `accelerate launch`; nothing of it outlives the loop.

    with TrainingProcess("sft", config, start=START, folder=FOLDER, seed=0) as training:
        while training.poll() is None: ...

The same module is the child's: `python -m medbench.harness.training_process JOB.json`. On Linux the kernel kills the
child when the loop dies, even by kill -9, and a second, waiting process then kills whatever the training has started.
The kernel watches the thread that started the child: start it from the main one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel

from medbench.harness import handover
from medbench.harness.contracts import MedbenchError
from medbench.harness.files import write_atomically
from medbench.harness.plugins import find_trainer
from medbench.harness.recipe import Launch, read_config

JOB, LOCK, FAILURE = "job.json", ".training.lock", ".failure.json"
MARK = "MEDBENCH_TRAINING"
"""Its value, new for each training, is in the environment of every process that the training starts."""
PARENT = "MEDBENCH_TRAINING_PARENT"
DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""A vLLM engine in the loop's process sets some of these; a training would take itself for a part of a group."""
GPU_TOOLS = ("nvidia-smi", "rocm-smi", "amd-smi", "xpu-smi", "npu-smi")
LOCK_SECONDS = 30.0
"""How long a training waits for its dying predecessor to leave the folder."""
GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL."""


class TrainingProcess:
    """A training under way. Use as a context manager: leaving it stops the training."""

    def __init__(self, trainer: str, config: BaseModel | Mapping[str, Any], *, start: Path, folder: Path, seed: int,
                 launch: Launch | None = None, wait_until_judged: bool = False) -> None:  # fmt: skip
        """Starts it. Raises MedbenchError where `folder` cannot be written; what the child finds, it exits with."""
        self.folder = folder
        launch = launch or Launch()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILURE).unlink(missing_ok=True)
            log = (folder / handover.LOG).open("ab")
        except OSError as error:
            raise MedbenchError(f"{folder}: cannot be written ({error.strerror})") from None
        content = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
        job = {"trainer": trainer, "config": content, "start": str(start.resolve()), "folder": str(folder.resolve()),
               "seed": seed, "launch": launch.model_dump()}  # fmt: skip
        write_atomically(folder / JOB, json.dumps(job, indent=1).encode() + b"\n")
        self._mark = secrets.token_hex(16)
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "medbench.harness.training_process", str(folder.resolve() / JOB)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=_environment(launch, seed, self._mark, wait_until_judged),
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the child, which leads a process group of its own."""
        return self._process.pid

    def poll(self) -> int | None:
        """None while it trains; 0 when it is done, 2 for what MedbenchError says, 1 else; below 0 after a signal."""
        return self._process.poll()

    def last_lines(self) -> str:
        """The end of its log, for a message."""
        return handover.last_lines(self.folder / handover.LOG)

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """SIGTERM to all of it, SIGKILL after `grace` seconds; returns when nothing of it is left. Again is no harm."""
        if self._process.poll() is None:
            _signal_group(self.pid, signal.SIGTERM)
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                _signal_group(self.pid, signal.SIGKILL)
        self._process.wait()  # first, for whoever waits first gets its exit code
        _kill_marked(self._mark)

    def __enter__(self) -> TrainingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _environment(launch: Launch, seed: int, mark: str, wait_until_judged: bool) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in DISTRIBUTED}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // launch.processes)))
    env[handover.WAIT] = "1" if wait_until_judged else "0"
    env["PYTHONHASHSEED"] = str(seed % 2**32)
    env["PYTHONUNBUFFERED"] = "1"  # the last lines of a training that is killed are wanted most
    return env | launch.env | {MARK: mark, PARENT: str(os.getpid())}


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError for a group of zombies
        os.killpg(pid, number)


def _kill_marked(mark: str, but: tuple[int, ...] = (), seconds: float = 10.0) -> None:
    """SIGKILL to every process with the mark, those of other process groups too, until none is left."""
    until = time.monotonic() + seconds
    clear = 0
    while clear < 2 and time.monotonic() < until:  # twice: for an instant after exec a process shows no environment
        found = [process for process in _marked(mark) if process.pid not in but]
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.2)
        clear = 0 if found else clear + 1
        time.sleep(0.02)


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):  # another user's, or gone meanwhile
            continue


# What follows runs in the child.


def main(path: Path, worker: bool) -> int:
    """Do the job; the exit code."""
    if not worker:
        _die_with_parent()
    job = json.loads(path.read_text(encoding="utf-8"))
    launch = Launch.model_validate(job["launch"])
    if not worker and (launch.processes > 1 or launch.accelerate):
        return _launch_workers(path, launch)
    folder = Path(job["folder"])
    try:
        first = os.environ.get("RANK", "0") == "0"
        lock = _locked(folder) if first else None
        trainer = find_trainer(job["trainer"])
        config = read_config(trainer.Config, job["config"], f"trainer {job['trainer']!r}: config")
        trainer.train(config, start=Path(job["start"]), folder=folder, seed=job["seed"])
    except MedbenchError as error:
        return _failed(folder, " ".join(str(error).split()), 2)
    except Exception as error:
        traceback.print_exc()
        return _failed(folder, f"{type(error).__name__}: {' '.join(str(error).split())}", 1, printed=True)
    if lock:
        lock.release()
    return 0


def _die_with_parent() -> None:
    """Linux: SIGKILL from the kernel when the loop is gone, and a process that then kills the rest."""
    if not sys.platform.startswith("linux"):
        return
    _ask_for_signal(signal.SIGKILL)
    if os.getppid() != int(os.environ.get(PARENT, os.getppid())):
        os._exit(1)  # the loop died before the kernel was asked
    child = os.getpid()
    if os.fork() == 0:
        _outlive(child)


def _outlive(child: int) -> None:
    """Wait for the child's end, however it comes, and kill all that it leaves behind. Does not return."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # stop() signals the group; this is its last one
    _ask_for_signal(signal.SIGUSR2)
    while os.getppid() == child:
        signal.sigtimedwait([signal.SIGUSR2], 1.0)
    try:
        _kill_marked(os.environ[MARK], but=(os.getpid(),))
    finally:
        os._exit(0)


def _ask_for_signal(number: int) -> None:
    pr_set_pdeathsig = 1  # prctl(2): "the signal that the calling process will get when its parent dies"
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, int(number))


def _locked(folder: Path, seconds: float = LOCK_SECONDS) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise MedbenchError(f"{folder}: another training is at work in it: stop it, or wait for it") from None
    return lock


def _launch_workers(path: Path, launch: Launch) -> int:
    done = subprocess.run(accelerate_command(path, launch), env=os.environ | _without_gpu(), check=False)
    if done.returncode == 0:
        return 0
    try:
        failure = json.loads((path.parent / FAILURE).read_bytes())
    except (OSError, ValueError):  # killed, or accelerate itself failed
        return 1
    print(failure["line"], flush=True)  # once more: accelerate's own report stands between it and the end of the log
    return int(failure["code"])


def accelerate_command(path: Path, launch: Launch) -> list[str]:
    """`accelerate launch` for a job file. What is not named here, a config file or the user's own default may set."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if launch.accelerate:
        command += ["--config_file", launch.accelerate]
        command += ["--num_processes", str(launch.processes)] if launch.processes > 1 else []
    else:
        # on a CPU too: with --cpu, accelerate 1.15 starts one process, whatever --num_processes says, but for mpirun
        command += ["--multi_gpu", "--num_processes", str(launch.processes), "--num_machines", "1"]
        command += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*command, "--module", "medbench.harness.training_process", str(path), "--worker"]


def _without_gpu() -> dict[str, str]:
    """Without a GPU each process would else train by itself; a recipe's `env` wins."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(map(shutil.which, GPU_TOOLS))
    return {} if seen or "ACCELERATE_USE_CPU" in os.environ else {"ACCELERATE_USE_CPU": "true"}


def _failed(folder: Path, line: str, code: int, printed: bool = False) -> int:
    if not printed:
        print(line, flush=True)
    if not (folder / FAILURE).exists():  # the first of several processes: the others fail as it goes
        write_atomically(folder / FAILURE, json.dumps({"line": line, "code": code}).encode())
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), worker=sys.argv[2:] == ["--worker"]))
