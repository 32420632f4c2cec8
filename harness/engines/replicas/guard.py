"""Ends a local Ray when the process that started it is gone, however it ended. Run by path; needs only Python itself.

    python -I -S guard.py FOLDER MARK DRIVER < pipe

When the pipe closes, every process of that Ray is killed, and FOLDER removed. Its processes have MARK in their
environment, or, where their new name has overwritten that, write to files in FOLDER. DRIVER, a process's number, is
spared: it writes there too.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

GRACE = 20.0
"""Seconds after which it stops looking for processes that have only just been started by others."""


def processes_of(folder: str, mark: str, driver: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in (os.getpid(), driver):
            continue
        try:
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0") or _writes_below(folder, entry / "fd"):
                found.append(int(entry.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _writes_below(folder: str, descriptors: Path) -> bool:
    for one in descriptors.iterdir():
        try:
            if str(one.readlink()).startswith(f"{folder}/") and one.lstat().st_mode & 0o200:
                return True
        except OSError:
            continue
    return False


def end(folder: str, mark: str, driver: int) -> None:
    until = time.monotonic() + GRACE
    while (left := processes_of(folder, mark, driver)) and time.monotonic() < until:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end(sys.argv[1], sys.argv[2], int(sys.argv[3]))
