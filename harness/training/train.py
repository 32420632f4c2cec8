"""`medbench train`: from a recipe to a promoted checkpoint, or the reason why there is none.

    medbench train trainers/recipes/smollm2_cpu.yaml

Anything wrong with the recipe, its data or its start is reported before training begins. next_action.py decides what
comes next, loop.py carries it out, journal.py records it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.checkpoints.fingerprint import fingerprint
from medbench.harness.checkpoints.weights import weight_files
from medbench.harness.contracts import MedbenchError, Say, Task
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.engines.settings import WHERE, EngineChoice
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.runs import provenance
from medbench.harness.secrets import redacted_command
from medbench.harness.training.engine_judge import EngineJudge
from medbench.harness.training.journal import (
    TRAINING,
    Confirmed,
    Gated,
    Journal,
    Measured,
    Training,
    TrainingEnded,
    create_training,
    read_training,
)
from medbench.harness.training.loop import Loop, stage_folder
from medbench.harness.training.prepare import Prepared, TrainOptions, prepare_training
from medbench.harness.training.process import TrainingProcess
from medbench.harness.training.recipe import Recipe, Stage
from medbench.harness.training.state import stages_of
from medbench.harness.training.trainer_plugins import DATA_FOLDER

SHARED_UTILIZATION = 0.45
"""Of a GPU's memory for the engine that shares it with a training, unless engine.gpu_memory_utilization is set."""


@dataclass(frozen=True, slots=True)
class Trained:
    """How a training ended."""

    folder: Path
    ended: TrainingEnded
    stages: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        checkpoint = str(self.folder / self.ended.checkpoint) if self.ended.checkpoint else None
        return {
            "training": str(self.folder),
            "outcome": self.ended.outcome,
            "reason": self.ended.reason,
            "checkpoint": checkpoint,
            "seconds": self.ended.elapsed,
            "stages": self.stages,
        }

    @property
    def passed(self) -> bool:
        return self.ended.outcome == "passed"

    def in_words(self) -> str:
        lines = [
            f"{stage['stage']}: {stage['attempts']} attempts, {stage['questions']} questions, "
            f"{stage['seconds'] / 60:.1f} min, {stage['result']}"
            for stage in self.stages
        ]
        best = "promoted" if self.ended.outcome == "passed" else "best"
        where = f"{best}: {self.folder / self.ended.checkpoint}" if self.ended.checkpoint else "no checkpoint"
        return "\n".join([*lines, f"{self.ended.outcome}: {self.ended.reason}", where]) + "\n"


@dataclass(frozen=True, slots=True)
class Ready:
    """A training that can begin or go on: everything that its recipe names is found and checked."""

    recipe: Recipe
    options: TrainOptions
    folder: Path
    prepared: Prepared
    known: Training | None
    """As it was begun; None for a new one."""
    lines: dict[str, list[str]]
    """Stage -> what its trainer reports about its data and memory."""

    def run(self, say: Say, keeper: EngineKeeper) -> Trained:
        """Until every stage's gates pass or the budget is spent. `keeper`'s engine judges, and is left open."""
        with Journal(self.folder) as journal:
            if self.known is None:
                create_training(self.folder, _described(self.recipe, recipe_sha256(self.recipe), self.prepared))
            engine = EvalOptions(
                model="",
                data=self.prepared.data,
                runs=self.folder / "runs",
                resume=True,
                quiet=self.options.quiet,
                engine=EngineChoice(config=engine_of(self.recipe)),
            )
            judge = EngineJudge(self.folder, self.prepared, engine, say, keeper)
            start, launch = self.prepared.start, _launcher(self.prepared)
            data = self.prepared.data_folder
            ended = Loop(self.folder, self.recipe, start, journal, judge, launch, say, self.lines, data).run()
            return Trained(self.folder, ended, _stage_summaries(journal))


def train(recipe: Recipe, options: TrainOptions, say: Say) -> Trained:
    """Run attempts until every stage's gates pass or the budget is spent.

    Raises MedbenchError, before anything is trained, if the recipe or an option is wrong.
    """
    ready = make_ready(recipe, options, say)
    keeper = EngineKeeper(say)
    try:
        return ready.run(say, keeper)
    finally:
        keeper.close()


def training_folder(recipe: Recipe, options: TrainOptions) -> Path:
    """The folder of the recipe's training."""
    return options.runs / f"train-{recipe.name}"


def make_ready(recipe: Recipe, options: TrainOptions, say: Say, *, tasks: Mapping[str, Task] | None = None) -> Ready:
    """Find and check what the recipe names. `tasks`: see prepare_training. Raises MedbenchError as `train`."""
    folder = training_folder(recipe, options)
    known = read_training(folder) if (folder / TRAINING).exists() else None
    if known is not None:
        refuse_begun(folder, recipe, options, known.recipe, known.recipe_sha256, "the budget")
    prepared = prepare_training(recipe, options, say, tasks=tasks)
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder) as journal:
        begun = len(stages_of(journal.events))
        lines = {
            stage.name: prepared.check_stage(index, stage_folder(folder, recipe, index))
            for index, stage in enumerate(recipe.stages)
            if index >= begun
        }
    return Ready(recipe, options, folder, prepared, known, lines)


