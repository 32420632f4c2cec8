"""Judges as plugins: one line for each way in which one can be broken."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.contracts import JudgeChoice
from medbench.harness.judges.plugins import BUILT_IN, GROUP, known_judges, start_judge

SOUND = """
class Judge:
    name = "mine"
    fingerprint = "1"
    def judge(self, items): return iter(())
    def close(self): ...
def start(choice): return Judge()
"""
_numbers = itertools.count()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EntryPoint]:
    """A module with this source, behind an entry point of this name."""
    monkeypatch.syspath_prepend(tmp_path)

    def plugin(source: str, name: str = "mine") -> EntryPoint:
        module = f"judge_plugin_{next(_numbers)}"
        (tmp_path / f"{module}.py").write_text(source)
        return EntryPoint(name, module, GROUP)

    return plugin


def test_a_sound_plugin_is_started_and_the_built_in_ones_are_known(plugin: Callable[..., EntryPoint]) -> None:
    assert start_judge(JudgeChoice("mine"), [plugin(SOUND)]).fingerprint == "1"
    assert set(BUILT_IN) == {"command", "llm", "local"}
    assert set(BUILT_IN) <= set(known_judges())


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise RuntimeError('line one\\nline two')", "cannot be imported (RuntimeError: line one line two)"),
        ("", "start(choice) is missing"),
        ("def start(): ...", "start must take (choice), found ()"),
        (SOUND + "NEEDS = 'command'", "NEEDS must hold some of command, model"),
        (SOUND + "NEEDS = ('base_url',)", "NEEDS must hold some of command, model"),
        (SOUND.replace("def close", "def shut"), "a Judge without close"),
        (SOUND.replace('"1"', "1"), "fingerprint must be text, found 1"),
        (SOUND.replace('"mine"', '"../mine"'), "its name must be that of the entry point"),
        (SOUND + "NEEDS = ('model',)", "--judge mine needs --model"),
    ],
)
def test_a_broken_plugin_is_one_line(plugin: Callable[..., EntryPoint], source: str, told: str) -> None:
    with pytest.raises(MedbenchError) as caught:
        start_judge(JudgeChoice("mine"), [plugin(source)])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_plugins_of_one_name_are_refused_and_none_replaces_a_built_in_one(
    plugin: Callable[..., EntryPoint],
) -> None:
    with pytest.raises(MedbenchError, match="both have this name: uninstall one"):
        start_judge(JudgeChoice("mine"), [plugin(SOUND), plugin(SOUND)])
    with pytest.raises(MedbenchError, match="needs --command"):
        start_judge(JudgeChoice("command"), [plugin(SOUND, "command")])
