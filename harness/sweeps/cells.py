"""Cells as trainings: one after the other in this process, or several at the same time, each in a process of its own.

Beside each other cells are ordinary `medbench train` commands on their own recipe files. Each has a share of the GPUs,
by CUDA_VISIBLE_DEVICES, and an engine of its own; on Linux the kernel kills them when the sweep dies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.checkpoints.weights import refuse_nan
from medbench.harness.contracts import BrokenCheckpoint, Interrupted, MedbenchError, Say
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.engines.settings import EngineConfig
from medbench.harness.files import write_atomically
from medbench.harness.gates.verdict import Verdict
from medbench.harness.sweeps.cell_process import EXIT_INTERRUPTED, PARENT
from medbench.harness.sweeps.record import CellTraining
from medbench.harness.training.checkpoint_folder import last_lines, read_metrics
from medbench.harness.training.journal import read_events
from medbench.harness.training.loop import stage_folder
from medbench.harness.training.prepare import TrainOptions
from medbench.harness.training.recipe import Cell, Recipe, file_content
from medbench.harness.training.state import StageState, ended, stages_of
from medbench.harness.training.train import Ready, engine_of, training_folder

CELLS = "cells"
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0
FIRST_ASKED = ("start-gate", "baseline-gate")
"""Ends of the names of the runs in which a training asks what it has not trained itself."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A cell whose training has ended."""

    recipe: Recipe
    folder: Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cell is trained beside others."""

    devices: str | None
    """For CUDA_VISIBLE_DEVICES; None leaves it as it is."""


def places_of(recipes: Sequence[Recipe], parallel: int | None) -> list[Place]:
    """Where cells with these recipes are trained at the same time; a single place is this process.

    Raises MedbenchError where `parallel` is more than there are GPUs for.
    """
    if parallel == 1:
        return [Place(None)]
    devices = _devices()
    if not devices:
        return [Place(None)] * (parallel or 1)
    launches = [stage.launch for recipe in recipes for stage in recipe.stages]
    engines = [recipe.engine for recipe in recipes]
    fixed = any(VISIBLE in launch.env or launch.accelerate for launch in launches)
    if fixed or any(engine.replicas is not None for engine in engines):
        if parallel is not None:
            raise MedbenchError(
                f"sweep.parallel: {parallel}: the recipe's launch or engine chooses GPUs itself: leave either out"
            )
        return [Place(None)]
    needed = max(
        *(launch.processes for launch in launches),
        *(engine.tensor_parallel_size * engine.data_parallel_size for engine in engines),
    )
    groups = parallel or max(1, len(devices) // needed)
    if groups * needed > len(devices):
        raise MedbenchError(
            f"sweep.parallel: {groups} cells at a time take {groups * needed} GPUs, and there are {len(devices)}: "
            f"lower it, or leave it out"
        )
    size = len(devices) // groups
    return [Place(",".join(devices[at * size : (at + 1) * size])) for at in range(groups)]


def _devices() -> list[str]:
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [one.strip() for one in given.split(",") if one.strip()]
    try:
        import torch
    except ImportError:
        return []
    return [str(at) for at in range(torch.cuda.device_count())]


def write_recipe(sweep: Path, cell: Cell) -> Path:
    """Write the recipe of a cell, and return its path."""
    path = sweep / CELLS / f"{cell.name}.yaml"
    content = file_content(cell.recipe)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return path


def is_ended(folder: Path) -> bool:
    """Whether the training in `folder` has come to an end, passed or not."""
    return ended(list(read_events(folder))) is not None


class Engines:
    """One warm engine, as long as its settings stay the same. Use as a context manager."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._keeper = EngineKeeper(say)
        self._settings: EngineConfig | None = None

    def keeper(self, settings: EngineConfig) -> EngineKeeper:
        """A keeper of an engine with these settings."""
        if settings != self._settings:
            self._keeper.close()
            self._keeper, self._settings = EngineKeeper(self._say), settings
        return self._keeper

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.close()


def one_after_the_other(
    ready: Mapping[str, Ready], known: Sequence[Ended], engines: Engines, say: Say, done: Callable[[str], None]
) -> None:
    """Train the cells in this process; `done` is told of each. `known`: cells that have ended before."""
    over = list(known)
    for cell, one in ready.items():
        _share_start(one, over)
        one.run(telling(say, cell), engines.keeper(engine_of(one.recipe)))
        over.append(Ended(one.recipe, one.folder))
        done(cell)


def telling(say: Say, cell: str) -> Say:
    """`say`, with the cell's name before each line."""
    return lambda line: say(f"{cell}: {line}")


