"""One attempt's training as a child process, alone or under `accelerate launch`; no process of it outlives the loop.

    with TrainingProcess("sft", config, start=START, folder=FOLDER, seed=0) as training:
        while training.poll() is None: ...

The child runs worker.py: `python -m medbench.harness.training.worker JOB.json`. On Linux the kernel kills the child
when the loop dies, even by kill -9, and a second, waiting process then kills everything that the training has started.
The kernel watches the thread that started the child, so start it from the main thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import write_atomically
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.recipe import Launch
from medbench.harness.training.worker import JOB, MARK, PARENT, forget_earlier, is_done, kill_marked

DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""A vLLM engine in the loop's process sets some of these, which would make a training believe it is part of a group."""
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Where a user may have set up PyTorch's allocator."""
GRACE_SECONDS = 10.0
"""Seconds between SIGTERM and SIGKILL."""
EXIT_SECONDS = 60.0
"""How long a process may take to exit once its work is done."""


class TrainingProcess:
    """A running training. Use as a context manager: leaving it stops the training."""

    def __init__(
        self,
        trainer: str,
        config: BaseModel | Mapping[str, Any],
        *,
        start: Path,
        folder: Path,
        seed: int,
        launch: Launch | None = None,
        wait_until_judged: bool = False,
    ) -> None:
        """Start it. Raises MedbenchError if `folder` cannot be written; other faults end the child, see `poll`."""
        self.folder = folder
        launch = launch or Launch()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            forget_earlier(folder)
            log = (folder / checkpoint_folder.LOG).open("ab")
        except OSError as error:
            raise MedbenchError(f"{folder}: cannot be written ({error.strerror})") from None
        content = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
        job = {
            "trainer": trainer,
            "config": content,
            "start": str(start.resolve()),
            "folder": str(folder.resolve()),
            "seed": seed,
            "launch": launch.model_dump(),
        }
        write_atomically(folder / JOB, json.dumps(job, indent=1).encode() + b"\n")
        self._done_since: float | None = None
        self._mark = secrets.token_hex(16)
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "medbench.harness.training.worker", str(folder.resolve() / JOB)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(launch, seed, self._mark, wait_until_judged),
            )

    @property
    def pid(self) -> int:
        """Of the child, which leads its own process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """None while it trains; then 0 if its work is done, 2 for a MedbenchError, 1 otherwise, negative for a signal.

        The trainer's return decides, not the exit: a process that crashes or hangs on exit after its last checkpoint
        was published has done its work, and one that exits with 0 before has not.
        """
        code = self._process.poll()
        if is_done(self.folder):
            self._done_since = self._done_since or time.monotonic()
            if code is None and time.monotonic() - self._done_since > EXIT_SECONDS:
                self.stop(grace=0)
            return None if self._process.poll() is None else 0
        return 1 if code == 0 else code

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """SIGTERM to all its processes, SIGKILL after `grace` seconds; returns when none is left. Idempotent."""
        if self._process.poll() is None:
            _signal_group(self.pid, signal.SIGTERM)
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                _signal_group(self.pid, signal.SIGKILL)
        self._process.wait()  # before kill_marked, which waits too: only the first to wait gets the exit code
        kill_marked(self._mark)

    def __enter__(self) -> TrainingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _environment(launch: Launch, seed: int, mark: str, wait_until_judged: bool) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in DISTRIBUTED}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // launch.processes)))
    env[checkpoint_folder.WAIT] = "1" if wait_until_judged else "0"
    env["PYTHONHASHSEED"] = str(seed % 2**32)
    if not (env | launch.env).keys() & set(ALLOCATOR):
        # after hours of rows of many lengths, free memory would be in pieces
        env["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    env["PYTHONUNBUFFERED"] = "1"  # or the last lines of a killed training would be lost
    return env | launch.env | {MARK: mark, PARENT: str(os.getpid())}


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError for a group of zombies
        os.killpg(pid, number)


class Finished:
    """A training that ended in an earlier session."""

    def poll(self) -> int:
        return 0

    def stop(self) -> None:
        pass
