"""`medbench train` of a recipe with a `sweep:`: trains every cell, then compares their checkpoints.

    medbench train trainers/recipes/smollm2_sweep.yaml

All cells are checked before the first is trained. A cell whose training has ended is never trained again; one that was
stopped goes on as `medbench train --resume` does.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.checkpoints.merge import forget_merge
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Say
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.files import locked
from medbench.harness.gates.finished_run import protocol_of, samples_of
from medbench.harness.runs import provenance
from medbench.harness.secrets import redacted_command
from medbench.harness.sweeps import cells as trainings
from medbench.harness.sweeps.halving import Halving
from medbench.harness.sweeps.race import Race, best_of, drop_of, order_seed_of, scores_of
from medbench.harness.sweeps.record import SWEEP, CellRecord, SweepRecord, read_sweep, write_sweep
from medbench.harness.training.prepare import Prepared, TrainOptions, prepare_training
from medbench.harness.training.recipe import Cell, Recipe, cells_of, compared_task
from medbench.harness.training.train import engine_of, make_ready, plan, recipe_sha256, refuse_begun, training_folder

RUNS = "runs"


@dataclass(frozen=True, slots=True)
class Swept:
    """How a sweep ended."""

    folder: Path
    record: SweepRecord

    @property
    def passed(self) -> bool:
        """Whether the best cell passed its gates."""
        best = self._best
        return best is not None and best.training is not None and best.training.outcome == "passed"

    @property
    def _best(self) -> CellRecord | None:
        return next((cell for cell in self.record.cells if cell.name == self.record.best), None)

    def as_json(self) -> dict[str, Any]:
        best = self._best
        checkpoint = best.training.checkpoint if best is not None and best.training is not None else None
        content = self.record.model_dump(mode="json", exclude={"recipe", "command", "packages", "git_commit"})
        return {
            "sweep": str(self.folder),
            "outcome": "passed" if self.passed else "failed",
            "checkpoint": str(self.folder / checkpoint) if checkpoint is not None else None,
            **content,
        }

    def in_words(self) -> str:
        record, best = self.record, self._best
        entered = [cell for cell in record.cells if cell.score is not None]
        lines = [_cell_line(cell, record) for cell in sorted(record.cells, key=_by_score)]
        if record.alpha_each is not None and len(entered) > 1:
            lines.append(
                f"the best of {len(entered)} cells is dropped with probability at most {record.alpha:g}: each test of "
                f"one cell against another is at level {record.alpha_each:.2g}"
            )
        if best is None or best.training is None:
            return "\n".join([*lines, "no cell left a checkpoint: see their trainings"]) + "\n"
        left = [cell.name for cell in entered if cell.dropped is None and cell.name != best.name]
        others = f"; not shown to be worse: {', '.join(left)}" if left else ""
        lines.append(f"best: {best.name}, its gates {best.training.outcome}{others}")
        return "\n".join([*lines, f"checkpoint: {self.folder / str(best.training.checkpoint)}"]) + "\n"


def _by_score(cell: CellRecord) -> tuple[bool, float]:
    """Dropped ones after those that are left, each by score."""
    score = cell.score.score if cell.score is not None else None
    return cell.score is None or cell.dropped is not None, -(score if score is not None else -1.0)


def _cell_line(cell: CellRecord, record: SweepRecord) -> str:
    if cell.training is None:
        return f"{cell.name}: not trained yet"
    if cell.score is None or cell.score.score is None:
        return f"{cell.name}: not compared: {cell.training.reason}"
    low, high = cell.score.interval
    about = "new questions" if cell.score.of_new_questions else f"these {record.questions} questions"
    shown = f"{100 * cell.score.score:.1f} % ({100 * low:.1f} to {100 * high:.1f}, 95 %, {about})"
    parameters = cell.training.trained_parameters
    trained = f", {parameters:,} parameters" if parameters is not None else ""
    drop = cell.dropped
    fate = f", dropped after {drop.after} questions for {drop.by}" if drop else f", asked {cell.score.asked}"
    return f"{cell.name}: {shown}{trained}, {cell.training.seconds / 60:.1f} min{fate}"


def sweep(recipe: Recipe, options: TrainOptions, say: Say) -> Swept:
    """Train what is not trained yet, and compare. Raises MedbenchError, before anything is trained, where the recipe, a
    cell or an option is wrong."""
    assert recipe.sweep is not None
    cells = cells_of(recipe, options.recipe)
    folder = options.runs / f"sweep-{recipe.name}"
    known = read_sweep(folder) if (folder / SWEEP).exists() else None
    if known is not None:
        refuse_begun(folder, recipe, options, known.recipe, known.recipe_sha256, "the budget and sweep.parallel")
    places = trainings.places_of([cell.recipe for cell in cells], recipe.sweep.parallel)
    inside = replace(options, runs=folder, resume=True)
    prepared = prepare_training(recipe, inside, say)
    waiting = [cell for cell in cells if not trainings.is_ended(training_folder(cell.recipe, inside))]
    ready = {}
    for cell in waiting:
        told = trainings.telling(say, cell.name)
        ready[cell.name] = make_ready(cell.recipe, inside, told, tasks=prepared.tasks)
    folder.mkdir(parents=True, exist_ok=True)
    lock = locked(folder, "wait for it or stop it")
    try:
        for cell in cells:
            trainings.write_recipe(folder, cell)
        task = compared_task(recipe)
        assert task is not None, "checked with the recipe"
        under_way = _UnderWay(folder, inside, cells, known or _new(recipe, cells, task))
        under_way.save()
        described = {one.name for one in under_way.record.cells if one.training is not None}
        for cell in cells:
            if cell.name not in ready and cell.name not in described:
                under_way.trained(cell.name)
        over = [
            trainings.Ended(cell.recipe, training_folder(cell.recipe, inside))
            for cell in cells
            if cell.name not in ready
        ]
        with trainings.Engines(say) as engines:
            if len(places) > 1:
                trainings.at_the_same_time(ready, places, folder, say, under_way.trained)
            else:
                trainings.one_after_the_other(ready, over, engines, say, under_way.trained)
            _compare(recipe, prepared, under_way, engines, say)
        under_way.save(state="complete")
        return Swept(folder, under_way.record)
    finally:
        lock.release()


def plan_sweep(recipe: Recipe, options: TrainOptions, say: Say) -> list[str]:
    """`--dry-run`: the cells, and the plan of the first one. Raises MedbenchError as `sweep` does."""
    assert recipe.sweep is not None
    cells = cells_of(recipe, options.recipe)
    places = trainings.places_of([cell.recipe for cell in cells], recipe.sweep.parallel)
    prepared = prepare_training(recipe, options, say)
    task = compared_task(recipe)
    assert task is not None, "checked with the recipe"
    n = len(keep_partition(prepared.tasks[task], "gate").questions)
    most = min(n, recipe.sweep.questions or n)
    each = recipe.sweep.alpha / max(1, len(cells) - 1)
    lines = [
        f"sweep {recipe.name} in {options.runs / f'sweep-{recipe.name}'}: {len(cells)} cells, {len(places)} at a time",
        f"compared on {task} by accuracy: at most {most} of {n} questions each, all in one order; alpha "
        f"{recipe.sweep.alpha:g} over {len(cells)} cells, each test of one against another at level {each:.2g}",
    ]
    for cell in cells:
        values = ", ".join(f"{path} = {value}" for path, value in cell.values.items())
        lines.append(f"cell {cell.name}: {values}")
        lines += [f"  {line}" for line in _checked(cell, options, prepared)]
    first = plan(cells[0].recipe, options, say)
    return [*lines, f"the first cell, {cells[0].name}:", *[f"  {line}" for line in first]]


def _checked(cell: Cell, options: TrainOptions, prepared: Prepared) -> list[str]:
    """What the trainers of a cell report about its data and memory."""
    own = prepare_training(cell.recipe, options, lambda _: None, tasks=prepared.tasks)
    lines = []
    for index, stage in enumerate(cell.recipe.stages):
        with tempfile.TemporaryDirectory() as scratch:
            lines += own.check_stage(index, Path(scratch) / stage.name)
    return lines


@dataclass(slots=True)
class _UnderWay:
    """The record of a sweep while it runs."""

    folder: Path
    options: TrainOptions
    """Those of the cells."""
    cells: Sequence[Cell]
    record: SweepRecord
    _began: float = field(default_factory=time.monotonic)
    _before: float = field(init=False)

    def __post_init__(self) -> None:
        self._before = self.record.seconds

    def save(self, **changes: Any) -> None:
        seconds = round(self._before + time.monotonic() - self._began, 1)
        self.record = self.record.model_copy(update={"seconds": seconds, **changes})
        write_sweep(self.folder, self.record)

    def trained(self, name: str) -> None:
        """A cell's training has ended."""
        cell = next(one for one in self.cells if one.name == name)
        found = trainings.described(self.folder, cell, self.options, self.record.task)
        self.save(
            cells=[one.model_copy(update={"training": found}) if one.name == name else one for one in self.record.cells]
        )

    def compared(self, rule: Halving, race: Race, *, over: bool) -> None:
        """A round has ended."""
        trained = {one.name: one.training.trained_parameters for one in self.record.cells if one.training is not None}
        best = best_of(rule, trained)
        scores = scores_of(rule, race.task, best)
        asked = len(rule.scores[best])
        cells = [
            one.model_copy(update={"score": scores.get(one.name), "dropped": drop_of(rule, one.name)})
            for one in self.record.cells
        ]
        ended = [one for one in self.record.rounds if one[0] < asked]
        self.save(cells=cells, rounds=[*ended, (asked, len(rule.left))], best=best if over else None)


