"""Which tasks there are: medbench's own and those of plugins, read from their YAML files without importing lm_eval.

    [project.entry-points."medbench.tasks"]
    mine = "my_package.tasks"

An entry point names a package whose folder holds tasks as medbench's own `tasks/` does: YAML files with a `rows.py`
beside them. Name the entry point after the task, or after the first of several: asked for under that name, a plugin
that cannot be imported says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path

from pydantic import Field

from medbench.harness.config import Record, check_mapping, parse_yaml
from medbench.harness.contracts import MedbenchError
from medbench.harness.text import one_line

GROUP = "medbench.tasks"
IGNORED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}
"""The folders that lm-eval ignores too (lm_eval/tasks/_index.py)."""


class Hub(Record):
    """The Hub data set behind a task."""

    path: str
    name: str | None = None
    revision: str | None = None
    splits: dict[str, str]


class Flagged(Record):
    """A list of questions that reviewers found faulty; results get a second accuracy without them."""

    file: str
    """In the folder of the task's YAML: a question's id on each line, and comments after "#"."""
    about: str


class TaskMetadata(Record):
    """`metadata` of a task's lm-eval YAML: what medbench needs beyond lm-eval's own keys."""

    version: int = Field(ge=1)
    label: str | None = None
    """How pages show the task; None is by its name."""
    core: bool = False
    """Evaluated by default, and part of the leaderboard's mean. Of a plugin's task it is ignored: the default tasks are
    the same wherever medbench is installed."""
    about: str
    chance: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    categories: list[str]
    files: dict[str, list[str]]
    hub: Hub
    sha256: dict[str, str]
    flagged: Flagged | None = None


@dataclass(frozen=True, slots=True)
class TaskFile:
    """One task and the YAML file that defines it."""

    name: str
    path: Path
    metadata: TaskMetadata


@dataclass(frozen=True, slots=True)
class FoundTasks:
    """All tasks of medbench and of plugins; each fault is one line."""

    usable: Mapping[str, TaskFile]
    refused: Mapping[str, str]
    """Task -> why it cannot be used: a faulty YAML file, or two packages with a task of this name."""
    broken: Mapping[str, str]
    """Entry point -> why none of its tasks can be used."""


@dataclass(frozen=True, slots=True)
class TaskLabel:
    """How a task is shown."""

    label: str
    core: bool


def tasks_folder() -> Path:
    """medbench's own tasks, one folder per benchmark; named, not imported, since harness imports no benchmark."""
    return Path(str(files("medbench.tasks").joinpath("_medbench_yaml"))).parent


def find_tasks() -> FoundTasks:
    """medbench's own tasks and those of the installed plugins."""
    usable, refused = _tasks_below(tasks_folder())
    owners = dict.fromkeys(usable, "medbench")
    broken: dict[str, str] = {}
    # by value: a package that is found twice on sys.path is one plugin
    points = {point.value: point for point in entry_points(group=GROUP)}
    for value, point in sorted(points.items()):
        try:
            tasks, faulty = _tasks_below(_folder_of(point))
            if not tasks and not faulty:
                raise MedbenchError(f"tasks {point.name} ({value}): no task YAML in its folder: fix or uninstall it")
        except MedbenchError as error:
            broken[point.name] = str(error)
            continue
        refused |= faulty
        for name, task in tasks.items():
            if name in owners:
                both = f"{owners[name]} and {value} both have a task of this name"
                refused[name] = f"task {name}: {both}: uninstall one, or rename its task"
            owners.setdefault(name, value)
            usable.setdefault(name, task)
    return FoundTasks({name: task for name, task in usable.items() if name not in refused}, refused, broken)


def core_tasks() -> tuple[str, ...]:
    """The tasks that are evaluated by default, in the order in which they are shown."""
    return tuple(name for name, shown in sorted(task_labels().items()) if shown.core)


@cache
def task_labels() -> dict[str, TaskLabel]:
    """Task -> how to show it, for medbench's own tasks; other tasks are shown by their name."""
    tasks, _ = _tasks_below(tasks_folder())
    return {name: TaskLabel(task.metadata.label or name, task.metadata.core) for name, task in tasks.items()}


def _tasks_below(folder: Path) -> tuple[dict[str, TaskFile], dict[str, str]]:
    """(usable tasks, task -> why it cannot be used), sorted by file. Raises MedbenchError for what is not YAML."""
    tasks: dict[str, TaskFile] = {}
    faulty: dict[str, str] = {}
    for path in sorted(folder.rglob("*.yaml")):
        if IGNORED_FOLDERS & set(path.relative_to(folder).parts):
            continue
        content, faults = parse_yaml(path)
        if faults:
            raise MedbenchError(faults[0])
        name = content.get("task")
        if not isinstance(name, str):  # a group of lm-eval's, or no task at all
            continue
        metadata, faults = check_mapping(content.get("metadata", {}), TaskMetadata, f"{path}: metadata")
        if name in tasks:
            faulty[name] = f"task {name}: {tasks[name].path} and {path} both define it: rename one"
        elif metadata is None:
            faulty[name] = "; ".join(faults)
        else:
            tasks[name] = TaskFile(name, path, metadata)
    return tasks, faulty


def _folder_of(point: EntryPoint) -> Path:
    where = f"tasks {point.name} ({point.value})"
    try:
        module = point.load()
        package = getattr(module, "__package__", None)
        folder = Path(module.__path__[0] if hasattr(module, "__path__") else module.__file__).resolve()
    except (Exception, SystemExit) as error:  # importing a plugin may fail in any way
        raise MedbenchError(
            f"{where} cannot be imported ({type(error).__name__}: {one_line(error)[:200]}): fix or uninstall it"
        ) from None
    if not package:  # its folder would be all of site-packages
        raise MedbenchError(f"{where} is not a package, nor in one: move the module into a package with its tasks")
    return folder if folder.is_dir() else folder.parent
