"""One case tried: a copy of the sound folder, damaged, given to its command, judged."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fuzz import (
    checkpoints,
    data_files,
    judged_runs,
    run_folders,
    sound,
    stored_replies,
    sweep_folders,
    synth_folders,
    training_folders,
    yaml_files,
)
from fuzz.case import Case, apply
from fuzz.category import Category
from fuzz.play import Done, play

CATEGORIES: dict[str, Category] = {
    module.CATEGORY.name: module.CATEGORY
    for module in (
        yaml_files,
        stored_replies,
        data_files,
        run_folders,
        training_folders,
        sweep_folders,
        judged_runs,
        synth_folders,
        checkpoints,
    )
}


@dataclass(frozen=True, slots=True)
class Tried:
    case: Case
    done: Done
    wrong: tuple[str, ...]
    """Accepted, but wrong."""

    @property
    def bad(self) -> tuple[str, ...]:
        return (*self.done.faults, *self.wrong)


def sound_folder(folder: Path, categories: Iterable[str]) -> Path:
    """Written to `folder`, with what these categories need."""
    sound.build(folder)
    for name in categories:
        if (build := CATEGORIES[name].build) is not None:
            build(folder)
    return folder


def drawn(category: str, seed: int, folder: Path) -> Case:
    """The category's case number `seed`; `folder` is the sound one."""
    case = CATEGORIES[category].draw(random.Random(f"{category} {seed}"), folder)
    return Case(case.category, case.command, case.changes, case.why, case.environment, seed)


def tried(case: Case, folder: Path) -> Tried:
    """`folder` is the sound one; it is copied."""
    category = CATEGORIES[case.category]
    copy = Path(tempfile.mkdtemp(prefix="case-", dir=folder.parent))
    try:
        for name in category.needs:
            _copy(folder / name, copy / name)
        for name, change in case.changes.items():
            apply(change, copy / name)
        done = play(case.command, copy, category.functions, case.environment, category.seconds, category.may_leave)
        wrong = [] if done.trace or done.slow else category.wrong(case, copy, done)
        if case.exit not in (None, done.status):
            wrong.append(f"exit status {done.status}, not {case.exit}")
        return Tried(case, done, tuple(wrong))
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
