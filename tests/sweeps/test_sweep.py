"""`medbench train` of a recipe with a sweep, on a tiny model: every cell trained once, compared, resumed after kill -9.

pytest tests/sweeps/test_sweep.py
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import tiny_training
from support.tiny_training import MARK, RECIPE, TASK, arguments, command, environment, kill_when

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.runs.run_folder import read_samples
from medbench.harness.sweeps.record import SWEEP, SweepRecord, read_sweep
from medbench.harness.training.journal import AttemptStarted, read_events

METHODS, FRACTIONS = ("lora", "rslora", "dora", "ia3"), (0.02, 0.2, 1.0)
KIND, FRACTION = "stages.sft.config.adapter.kind", "stages.sft.config.data_fraction"


def swept(name: str, axes: Mapping[str, Any], **training: Any) -> dict[str, Any]:
    """The tiny recipe's first stage, in one short attempt a cell."""
    recipe = deepcopy(RECIPE)
    stage = recipe["stages"][0]
    del stage["config"]["lora"]
    stage["config"]["training"] = {"steps": 24, "batch_size": 16, "learning_rate": 5e-3, "save_every": 24, **training}
    stage["gates"] = {"max_new_tokens": 40, "gates": [{"task": TASK, "at_least": 0.4}]}
    return {**recipe, "name": name, "budget": {"attempts": 1}, "stages": [stage], "sweep": {"axes": dict(axes)}}


