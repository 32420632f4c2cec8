"""A recipe checked and made ready to train."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Question, Say, Task
from medbench.harness.evaluation.plan import example_notes
from medbench.harness.gates.finished_run import protocol_of
from medbench.harness.gates.rules import refuse_unknown_tasks
from medbench.harness.training.recipe import Recipe, config_of
from medbench.harness.training.trainer_plugins import find_trainer, prepare


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What `medbench train` was asked."""

    recipe: Path
    runs: Path = Path("runs")
    data: str | None = None
    resume: bool = False
    quiet: bool = False


class Prepared:
    """A recipe with everything it names found and checked; nothing is trained or written yet."""

    def __init__(self, recipe: Recipe, options: TrainOptions, say: Say) -> None:
        """Raises MedbenchError for a task, protocol, benchmark or start that is not there."""
        self.recipe = recipe
        data = options.data or os.environ.get("MEDBENCH_DATA") or recipe.data
        if data is not None and Path(data).is_dir():
            os.environ["MEDBENCH_DATA"] = str(Path(data).resolve())  # recipes may name files below it
        loader = TaskLoader(data, say)
        for stage in recipe.stages:
            refuse_unknown_tasks(stage.gates, options.recipe, list(loader.cards))
        gated = [name for stage in recipe.stages for name in stage.gates.tasks]
        self.tasks: dict[str, Task] = {name: loader.load(name) for name in dict.fromkeys([*recipe.benchmarks, *gated])}
        for stage in recipe.stages:
            protocol = protocol_of(stage.gates, None)
            example_notes([self.tasks[name] for name in stage.gates.tasks], protocol)
        self.start = Path(resolve(recipe.start, say).path)
        self.data = data

    @property
    def benchmarks(self) -> dict[str, Sequence[Question]]:
        return {name: task.questions for name, task in self.tasks.items()}

    def check_stage(self, index: int, folder: Path) -> list[str]:
        """What the stage's trainer says of its data and memory. Raises MedbenchError for what it cannot use."""
        stage = self.recipe.stages[index]
        folder.mkdir(parents=True, exist_ok=True)
        return prepare(
            find_trainer(stage.trainer), config_of(stage), start=self.start, folder=folder, benchmarks=self.benchmarks
        )
