"""Recipes: all faults at once, each with its key path, and configs that come back unchanged from JSON.

pytest tests/training/test_recipe.py
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from medbench.harness.cli.validate import faults_of
from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError
from medbench.harness.training.recipe import Recipe, check_recipe, config_of, read_config, read_recipe
from medbench.harness.training.watchdogs import WatchdogConfig


class Inner(Record):
    rank: int = Field(16, ge=1)
    targets: str | list[str] = "all-linear"


class Config(Record):
    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    file: Path | None = None
    lora: Inner | None = Inner()
    sources: list[Inner] = Field(default_factory=list)


def train(config: Config, *, start: Path, folder: Path, seed: int) -> None: ...


POINTS = [EntryPoint("toy", __name__, "medbench.trainers")]
GATES = {"gates": [{"task": "medqa", "at_least": 0.6}]}
SOUND: dict[str, Any] = {
    "name": "mine",
    "start": "smollm2-135m",
    "stages": [{"name": "sft", "trainer": "toy", "config": {"learning_rate": 0.1}, "gates": GATES}],
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_recipe", sys.modules[__name__])


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def written(content: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return written


def stage(**keys: Any) -> dict[str, Any]:
    """A recipe with one stage, changed by `keys`."""
    return {**SOUND, "stages": [{**SOUND["stages"][0], **keys}]}


def faults(path: Path) -> list[str]:
    """The faults, without the file that each is checked to start with."""
    found = check_recipe(path, POINTS)
    assert all(fault.startswith(f"{path}: ") and "\n" not in fault for fault in found)
    return [fault.removeprefix(f"{path}: ") for fault in found]


def test_the_whole_file_is_read(written: Callable[..., Path]) -> None:
    path = written("""
name: smollm2-cpu
start: smollm2-135m
seed: 3
budget: {attempts: 4, hours: 24, questions: null}
device: separate
engine: {dtype: float32}
data: null
watchdogs: {window: 5}
benchmarks: [medqa]
stages:
  - name: sft
    trainer: toy
    config: {learning_rate: 1.0e-3, betas: [0.9, 0.95], file: rows.jsonl, lora: null}
    launch: {processes: 2, env: {CUDA_VISIBLE_DEVICES: "0,1"}}
    gates: {alpha: 0.1, protocol: cot-v2, max_new_tokens: 512, gates: [{task: medqa, at_least: 0.3}]}
  - {name: grpo, trainer: toy, config: {learning_rate: 1.0e-6}, gates: {gates: [{task: medqa, margin: 0.02}]}}
""")
    recipe = read_recipe(path, POINTS)
    assert (recipe.name, recipe.seed, recipe.device, recipe.benchmarks) == ("smollm2-cpu", 3, "separate", ["medqa"])
    assert (recipe.budget.attempts, recipe.budget.hours, recipe.budget.questions) == (4, 24, None)
    assert recipe.stages[0].launch.env == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert [one.gates.alpha for one in recipe.stages] == [0.1, 0.05]
    assert recipe.watchdogs == WatchdogConfig(window=5)
    config = config_of(recipe.stages[0], POINTS)
    assert config == Config(learning_rate=1e-3, betas=(0.9, 0.95), file=Path("rows.jsonl"), lora=None)


def test_missing_keys_have_their_defaults(written: Callable[..., Path]) -> None:
    recipe = read_recipe(written(SOUND), POINTS)
    assert recipe.benchmarks == ["medqa", "mmlu_pro_medical", "pubmedqa"]
    assert (recipe.budget.attempts, recipe.budget.hours, recipe.budget.questions) == (3, None, None)
    assert (recipe.device, recipe.stages[0].launch.processes) == ("shared", 1)


def test_a_dumped_recipe_holds_the_watchdogs_section_without_defaults(written: Callable[..., Path]) -> None:
    """The recipe's hash is computed from the dump, so a new default must not make a training impossible to resume."""
    recipe = read_recipe(written({**SOUND, "watchdogs": {"window": 5, "kl_most": 0.5}}), POINTS)
    assert recipe.model_dump(mode="json")["watchdogs"] == {"window": 5, "kl_most": 0.5}
    assert read_recipe(written(SOUND), POINTS).model_dump(mode="json")["watchdogs"] == {}


