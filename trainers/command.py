"""The `command` trainer: any program that writes checkpoints to a folder (axolotl, verl, a script).

    stages:
      - name: sft
        trainer: command
        config:
          command: [python, "{here}/train.py", --model, "{start}", --out, "{folder}", --lr, "{learning_rate}"]
          settings: {learning_rate: 1.0e-5}

The program runs in its work folder. Each checkpoint that it leaves there is published when it is whole and nothing in
it has changed for some seconds, or the program has ended; one that it publishes itself, as step-NNNNNN renamed into
place, is left alone. The program writes metrics.jsonl itself (see checkpoint_folder.py). On a shared device it waits
itself too: with MEDBENCH_WAIT_UNTIL_JUDGED=1 it should go on when .judged-NNNNNN is there. After a kill it is called
again with MEDBENCH_RESUME=1. The rows it trains on are not screened against the benchmarks.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from medbench.harness.checkpoints.cache import link_or_copy
from medbench.harness.checkpoints.fingerprint import TOKENIZER_FILES
from medbench.harness.checkpoints.merge import ADAPTER_WEIGHTS
from medbench.harness.checkpoints.watch_folder import SETTLED_SECONDS
from medbench.harness.checkpoints.weights import FOREIGN_WEIGHTS, check_safetensors, weight_files
from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.text import did_you_mean
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.trainer_plugins import FailedAttempt
from medbench.harness.training.worker import JOB

RESUME = "MEDBENCH_RESUME"
OWN = ("start", "folder", "seed", "here")
"""Placeholders besides the settings: start checkpoint, work folder, the attempt's seed, the folder medbench runs in."""
POLL_SECONDS = 0.5
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")
_Signature = tuple[tuple[str, int, int], ...]


class Config(Record):
    """`{name}` in `command` and `env` stands for a setting or one of OWN; `{{name}}` for itself in braces."""

    command: list[str] = Field(min_length=1)
    settings: dict[str, str | int | float] = Field(default_factory=dict)
    """Values for the placeholders; `learning_rate` is halved after an attempt that diverged."""
    checkpoints: str = Field("checkpoint-*", min_length=1)
    """Glob below the work folder; the last number in a path is its step."""
    settled_seconds: float = Field(SETTLED_SECONDS, gt=0)
    """A checkpoint in which nothing has changed for so long counts as finished."""
    env: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sound(self) -> Config:
        known = [*OWN, *self.settings]
        if twice := [name for name in OWN if name in self.settings]:
            raise ValueError(f"settings.{twice[0]}: {{{twice[0]}}} is filled in already: rename it")
        for text in (*self.command, *self.env.values()):
            for match in _PLACEHOLDER.finditer(text):
                if match[2] and match[2] not in known:
                    raise ValueError(
                        f"unknown placeholder {match[0]} in {text!r}; {did_you_mean(match[2], known)}, "
                        f"or write {{{match[0]}}} for the braces themselves"
                    )
        if not self.command[0].strip():
            raise ValueError("command: its first word names the program")
        if Path(self.checkpoints).is_absolute() or ".." in Path(self.checkpoints).parts:
            raise ValueError("checkpoints: a glob below the work folder, such as checkpoint-*")
        return self


def prepare(config: Config, *, start: Path, folder: Path, benchmarks: Mapping[str, Sequence[Question]]) -> list[str]:
    """Raises MedbenchError where the program is not found."""
    return [
        f"runs {shlex.join(_command(config, start, folder / 'attempt-1', seed=0))}",
        "the rows it trains on are its own: they are not screened against the benchmarks",
    ]


