"""Recipes, the YAML that `medbench train` runs: stages in order, each with its trainer, its config and its gates.

    medbench validate trainers/recipes/smollm2_cpu.yaml

A stage's `config` is checked by its trainer's own `Config`, by the rules for JSON: a YAML list may fill a tuple, and a
config dumped to JSON reads back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_serializer

from medbench.harness.benchmarks.task_folders import core_tasks
from medbench.harness.config import Fault, Record, faults_in, first_of, parse_yaml, validated
from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.settings import EngineConfig
from medbench.harness.files import slug
from medbench.harness.gates.rules import GateFile
from medbench.harness.secrets import is_secret
from medbench.harness.text import did_you_mean
from medbench.harness.training.axes import LONGEST_NAME, Sweep, combinations
from medbench.harness.training.trainer_plugins import find_trainer
from medbench.harness.training.watchdogs import WatchdogConfig


def _folder_name(name: str) -> str:
    if (fit := slug(name, LONGEST_NAME)) != name:
        raise ValueError(f"names a folder: use letters, digits, dot, dash and underscore only, e.g. {fit}")
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]


class Budget(Record):
    """What may be spent before a training gives up."""

    attempts: int = Field(3, ge=1)
    """Per stage."""
    hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Of work on the whole training, summed over all sessions."""
    questions: int | None = Field(None, ge=1)
    """Over the whole training, not counting confirmations."""


class Launch(Record):
    """How a stage's training process is started."""

    processes: int = Field(1, ge=1)
    """More than one: under `accelerate launch`."""
    accelerate: str | None = None
    """An accelerate config file (FSDP, DeepSpeed, ...), relative to the recipe. If `processes` is 1, the file decides
    their number."""
    env: dict[str, str] = Field(default_factory=dict)
    """Added to the environment, e.g. {CUDA_VISIBLE_DEVICES: "0,1"}."""


class Stage(Record):
    """One trainer, and the gates that its checkpoints must pass before the next stage begins."""

    name: FolderName
    trainer: str
    config: dict[str, Any] = Field(default_factory=dict)
    """As in the file; `config_of` gives the trainer's typed config."""
    launch: Launch = Launch()
    baseline: str | None = Field(None, min_length=1)
    """The model that paired gates compare with, such as a teacher, as for `medbench eval`; None: the stage's start."""
    gates: GateFile
    """Without a partition: the loop uses `gate` while training, and `report` to confirm."""


class Recipe(Record):
    """The file behind `medbench train`."""

    name: FolderName
    """Names the training's folder."""
    start: str = Field(min_length=1)
    """Any MODEL that `medbench eval` takes."""
    seed: int = Field(0, ge=0, lt=2**31)
    budget: Budget = Budget()
    device: Literal["shared", "separate"] = "shared"
    """shared: training waits while a checkpoint is judged, and the engine sleeps during training; separate: both run
    at the same time."""
    engine: EngineConfig = EngineConfig()
    """For gating."""
    data: str | None = None
    """Folder of benchmark files; --data and MEDBENCH_DATA take precedence."""
    watchdogs: WatchdogConfig = WatchdogConfig()
    benchmarks: list[str] = Field(default_factory=lambda: list(core_tasks()))
    """Tasks whose test questions must not be trained on."""
    stages: list[Stage] = Field(min_length=1)
    sweep: Sweep | None = None
    """Train every combination of values of some keys, and compare them; see harness/sweeps/."""

    @field_serializer("watchdogs")
    def _watchdogs_as_given(self, watchdogs: WatchdogConfig) -> dict[str, Any]:
        """Without defaults: training.json and the recipe's hash contain this section as in the file."""
        return watchdogs.model_dump(exclude_unset=True)


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of a sweep's values."""

    name: str
    values: dict[str, str]
    """Axis -> its value."""
    recipe: Recipe
    """An ordinary one, without a sweep."""


def read_recipe(path: Path, points: Sequence[EntryPoint] | None = None) -> Recipe:
    """Parse and validate `path`, including each stage's config, by its trainer's `Config`.

    `points` are the trainers to choose from; None means the installed ones. Raises MedbenchError with all faults in
    one line.
    """
    recipe, faults = _check(path, points)
    if recipe is None or faults:
        raise MedbenchError("; ".join(faults))
    return recipe


def check_recipe(path: Path, points: Sequence[EntryPoint] | None = None) -> list[str]:
    """One line for every fault; none if the recipe is valid. Arguments as for read_recipe."""
    return _check(path, points)[1]


def cells_of(recipe: Recipe, path: Path, points: Sequence[EntryPoint] | None = None) -> list[Cell]:
    """The cells of a recipe with a sweep; `path` is its file. Raises MedbenchError for what `read_recipe` would."""
    cells, faults = _cells(recipe, path, points)
    if faults:
        raise MedbenchError("; ".join(fault.line(str(path)) for fault in first_of(faults)))
    return cells


def file_content(recipe: Recipe) -> dict[str, Any]:
    """What a file would hold that is read as this recipe, its sweep left out."""
    content = recipe.model_dump(mode="json", exclude={"sweep"})
    for stage in content["stages"]:
        del stage["gates"]["partition"]  # not to be given in a recipe
    return content


def compared_task(recipe: Recipe) -> str | None:
    """The task by whose accuracy a sweep's cells are compared; None if the last stage has no gate on accuracy."""
    assert recipe.sweep is not None
    tasks = recipe.stages[-1].gates.tasks
    ranking = [gate.task for gate in recipe.stages[-1].gates.gates if gate.metric == "accuracy" and gate.task in tasks]
    return recipe.sweep.task or next(iter(ranking), None)


