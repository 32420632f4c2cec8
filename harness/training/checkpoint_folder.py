"""The folder through which a training and the loop communicate: finished checkpoints, and a file of metrics.

FOLDER/step-000120/        a checkpoint (full, or a PEFT adapter): written under another name, then renamed, so complete
FOLDER/metrics.jsonl       {"step": 120, "loss": 0.7, ...}, one line per logged step
FOLDER/log.txt             what the training printed
FOLDER/.judged-000120      the loop has judged the checkpoint, training may continue; holds its score (`scores`)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import write_atomically

METRICS = "metrics.jsonl"
LOG = "log.txt"
WAIT = "MEDBENCH_WAIT_UNTIL_JUDGED"
"""Set to 1 if training and engine share a device: training then waits at each checkpoint until it is judged."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Published:
    """A finished checkpoint."""

    step: int
    path: Path


def publish(folder: Path, step: int, fill: Callable[[Path], object]) -> Path:
    """`fill` writes a checkpoint into a temporary folder, which is then renamed to FOLDER/step-<step>. Idempotent."""
    target = folder / f"step-{step:06d}"
    if target.exists():
        return target
    partial = folder / f".step-{step:06d}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    for path in (*partial.rglob("*"), partial):  # the weights must reach the disk before the rename does
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    partial.rename(target)
    return target


def checkpoints(folder: Path) -> list[Published]:
    """The finished checkpoints, in order of step."""
    found = [(re.fullmatch(r"step-(\d{1,12})", path.name), path) for path in folder.glob("step-*") if path.is_dir()]
    return sorted((Published(int(match[1]), path) for match, path in found if match), key=lambda one: one.step)


def append_metrics(folder: Path, step: int, metrics: Mapping[str, object]) -> None:
    """One line; values other than numbers and text are left out. NaN and Infinity are kept, in Python's spelling."""
    plain = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**plain, "step": step}) + "\n")


def read_metrics(folder: Path) -> list[dict[str, object]]:
    """All lines with a step, in order of step. If a step was logged again after a resume, the last one wins.

    Lines that are torn, or not JSON objects with a step, are skipped: a third-party trainer may write anything.
    Raises MedbenchError where the file cannot be read.
    """
    return MetricsReader(folder).read()


class MetricsReader:
    """Reads what `read_metrics` reads, again and again while the file grows, each byte once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS
        self._forget()

    def _forget(self, inode: int = -1) -> None:
        self._inode, self._offset = inode, 0
        self._found: dict[int, dict[str, object]] = {}
        self._ordered: list[dict[str, object]] = []

    def read(self) -> list[dict[str, object]]:
        """The lines so far. The list is the same object where nothing was added."""
        try:
            with self._path.open("rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._offset:  # `forget_metrics_after` replaces the file
                    self._forget(now.st_ino)
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            self._forget()
            return self._ordered
        except OSError as error:
            raise MedbenchError(f"{self._path}: cannot be read ({error.strerror})") from None
        if added:
            self._offset += added.rfind(b"\n") + 1  # a line that is not yet whole is read again
            for line in added.splitlines():
                self._add(line)
            self._ordered = [self._found[step] for step in sorted(self._found)]
        return self._ordered

    def _add(self, line: bytes) -> None:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            return
        step = content.get("step") if isinstance(content, dict) else None
        if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
            self._found[step] = {**self._found.get(step, {}), **content}


def forget_metrics_after(folder: Path, step: int) -> None:
    """For a training that resumes from the checkpoint of `step`: it will log the later steps again."""
    kept = [line for line in read_metrics(folder) if int(str(line["step"])) <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    partial = folder / f".{METRICS}.tmp"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / METRICS)


def mark_judged(folder: Path, step: int, score: float | None = None) -> None:
    """Called by the loop: training may continue. `score`: see `scores`."""
    write_atomically(folder / f".judged-{step:06d}", b"" if score is None else json.dumps(score).encode())


def scores(folder: Path) -> dict[int, float]:
    """Step -> the checkpoint's score by its gates (state.worth_of), for those that have been judged. Step 0 is the
    stage's start."""
    found = {}
    for path in folder.glob(".judged-*"):
        with suppress(OSError, ValueError, TypeError):
            score = json.loads(path.read_bytes())
            found[int(path.name.removeprefix(".judged-"))] = float(score)
    return found


def wait_until_judged(folder: Path, step: int, sleep: Callable[[float], None] = time.sleep) -> None:
    """Called by a trainer after publishing; returns at once unless the loop has set WAIT."""
    while os.environ.get(WAIT) == "1" and not (folder / f".judged-{step:06d}").exists():
        sleep(POLL_SECONDS)


def last_lines(path: Path, n: int = 5, most: int = 2000) -> str:
    """The end of a log, for a message: the last `n` non-empty lines joined into one, without terminal codes."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return "(it printed nothing)"
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    plain = (Text.from_ansi(line).plain for line in re.split(r"[\r\n]+", text))
    printable = ("".join(c if c.isprintable() else " " for c in line) for line in plain)
    lines = [" ".join(line.split()) for line in printable]
    return " | ".join([line for line in lines if line][-n:])[-most:] or "(it printed nothing)"
