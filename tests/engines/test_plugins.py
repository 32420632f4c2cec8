"""Engines as plugins: a third-party package on the command line, and one line for each way a plugin can be broken."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from support.gate_runs import write_gates

from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.plugins import BUILT_IN, GROUP, check_choice, find_engine, needs_of
from medbench.harness.engines.pool import start_engine
from medbench.harness.engines.settings import EngineChoice

ECHO = Path(__file__).parents[1] / "plugins" / "medbench_echo_engine"
SOUND = "def start(name, checkpoint, choice): ...\n"
_numbers = itertools.count()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EntryPoint]:
    """A module with this source, behind an entry point of this name."""
    monkeypatch.syspath_prepend(tmp_path)

    def plugin(source: str, name: str = "mine") -> EntryPoint:
        module = f"engine_plugin_{next(_numbers)}"
        (tmp_path / f"{module}.py").write_text(source)
        return EntryPoint(name, module, GROUP)

    return plugin


def fault(*points: EntryPoint, name: str = "mine") -> str:
    with pytest.raises(MedbenchError) as caught:
        find_engine(name, points)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_engines_are_sound_plugins(name: str) -> None:
    assert find_engine(name, [])


def test_each_built_in_engine_says_what_it_needs() -> None:
    needs = {name: list(needs_of(find_engine(name))) for name in BUILT_IN}
    assert needs == {
        "vllm": ["checkpoint"],
        "hf": ["checkpoint"],
        "openai": ["base_url"],
        "fake": ["replies"],
        "ray": ["checkpoint"],
    }


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (EngineChoice("openai"), "--engine openai needs --base-url"),
        (EngineChoice("fake"), "--engine fake needs --replies"),
        (EngineChoice("hf", base_url="http://localhost"), "--engine hf does not take --base-url"),
        (EngineChoice("vlm"), "engine 'vlm': no such engine; did you mean vllm?"),
    ],
)
def test_settings_that_do_not_go_with_the_engine_are_one_line(choice: EngineChoice, told: str) -> None:
    with pytest.raises(MedbenchError) as caught:
        check_choice(choice)
    assert told in str(caught.value)


@pytest.mark.parametrize("source", [SOUND, SOUND + "NEEDS = ()", SOUND + "NEEDS = {'checkpoint', 'base_url'}"])
def test_a_sound_plugin_is_found(plugin: Callable[..., EntryPoint], source: str) -> None:
    assert find_engine("mine", [plugin(source)])


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("", "start(name, checkpoint, choice) is missing"),
        (SOUND + "start = 3", "start(name, checkpoint, choice) is missing"),
        ("def start(name): ...", "start must take (name, checkpoint, choice), found (name)"),
        (SOUND + "NEEDS = ('gpu',)", "NEEDS must hold some of base_url, checkpoint, replies, found ('gpu',)"),
        (SOUND + "NEEDS = 'checkpoint'", "NEEDS must hold some of base_url, checkpoint, replies, found 'checkpoint'"),
        ("import no_such_package", "cannot be imported (ModuleNotFoundError: No module named 'no_such_package')"),
        ("raise RuntimeError('two\\nlines')", "cannot be imported (RuntimeError: two lines)"),
        ("import sys; sys.exit('no GPU')", "cannot be imported (SystemExit: no GPU)"),
    ],
)
def test_each_way_of_being_broken_is_one_line(plugin: Callable[..., EntryPoint], source: str, told: str) -> None:
    point = plugin(source)
    line = fault(point)
    assert line.startswith(f"engine 'mine' ({point.value})")
    assert told in line
    assert line.endswith("fix or uninstall it")


def test_an_unknown_name_lists_similar_ones(plugin: Callable[..., EntryPoint]) -> None:
    assert fault(plugin(SOUND), name="mien") == "engine 'mien': no such engine; did you mean mine?"
    assert fault(name="xyz") == "engine 'xyz': no such engine; known: fake, hf, openai, ray, vllm"


def test_a_name_that_two_plugins_have_is_refused(plugin: Callable[..., EntryPoint]) -> None:
    assert fault(plugin(SOUND), plugin(SOUND)).endswith("both have this name: uninstall one")


def test_a_plugin_cannot_replace_a_built_in_engine(plugin: Callable[..., EntryPoint]) -> None:
    assert find_engine("hf", [plugin(SOUND, "hf")]).__name__ == "medbench.harness.engines.hf"  # type: ignore[attr-defined]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as `pip install --target` leaves it for the echo engine."""
    site = tmp_path / "site"
    info = site / "medbench_echo_engine-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(ECHO / "medbench_echo_engine.py", site)
    project = tomllib.loads((ECHO / "pyproject.toml").read_text())["project"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"][GROUP].items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
    return site


def medbench(folder: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "medbench.harness.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_third_party_engine_answers_on_the_command_line(installed: Path, tmp_path: Path) -> None:
    eval_ = ["eval", "yes", "--engine", "echo", "--tasks", "pubmedqa", "--data", "sample", "--name", "r", "--json"]
    done = medbench(tmp_path, installed, *eval_, "--quiet")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["results"]["pubmedqa"]["n_unparsed"] == 0
    assert outcome["model"]["kind"] == "engine"
    assert json.loads((tmp_path / "runs/r/run.json").read_text())["engine"]["settings"] == {"echoes": "yes"}
    (tmp_path / "echo.yaml").write_text("engine: echo")
    assert medbench(tmp_path, installed, "validate", "echo.yaml").returncode == 0

    gates = write_gates(tmp_path / "gates.yaml", "{task: pubmedqa, metric: unparsed, at_most: 0.5}", partition="all")
    gate = ["gate", "yes", "--gates", str(gates), "--engine", "echo", "--data", "sample", "--quiet"]
    assert medbench(tmp_path, installed, *gate).returncode in (0, 3)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_package", "cannot be imported (ModuleNotFoundError"),
        (
            "NEEDS = ()\nclass Half: name = 'echo'\ndef start(name, checkpoint, choice): return Half()",
            "medbench: engine 'echo': a Half without render, chat_template, generate, settings, close: implement",
        ),
    ],
)
def test_a_broken_engine_is_one_line_and_exit_2(source: str, told: str, installed: Path, tmp_path: Path) -> None:
    (installed / "medbench_echo_engine.py").write_text(source)
    done = medbench(tmp_path, installed, "eval", "m", "--engine", "echo", "--tasks", "pubmedqa", "--data", "sample")
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_unknown_engine_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = medbench(tmp_path, tmp_path, "eval", "m", "--engine", "vlm")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "medbench: engine 'vlm': no such engine; did you mean vllm?\n"


def test_what_start_returns_is_checked(plugin: Callable[..., EntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    point = plugin(SOUND + "NEEDS = ()")
    monkeypatch.setattr("medbench.harness.engines.plugins.entry_points", lambda group: [point])
    with pytest.raises(MedbenchError, match="engine 'mine': a NoneType without name, render"):
        start_engine(EngineChoice("mine"), "m", None)