def plan(recipe: Recipe, options: TrainOptions, say: Say) -> list[str]:
    """`--dry-run`: lines about what would be done, memory, contamination and the first row of each stage. Raises
    MedbenchError as `train` does."""
    prepared = prepare_training(recipe, options, say)
    budget = recipe.budget
    limits = [
        f"{budget.attempts} attempts per stage",
        *([f"{budget.hours:g} hours"] if budget.hours else []),
        *([f"{budget.questions} questions"] if budget.questions else []),
    ]
    lines = [
        f"training {recipe.name} in {options.runs / f'train-{recipe.name}'}: at most {', '.join(limits)}",
        f"start: {recipe.start} ({prepared.start})",
        f"device: {_device(recipe)}",
    ]
    for index, stage in enumerate(recipe.stages):
        with tempfile.TemporaryDirectory() as scratch:
            said = prepared.check_stage(index, Path(scratch) / stage.name)
            shown = prepared.example_of(index, Path(scratch) / stage.name)
        lines.append(f"stage {index + 1}, {stage.name}: trainer {stage.trainer}, {_launched(stage)}")
        lines += [f"  {line}" for line in said]
        asked = {
            partition: {
                name: len(keep_partition(prepared.tasks[name], partition).questions) for name in stage.gates.tasks
            }
            for partition in ("gate", "report")
        }
        for name in stage.gates.tasks:
            lines.append(
                f"  {name}: {asked['gate'][name]} questions while training, {asked['report'][name]} to confirm"
            )
        lines += [f"  gate: {gate.rule}" for gate in stage.gates.gates]
        lines += [f"  {line}" for line in shown[:1]] + [f"    {line}" for line in shown[1:]]
    return lines


def recipe_sha256(recipe: Recipe) -> str:
    """Hash of everything that affects the result. Not the budget, which may grow when a training is resumed, nor where
    the engine's replicas are, nor how many cells of a sweep are trained at once."""
    left_out: dict[str, Any] = {"budget": True, "engine": {*WHERE}}
    if recipe.sweep is not None:
        left_out["sweep"] = {"parallel"}
    content = recipe.model_dump(mode="json", exclude=left_out)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def refuse_begun(
    folder: Path, recipe: Recipe, options: TrainOptions, stored: Mapping[str, Any], stored_sha256: str, may_change: str
) -> None:
    """Raises MedbenchError where what was begun in `folder` must not go on: without --resume, or by another recipe than
    the `stored` one. `stored_sha256` is by the version that wrote it, so the stored recipe is hashed again with what
    this version adds to recipes."""
    if not options.resume:
        raise MedbenchError(f"{folder} already exists: add --resume to continue it, or rename the recipe")
    digests = {stored_sha256}
    with suppress(ValidationError):  # it is no recipe to this version
        digests.add(recipe_sha256(Recipe.model_validate(stored)))
    if recipe_sha256(recipe) not in digests:
        raise MedbenchError(
            f"{folder} was started with another recipe (only {may_change} may change): rename the changed recipe"
        )


def _described(recipe: Recipe, digest: str, prepared: Prepared) -> Training:
    return Training(
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=redacted_command(sys.argv),
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=digest,
        start=recipe.start,
        fingerprint=fingerprint(weight_files(prepared.start)),
        packages=provenance.packages(),
        git_commit=provenance.git_commit(),
    )


def _device(recipe: Recipe) -> str:
    share = engine_of(recipe).gpu_memory_utilization
    if recipe.device == "separate" or share is None:
        return recipe.device
    return f"shared; the engine takes {share:.0%} of the GPU while it judges (engine.gpu_memory_utilization)"


def engine_of(recipe: Recipe) -> Any:
    """Engine settings, with vLLM's sleep mode if a training shares its GPU: it keeps its weights and optimizer there
    while a checkpoint is judged, so the engine does not get vLLM's usual 92 % of the memory."""
    from medbench.harness.engines.vllm import runs_on_cpu

    if recipe.device == "separate" or runs_on_cpu():
        return recipe.engine
    changes: dict[str, Any] = {"vllm_args": {"enable_sleep_mode": True, **recipe.engine.vllm_args}}
    if recipe.engine.gpu_memory_utilization is None:
        changes["gpu_memory_utilization"] = SHARED_UTILIZATION
    return recipe.engine.model_copy(update=changes)


def _launcher(prepared: Prepared) -> Callable[..., TrainingProcess]:
    data = {DATA_FOLDER: str(prepared.data_folder)} if prepared.data_folder is not None else {}
    wait = prepared.recipe.device == "shared"

    def launch(stage: Stage, config: Mapping[str, Any], *, start: Path, folder: Path, seed: int) -> TrainingProcess:
        launched = stage.launch.model_copy(update={"env": data | stage.launch.env})
        return TrainingProcess(
            stage.trainer, config, start=start, folder=folder, seed=seed, launch=launched, wait_until_judged=wait
        )

    return launch


def _launched(stage: Stage) -> str:
    if stage.launch.accelerate:
        return f"accelerate launch with {stage.launch.accelerate}"
    return "one process" if stage.launch.processes == 1 else f"accelerate launch, {stage.launch.processes} processes"


def _stage_summaries(journal: Journal) -> list[dict[str, Any]]:
    summaries = []
    begun = 0.0
    for stage in stages_of(journal.events):
        gated = [one for attempt in stage.attempts for one in attempt.gated]
        confirmed = [attempt.confirmed for attempt in stage.attempts if attempt.confirmed]
        asked: list[Gated | Confirmed | Measured] = [*gated, *confirmed, *stage.measured.values()]
        last = stage.promoted or (stage.attempts[-1].ended if stage.attempts else None)
        until = last.elapsed if last is not None else stage.started.elapsed
        summaries.append(
            {
                "stage": stage.started.stage,
                "attempts": len(stage.attempts),
                "checkpoints": len(gated),
                "questions": sum(one.questions for one in asked),
                "seconds": round(until - begun, 1),
                "promoted": stage.promoted.checkpoint if stage.promoted else None,
                "result": confirmed[-1].verdict.why if stage.promoted and confirmed else "not promoted",
            }
        )
        begun = until
    return summaries
