"""Other processes for a large build, none for a small one."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from medbench.harness.contracts import Interrupted

MOST = 8

J = TypeVar("J")
D = TypeVar("D")


class Workers:
    """Other processes, started when there is enough to do. Use as a context manager."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[J], D], jobs: Sequence[J], heavy: bool) -> Iterable[D]:
        """Results in the order of the jobs; in this process unless the work is `heavy`.

        `function` and jobs must be picklable. Raises Interrupted where a process was killed.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if cores < 2 or (not heavy and self._pool is None):
            return map(function, jobs)
        if self._pool is None:  # spawned, not forked: --serve has threads
            self._pool = ProcessPoolExecutor(min(cores, MOST), get_context("spawn"), _start_worker)
        return self._results(self._pool.map(function, jobs, chunksize=4))

    def _results(self, results: Iterable[D]) -> Iterator[D]:
        try:
            yield from results
        except BrokenProcessPool:
            raise Interrupted("a build process was killed, perhaps for lack of memory: run again") from None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    gc.set_threshold(100_000)  # records without cycles come and go by the thousand


def _end_with_parent() -> None:
    """After kill -9 the parent tells its workers nothing, and they would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
