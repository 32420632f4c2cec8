"""Trainers as plugins: what a trainer must have, and one line for each way in which it can be broken.

pytest tests/training/test_trainer_plugins.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

from medbench.harness.contracts import MedbenchError
from medbench.harness.training.trainer_plugins import GROUP, FailedAttempt, adapt, example, find_trainer, prepare

SOUND = """
from pydantic import BaseModel
class Config(BaseModel):
    rate: float = 1.0
def train(config, *, start, folder, seed): ...
"""
_numbers = itertools.count()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EntryPoint]:
    """A module with this source, behind an entry point with this name."""
    monkeypatch.syspath_prepend(tmp_path)

    def plugin(source: str, name: str = "mine", attribute: str = "") -> EntryPoint:
        module = f"plugin_{next(_numbers)}"
        (tmp_path / f"{module}.py").write_text(source)
        return EntryPoint(name, module + attribute, GROUP)

    return plugin


def fault(*points: EntryPoint, name: str = "mine") -> str:
    with pytest.raises(MedbenchError) as caught:
        find_trainer(name, points)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        SOUND,
        SOUND
        + "def prepare(config, *, start, folder, benchmarks): return []\ndef adapt(config, verdict): return config",
        SOUND.replace("config, *, start, folder, seed", "settings, start, seed, folder, extra=None"),
        SOUND.replace("config, *, start, folder, seed", "config, **options"),
        SOUND + "prepare = None",
    ],
)
def test_a_sound_plugin_is_found(plugin: Callable[..., EntryPoint], source: str) -> None:
    assert find_trainer("mine", [plugin(source)]).Config.model_fields.keys() == {"rate"}


def test_a_trainer_may_be_an_object_instead_of_a_module(plugin: Callable[..., EntryPoint]) -> None:
    source = """
from pydantic import BaseModel
class Mine:
    class Config(BaseModel): ...
    def train(self, config, *, start, folder, seed): ...
