"""Folders that hold tasks: medbench's own, and those of other packages; labels and core tasks, read without lm_eval.

    [project.entry-points."medbench.tasks"]
    mine = "my_package.tasks"

names a package whose folder holds tasks as medbench's own `tasks/` does: YAML files with a `rows.py` beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from medbench.harness.config import UniqueKeyLoader
from medbench.harness.contracts import MedbenchError
from medbench.harness.text import one_line

GROUP = "medbench.tasks"


@dataclass(frozen=True, slots=True)
class TaskLabel:
    """What a task's YAML says of how to show it."""

    label: str
    core: bool
    """Asked by default, and part of the leaderboard's mean."""


def tasks_folder() -> Path:
    """medbench's own tasks, one folder per benchmark; named, not imported, since harness imports no benchmark."""
    return Path(str(files("medbench.tasks").joinpath("_medbench_yaml"))).parent


def task_folders() -> list[Path]:
    """medbench's own folder and those of plugins. Raises MedbenchError for a plugin that cannot be used."""
    own = tasks_folder()
    found = [own]
    taken = dict.fromkeys(_yaml_tasks(own), "medbench")
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        folder = _folder_of(point)
        for name in _yaml_tasks(folder):
            if name in taken:
                raise MedbenchError(
                    f"task {name}: {taken[name]} and {point.value} both have a task of this name: uninstall one"
                )
            taken[name] = point.value
        found.append(folder)
    return found


def core_tasks() -> tuple[str, ...]:
    """The tasks that are asked by default."""
    return tuple(name for name, shown in sorted(task_labels().items()) if shown.core)


@cache
def task_labels() -> dict[str, TaskLabel]:
    """Task -> how to show it, for medbench's own tasks; other tasks are shown by their name."""
    found = {}
    for name, metadata in _yaml_tasks(tasks_folder()).items():
        found[name] = TaskLabel(metadata.get("label", name), metadata.get("core", False))
    return found


def _yaml_tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """Task -> its metadata, for each task YAML below `folder`."""
    contents = [
        yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader) for path in sorted(folder.rglob("*.yaml"))
    ]
    tasks = [one for one in contents if isinstance(one, dict) and isinstance(one.get("task"), str)]
    return {one["task"]: one.get("metadata") or {} for one in tasks}


def _folder_of(point: EntryPoint) -> Path:
    where = f"tasks {point.name} ({point.value})"
    try:
        module = point.load()
        folder = Path(module.__path__[0] if hasattr(module, "__path__") else module.__file__).resolve()
    except (Exception, SystemExit) as error:  # importing a plugin may fail in any way
        raise MedbenchError(
            f"{where} cannot be imported ({type(error).__name__}: {one_line(error)[:200]}): fix or uninstall it"
        ) from None
    folder = folder if folder.is_dir() else folder.parent
    if not _readable_tasks(folder, where):
        raise MedbenchError(f"{where}: {folder} holds no task YAML: fix or uninstall it")
    return folder


def _readable_tasks(folder: Path, where: str) -> bool:
    try:
        return bool(_yaml_tasks(folder))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MedbenchError(f"{where}: a task YAML cannot be read ({one_line(error)[:200]})") from None