def train(config: Config, *, start: Path, folder: Path, seed: int) -> None:
    """Run the program to its end and publish what it leaves. Raises SystemExit where it fails."""
    resumed = _holds_something(folder)
    if resumed:
        _part_from_the_programs_files(folder)
    values = _values(config, start, folder, seed)
    env = os.environ | {name: _filled(text, values) for name, text in config.env.items()}
    command = _command(config, start, folder, seed)
    try:
        program = subprocess.Popen(
            command, cwd=folder, env=env | ({RESUME: "1"} if resumed else {}), stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise MedbenchError(f"command {command[0]!r}: cannot be started ({error.strerror})") from None
    settling = _Settling(config.settled_seconds)
    while program.poll() is None:
        for path in _candidates(config, folder):
            if settling.is_settled(path) and not _fault(path):
                _publish(path, start, folder)
        time.sleep(min(POLL_SECONDS, config.settled_seconds))
    for path in _candidates(config, folder):
        if fault := _fault(path):
            print(f"not published: {fault}", flush=True)
        else:
            _publish(path, start, folder)
    if code := program.returncode:
        how = f"exited with {code}" if code > 0 else f"was killed by signal {-code}"
        print(f"command {command[0]!r} {how}", flush=True)
        sys.exit(1)


def adapt(config: Config, verdict: FailedAttempt) -> Config:
    """Half the learning rate after divergence, where the settings have one."""
    rate = config.settings.get("learning_rate")
    if not verdict.diverged or rate is None:
        return config
    try:
        lower = float(rate) / 2  # YAML reads 1e-5, without a point, as text
    except ValueError:
        return config
    return config.model_copy(update={"settings": {**config.settings, "learning_rate": lower}})


def _values(config: Config, start: Path, folder: Path, seed: int) -> dict[str, str]:
    own = {"start": str(start.resolve()), "folder": str(folder.resolve()), "seed": str(seed), "here": str(Path.cwd())}
    return {**{name: str(value) for name, value in config.settings.items()}, **own}


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: f"{{{match[1]}}}" if match[1] else values[match[2]], text)


def _command(config: Config, start: Path, folder: Path, seed: int) -> list[str]:
    values = _values(config, start, folder, seed)
    name, *arguments = [_filled(word, values) for word in config.command]
    program = shutil.which(name, path=config.env.get("PATH"))
    if program is None:
        raise MedbenchError(f"command {name!r}: no such program: install it, or write its full path")
    return [str(Path(program).absolute()), *arguments]  # a relative path would not be found from the work folder


def _holds_something(folder: Path) -> bool:
    """Whether an earlier call left anything: neither the log and the job, which are ours, nor a hidden file."""
    return any(
        not path.name.startswith(".") and path.name not in (checkpoint_folder.LOG, JOB) for path in folder.iterdir()
    )


def _candidates(config: Config, folder: Path) -> list[Path]:
    """What may be a checkpoint and is not published, by step."""
    done = {one.step for one in checkpoint_folder.checkpoints(folder)}
    found = {}
    for path in folder.glob(config.checkpoints):
        below = path.relative_to(folder)
        step = None if any(part.startswith(".") for part in below.parts) else _step(below)
        if step is not None and step not in done and path.is_dir():
            found[path] = step
    return sorted(found, key=lambda path: (found[path], str(path)))


def _step(path: Path) -> int | None:
    """The number that the innermost name ends with: of checkpoint-50, or of global_step_50/actor."""
    numbers = (re.search(r"[0-9]{1,12}$", part) for part in reversed(path.parts))
    return next((int(number[0]) for number in numbers if number), None)


class _Settling:
    """Since when each folder has not changed; by our own clock, as a network disk's may differ."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[Path, tuple[_Signature, float]] = {}

    def is_settled(self, path: Path) -> bool:
        signature, now = _signature(path), time.monotonic()
        if path not in self._seen or self._seen[path][0] != signature:
            self._seen[path] = signature, now
        return now - self._seen[path][1] >= self._seconds


def _signature(folder: Path) -> _Signature:
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            stat = path.stat()
        except FileNotFoundError:  # renamed between the two calls
            continue
        found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _fault(path: Path) -> str | None:
    """Why it cannot be loaded, or cannot yet."""
    try:
        if (path / "adapter_config.json").exists():
            check_safetensors(path / ADAPTER_WEIGHTS)
        else:
            weight_files(path)
    except MedbenchError as error:
        return str(error)
    return None


def _publish(path: Path, start: Path, folder: Path) -> None:
    """Its files as they are, but for optimiser states and other pickles, and the start's tokenizer if it has none."""
    step = _step(path.relative_to(folder))
    assert step is not None

    def fill(target: Path) -> None:
        for file in sorted(path.iterdir()):
            if file.is_file() and not any(file.match(pattern) for pattern in FOREIGN_WEIGHTS):
                link_or_copy(file, target / file.name)
        if not any((target / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
            for pattern in TOKENIZER_FILES:
                for file in start.glob(pattern):
                    shutil.copy(file, target)

    checkpoint_folder.publish(folder, step, fill)


def _part_from_the_programs_files(folder: Path) -> None:
    """Before the program runs again: what it writes anew in place must not change a published checkpoint."""
    for one in checkpoint_folder.checkpoints(folder):
        for file in one.path.iterdir():
            if file.is_file() and file.stat().st_nlink > 1:
                aside = file.with_name(f".{file.name}.tmp")
                shutil.copy2(file, aside)
                aside.replace(file)
