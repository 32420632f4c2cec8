"""The `command` trainer: any program that writes checkpoints to a folder (axolotl, verl, a script).

    stages:
      - name: sft
        trainer: command
        config:
          command: [python, "{here}/train.py", --model, "{start}", --out, "{folder}", --lr, "{learning_rate}"]
          settings: {learning_rate: 1.0e-5}

The program runs in its work folder. Each checkpoint that it leaves there is published when it is complete and nothing
in it has changed for some seconds, or when the program has ended. A checkpoint that the program publishes itself, by
renaming a folder to step-NNNNNN, is left alone. The program writes metrics.jsonl itself (see checkpoint_folder.py). On
a shared device it should also wait: with MEDBENCH_WAIT_UNTIL_JUDGED=1, until .judged-NNNNNN exists. After a kill it is
run again with MEDBENCH_RESUME=1. The rows it trains on are not screened against the benchmarks.
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
from medbench.harness.checkpoints.watch_folder import SETTLED_SECONDS, fault_in
from medbench.harness.checkpoints.weights import FOREIGN_WEIGHTS
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
    """`{name}` in `command` and `env` stands for a setting or one of OWN; `{{name}}` for a literal `{name}`."""

    command: list[str] = Field(min_length=1)
    settings: dict[str, str | int | float] = Field(default_factory=dict)
    """Values for the placeholders; `learning_rate` is halved after an attempt that diverged."""
    checkpoints: str = Field("checkpoint-*", min_length=1)
    """Glob below the work folder; the last number in a path is the step."""
    settled_seconds: float = Field(SETTLED_SECONDS, gt=0)
    """A checkpoint unchanged for this long counts as finished."""
    env: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sound(self) -> Config:
        known = [*OWN, *self.settings]
        if twice := [name for name in OWN if name in self.settings]:
            raise ValueError(f"settings.{twice[0]}: {{{twice[0]}}} is reserved: rename it")
        for text in (*self.command, *self.env.values()):
            for match in _PLACEHOLDER.finditer(text):
                if match[2] and match[2] not in known:
                    raise ValueError(
                        f"unknown placeholder {match[0]} in {text!r}; {did_you_mean(match[2], known)}, "
                        f"or write {{{match[0]}}} for the braces themselves"
                    )
        if not self.command[0].strip():
            raise ValueError("command: its first word must name the program")
        if Path(self.checkpoints).is_absolute() or ".." in Path(self.checkpoints).parts:
            raise ValueError("checkpoints: must be a glob below the work folder, such as checkpoint-*")
        return self


def prepare(config: Config, *, start: Path, folder: Path, benchmarks: Mapping[str, Sequence[Question]]) -> list[str]:
    """Raises MedbenchError if the program is not found."""
    return [
        f"runs {shlex.join(_command(config, start, folder / 'attempt-1', seed=0))}",
        "its training rows are unknown to medbench and not screened against the benchmarks",
    ]


def train(config: Config, *, start: Path, folder: Path, seed: int) -> None:
    """Run the program to its end and publish its checkpoints. Raises SystemExit if it fails."""
    resumed = _holds_something(folder)
    if resumed:
        _unlink_from_the_programs_files(folder)
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
            if settling.is_settled(path) and not fault_in(path):
                _publish(path, start, folder)
        time.sleep(min(POLL_SECONDS, config.settled_seconds))
    for path in _candidates(config, folder):
        if fault := fault_in(path):
            print(f"not published: {fault}", flush=True)
        else:
            _publish(path, start, folder)
    if code := program.returncode:
        how = f"exited with {code}" if code > 0 else f"was killed by signal {-code}"
        print(f"command {command[0]!r} {how}", flush=True)
        sys.exit(1)


def adapt(config: Config, verdict: FailedAttempt) -> Config:
    """Halve the setting `learning_rate`, if there is one, after divergence."""
    rate = config.settings.get("learning_rate")
    if not verdict.diverged or rate is None:
        return config
    try:
        lower = float(rate) / 2  # YAML reads 1e-5, without a decimal point, as text
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
        raise MedbenchError(f"command {name!r}: no such program: install it, or give its full path")
    return [str(Path(program).absolute()), *arguments]  # a relative path would not be found from the work folder


def _holds_something(folder: Path) -> bool:
    """Whether an earlier call left anything besides the log, the job file and hidden files, which are medbench's."""
    return any(
        not path.name.startswith(".") and path.name not in (checkpoint_folder.LOG, JOB) for path in folder.iterdir()
    )


def _candidates(config: Config, folder: Path) -> list[Path]:
    """Folders that may be checkpoints and are not published yet, in order of step."""
    done = {one.step for one in checkpoint_folder.checkpoints(folder)}
    found = {}
    for path in folder.glob(config.checkpoints):
        below = path.relative_to(folder)
        step = None if any(part.startswith(".") for part in below.parts) else _step(below)
        if step is not None and step not in done and path.is_dir():
            found[path] = step
    return sorted(found, key=lambda path: (found[path], str(path)))


def _step(path: Path) -> int | None:
    """The number at the end of the innermost name that has one: 50 for checkpoint-50 and global_step_50/actor."""
    numbers = (re.search(r"[0-9]{1,12}$", part) for part in reversed(path.parts))
    return next((int(number[0]) for number in numbers if number), None)


class _Settling:
    """How long each folder has not changed, by the local clock: a network disk's may differ."""

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


def _publish(path: Path, start: Path, folder: Path) -> None:
    """Link its files, without optimizer states and other pickles; add the start's tokenizer if it has none."""
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


def _unlink_from_the_programs_files(folder: Path) -> None:
    """Copy hard-linked files before the program runs again: what it rewrites in place must not change them."""
    for one in checkpoint_folder.checkpoints(folder):
        for file in one.path.iterdir():
            if file.is_file() and file.stat().st_nlink > 1:
                partial = file.with_name(f".{file.name}.tmp")
                shutil.copy2(file, partial)
                partial.replace(file)
