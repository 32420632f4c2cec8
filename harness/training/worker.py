"""The child process in which a trainer runs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import write_atomically
from medbench.harness.training.recipe import Launch, read_config
from medbench.harness.training.trainer_plugins import find_trainer

JOB, LOCK, FAILURE = "job.json", ".training.lock", ".failure.json"
DONE = ".done"
"""`.done-RANK`, written by each process of a training when its trainer has returned. Holds the number of processes."""
MARK = "MEDBENCH_TRAINING"
"""In the environment of every process of a training, with a value unique to the training."""
PARENT = "MEDBENCH_TRAINING_PARENT"
GPU_TOOLS = ("nvidia-smi", "rocm-smi", "amd-smi", "xpu-smi", "npu-smi")
LOCK_SECONDS = 30.0
"""How long a training waits for a dying predecessor to release the folder."""


def kill_marked(mark: str, but: tuple[int, ...] = (), seconds: float = 10.0) -> None:
    """SIGKILL to every process with the mark, in any process group, until none is left."""
    until = time.monotonic() + seconds
    clear = 0
    while clear < 2 and time.monotonic() < until:  # twice: just after exec, a process has no visible environment
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
        except (psutil.Error, OSError):  # of another user, or gone by now
            continue


def main(path: Path, worker: bool) -> int:
    """Do the job. Returns the exit code."""
    if not worker:
        _die_with_parent()
    job = json.loads(path.read_text(encoding="utf-8"))
    launch = Launch.model_validate(job["launch"])
    if not worker and (launch.processes > 1 or launch.accelerate):
        return _launch_workers(path, launch)
    folder = Path(job["folder"])
    try:
        rank = int(os.environ.get("RANK", "0"))
        lock = _locked(folder) if rank == 0 else None
        trainer = find_trainer(job["trainer"])
        config = read_config(trainer.Config, job["config"], f"trainer {job['trainer']!r}: config")
        trainer.train(config, start=Path(job["start"]), folder=folder, seed=job["seed"])
        write_atomically(folder / f"{DONE}-{rank}", os.environ.get("WORLD_SIZE", "1").encode())
        _leave_group()
    except SystemExit as error:
        if error.code:
            raise  # it failed by its own account, and has printed or will print why
        return _failed(folder, "the trainer exited with 0 before its work was done", 1)
    except MedbenchError as error:
        return _failed(folder, " ".join(str(error).split()), 2)
    except Exception as error:
        traceback.print_exc()
        return _failed(folder, f"{type(error).__name__}: {' '.join(str(error).split())}", 1, printed=True)
    if lock:
        lock.release()
    return 0


def is_done(folder: Path) -> bool:
    """Whether the trainer returned in every process of the training, so that its last checkpoint is published."""
    try:
        processes = int((folder / f"{DONE}-0").read_bytes())
    except (OSError, ValueError):
        return False
    return all((folder / f"{DONE}-{rank}").exists() for rank in range(processes))


def forget_earlier(folder: Path) -> None:
    """Remove what an earlier training in this folder left about its end."""
    for path in (folder / FAILURE, *folder.glob(f"{DONE}-*")):
        path.unlink(missing_ok=True)


def _leave_group() -> None:
    """Wait for the other processes of a distributed training, then end its process group.

    Without this a worker may abort on exit ("terminate called without an active exception"): a thread of gloo frees
    the tensors of a collective while Python shuts down (pytorch pull request 179291). Waiting keeps the first to
    finish, which may still abort, from taking the others down before their work is done.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _die_with_parent() -> None:
    """Linux: let the kernel send SIGKILL when the loop is gone, and start a process that then kills the rest."""
    if not sys.platform.startswith("linux"):
        return
    die_with(int(os.environ.get(PARENT, os.getppid())))
    child = os.getpid()
    if os.fork() == 0:
        _outlive(child)


def die_with(parent: int) -> None:
    """Linux: let the kernel send SIGKILL to this process when `parent`, which has started it, is gone."""
    if not sys.platform.startswith("linux"):
        return
    _ask_for_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the request to the kernel


def _outlive(child: int) -> None:
    """Wait for the child to end in any way, and kill all processes that it leaves behind. Does not return."""
    signal.pthread_sigmask(
        signal.SIG_BLOCK, signal.valid_signals()
    )  # stop() signals the whole group; this process must outlive it
    _ask_for_signal(signal.SIGUSR2)
    while os.getppid() == child:
        signal.sigtimedwait([signal.SIGUSR2], 1.0)
    try:
        kill_marked(os.environ[MARK], but=(os.getpid(),))
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
        raise MedbenchError(f"{folder}: another training is using it: stop it or wait for it") from None
    return lock


def _launch_workers(path: Path, launch: Launch) -> int:
    done = subprocess.run(accelerate_command(path, launch), env=os.environ | _without_gpu(), check=False)
    if done.returncode == 0:
        return 0
    if is_done(path.parent):
        print(f"a worker ended with {done.returncode} after the training was done: ignored", flush=True)
        return 0
    try:
        failure = json.loads((path.parent / FAILURE).read_bytes())
    except (OSError, ValueError):  # killed, or accelerate itself failed
        return 1
    print(failure["line"], flush=True)  # again: accelerate's own report comes after the first in the log
    return int(failure["code"])


def accelerate_command(path: Path, launch: Launch) -> list[str]:
    """`accelerate launch` for a job file. Anything else comes from a config file or the user's defaults."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if launch.accelerate:
        command += ["--config_file", launch.accelerate]
        command += ["--num_processes", str(launch.processes)] if launch.processes > 1 else []
    else:
        # on a CPU too: with --cpu, accelerate 1.15 ignores --num_processes and starts one process, except by mpirun
        command += ["--multi_gpu", "--num_processes", str(launch.processes), "--num_machines", "1"]
        command += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*command, "--module", "medbench.harness.training.worker", str(path), "--worker"]


def _without_gpu() -> dict[str, str]:
    """Without a GPU, each process would train by itself unless told so; a recipe's `env` takes precedence."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(map(shutil.which, GPU_TOOLS))
    return {} if seen or "ACCELERATE_USE_CPU" in os.environ else {"ACCELERATE_USE_CPU": "true"}


def _failed(folder: Path, line: str, code: int, printed: bool = False) -> int:
    if not printed:
        print(line, flush=True)
    if not (folder / FAILURE).exists():  # the first of several processes to fail: the others fail as a consequence
        write_atomically(folder / FAILURE, json.dumps({"line": line, "code": code}).encode())
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), worker=sys.argv[2:] == ["--worker"]))
