"""Finds every checkpoint that appears in a folder, whatever program writes it.

medbench watch checkpoints/ --gates gates.yaml --baseline runs/base
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from medbench.harness.checkpoints.adapters import ADAPTER_WEIGHTS
from medbench.harness.checkpoints.weights import check_safetensors, weight_files
from medbench.harness.contracts import MedbenchError, Say

POLL_SECONDS = 2.0
SETTLED_SECONDS = 10.0
"""A checkpoint that is written in place counts as finished when nothing in it has changed for this long."""
INCOMPLETE_SECONDS = 600.0
"""And one that lacks a file, or the end of one, when nothing has changed for this long: it is broken then. Trainers of
other projects write in place, and gather the weights of a large model for minutes."""
MARKS = ("config.json", "adapter_config.json")


def checkpoints_in(
    folder: Path,
    *,
    idle_seconds: float | None,
    settled_seconds: float = SETTLED_SECONDS,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    say: Say = lambda _: None,
) -> Iterator[Path]:
    """Each checkpoint folder in `folder` once, oldest first, after `settled_seconds` without a change, and after
    INCOMPLETE_SECONDS if something is missing.

    Hidden folders are skipped: they are still being written. Ends when nothing new has appeared for `idle_seconds`;
    None waits forever. Raises MedbenchError if `folder` is not a folder.
    """
    if not folder.is_dir():
        raise MedbenchError(f"{folder}: no such folder to watch")
    seen: set[Path] = set()
    told: set[Path] = set()
    still_since: dict[Path, dict[float, float]] = {}  # first seen with this time, which may lie in the future
    last = clock()
    while True:
        waiting = False
        found = {path: changed for path in _candidates(folder) - seen if (changed := _changed(path)) is not None}
        still_since = {path: still_since.get(path, {}) for path in found}
        for path, changed in sorted(found.items(), key=lambda item: (item[1], item[0].name)):
            since = still_since[path].setdefault(changed, clock())
            still = clock() - min(changed, since)
            if still < settled_seconds:
                waiting = True
                continue
            if _changed(path) is None:  # rotated away while another checkpoint was judged
                continue
            if still < INCOMPLETE_SECONDS and (fault := fault_in(path)) is not None:
                waiting = True
                if path not in told:
                    told.add(path)
                    say(f"{fault}; waiting, as it may still be written")
                continue
            seen.add(path)
            yield path
            last = clock()
        if idle_seconds is not None and not waiting and clock() - last >= idle_seconds:
            return
        sleep(min(POLL_SECONDS, settled_seconds or POLL_SECONDS))


def _candidates(folder: Path) -> set[Path]:
    marked = {path.parent for mark in MARKS for path in folder.glob(f"*/{mark}")}
    return {path for path in marked if not path.name.startswith((".", "tmp"))}


def fault_in(folder: Path) -> str | None:
    """Why the checkpoint cannot be loaded (yet), or None."""
    try:
        if (folder / "adapter_config.json").exists():
            check_safetensors(folder / ADAPTER_WEIGHTS)
        else:
            weight_files(folder)
    except MedbenchError as error:
        return str(error)
    return None


def _changed(folder: Path) -> float | None:
    """When anything in the folder was last written, in seconds since the epoch; None if the folder is gone."""
    try:
        times = [folder.stat().st_mtime]
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # renamed between the two calls
                times.append(path.stat().st_mtime)
    except FileNotFoundError:  # a trainer keeps only its last checkpoints
        return None
    return max(times)
