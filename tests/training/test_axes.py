"""A recipe's sweep: which cells it makes, and what is refused in one line before anything is trained.

pytest tests/training/test_axes.py
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from medbench.harness.cli.main import run
from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError
from medbench.harness.training.axes import MOST_CELLS, Sweep, combinations
from medbench.harness.training.recipe import Cell, Recipe, cells_of, check_recipe, file_content, read_recipe


class Inner(Record):
    rank: int = Field(16, ge=1)
    kind: str = "lora"


class Config(Record):
    learning_rate: float = Field(gt=0)
    betas: list[float] = Field(default_factory=lambda: [0.9, 0.999])
    adapter: Inner | None = None


def train(config: Config, *, start: Path, folder: Path, seed: int) -> None: ...


POINTS = [EntryPoint("toy", __name__, "medbench.trainers")]
RATE, KIND = "stages.sft.config.learning_rate", "stages.sft.config.adapter.kind"
STAGE = {
    "name": "sft",
    "trainer": "toy",
    "config": {"learning_rate": 0.1},
    "gates": {"gates": [{"task": "medqa", "metric": "unparsed", "at_most": 0.1}, {"task": "medqa", "at_least": 0.6}]},
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_axes", sys.modules[__name__])


def recipe(axes: Any, **more: Any) -> dict[str, Any]:
    sweep = {"axes": axes, **more.pop("sweep", {})}
    return {"name": "mine", "start": "smollm2-135m", "stages": [STAGE], "sweep": sweep, **more}


def cells(folder: Path, content: Mapping[str, Any]) -> list[Cell]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
    return cells_of(read_recipe(path, POINTS), path, POINTS)


def faults(folder: Path, content: Mapping[str, Any]) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
    return [line.removeprefix(f"{path}: ") for line in check_recipe(path, POINTS)]


def test_every_combination_is_a_cell_called_by_its_values(tmp_path: Path) -> None:
    found = cells(tmp_path, recipe({RATE: [0.5, 1.0e-5], KIND: ["lora", "ia3"]}))
    assert [one.name for one in found] == [
        "learning_rate-0.5_kind-lora",
        "learning_rate-0.5_kind-ia3",
        "learning_rate-1e-05_kind-lora",
        "learning_rate-1e-05_kind-ia3",
    ]
    last = found[-1]
    assert last.recipe.stages[0].config == {"learning_rate": 1e-5, "adapter": {"kind": "ia3"}}
    assert (last.recipe.name, last.recipe.sweep) == (last.name, None)
    assert last.values == {RATE: "1e-05", KIND: "ia3"}


def test_an_axis_may_be_any_key_of_the_recipe(tmp_path: Path) -> None:
    found = cells(tmp_path, recipe({"seed": [1, 2], "start": ["a", "b"]}))
    assert {(one.recipe.seed, one.recipe.start) for one in found} == {(1, "a"), (1, "b"), (2, "a"), (2, "b")}


def test_an_axis_reaches_into_a_list_by_position(tmp_path: Path) -> None:
    stage = {**STAGE, "config": {"learning_rate": 0.1, "betas": [0.9, 0.99]}}
    found = cells(tmp_path, recipe({"stages.sft.config.betas.1": [0.95, 0.9]}, stages=[stage]))
    assert [one.recipe.stages[0].config["betas"] for one in found] == [[0.9, 0.95], [0.9, 0.9]]


def test_labelled_values_are_merged_into_what_is_there(tmp_path: Path) -> None:
    stage = {**STAGE, "config": {"learning_rate": 0.1, "adapter": {"rank": 4}}}
    axes = {
        "stages.sft.config": {
            "small": {"adapter": {"kind": "lora"}},
            "factors": {"adapter": {"kind": "ia3", "rank": 1}, "learning_rate": 0.01},
        }
    }
    small, factors = cells(tmp_path, recipe(axes, stages=[stage]))
    assert (small.name, factors.name) == ("config-small", "config-factors")
    assert small.recipe.stages[0].config == {"learning_rate": 0.1, "adapter": {"rank": 4, "kind": "lora"}}
    assert factors.recipe.stages[0].config == {"learning_rate": 0.01, "adapter": {"rank": 1, "kind": "ia3"}}


def test_axes_that_end_in_the_same_key_are_told_apart_in_names(tmp_path: Path) -> None:
    second = {**STAGE, "name": "grpo"}
    axes = {RATE: [0.5], "stages.grpo.config.learning_rate": [0.25]}
    (one,) = cells(tmp_path, recipe(axes, stages=[STAGE, second]))
    assert one.name == "sft.config.learning_rate-0.5_grpo.config.learning_rate-0.25"


def test_a_cells_recipe_reads_back_from_its_file_unchanged(tmp_path: Path) -> None:
    content = recipe({RATE: [1.0e-5]}, watchdogs={"window": 5})
    (one,) = cells(tmp_path, content)
    path = tmp_path / "cell.yaml"
    path.write_text(yaml.safe_dump(file_content(one.recipe)))
    assert read_recipe(path, POINTS) == one.recipe


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (recipe({}), "sweep.axes: dictionary should have at least 1 item"),
        (recipe({RATE: []}), "an axis without values has no cells"),
        (recipe({RATE: 3}), "an axis is a list of values, or a mapping of labels to values (found 3)"),
        (recipe({RATE: [[1]]}), "value 1 is no number, text or flag: give it a label"),
        (recipe({"stage.sft.config.learning_rate": [1]}), "unknown key; "),
        (recipe({"stages.stf.config.learning_rate": [1]}), "unknown stage; did you mean sft?"),
        (recipe({"stages": [1]}), "unknown stage"),
        (recipe({"stages.sft.config.learnign_rate": [1]}), "unknown key; did you mean learning_rate?"),
        (recipe({"stages.sft.config.learning_rate.x": [1]}), "config.learning_rate is a value and has no key x"),
        (recipe({"stages.sft.config.adapter.rnak": [1]}), "unknown key; did you mean rank?"),
        (
            recipe({RATE: [0.1, 0]}),
            "cell learning_rate-0: stages.0.config.learning_rate: input should be greater than 0",
        ),
        (recipe({RATE: ["fast"]}), "should be a valid number"),
        (recipe({"seed": [-1]}), "cell seed-1: seed: input should be greater than or equal to 0"),
        (recipe({"name": ["a"]}), "cells have name in common"),
        (recipe({"data": ["a"]}), "cells have data in common"),
        (recipe({"stages.sft.gates.alpha": [0.1]}), "cells are judged together, by the last stage's gates"),
        (recipe({"stages.sft.name": ["a"]}), "cells have the names of stages in common"),
        (
            recipe({"start": ["a b", "a-b"]}),
            "two cells would be called start-a-b, (a b) and (a-b): give the values other",
        ),
        (recipe({"start": ["A", "a"]}), "two cells would be called start-a"),
        (recipe({"seed": [1, 1]}), "two cells would be called seed-1, (1) and (1)"),
        (recipe({"seed": [*range(100)], RATE: [0.1] * 10, "start": ["a"] * 10}), "10,000 cells (100 x 10 x 10)"),
        (recipe({"start": ["a" * 60], "device": {"b" * 60: "shared"}}), "give the values shorter labels"),
        (
            recipe({"seed": [1]}, sweep={"task": "mdeqa"}),
            "sweep.task: the last stage has no gate on it; did you mean medqa",
        ),
        (recipe({"seed": [1]}, sweep={"alpha": 0.7}), "sweep.alpha: input should be less than 0.5"),
        (recipe({"seed": [1]}, sweep={"questions": 0}), "sweep.questions"),
        (recipe({"seed": [1]}, sweep={"parallel": 0}), "sweep.parallel"),
        (recipe({"seed": [1]}, sweep={"axis": 0}), "sweep.axis: unknown key; did you mean axes?"),
    ],
)
def test_a_fault_is_one_line(tmp_path: Path, content: Any, says: str) -> None:
    (line,) = faults(tmp_path, content)
    assert says in line


def test_the_same_fault_of_many_cells_is_told_once(tmp_path: Path) -> None:
    assert len(faults(tmp_path, recipe({RATE: [0], "seed": [*range(20)]}))) == 1


def test_a_sweep_without_a_gate_on_accuracy_must_name_its_task(tmp_path: Path) -> None:
    stage = {**STAGE, "gates": {"gates": [{"task": "medqa", "metric": "unparsed", "at_most": 0.1}]}}
    (line,) = faults(tmp_path, recipe({"seed": [1]}, stages=[stage]))
    assert "no gate on accuracy: name the task" in line
    assert faults(tmp_path, recipe({"seed": [1]}, stages=[stage], sweep={"task": "medqa"})) == []


def test_a_key_that_only_the_axes_give_need_not_be_in_the_recipe(tmp_path: Path) -> None:
    stage = {**STAGE, "config": {}}
    assert [one.recipe.stages[0].config for one in cells(tmp_path, recipe({RATE: [0.5]}, stages=[stage]))] == [
        {"learning_rate": 0.5}
    ]


def test_a_date_among_the_values_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe({"start": {"a": "DAY"}})).replace("DAY", "2026-01-01"))
    (line,) = check_recipe(path, POINTS)
    assert "in quotes" in line


def test_the_command_line_refuses_a_faulty_sweep_before_it_writes_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    stage = {**STAGE, "trainer": "command", "config": {"command": ["true"]}}
    path.write_text(yaml.safe_dump(recipe({"stages.sft.config.comand": ["x"]}, stages=[stage])))
    assert run(["train", str(path), "--runs", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unknown key; did you mean command?" in line
    assert not (tmp_path / "runs").exists()


SCALARS = st.one_of(st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False), st.text(max_size=20))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=30), st.lists(SCALARS, max_size=4), min_size=1, max_size=3))
def test_axes_of_any_kind_give_cells_with_different_names_or_faults(axes: dict[str, list[Any]]) -> None:
    base = file_content(
        Recipe.model_validate({key: one for key, one in recipe({"seed": [1]}).items() if key != "sweep"})
    )
    try:
        sweep = Sweep(axes=axes)
    except ValueError:
        return
    found, wrong = combinations(sweep, base)
    assert found or wrong
    assert wrong or len({one.name for one in found}) == len(found) <= MOST_CELLS


def test_a_recipe_with_a_fault_of_its_own_is_not_swept(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match=r"budget\.attempts"):
        cells(tmp_path, recipe({"seed": [1]}, budget={"attempts": 0}))