def write(folder: Path, content: Mapping[str, Any]) -> Path:
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump({**content, "start": str(folder / "model")}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of data and start. Shared."""
    return tiny_training.build(tmp_path_factory.mktemp("tiny-sweep")).parent


@pytest.fixture(scope="module")
def whole(built: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Folder of a sweep of four methods and three fractions, and how it ended."""
    recipe = write(built, swept("methods", {KIND: [*METHODS], FRACTION: [*FRACTIONS]}))
    given = ["train", recipe, "--runs", built / "runs", "--data", built / "data", "--quiet", "--json"]
    done = command(*given, cwd=built, timeout=1500)
    return built / "runs" / "sweep-methods", done


def trained_in(folder: Path) -> Counter[str]:
    """How many attempts each cell's journal has."""
    return Counter(
        training.name
        for training in folder.glob("train-*")
        for event in read_events(training)
        if isinstance(event, AttemptStarted)
    )


@pytest.mark.engine
@pytest.mark.timeout(1800)  # twelve trainings
def test_four_methods_on_three_fractions_are_trained_once_each_and_compared(
    whole: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = whole
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    record = read_sweep(folder)
    told = json.loads(done.stdout)  # one object and nothing else
    assert told["outcome"] == ("passed" if done.returncode == 0 else "failed")
    assert (record.state, record.task, len(record.cells)) == ("complete", TASK, 12)
    assert {cell.name for cell in record.cells} == {
        f"kind-{method}_data_fraction-{fraction}" for method in METHODS for fraction in FRACTIONS
    }
    assert set(trained_in(folder).values()) == {1}
    assert len(trained_in(folder)) == 12

    cells = {cell.name: cell for cell in record.cells}
    best = cells[str(record.best)]
    left = [cell for cell in record.cells if cell.dropped is None]
    assert best in left
    assert best.score is not None
    assert best.training is not None
    assert all(cell.score is not None and cell.score.score is not None for cell in record.cells)
    assert best.score.score == max(cell.score.score for cell in left)  # type: ignore[union-attr,type-var]
    assert record.alpha_each == pytest.approx(0.05 / 11)
    for cell in record.cells:
        assert cell.training is not None
        assert cell.training.trained_parameters
        assert cell.training.peak_memory_gib
        assert cell.training.steps == 24
        if cell.dropped is not None:
            assert cell.dropped.by in cells
            assert cell.dropped.after <= cell.score.asked  # type: ignore[union-attr]
    of = {method: cells[f"kind-{method}_data_fraction-1.0"].training for method in METHODS}
    assert of["ia3"].trained_parameters < of["lora"].trained_parameters < of["dora"].trained_parameters  # type: ignore[union-attr,operator]

    orders = {read_order(folder, cell.name) for cell in record.cells}
    longest = max(orders, key=len)
    assert all(longest[: len(order)] == order for order in orders), "all are asked the same questions in one order"
    assert resolve(told["checkpoint"]).path


def read_order(folder: Path, cell: str) -> tuple[str, ...]:
    """Ids that a cell was asked in the comparison, sorted along the order of the sweep."""
    from medbench.harness.evaluation.requests import permuted

    asked = {sample.id for sample in read_samples(folder / "runs" / cell, TASK)}
    order = permuted(asked, seed=str(read_sweep(folder).order_seed), task=TASK)
    return tuple(order)


@pytest.mark.engine
def test_resuming_a_finished_sweep_trains_and_asks_nothing(
    built: Path, whole: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    folder, first = whole
    before = {path: path.read_bytes() for path in folder.glob("*/journal.jsonl")}
    samples = {path: path.read_bytes() for path in folder.glob("runs/*/samples/*.jsonl")}
    given = ["train", built / "methods.yaml", "--runs", built / "runs", "--data", built / "data", "--json"]
    again = command(*given, cwd=built)
    assert (again.returncode, again.stdout) == (2, "")
    (line,) = again.stderr.splitlines()[-1:]
    assert "already exists: add --resume" in line
    resumed = command(*given, "--resume", "--quiet", cwd=built)
    assert resumed.returncode == first.returncode
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.read_bytes() for path in samples} == samples
    assert without_times(json.loads(resumed.stdout)) == without_times(json.loads(first.stdout))


def without_times(told: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key != "seconds"}


@pytest.mark.engine
def test_another_recipe_is_not_mixed_into_a_sweep_and_a_dry_run_lists_its_cells(
    built: Path, whole: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    other = write(built, swept("methods", {KIND: ["lora", "ia3"]}))
    try:
        given = ["train", other, "--runs", built / "runs", "--data", built / "data"]
        refused = command(*given, "--resume", cwd=built)
        assert refused.returncode == 2
        assert "was started with another recipe" in refused.stderr
        planned = command(*given, "--dry-run", cwd=built)
        assert planned.returncode == 0
        assert f"cell kind-ia3: {KIND} = ia3" in planned.stdout
        assert "alpha 0.05 over 2 cells, each test of one against another at level 0.05" in planned.stdout
    finally:
        write(built, swept("methods", {KIND: [*METHODS], FRACTION: [*FRACTIONS]}))


@pytest.mark.engine
@pytest.mark.timeout(1200)
def test_a_sweep_that_is_killed_again_and_again_ends_as_one_whose_cells_train_beside_each_other(built: Path) -> None:
    """kill -9 while the second cell trains, and while cells are compared; the other sweep is not killed."""
    content = swept("killed", {KIND: ["lora", "ia3"]}, steps=8, save_every=4)
    content["sweep"]["questions"] = 40
    recipe = write(built, content)
    runs = built / "killed"
    folder = runs / "sweep-killed"
    first = folder / "train-kind-lora"

    def start() -> subprocess.Popen[bytes]:
        runs.mkdir(exist_ok=True)
        given = arguments("train", recipe, "--runs", runs, "--data", built / "data", "--resume", "--quiet")
        with (runs / "log.txt").open("ab") as log:
            return subprocess.Popen(
                given, cwd=runs, env=environment(**{MARK: str(runs)}), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def ended(training: Path) -> bool:
        return '"training_ended"' in text_of(training / "journal.jsonl")

    second = folder / "train-kind-ia3"
    moments = (
        lambda _: ended(first) and (second / "1-sft/attempt-1/step-000004").exists(),
        lambda _: text_of(folder / "runs/kind-lora/samples" / f"{TASK}.jsonl") != "",
    )
    killed = [kill_when(start(), runs, moment) for moment in moments]
    assert all(killed), "each kill came in time"
    journal = (first / "journal.jsonl").read_bytes()
    process = start()
    assert process.wait(600) in (0, 1), text_of(runs / "log.txt")[-2000:]
    assert (first / "journal.jsonl").read_bytes() == journal, "a finished cell is not trained again"
    assert set(trained_in(folder).values()) == {1}
    for cell in ("kind-lora", "kind-ia3"):
        asked = [sample.id for sample in read_samples(folder / "runs" / cell, TASK)]
        assert len(asked) == len(set(asked))

    content = {**content, "name": "whole", "sweep": {**content["sweep"], "parallel": 2}}
    done = command(
        "train", write(built, content), "--runs", built / "unkilled", "--data", built / "data", "--quiet", cwd=built
    )
    assert done.returncode == process.returncode, done.stderr
    whole = built / "unkilled/sweep-whole"
    assert set(trained_in(whole)) == {"train-kind-lora", "train-kind-ia3"}
    assert all((whole / "cells" / f"kind-{kind}.log").read_text() for kind in ("lora", "ia3"))
    record = read_sweep(whole)
    assert record.state == "complete"
    assert all(cell.score is not None and cell.score.asked <= 40 for cell in record.cells)
    assert told(read_sweep(folder)) == told(record)


def told(record: SweepRecord) -> list[Any]:
    """What a sweep came to, without times and memory."""
    return [
        [cell.name, cell.score, cell.dropped, cell.training and (cell.training.outcome, cell.training.fingerprint)]
        for cell in record.cells
    ] + [record.best, record.rounds, record.order_seed]


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_a_faulty_cell_is_refused_before_anything_is_trained(built: Path, tmp_path: Path) -> None:
    """BitFit has nothing to train in a model without biases: the model's own files say so, not the recipe."""
    recipe = write(built, swept("faulty", {KIND: ["lora", "bitfit"]}))
    done = command("train", recipe, "--runs", tmp_path / "runs", "--data", built / "data", cwd=built)
    assert done.returncode == 2
    assert "adapter.kind: bitfit trains biases" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob(f"runs/*/{SWEEP}"))
    assert not list(tmp_path.glob("runs/*/*/*/attempt-*"))
