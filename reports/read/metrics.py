"""What a trainer logged, step by step -> series that a page can hold.

    python -c "from medbench.reports.read.metrics import words_for; print(words_for('rewards/format/mean'))"

A long training is thinned: a point then stands for a bucket of neighbouring steps, with its mean, lowest and highest.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from medbench.harness.contracts import MedbenchError
from medbench.reports.read.folders import as_unicode, is_file_name, refuse_outside

WORDS = {
    "loss": "Loss",
    "reward": "Reward",
    "completions/mean_length": "Tokens per completion",
    "completions/clipped_ratio": "Share of completions cut off",
    "entropy": "Entropy, nats per token",
    "kl": "KL from the reference, nats per token",
    "mean_token_accuracy": "Token accuracy",
    "frac_reward_zero_std": "Share of groups with equal rewards",
    "groups/all_right": "Share of groups, all replies right",
    "groups/all_wrong": "Share of groups, all replies wrong",
    "curriculum/open_bands": "Open bands of difficulty",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "step_time": "Seconds per step",
    "generation_time": "Seconds per step, generation",
    "reward_time": "Seconds per step, rewards",
    "peak_memory_gib": "Peak memory, GiB",
}
"""The metrics shown, by TRL's names, in their order; rewards/*/mean stand behind `reward`, then those of domains."""
REWARD = re.compile(r"rewards/(.{1,60})/mean", re.DOTALL)
DOMAIN = re.compile(r"domains/(.{1,500})/(accuracy|weight)", re.DOTALL)
MOST_OTHERS = 24
LONGEST_DOMAIN = 40
MOST_BYTES = 512 * 2**20
"""Of a file; more is not read."""
LONGEST_LINE = 2**20
MOST_STEP = 2**53


@dataclass(frozen=True, slots=True)
class Point:
    """One step, or a bucket of neighbouring ones; `low` and `high` are then its extremes."""

    step: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one attempt."""

    name: str
    """As the trainer logged it."""
    words: str
    points: tuple[Point, ...]
    """Of the finite values."""
    n: int
    """Steps that logged it."""
    first: float | None
    """None where no value is a number, as are the next three."""
    last: float | None
    low: float | None
    high: float | None
    odd: int
    """Steps at which it was NaN or infinite."""
    odd_from: int | None
    """The first of them."""
    last_step: int

    @property
    def bucket(self) -> int:
        """Steps to a point, about."""
        return max(1, round((self.n - self.odd) / max(1, len(self.points))))


def words_for(name: str) -> str:
    """ "" for a metric that is not shown."""
    if domain := DOMAIN.fullmatch(name):
        end = domain[1][-LONGEST_DOMAIN:]  # of a path the end tells more
        return f"Share right in {end}" if domain[2] == "accuracy" else f"Weight of the advantages in {end}"
    reward = REWARD.fullmatch(name)
    return f"Reward for {reward[1].replace('_', ' ')}" if reward else WORDS.get(name, "")


def read_series(training: Path, path: Path, most_points: int) -> list[Series]:
    """The shown metrics of a file of the folder `training`, in the order of WORDS; none where there is no file.

    As handover.read_metrics, the last value wins where a step was logged again. Raises MedbenchError for what lies
    elsewhere, is no plain file or cannot be read.
    """
    _refuse_foreign(training, path)
    found: dict[str, tuple[array[int], array[float]]] = {}
    try:
        with path.open("rb") as file:
            for line in _lines(file):
                for step, metric, value in _values(line):
                    if metric not in found:
                        found[metric] = (array("q"), array("d"))
                    found[metric][0].append(step)
                    found[metric][1].append(value)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    series = [_series(metric, *columns, most_points) for metric, columns in found.items()]
    series.sort(key=_order)
    left_out = [one.name for one in series if one.name not in WORDS][MOST_OTHERS:]
    return [one for one in series if one.name not in left_out]


def _refuse_foreign(training: Path, path: Path) -> None:
    parts = path.relative_to(training).parts
    if not all(map(is_file_name, parts)):
        raise MedbenchError(f"{path}: not a name of a stage or attempt folder")
    refuse_outside(training, path)
    if path.exists() and not path.is_file():  # a pipe would never end
        raise MedbenchError(f"{path}: not a plain file")


def _lines(file: Any) -> Iterator[bytes]:
    left = MOST_BYTES
    while left > 0 and (line := file.readline(LONGEST_LINE)):
        left -= len(line)
        whole = line.endswith(b"\n") or len(line) < LONGEST_LINE
        while not line.endswith(b"\n") and (line_end := file.readline(LONGEST_LINE)):
            left -= len(line_end)
            if line_end.endswith(b"\n") or left <= 0:
                break
        if whole:
            yield line


def _values(line: bytes) -> Iterator[tuple[int, str, float]]:
    try:
        content = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        try:
            content = json.loads(line)  # takes NaN and Infinity, as Python writes them
        except (ValueError, RecursionError):
            return
    step = content.get("step") if isinstance(content, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < MOST_STEP:
        return
    for metric, value in content.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and words_for(metric):
            yield step, metric, _as_float(value)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _series(name: str, steps: array[int], values: array[float], most_points: int) -> Series:
    step, value = np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)
    order = np.argsort(step, kind="stable")
    step, value = step[order], value[order]
    newest = np.append(step[1:] != step[:-1], True)  # the last of those logged for a step
    step, value = step[newest], value[newest]
    sound = np.abs(value) < 1e300  # what is larger, or NaN, cannot be averaged
    odd = step[~sound]
    known = value[sound]
    return Series(
        name=as_unicode(name),
        words=as_unicode(words_for(name)),
        points=tuple(_thinned(step[sound], known, most_points)),
        n=len(step),
        first=float(known[0]) if len(known) else None,
        last=float(known[-1]) if len(known) else None,
        low=float(known.min()) if len(known) else None,
        high=float(known.max()) if len(known) else None,
        odd=len(odd),
        odd_from=int(odd[0]) if len(odd) else None,
        last_step=int(step[-1]),
    )


def _thinned(step: Any, value: Any, most: int) -> Iterator[Point]:
    n = len(step)
    if n <= most:
        for at, one in zip(step.tolist(), value.tolist(), strict=True):
            yield Point(at, one, one, one)
        return
    edges = np.linspace(0, n, most + 1).astype(np.int64)
    starts, ends = edges[:-1], edges[1:]
    middle = (step[starts] + step[ends - 1]) / 2
    mean = np.add.reduceat(value, starts) / (ends - starts)
    low, high = np.minimum.reduceat(value, starts), np.maximum.reduceat(value, starts)
    for row in zip(middle.tolist(), mean.tolist(), low.tolist(), high.tolist(), strict=True):
        yield Point(*row)


def _order(series: Series) -> tuple[float, str]:
    known = list(WORDS)
    if series.name in WORDS:
        return known.index(series.name), ""
    return known.index("reward") + (0.5 if REWARD.fullmatch(series.name) else 0.6), series.name
