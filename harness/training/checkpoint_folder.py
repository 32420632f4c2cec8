"""Where a training and the loop meet: a folder with finished checkpoints, and a file of metrics.

FOLDER/step-000120/        a checkpoint (full, or a PEFT adapter): written aside and renamed, so it is whole
FOLDER/metrics.jsonl       {"step": 120, "loss": 0.7, ...}, a line a logged step
FOLDER/log.txt             what the training printed
FOLDER/.judged-000120      empty: the loop has judged the checkpoint, training may go on
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from medbench.harness.contracts import MedbenchError

METRICS = "metrics.jsonl"
LOG = "log.txt"
WAIT = "MEDBENCH_WAIT_UNTIL_JUDGED"
"""Set to 1 where training and engine share a device: training then waits at each checkpoint until it is judged."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Published:
    """A finished checkpoint."""

    step: int
    path: Path


def publish(folder: Path, step: int, fill: Callable[[Path], object]) -> Path:
    """`fill` writes a checkpoint into a folder aside, which then appears as FOLDER/step-<step>; again is no harm."""
    target = folder / f"step-{step:06d}"
    if target.exists():
        return target
    aside = folder / f".step-{step:06d}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    fill(aside)
    for path in (*aside.rglob("*"), aside):  # the rename must not reach the disk before the weights do
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    aside.rename(target)
    return target


def checkpoints(folder: Path) -> list[Published]:
    """The finished checkpoints, by step."""
    found = [(re.fullmatch(r"step-(\d{1,12})", path.name), path) for path in folder.glob("step-*") if path.is_dir()]
    return sorted((Published(int(match[1]), path) for match, path in found if match), key=lambda one: one.step)


def append_metrics(folder: Path, step: int, metrics: Mapping[str, object]) -> None:
    """One line; values that are neither numbers nor text are left out. NaN and Infinity stay, as Python writes them."""
    plain = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**plain, "step": step}) + "\n")


def read_metrics(folder: Path) -> list[dict[str, object]]:
    """All whole lines that carry a step, in order of step; the last wins where a step was logged again on resuming.

    A line that is torn or no JSON object with a step is left out: a foreign trainer writes what it likes.
    """
    try:
        lines = (folder / METRICS).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MedbenchError(f"{folder / METRICS}: cannot be read ({error.strerror})") from None
    found: dict[int, dict[str, object]] = {}
    for line in lines:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = content.get("step") if isinstance(content, dict) else None
        if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
            found[step] = {**found.get(step, {}), **content}
    return [found[step] for step in sorted(found)]


def forget_metrics_after(folder: Path, step: int) -> None:
    """Before training goes on from the checkpoint of `step`: the steps after it are made again."""
    kept = [line for line in read_metrics(folder) if int(str(line["step"])) <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    aside = folder / f".{METRICS}.tmp"
    aside.write_text(text, encoding="utf-8")
    aside.replace(folder / METRICS)


def mark_judged(folder: Path, step: int) -> None:
    """The loop's word that training may go on."""
    (folder / f".judged-{step:06d}").touch()


def wait_until_judged(folder: Path, step: int, sleep: Callable[[float], None] = time.sleep) -> None:
    """For a trainer, after publishing: returns at once unless the loop asked to be waited for."""
    while os.environ.get(WAIT) == "1" and not (folder / f".judged-{step:06d}").exists():
        sleep(POLL_SECONDS)


def last_lines(path: Path, n: int = 5, most: int = 2000) -> str:
    """The end of a log for a message: the last `n` lines that say something, joined into one, colours left out."""
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
