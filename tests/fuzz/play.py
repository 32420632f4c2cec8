"""A command in this process, as a user would see it, under limits of time and memory.

    done = play(["gate", "runs/a", "--gates", "gates.yaml"], folder)
    done.status, done.err, done.faults

`faults` are what is wrong whatever the input was: an exception that nobody caught, a traceback, too much time or
memory, a message that is not a line, files half written, anything left behind in this process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

os.environ.setdefault("TQDM_DISABLE", "1")  # as medbench.harness.cli.main.main does; read at import
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from medbench.harness.cli.main import run
from medbench.harness.cli.own_faults import EXIT_FAULT
from medbench.harness.cli.streams import forgiving_streams
from medbench.harness.contracts import MedbenchError
from medbench.harness.text import message

SECONDS = 5.0
"""CPU time of one command."""
MEMORY = 1536 * 2**20
"""Bytes that a command may ask the system for, beyond what the process has."""
LONGEST_LINE = 2100
"""Characters of a line on standard error, paths of the temporary folder not counted: 2,000 and a few words."""
MOST_LINES = 40
STATUSES = (0, 1, 2, 3, 4)
ALWAYS_LEFT = r"(^|/)\.[\w.-]*lock$|(^|/)cache(/|$)"
NOTHING = r"(?!)"


class TooLong(BaseException):
    """Not an Exception, so that no handler takes it for a fault of the input."""


@dataclass(frozen=True, slots=True)
class Done:
    status: int | None
    """None: an exception got out, or medbench called it a fault of its own (status 70)."""
    out: str
    err: str
    seconds: float
    """CPU time."""
    slow: bool
    faults: tuple[str, ...]
    trace: str = ""

    @property
    def json(self) -> Any:
        """What --json printed. Raises ValueError for what is not JSON, NaN included."""
        return json.loads(self.out, parse_constant=_refuse)


def play(
    command: Sequence[str],
    folder: Path,
    functions: Mapping[str, Callable[[Path], int]] | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
    may_leave: str = NOTHING,
) -> Done:
    """Run `medbench COMMAND` in `folder`, or the one of `functions` that the command's first word names.

    `may_leave`: pattern of the paths that a refused command may leave, besides locks and medbench's cache.
    """
    before = tree(folder)
    state = _process_state()
    function = (functions or {}).get(command[0])
    with _inside(folder, environment or {}), _captured() as (out, err):
        began, status, trace = time.process_time(), None, ""
        with _limits(seconds) as late:
            try:
                status = function(folder) if function else run(list(command))
            except MedbenchError as error:
                if function is None:
                    raise
                status = 2
                print(message(f"medbench: {error}"), file=sys.stderr)
            except BaseException:  # what it is, is the finding
                trace = traceback.format_exc()
        took = time.process_time() - began
    shown, said = out(), err()
    if status == EXIT_FAULT:
        status, trace = None, _kept_traceback(said)
    slow = bool(late) or took > seconds
    faults = [f"over {seconds:g} s of CPU time"] if slow else []
    if trace and not slow:
        faults.append(f"uncaught: {_signature(trace)}")
    elif status not in STATUSES and not slow:
        faults.append(f"exit status {status}")
    if not slow and not trace:
        faults += _message_faults(said if command[0] != "validate" else shown, folder)
        if status == 2 and not (shown or said):
            faults.append("refused without a word")
        faults += _leftovers(before, folder, status, may_leave)
    if not trace:
        faults += _leaks(state)
    return Done(status, shown, said, took, slow, tuple(faults), trace)


def _message_faults(said: str, folder: Path) -> list[str]:
    faults = []
    lines = said.splitlines()
    if "Traceback (most recent" in said or "Exception ignored in" in said:
        faults.append(f"a traceback on standard error: {said.strip().splitlines()[-1][:100]}")
    if (longest := max((len(line.replace(str(folder), "")) for line in lines), default=0)) > LONGEST_LINE:
        faults.append(f"a line of {longest} characters in a message")
    if len(lines) > MOST_LINES:
        faults.append(f"{len(lines)} lines in a message")
    return faults


def _leftovers(before: Mapping[str, str], folder: Path, status: int | None, may_leave: str) -> list[str]:
    after = tree(folder)
    found = [f"left behind: {name}" for name in after if name not in before and name.endswith((".tmp", "~"))]
    if status == 2:
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if left := [name for name in changed if not re.search(f"{ALWAYS_LEFT}|{may_leave}", name)]:
            found.append(f"refused, but wrote or changed {left[0]}")
    if (folder / "hacked").exists():
        found.append("ran code of the input")
    return found


def tree(folder: Path) -> dict[str, str]:
    """Every path below, with a digest of its contents."""
    found = {}
    for at, folders, names in os.walk(folder):
        for path in (Path(at, name) for name in [*folders, *names]):
            if path.is_symlink():
                content = f"link {path.readlink()}"
            elif path.is_file():
                content = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
            else:
                content = "folder"
            found[str(path.relative_to(folder))] = content
    return found


# --- limits and capture ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _limits(seconds: float) -> Iterator[list[float]]:
    """Yields a list that is empty unless the time is over."""
    late: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        late.append(time.process_time())
        raise TooLong

    old_handler = signal.signal(signal.SIGPROF, stop)
    old_memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, old_memory[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.5)  # again and again: what was raised first may be swallowed
    try:
        yield late
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, old_memory)
        signal.signal(signal.SIGPROF, old_handler)


@contextlib.contextmanager
def _inside(folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    wanted = {"MEDBENCH_CACHE": str(folder / "cache"), "TQDM_DISABLE": "1", **environment}
    kept, here = dict(os.environ), Path.cwd()
    for name in ("MEDBENCH_DATA", "GITHUB_STEP_SUMMARY", "OPENAI_API_KEY"):
        os.environ.pop(name, None)
    os.environ.update(wanted)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        for name in os.environ.keys() - kept.keys():
            del os.environ[name]
        os.environ.update(kept)


@contextlib.contextmanager
def _captured() -> Iterator[tuple[Callable[[], str], Callable[[], str]]]:
    """Descriptors 1 and 2 and Python's streams over them; the yielded functions read what was written."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    streams = sys.stdout, sys.stderr
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        forgiving_streams()
        texts: dict[int, str] = {}
        try:
            yield lambda: texts[1], lambda: texts[2]
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            sys.stdout, sys.stderr = streams
            for number, file in ((1, out), (2, err)):
                os.dup2(kept[number - 1], number)
                os.close(kept[number - 1])
                file.seek(0)
                texts[number] = file.read().decode("utf-8", "replace")