def test_a_recipe_and_its_configs_come_back_unchanged_from_json(written: Callable[..., Path]) -> None:
    recipe = read_recipe(written(stage(config={"learning_rate": 1, "betas": [0.5, 0.6], "file": "a"})), POINTS)
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe
    config = config_of(recipe.stages[0], POINTS)
    dumped = json.loads(json.dumps(config.model_dump(mode="json")))
    assert read_config(Config, dumped, "config") == config
    for rate in (0.5, math.inf):
        adapted = config.model_copy(update={"learning_rate": rate})
        assert read_config(Config, json.loads(json.dumps(adapted.model_dump(mode="json"))), "config") == adapted


@pytest.mark.parametrize(
    ("content", "key", "what"),
    [
        ({**SOUND, "nmae": 1}, "nmae", "unknown key; did you mean name?"),
        ({**SOUND, "name": "my recipe"}, "name", "names a folder: use letters, digits, dot, dash and underscore only"),
        ({**SOUND, "name": "../up"}, "name", "names a folder"),
        ({**SOUND, "seed": -1}, "seed", "greater than or equal to 0"),
        ({**SOUND, "start": ""}, "start", "at least 1 character"),
        ({**SOUND, "device": "both"}, "device", "'shared' or 'separate'"),
        ({**SOUND, "budget": {"attempts": 0}}, "budget.attempts", "greater than or equal to 1"),
        ({**SOUND, "budget": {"hours": 0}}, "budget.hours", "greater than 0"),
        ({**SOUND, "budget": {"questions": 0}}, "budget.questions", "greater than or equal to 1"),
        ({**SOUND, "engine": {"dtpye": "auto"}}, "engine.dtpye", "unknown key; did you mean dtype?"),
        ({**SOUND, "watchdogs": {"windwo": 3}}, "watchdogs.windwo", "unknown key; did you mean window?"),
        ({**SOUND, "watchdogs": {"window": 1}}, "watchdogs.window", "greater than or equal to 2"),
        ({**SOUND, "watchdogs": 3}, "watchdogs", "dictionary"),
        ({**SOUND, "stages": []}, "stages", "at least 1 item"),
        ({**SOUND, "stages": {"name": "sft"}}, "stages", "list"),
        ({**SOUND, "stages": [3]}, "stages.0", "found 3"),
        (stage(name="a/b"), "stages.0.name", "names a folder"),
        (stage(trainer="tyo"), "stages.0.trainer", "trainer 'tyo': no such plugin; did you mean toy?"),
        (stage(config={}), "stages.0.config.learning_rate", "missing"),
        (stage(config={"learning_rate": 0}), "stages.0.config.learning_rate", "greater than 0 (found 0)"),
        (stage(config={"learning_rate": "1e-5"}), "stages.0.config.learning_rate", "valid number"),
        (stage(config={"learning_rate": 1, "lora": {"rank": 0}}), "stages.0.config.lora.rank", "greater than or equal"),
        (
            stage(config={"learning_rate": 1, "sources": [{}, {"tragets": "q"}]}),
            "stages.0.config.sources.1.tragets",
            "unknown key; did you mean targets?",
        ),
        (stage(config=[]), "stages.0.config", "dictionary"),
        (stage(launch={"processes": 0}), "stages.0.launch.processes", "greater than or equal to 1"),
        (stage(launch={"accelerate": "none.yaml"}), "stages.0.launch.accelerate", "none.yaml: no such file"),
        (stage(launch={"env": {"A": 1}}), "stages.0.launch.env.A", "string"),
        (stage(gates={"gates": []}), "stages.0.gates.gates", "at least 1 item"),
        (stage(gates={**GATES, "partition": "gate"}), "stages.0.gates.partition", "leave it out"),
    ],
)
def test_each_fault_has_its_key_path(written: Callable[..., Path], content: Any, key: str, what: str) -> None:
    (fault,) = faults(written(content))
    assert fault.startswith(f"{key}: ")
    assert what in fault


