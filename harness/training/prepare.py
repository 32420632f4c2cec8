"""A recipe checked and made ready to train."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import MedbenchError, Question, Say, Task
from medbench.harness.evaluation.plan import example_notes, refuse_equal_samples, refuse_unfit
from medbench.harness.gates.finished_run import protocol_of, samples_of
from medbench.harness.gates.rules import refuse_judged, refuse_unknown_tasks
from medbench.harness.training.recipe import Recipe, config_of
from medbench.harness.training.trainer_plugins import DATA_FOLDER, example, find_trainer, prepare


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What `medbench train` was asked."""

    recipe: Path
    runs: Path = Path("runs")
    data: str | None = None
    resume: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe with everything it names found and checked; nothing is trained or written yet."""

    recipe: Recipe
    tasks: dict[str, Task]
    """Name -> task: the benchmarks that must not be trained on, and the gates' tasks."""
    start: Path
    """Folder of the full checkpoint that the recipe starts from."""
    data: str | None
    """As `medbench eval --data` takes it: a folder, "sample", "hub" or None."""

    @property
    def data_folder(self) -> Path | None:
        """What $MEDBENCH_DATA stands for in the recipe; None leaves it to the environment."""
        return Path(self.data).resolve() if self.data is not None and Path(self.data).is_dir() else None

    def check_stage(self, index: int, folder: Path) -> list[str]:
        """What the stage's trainer reports about its data and memory. Raises MedbenchError for what it cannot use."""
        stage = self.recipe.stages[index]
        folder.mkdir(parents=True, exist_ok=True)
        benchmarks: dict[str, Sequence[Question]] = {name: task.questions for name, task in self.tasks.items()}
        with data_folder_set(self.data_folder):
            return prepare(
                find_trainer(stage.trainer), config_of(stage), start=self.start, folder=folder, benchmarks=benchmarks
            )

    def example_of(self, index: int, folder: Path) -> list[str]:
        """The stage's first row as the model sees it, after check_stage with the same folder."""
        stage = self.recipe.stages[index]
        with data_folder_set(self.data_folder):
            return example(find_trainer(stage.trainer), config_of(stage), start=self.start, folder=folder)


def prepare_training(
    recipe: Recipe, options: TrainOptions, say: Say, *, tasks: Mapping[str, Task] | None = None
) -> Prepared:
    """Find all that the recipe names. Raises MedbenchError for a missing task, protocol, benchmark or start.

    `tasks`: some that have been loaded from the same data before.
    """
    data = options.data or os.environ.get(DATA_FOLDER) or recipe.data
    known = tasks or {}
    loader = TaskLoader(data, say)
    for stage in recipe.stages:
        refuse_unknown_tasks(stage.gates, loader.names, options.recipe)
        refuse_judged(stage.gates, options.recipe)
    named = [name for stage in recipe.stages for name in stage.gates.tasks]
    found = {name: known.get(name) or loader.load(name) for name in dict.fromkeys([*recipe.benchmarks, *named])}
    for stage in recipe.stages:
        gated = [found[name] for name in stage.gates.tasks]
        protocol = protocol_of(stage.gates, None, gated)
        refuse_unfit(protocol, gated)
        example_notes(gated, protocol)
        if stage.baseline is not None:
            if not any(gate.paired for gate in stage.gates.gates):
                raise MedbenchError(
                    f"stage {stage.name}: baseline: no gate compares with it: add one with margin or better_by, or "
                    f"leave baseline out"
                )
            resolve(stage.baseline, say)
        refuse_equal_samples(samples_of(stage.gates, None), protocol, gated, "vllm", where="gates: samples")
    return Prepared(recipe, found, Path(resolve(recipe.start, say).path), data)


@contextmanager
def data_folder_set(folder: Path | None) -> Iterator[None]:
    """What $MEDBENCH_DATA stands for in a recipe's paths: a trainer's `prepare` runs in this process and expands it, as
    its `train` does in a child."""
    before = os.environ.get(DATA_FOLDER)
    if folder is not None:
        os.environ[DATA_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(DATA_FOLDER, None)
        if before is not None:
            os.environ[DATA_FOLDER] = before