def config_of(stage: Stage, points: Sequence[EntryPoint] | None = None) -> BaseModel:
    """The stage's config as its trainer takes it. Raises MedbenchError as find_trainer and read_config do."""
    return read_config(find_trainer(stage.trainer, points).Config, stage.config, f"stage {stage.name}: config")


def read_config(model: type[BaseModel], content: dict[str, Any], where: str) -> BaseModel:
    """`content`, from YAML or JSON, as a `model`. Raises MedbenchError with all faults, each preceded by `where`."""
    config, faults = _check_config(content, model)
    if config is None:
        raise MedbenchError("; ".join(fault.line(where) for fault in first_of(faults)))
    return config


def _check(path: Path, points: Sequence[EntryPoint] | None) -> tuple[Recipe | None, list[str]]:
    content, faults = parse_yaml(path)
    if faults:
        return None, faults
    recipe, found = validated(content, Recipe)
    found = [*found, *_deeper_faults(content, path, points)]
    recipe = recipe and _with_found_files(recipe, path)
    if recipe is not None and recipe.sweep is not None and not found:
        found = _cells(recipe, path, points)[1]
    return recipe, [fault.line(str(path)) for fault in first_of(found)]


def _cells(recipe: Recipe, path: Path, points: Sequence[EntryPoint] | None) -> tuple[list[Cell], list[Fault]]:
    """The cells, or what is wrong with the axes or with any cell: the same fault of several cells once."""
    assert recipe.sweep is not None
    found, faults = combinations(recipe.sweep, file_content(recipe))
    tasks = recipe.stages[-1].gates.tasks
    if (task := compared_task(recipe)) not in tasks:
        why = "the last stage has no gate on accuracy: name the task of another of its gates"
        if task is not None:
            why = f"the last stage has no gate on it; {did_you_mean(task, tasks)}"
        faults.append(Fault(("task",), why))
    cells: list[Cell] = []
    told: dict[Fault, Fault] = {}
    for one in found:
        made, wrong = validated(one.content, Recipe)
        wrong = [*wrong, *_deeper_faults(one.content, path, points)]
        for fault in wrong:
            told.setdefault(
                fault, Fault(("axes",), f"cell {one.name}: {'.'.join(map(str, fault.path))}: {fault.message}")
            )
        if made is not None:
            cells.append(Cell(one.name, one.values, made))
    return cells, [fault.below("sweep") for fault in [*faults, *told.values()]]


def _deeper_faults(content: dict[Any, Any], path: Path, points: Sequence[EntryPoint] | None) -> Iterator[Fault]:
    """What `Recipe` itself cannot check: plugins, other stages, files. `content` may have other faults."""
    yield from _secrets_in(content, ())
    stages = content.get("stages")
    names: list[Any] = []
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        if not isinstance(stage, dict):
            continue
        where = ("stages", index)
        if (name := stage.get("name")) in names and name is not None:
            message = f"stage {names.index(name)} has the same name, {name!r}: rename one"
            yield Fault((*where, "name"), message)
        names.append(name)
        if content.get("sweep") is None:  # else those of the cells count
            yield from (fault.below(*where) for fault in _config_faults(stage, points))
        if isinstance(gates := stage.get("gates"), dict) and "partition" in gates:
            message = "leave it out: checkpoints are judged on `gate` while training, and confirmed on `report`"
            yield Fault((*where, "gates", "partition"), message)
        launch = stage.get("launch")
        file = launch.get("accelerate") if isinstance(launch, dict) else None
        if isinstance(file, str) and not (path.parent / file).is_file():
            message = f"{path.parent / file}: no such file; `accelerate config` writes one"
            yield Fault((*where, "launch", "accelerate"), message)


def _secrets_in(value: Any, path: tuple[str | int, ...]) -> Iterator[Fault]:
    """Recipe, configs and journal are kept and published with the results, and the children inherit the environment."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if is_secret(key) and isinstance(inner, str) and inner:
                message = "a secret does not belong in a recipe, which is published: set it in the environment"
                yield Fault((*path, str(key)), message)
            yield from _secrets_in(inner, (*path, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _secrets_in(inner, (*path, index))


def _config_faults(stage: dict[Any, Any], points: Sequence[EntryPoint] | None) -> list[Fault]:
    trainer, config = stage.get("trainer"), stage.get("config", {})
    if not (isinstance(trainer, str) and isinstance(config, dict)):
        return []
    try:
        model = find_trainer(trainer, points).Config
    except MedbenchError as error:
        return [Fault(("trainer",), str(error))]
    return [fault.below("config") for fault in _check_config(config, model)[1]]


def _check_config(content: dict[Any, Any], model: type[BaseModel]) -> tuple[BaseModel | None, list[Fault]]:
    """(record, []) or (None, its faults). Through JSON, so that a strict model accepts a list for a tuple and text for
    a path."""
    try:
        return model.model_validate_json(json.dumps(content)), []
    except ValidationError as error:
        return None, faults_in(error, model)
    except TypeError as error:  # YAML has types that JSON lacks: date, set, bytes
        return None, [Fault((), f"{str(error)[0].lower()}{str(error)[1:]}: write it as text, in quotes")]


def _with_found_files(recipe: Recipe, path: Path) -> Recipe:
    """With the full paths of accelerate's files, so that the recipe is the same from any working directory."""
    stages = []
    for stage in recipe.stages:
        if stage.launch.accelerate:
            file = str((path.parent / stage.launch.accelerate).resolve())
            stage = stage.model_copy(update={"launch": stage.launch.model_copy(update={"accelerate": file})})
        stages.append(stage)
    return recipe.model_copy(update={"stages": stages})