def _compare(recipe: Recipe, prepared: Prepared, under_way: _UnderWay, engines: trainings.Engines, say: Say) -> None:
    assert recipe.sweep is not None
    record = under_way.record
    found = {one.name: one.training for one in record.cells if one.training is not None}
    entering = {name: one for name, one in found.items() if one.checkpoint is not None and one.fingerprint is not None}
    if not entering:
        return
    rules = recipe.stages[-1].gates
    task = keep_partition(prepared.tasks[record.task], "gate")
    most = min(len(task.questions), recipe.sweep.questions or len(task.questions))
    race = Race(
        task=task,
        protocol=protocol_of(rules, None, [task]),
        samples=samples_of(rules, None),
        checkpoints={name: under_way.folder / str(one.checkpoint) for name, one in entering.items()},
        options=EvalOptions(
            model="",
            tasks=(task.name,),
            data=prepared.data,
            partition="gate",
            samples=samples_of(rules, None),
            runs=under_way.folder / RUNS,
            seed=recipe.seed,
            resume=True,
            quiet=under_way.options.quiet,
            engine=EngineChoice(config=engine_of(recipe)),
        ),
        order_seed=order_seed_of(recipe.seed, [str(one.fingerprint) for one in entering.values()]),
        alpha=recipe.sweep.alpha,
        most=most,
    )
    each = recipe.sweep.alpha / max(1, len(entering) - 1)
    under_way.save(
        state="comparing",
        questions=len(task.questions),
        most=most,
        order_seed=race.order_seed,
        alpha_each=each,
        rounds=[],
    )
    say(
        f"comparing {len(entering)} cells on {task.name}: alpha {recipe.sweep.alpha:g}, each test of one "
        f"against another at level {each:.2g}"
    )
    keeper = engines.keeper(engine_of(recipe))
    merged = set(entering)

    def forget(cells: Iterable[str]) -> None:
        """Remove merged adapters that are not needed any more: each is as large as the model."""
        for cell in merged.intersection(cells):
            forget_merge(resolve(str(race.checkpoints[cell])))
            merged.discard(cell)

    def ended(rule: Halving) -> None:
        under_way.compared(rule, race, over=False)
        forget(drop.cell for drop in rule.dropped)

    rule = race.run(keeper, say, ended)
    under_way.compared(rule, race, over=True)
    forget(cell for cell in rule.left if cell != under_way.record.best)


def _new(recipe: Recipe, cells: Sequence[Cell], task: str) -> SweepRecord:
    assert recipe.sweep is not None
    return SweepRecord(
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=redacted_command(sys.argv),
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe_sha256(recipe),
        packages=provenance.packages(),
        git_commit=provenance.git_commit(),
        task=task,
        alpha=recipe.sweep.alpha,
        cells=[CellRecord(name=cell.name, values=cell.values) for cell in cells],
    )
