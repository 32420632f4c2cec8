"""The other processes of a build end with it, however it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

# Two workers hold the write end of standard output: it is closed once all of them have gone.
BUILDING = """
import os, sys, time
from medbench.reports.write import workers

def pids(number):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    os.sched_getaffinity = lambda _: {0, 1}
    with workers.Workers() as build:
        list(build.map(pids, range(8), True))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are told of their parent's end by Linux alone")
def test_workers_end_when_their_parent_is_killed(tmp_path) -> None:
    script = tmp_path / "building.py"
    script.write_text(BUILDING)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    started = {int(parent.stdout.readline()), int(parent.stdout.readline())}
    try:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(60)
        ended, _, _ = select.select([parent.stdout], [], [], 60)
        assert ended, f"{started} still run"
        assert parent.stdout.read() == b""
    finally:
        for pid in started:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