# --- what a command must not leave in the process ----------------------------------------------------------------


def _process_state() -> tuple[int, int, int]:
    handlers = len(logging.getLogger("medbench").handlers) + len(logging.getLogger().handlers)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    # tqdm's monitor is one thread for each class of bars that transformers and huggingface_hub make, and stays
    threads = [thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"]
    return len(threads), handlers, len(children)


def _leaks(before: tuple[int, int, int]) -> list[str]:
    until = time.monotonic() + 2
    while (after := _process_state()) > before and time.monotonic() < until:
        time.sleep(0.05)  # a thread that was told to end does so in its own time
    names = ("threads", "log handlers", "child processes")
    return [f"left {now - then} {name}" for name, then, now in zip(names, before, after, strict=True) if now > then]


def _kept_traceback(said: str) -> str:
    """Of the file that the message names, which is removed."""
    named = re.search(r"the traceback is in (\S+)", said)
    if named is None:
        return said
    file = Path(named[1])
    text = file.read_text()
    file.unlink()
    return text


def _signature(trace: str) -> str:
    """The exception, and the innermost line of medbench's own: the same for the same fault."""
    last = trace.strip().splitlines()[-1]
    ours = re.findall(r'File ".*?/((?:harness|reports|tasks|trainers)/[^"]+)", line (\d+), in (\S+)', trace)
    where = f" at {ours[-1][0]}:{ours[-1][1]} {ours[-1][2]}" if ours else ""
    return f"{last[:120]}{where}"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