def _share_start(one: Ready, others: Sequence[Ended]) -> None:
    """Take the answers of the first stage's start, and of its baseline, from another cell that asked the same questions
    of the same weights in the same way: they need not be asked for each cell."""
    other = next((other for other in others if _asks_alike(one.recipe, other.recipe)), None)
    if other is None:
        return
    for asked in FIRST_ASKED:
        name = f"{one.recipe.stages[0].name}-{asked}"
        own, source = one.folder / "runs" / name, other.folder / "runs" / name
        if own.exists() or not source.exists():
            continue
        own.parent.mkdir(parents=True, exist_ok=True)
        aside = own.with_name(f".{name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside, ignore=shutil.ignore_patterns(".lock"))
        aside.rename(own)


def _asks_alike(a: Recipe, b: Recipe) -> bool:
    first, second = a.stages[0], b.stages[0]
    return (a.start, a.seed, a.engine, a.device) == (b.start, b.seed, b.engine, b.device) and (
        (first.name, first.gates, first.baseline) == (second.name, second.gates, second.baseline)
    )


def at_the_same_time(
    ready: Mapping[str, Ready], places: Sequence[Place], sweep: Path, say: Say, done: Callable[[str], None]
) -> None:
    """Train the cells in processes, as many at a time as there are places; `done` is told of each.

    Raises what the first cell that cannot go on would, after the others have been interrupted: they can be resumed.
    """
    waiting, free = list(ready), list(places)
    running: dict[str, tuple[subprocess.Popen[bytes], Place]] = {}
    try:
        while waiting or running:
            while waiting and free:
                cell, place = waiting.pop(0), free.pop(0)
                say(f"{cell}: training{f' on GPU {place.devices}' if place.devices else ''}, see {CELLS}/{cell}.log")
                running[cell] = _start(sweep, cell, ready[cell].options, place, len(places)), place
            for cell, (process, place) in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[cell]
                    free.append(place)
                    _refuse_end(sweep, cell, code)
                    say(f"{cell}: {'passed' if code == 0 else 'failed'}")
                    done(cell)
            time.sleep(POLL_SECONDS)
    finally:
        _stop([process for process, _ in running.values()])


def _start(sweep: Path, cell: str, options: TrainOptions, place: Place, beside: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medbench.harness.sweeps.cell_process", str(sweep / CELLS / f"{cell}.yaml")]
    command += [str(sweep), *([options.data] if options.data else [])]
    env = {**os.environ, PARENT: str(os.getpid()), **({VISIBLE: place.devices} if place.devices is not None else {})}
    if place.devices is None:  # they share the cores
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // beside)))
    with (sweep / CELLS / f"{cell}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)


def _refuse_end(sweep: Path, cell: str, code: int) -> None:
    """Raises MedbenchError or Interrupted for a cell that did not come to an end."""
    if code in (0, 1):
        return
    said = last_lines(sweep / CELLS / f"{cell}.log", n=1)
    if code == EXIT_INTERRUPTED:
        raise Interrupted(f"cell {cell}: {said}")
    raise MedbenchError(f"cell {cell} ended with {code}: {said}")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def described(sweep: Path, cell: Cell, options: TrainOptions, task: str) -> CellTraining:
    """How the cell's training, which has ended, went."""
    folder = training_folder(cell.recipe, options)
    events = list(read_events(folder))
    end, stages = ended(events), stages_of(events)
    assert end is not None, "only cells that have ended are described"
    attempts = [
        (index, attempt)
        for index, stage in enumerate(stages)
        for attempt in stage.attempts
        if attempt.ended is not None
    ]
    lines = [
        line
        for index, attempt in attempts
        for line in read_metrics(stage_folder(folder, cell.recipe, index) / f"attempt-{attempt.started.attempt}")
    ]
    checkpoint = folder / end.checkpoint if end.checkpoint is not None else None
    fingerprint, reason = None, end.reason
    if checkpoint is not None:
        try:
            found = resolve(str(checkpoint))
            refuse_nan(Path(found.path))
            fingerprint = found.fingerprint
        except BrokenCheckpoint as error:
            checkpoint, reason = None, f"{reason}; its best checkpoint cannot be used: {error}"
    confirmed = _confirmed(stages[-1], task) if stages else None
    return CellTraining(
        outcome=end.outcome,
        reason=reason,
        checkpoint=checkpoint.relative_to(sweep).as_posix() if checkpoint is not None else None,
        fingerprint=fingerprint,
        seconds=round(sum(one.ended.training_seconds for _, one in attempts if one.ended is not None), 3),
        trained_parameters=_last(lines, "trained_parameters"),
        peak_memory_gib=max(_numbers(lines, "peak_memory_gib"), default=None),
        steps=_step(stages, end.checkpoint),
        confirmed=confirmed[0] if confirmed else None,
        confirmed_interval=confirmed[1] if confirmed else None,
    )


def _step(stages: Sequence[StageState], checkpoint: str | None) -> int | None:
    for stage in stages:
        if stage.promoted is not None and stage.promoted.checkpoint == checkpoint:
            return stage.promoted.step
        for attempt in stage.attempts:
            for one in attempt.gated:
                if one.checkpoint == checkpoint:
                    return one.step
    return None


def _confirmed(stage: StageState, task: str) -> tuple[float, tuple[float, float] | None] | None:
    """Of a promoted checkpoint, its accuracy on the report questions, where a gate measures just that."""
    if stage.promoted is None:
        return None
    verdicts: list[Verdict] = [
        attempt.confirmed.verdict
        for attempt in stage.attempts
        if attempt.confirmed is not None and attempt.started.attempt == stage.promoted.attempt
    ]
    for gate in verdicts[-1].gates if verdicts else ():
        if (gate.task, gate.metric, gate.unit) == (task, "accuracy", "share") and gate.estimate is not None:
            return gate.estimate, gate.interval or gate.new_questions
    return None


def _numbers(lines: Sequence[Mapping[str, object]], name: str) -> list[float]:
    found = [line.get(name) for line in lines]
    return [one for one in found if isinstance(one, int | float) and 0 <= one < float("inf")]


def _last(lines: Sequence[Mapping[str, object]], name: str) -> int | None:
    found = _numbers(lines, name)
    return int(found[-1]) if found else None
