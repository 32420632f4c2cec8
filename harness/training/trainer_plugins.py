"""Trainers as plugins: what a trainer must have, and how it is found.

A trainer is a module, or any other object, behind an entry point of the group `medbench.trainers`. It has

    Config                                          a pydantic model: the `config` of a recipe's stage
    train(config, *, start, folder, seed)           trains from the checkpoint in `start` and publishes checkpoints in
                                                    `folder` (checkpoint_folder.publish); called again with the same
                                                    arguments after a kill, it resumes from what is there
    prepare(config, *, start, folder, benchmarks)   optional, before any training, in the loop's own process: raises
                                                    MedbenchError for anything wrong; returns lines for --dry-run
                                                    (rows, memory, contamination). `folder` is the stage's: the parent
                                                    of the one that `train` gets. `benchmarks`: task -> questions that
                                                    must not be trained on
    example(config, *, start, folder)               optional, for --dry-run only, after `prepare`: lines that show the
                                                    first row as the model sees it. Unlike what `prepare` returns they
                                                    are not kept or published: rows may be confidential
    probe(config, *, start, folder)                 optional, after `prepare`: a difficulty.Probe, or None. The start is
                                                    asked its questions before the first attempt, and `train` finds how
                                                    many it gets right by difficulty.read_shares(folder.parent)
    adapt(config, verdict)                          optional: the config of the next attempt, from a FailedAttempt

tests/plugins/medbench_noop_trainer is a complete package with one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.gates.verdict import Verdict
from medbench.harness.text import did_you_mean
from medbench.harness.training.difficulty import Probe

GROUP = "medbench.trainers"
DATA_FOLDER = "MEDBENCH_DATA"
"""Environment variable, set during `prepare` and `train` to the folder of data files, if the training has one."""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """What `adapt` is told about the attempt that has just failed."""

    reason: str
    """The journal's line."""
    diverged: bool = False
    """Loss, gradients, KL or entropy went out of bounds."""
    rambling: bool = False
    """Completions ran away in length, or a gate on truncated replies or tokens failed."""
    improving: bool = False
    """The last checkpoint was the best: the loop starts the next attempt from it."""
    crashed: bool = False
    verdict: Verdict | None = None
    """Of the attempt's last gated checkpoint; None without one."""


class Trainer(Protocol):
    """See the module docstring."""

    Config: type[BaseModel]

    def train(self, config: Any, *, start: Path, folder: Path, seed: int) -> None: ...


SIGNATURES = {
    "train": ("config", "*start", "*folder", "*seed"),
    "prepare": ("config", "*start", "*folder", "*benchmarks"),
    "example": ("config", "*start", "*folder"),
    "probe": ("config", "*start", "*folder"),
    "adapt": ("config", "verdict"),
}
"""Names of the parameters; * marks those passed by keyword."""


def find_trainer(name: str, points: Sequence[EntryPoint] | None = None) -> Trainer:
    """The trainer called `name`. Raises MedbenchError for an unknown or ambiguous name and for a broken plugin."""
    points = list(entry_points(group=GROUP)) if points is None else points
    found = {point.value: point for point in points if point.name == name}
    if not found:
        hint = did_you_mean(name, [point.name for point in points])
        raise MedbenchError(f"trainer {name!r}: no such plugin; {hint}")
    if len(found) > 1:
        raise MedbenchError(f"trainer {name!r}: {' and '.join(sorted(found))} have the same name: uninstall one")
    (point,) = found.values()
    try:
        trainer = point.load()
    except (Exception, SystemExit) as error:  # importing a plugin may fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise MedbenchError(
            f"trainer {name!r} ({point.value}) cannot be imported ({reason}): fix or uninstall it"
        ) from None
    faults = list(_faults(trainer))
    if faults:
        raise MedbenchError(f"trainer {name!r} ({point.value}): {'; '.join(faults)}")
    return cast(Trainer, trainer)


def prepare(
    trainer: Trainer, config: BaseModel, *, start: Path, folder: Path, benchmarks: Mapping[str, Sequence[Question]]
) -> list[str]:
    """What the trainer reports about its stage before any training; [] if it has no `prepare`."""
    offered: Callable[..., list[str]] | None = getattr(trainer, "prepare", None)
    lines = offered(config, start=start, folder=folder, benchmarks=benchmarks) if offered else []
    return _checked_lines(lines, "prepare")


def example(trainer: Trainer, config: BaseModel, *, start: Path, folder: Path) -> list[str]:
    """The trainer's first row as the model sees it; [] if it has no `example`."""
    offered: Callable[..., list[str]] | None = getattr(trainer, "example", None)
    return _checked_lines(offered(config, start=start, folder=folder) if offered else [], "example")


def probe(trainer: Trainer, config: BaseModel, *, start: Path, folder: Path) -> Probe | None:
    """The questions whose difficulty the trainer wants to know; None if there are none, or it has no `probe`."""
    offered: Callable[..., Probe | None] | None = getattr(trainer, "probe", None)
    found = offered(config, start=start, folder=folder) if offered else None
    if not isinstance(found, Probe | None):
        raise MedbenchError(f"probe() returned {type(found).__name__}, not a Probe or None: fix the plugin")
    return found


def _checked_lines(lines: Any, function: str) -> list[str]:
    if not (isinstance(lines, list) and all(isinstance(line, str) for line in lines)):
        raise MedbenchError(f"{function}() returned {type(lines).__name__}, not a list of lines: fix the plugin")
    return lines


def adapt(trainer: Trainer, config: BaseModel, verdict: FailedAttempt) -> BaseModel:
    """The next attempt's config; unchanged if the trainer has no `adapt`."""
    offered: Callable[..., BaseModel] | None = getattr(trainer, "adapt", None)
    adapted = offered(config, verdict) if offered else config
    if not isinstance(adapted, trainer.Config):
        raise MedbenchError(f"adapt() returned {type(adapted).__name__}, not the trainer's Config: fix the plugin")
    return adapted


def _faults(trainer: Any) -> list[str]:
    faults = []
    config = getattr(trainer, "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        faults.append("Config must be a pydantic model")
    for function, wanted in SIGNATURES.items():
        offered = getattr(trainer, function, None)
        if offered is None and function != "train":
            continue
        if not callable(offered):
            faults.append(f"{_written(function)} is missing")
        elif not _accepts(offered, wanted):
            faults.append(f"{function} must take {_written(function)}, found {_found(function, offered)}")
    return faults


def _accepts(function: Callable[..., Any], wanted: Sequence[str]) -> bool:
    positional = [name for name in wanted if not name.startswith("*")]
    keywords = {name[1:]: None for name in wanted if name.startswith("*")}
    try:
        inspect.signature(function).bind(*positional, **keywords)
    except (TypeError, ValueError):  # ValueError: a built-in without a signature
        return False
    return True


def _found(function: str, offered: Callable[..., Any]) -> str:
    try:
        return f"{function}{inspect.signature(offered)}"
    except (TypeError, ValueError):
        return f"{offered!r}"


def _written(function: str) -> str:
    names = SIGNATURES[function]
    keywords = [name[1:] for name in names if name.startswith("*")]
    first = [name for name in names if not name.startswith("*")]
    return f"{function}({', '.join([*first, *(['*', *keywords] if keywords else [])])})"
