"""Ends the processes that vLLM has started when the process that started them is gone, however it ended.

    python -P guard.py PARENT KNOWN,...     # answers a line when it watches, and another to "started" on its input,
                                            # from when on it looks for no more processes

vLLM's engine process does not notice that its parent was killed (0.31): it would hold the GPU's memory for ever. Run as
a file, because importing medbench would take longer than the engine's start leaves unwatched.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

EVERY = 0.5
"""Seconds between two looks."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


def main(parent: int, known: set[int]) -> None:
    found: dict[int, psutil.Process] = {}
    starting = True
    print("watching", flush=True)
    while os.getppid() == parent:
        if starting:
            look(parent, known | {os.getpid()}, found)
            if select.select([sys.stdin], [], [], EVERY)[0]:
                starting = False
                look(parent, known | {os.getpid()}, found)
                with suppress(OSError):
                    print("all seen", flush=True)
        else:
            time.sleep(EVERY)
    end(list(found.values()))


def look(parent: int, known: set[int], found: dict[int, psutil.Process]) -> None:
    """Add the descendants of `parent` that are not `known`, nor those of such."""
    try:
        for process in psutil.Process(parent).children(recursive=True):
            above = process.ppid()
            if process.pid not in known and (above == parent or above in found) and not _tidies_up(process):
                found.setdefault(process.pid, process)
    except psutil.Error:  # gone meanwhile: seen at the next look
        pass


def _tidies_up(process: psutil.Process) -> bool:
    """Whether it is Python's own, which removes shared memory after its parent's end."""
    return any("resource_tracker" in word for word in process.cmdline())


def end(processes: list[psutil.Process]) -> None:
    """SIGTERM, and SIGKILL to what is left after a while. psutil checks that a pid is still the same process."""
    alive = [one for one in processes if _sent(one.terminate)]
    _, alive = psutil.wait_procs(alive, timeout=GRACE)
    for process in alive:
        _sent(process.kill)


def _sent(signal: Callable[[], None]) -> bool:
    try:
        signal()
    except psutil.Error:
        return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), {int(pid) for pid in sys.argv[2].split(",") if pid})
