"""The processes of a vLLM engine: what they say is kept, their faults are told in one line, and they end with medbench.

process = EngineProcess(own=True)        # the engine in a process of its own, as on GPUs
with process.starting(path): llm = LLM(...)
with process.faults_in_one_line(): llm.llm_engine.step()
process.close()
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import InvalidStateError
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

import psutil

from medbench.harness.checkpoints.architecture import refuse_unbuildable
from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.engines.memory_faults import advice

GUARD = Path(__file__).with_name("guard.py")
RAISED = re.compile(
    r"^(?:\(.*?\) ?)?(?:ERROR [^\]]*\] ?)?(?P<error>[\w.]*(?:Error|Exception|Interrupt)\b.*)$", re.MULTILINE
)
"""The last line of a traceback, behind the name of the process and vLLM's own mark."""
CORE_FAILED, DEAD = "core initialization failed", "EngineDeadError"
"""What vLLM 0.31 says of an engine process that cannot start or has ended, whose reason only that process prints
(vllm/v1/engine/utils.py and exceptions.py)."""
CONSEQUENCES = (DEAD, CORE_FAILED, "Worker failed with error", "WorkerProc")
"""What is raised because another process has failed."""
SETTLE_SECONDS = 0.5
GUARD_SECONDS = 10.0


class _Gone(Exception):
    """The engine's process has ended."""


class EngineProcess:
    """The processes of one vLLM engine: `own` ones, or only this one."""

    def __init__(self, *, own: bool) -> None:
        self._own = own
        self._log: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._closing = False

    @contextmanager
    def starting(self, path: Path) -> Iterator[None]:
        """While vLLM starts with the checkpoint `path`.

        What its processes write from then on goes to a file, unless the user has chosen what vLLM logs, and they will
        end with this process. Raises MedbenchError for lack of memory, and for a fault that only they know.
        """
        try:
            with self._guarded(), self._written_to_file():
                yield
        except BaseException as error:
            self._refuse(path, error)
            self.close()
            raise

    @contextmanager
    def faults_in_one_line(self) -> Iterator[None]:
        """Raises Interrupted where the engine is out of memory or its process has ended: what is answered is stored."""
        try:
            yield
        except Exception as error:
            dead = isinstance(error, _Gone) or type(error).__name__ == DEAD
            if dead:
                time.sleep(SETTLE_SECONDS)  # a Ctrl-C that has ended that process too is told as one
            remedy = advice(self._said() if dead else f"{type(error).__name__}: {error}")
            if remedy is None and not dead:
                raise
            if remedy is not None:
                raise Interrupted(f"vLLM stopped, {remedy}; then go on by --resume") from None
            line = f"vLLM's engine process ended ({self._cause()}): go on by --resume"
            raise Interrupted(f"{line}{self._kept_log()}") from None

    def watch(self, client: Any) -> None:
        """Have whoever waits for the engine told when its process has been killed.

        vLLM 0.31 notices that, and leaves LLM.generate() waiting for ever (SyncMPClient.get_output and call_utility in
        vllm/v1/engine/core_client.py). `client`: LLM.llm_engine.engine_core.
        """
        manager = getattr(getattr(client, "resources", None), "engine_manager", None)
        sentinels = [one.sentinel for one in getattr(manager, "processes", ())]
        can_be_told = hasattr(client, "outputs_queue") and hasattr(client, "utility_results")
        if self._own and sentinels and can_be_told:
            threading.Thread(target=self._tell_of_end, args=(sentinels, client), daemon=True).start()

    def _tell_of_end(self, sentinels: list[Any], client: Any) -> None:
        connection.wait(sentinels)
        if self._closing:
            return
        client.outputs_queue.put_nowait(_Gone())
        for future in list(client.utility_results.values()):
            with suppress(InvalidStateError):
                future.set_exception(_Gone())

    def closing(self) -> None:
        """Before the engine is shut down."""
        self._closing = True

    def close(self) -> None:
        """After the engine has been shut down."""
        self._closing = True
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.communicate()
        log, self._log = self._log, None
        if log is not None:
            log.unlink(missing_ok=True)

    def _refuse(self, path: Path, error: BaseException) -> None:
        """Raises MedbenchError if `error` is for lack of memory, or a consequence of one in a process of its own."""
        elsewhere = CORE_FAILED in str(error) or type(error).__name__ == DEAD
        remedy = advice(self._said() if elsewhere else "".join(traceback.format_exception(error)))
        if remedy is not None:
            self.close()
            raise MedbenchError(f"vLLM cannot start with {path}: {remedy}") from None
        if elsewhere:
            refuse_unbuildable(path)
            line = f"vLLM cannot start with {path} ({self._cause()}): the machine or the settings are at fault"
            where = self._kept_log()
            self.close()
            raise MedbenchError(f"{line}: fix that and run again{where}") from None

    def _said(self) -> str:
        """What the engine's processes have written; "" if that is not known."""
        try:
            return self._log.read_text(encoding="utf-8", errors="replace") if self._log is not None else ""
        except OSError:
            return ""

    def _cause(self) -> str:
        """The first error that they have written, in one line."""
        raised = [found["error"] for found in RAISED.finditer(self._said())]
        causes = [one for one in raised if not any(word in one for word in CONSEQUENCES)]
        found = (causes or raised or ["it was killed, perhaps for lack of memory"])[0]
        return " ".join(found.split())[:300]

    def _kept_log(self) -> str:
        """The end of a message that names the log, which then stays."""
        log, self._log = self._log, None
        return f"; what it wrote is in {log}" if log is not None else ""

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if not self._own:
            yield
            return
        known = ",".join(str(one.pid) for one in psutil.Process().children(recursive=True))
        with suppress(OSError):  # no more processes: the engine cannot start either, and says so
            self._guard = subprocess.Popen(
                [sys.executable, "-P", str(GUARD), str(os.getpid()), known],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for this process
            )
        self._hear_guard()
        yield
        if self._guard is not None and self._guard.stdin is not None:
            with suppress(OSError):
                self._guard.stdin.write(b"started\n")
                self._guard.stdin.flush()
        self._hear_guard()

    def _hear_guard(self) -> None:
        """Wait for its next line, though not for ever: an engine without a guard is better than none."""
        heard = self._guard.stdout if self._guard is not None else None
        if heard is not None and select.select([heard], [], [], GUARD_SECONDS)[0]:
            heard.readline()

    @contextmanager
    def _written_to_file(self) -> Iterator[None]:
        if not self._own or os.environ.get("VLLM_LOGGING_LEVEL", "ERROR") != "ERROR":
            yield
            return
        try:
            descriptor, name = tempfile.mkstemp(prefix="medbench-vllm-", suffix=".log")
        except OSError:
            yield
            return
        self._log = Path(name)
        saved = {}
        for number in (1, 2):
            with suppress(OSError):  # closed, as for a daemon
                saved[number] = os.dup(number)
        try:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            for number in saved:
                os.dup2(descriptor, number)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            for number, before in saved.items():
                os.dup2(before, number)
                os.close(before)
            os.close(descriptor)