mine = Mine()
"""
    assert find_trainer("mine", [plugin(source, attribute=":mine")])
    assert "found train(self, config, *, start, folder, seed)" in fault(plugin(source, attribute=":Mine"))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            SOUND.replace("seed", "sead"),
            "train must take train(config, *, start, folder, seed), found train(config, *, start, folder, sead)",
        ),
        (
            SOUND.replace("seed", "seed, device"),
            "train must take train(config, *, start, folder, seed), found train("
            "config, *, start, folder, seed, device)",
        ),
        (SOUND.replace("config, *, ", "*, config, "), "train must take train(config, *, start, folder, seed), found"),
        (SOUND.replace("def train", "def trian"), "train(config, *, start, folder, seed) is missing"),
        (SOUND + "train = 3", "train(config, *, start, folder, seed) is missing"),
        (SOUND + "train = dict.fromkeys", "train must take train(config, *, start, folder, seed), found"),
        (SOUND + "train = type", "train must take train(config, *, start, folder, seed), found <class 'type'>"),
        (SOUND + "def adapt(config): ...", "adapt must take adapt(config, verdict), found adapt(config)"),
        (SOUND + "def prepare(config): ...", "prepare must take prepare(config, *, start, folder, benchmarks), found"),
        (SOUND + "def example(config): ...", "example must take example(config, *, start, folder), found"),
        (SOUND.replace("class Config", "class Confg"), "Config must be a pydantic model"),
        (SOUND.replace("(BaseModel)", ""), "Config must be a pydantic model"),
        (SOUND + "Config = Config()", "Config must be a pydantic model"),
        ("import no_such_package", "cannot be imported (ModuleNotFoundError: No module named 'no_such_package')"),
        ("raise RuntimeError('two\\nlines')", "cannot be imported (RuntimeError: two lines)"),
        ("import sys; sys.exit('no GPU')", "cannot be imported (SystemExit: no GPU)"),
        ("def train(:", "cannot be imported (SyntaxError: "),
    ],
)
def test_each_way_of_being_broken_is_one_line(plugin: Callable[..., EntryPoint], source: str, told: str) -> None:
    point = plugin(source)
    line = fault(point)
    assert line.startswith(f"trainer 'mine' ({point.value})")
    assert told in line


def test_all_faults_of_a_plugin_are_reported_at_once(plugin: Callable[..., EntryPoint]) -> None:
    line = fault(plugin("def adapt(): ..."))
    assert all(
        told in line for told in ("Config must be", "train(config, *, start, folder, seed) is missing", "adapt(")
    )


def test_a_missing_attribute_is_one_line(plugin: Callable[..., EntryPoint]) -> None:
    assert "cannot be imported (AttributeError: " in fault(plugin(SOUND, attribute=":nothing"))


def test_an_unknown_name_is_reported_with_similar_ones(plugin: Callable[..., EntryPoint]) -> None:
    assert fault(plugin(SOUND), name="mien") == "trainer 'mien': no such plugin; did you mean mine?"
    assert fault(plugin(SOUND), name="xyz") == "trainer 'xyz': no such plugin; known: mine"
    assert fault(name="xyz").startswith("trainer 'xyz': no such plugin")


def test_a_name_shared_by_two_plugins_is_refused(plugin: Callable[..., EntryPoint]) -> None:
    first, second = plugin(SOUND), plugin(SOUND)
    line = fault(first, second)
    assert line.endswith("have the same name: uninstall one")
    assert first.value in line
    assert second.value in line


def test_one_plugin_listed_twice_counts_once(plugin: Callable[..., EntryPoint]) -> None:
    point = plugin(SOUND)
    assert find_trainer("mine", [point, point])


def test_a_broken_plugin_does_not_affect_others(plugin: Callable[..., EntryPoint]) -> None:
    assert find_trainer("good", [plugin("raise ValueError"), plugin(SOUND, "good")])


def trainer(**functions: object):
    class Config(BaseModel):
        rate: float = 1.0

    return SimpleNamespace(Config=Config, train=lambda config, *, start, folder, seed: None, **functions)


def test_adapt_returns_the_next_config_or_the_same() -> None:
    plain = trainer()
    assert adapt(plain, plain.Config(), FailedAttempt("x")) == plain.Config()
    halving = trainer(adapt=lambda config, verdict: config.model_copy(update={"rate": config.rate / 2}))
    assert adapt(halving, halving.Config(), FailedAttempt("x", diverged=True)).rate == 0.5


def test_an_adapt_that_returns_no_config_is_an_error() -> None:
    broken = trainer(adapt=lambda config, verdict: None)
    with pytest.raises(MedbenchError, match=r"adapt\(\) returned NoneType, not the trainer's Config"):
        adapt(broken, broken.Config(), FailedAttempt("x"))


def test_prepare_returns_lines_or_none(tmp_path: Path) -> None:
    offered = trainer(prepare=lambda config, *, start, folder, benchmarks: [f"{folder.name}: {len(benchmarks)}"])
    where = {"start": tmp_path, "folder": tmp_path / "1-sft", "benchmarks": {"medqa": []}}
    assert prepare(offered, offered.Config(), **where) == ["1-sft: 1"]
    assert prepare(trainer(), offered.Config(), **where) == []
    with pytest.raises(MedbenchError, match=r"prepare\(\) returned NoneType, not a list of lines"):
        prepare(trainer(prepare=lambda config, **_: None), offered.Config(), **where)


def test_example_returns_lines_or_none(tmp_path: Path) -> None:
    offered = trainer(example=lambda config, *, start, folder: [f"{folder.name}: first"])
    where = {"start": tmp_path, "folder": tmp_path / "1-sft"}
    assert example(offered, offered.Config(), **where) == ["1-sft: first"]
    assert example(trainer(), offered.Config(), **where) == []
    with pytest.raises(MedbenchError, match=r"example\(\) returned str, not a list of lines"):
        example(trainer(example=lambda config, **_: "first"), offered.Config(), **where)