def test_a_stage_without_gates_is_a_fault(written: Callable[..., Path]) -> None:
    content = stage()
    del content["stages"][0]["gates"]
    assert faults(written(content)) == ["stages.0.gates: missing"]


def test_two_stages_with_the_same_name_are_a_fault(written: Callable[..., Path]) -> None:
    (fault,) = faults(written({**SOUND, "stages": SOUND["stages"] * 2}))
    assert fault == "stages.1.name: stage 0 has the same name, 'sft': rename one"


def test_a_date_in_a_config_is_a_fault(written: Callable[..., Path]) -> None:
    text = yaml.safe_dump(SOUND).replace("learning_rate: 0.1", "learning_rate: 2026-01-01")
    (fault,) = faults(written(text))
    assert re.match(r"stages\.0\.config: .*date.*in quotes", fault)


def test_of_many_faults_the_first_are_shown_and_the_others_counted(written: Callable[..., Path]) -> None:
    stage = {"name": "one", "trainer": "toy", "config": {"rate": 1}, "gates": GATES}
    said = check_recipe(written({"name": "x", "stages": [stage] * 40}), POINTS)
    assert len(said) < 50
    assert said[-1].endswith("more faults")


def test_all_faults_are_reported_at_once_and_in_one_line(written: Callable[..., Path]) -> None:
    path = written(
        {
            "name": "a b",
            "strat": "x",
            "seed": "no",
            "watchdogs": {"window": 0},
            "stages": [
                {"name": "one", "trainer": "toy", "config": {"learning_rate": -1, "lora": {"rnak": 3}}, "gates": GATES},
                {
                    "name": "one",
                    "trainer": "tyo",
                    "launch": {"accelerate": "no"},
                    "gates": {**GATES, "partition": "all"},
                },
            ],
        }
    )
    expected = {
        "name",
        "start",
        "strat",
        "seed",
        "watchdogs.window",
        "stages.0.config.learning_rate",
        "stages.0.config.lora.rnak",
        "stages.1.name",
        "stages.1.trainer",
        "stages.1.launch.accelerate",
        "stages.1.gates.partition",
    }
    found = faults(path)
    assert {fault.split(": ")[0] for fault in found} == expected
    assert len(found) == len(expected)
    with pytest.raises(MedbenchError) as caught:
        read_recipe(path, POINTS)
    assert all(f"{path}: {key}: " in str(caught.value) for key in expected)
    assert "\n" not in str(caught.value)


def test_an_accelerate_file_is_found_beside_the_recipe(tmp_path: Path, written: Callable[..., Path]) -> None:
    (tmp_path / "fsdp.yaml").touch()
    recipe = read_recipe(written(stage(launch={"accelerate": "fsdp.yaml"})), POINTS)
    assert recipe.stages[0].launch.accelerate == str(tmp_path / "fsdp.yaml")


def test_a_stored_config_that_no_longer_fits_is_one_line() -> None:
    with pytest.raises(MedbenchError) as caught:
        read_config(Config, {"lr": 1}, "stage sft: config")
    assert str(caught.value).startswith("stage sft: config: learning_rate: missing; stage sft: config: lr: unknown key")


def test_validate_recognises_a_recipe_by_its_stages(written: Callable[..., Path]) -> None:
    path = written({**SOUND, "seed": -1, "watchdogs": {"window": 1}})
    kind, found = faults_of(path)
    assert kind == "recipe"
    assert [fault.split(": ")[1] for fault in found] == ["seed", "watchdogs.window", "stages.0.trainer"]


@pytest.mark.parametrize("text", ["", "3", "stages: [", "[]"])
def test_anything_but_a_yaml_mapping_is_one_line(written: Callable[..., Path], text: str) -> None:
    assert len(faults(written(text))) == 1


def test_where_replicas_of_the_engine_are_makes_no_other_recipe(written: Callable[..., Path]) -> None:
    """As with the budget, a training goes on when they change."""
    from medbench.harness.training.train import recipe_sha256

    def digest(**engine: object) -> str:
        return recipe_sha256(read_recipe(written({**SOUND, "engine": engine}), POINTS))

    assert digest(replicas=4, ray_address="head:6379", ship_weights=True) == digest()
    assert digest(dtype="float32") != digest()
