"""A trainer from another distribution: installed by pip, it is found by its entry point in every process.

pytest tests/training/test_plugin_package.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from medbench.harness.training.checkpoint_folder import LOG, checkpoints, last_lines
from medbench.harness.training.process import TrainingProcess

PACKAGE = Path(__file__).resolve().parents[1] / "plugins" / "medbench_noop_trainer"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package."""
    if missing := [name for name in ("pip", "setuptools") if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed: the package cannot be")
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, folder / "source")  # setuptools builds in the source folder
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*command, "--target", folder / "site", folder / "source"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes import from `installed` too."""
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), *([before] if before else [])]))


@pytest.fixture
def medbench(path: None, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`medbench COMMAND recipe.yaml MORE` on a recipe whose one stage is the plugin's, with this config."""

    def medbench(
        command: str, start: str, config: dict[str, Any], *more: str | Path
    ) -> subprocess.CompletedProcess[str]:
        gates = {"max_new_tokens": 8, "gates": [{"task": "medqa", "at_least": 0.5}]}
        stages = [{"name": "only", "trainer": "noop", "config": config, "gates": gates}]
        recipe = {"name": "noop", "start": start, "benchmarks": ["medqa"], "stages": stages}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        given = [sys.executable, "-m", "medbench.harness.cli", command, "recipe.yaml", *map(str, more)]
        return subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return medbench


def test_validate_checks_a_stage_by_the_plugins_config(
    medbench: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = medbench("validate", "start", {"checkpoints": 2})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("recipe.yaml: ")
    faulty = medbench("validate", "start", {"chekpoints": 0})
    assert faulty.returncode == 2
    assert faulty.stdout == "recipe.yaml: stages.0.config.chekpoints: unknown key; did you mean checkpoints?\n"


def test_a_dry_run_prints_what_the_plugin_reports(
    medbench: Callable[..., subprocess.CompletedProcess[str]], tiny_model: Path
) -> None:
    done = medbench("train", str(tiny_model), {"checkpoints": 3}, "--data", "sample", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "stage 1, only: trainer noop, one process" in done.stdout
    assert f"publishes {tiny_model.name} 3 times; benchmarks: medqa" in done.stdout


def test_the_child_process_of_an_attempt_finds_it(path: None, tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    (start / "weights").write_text("1")
    work = tmp_path / "work"
    with TrainingProcess("noop", {"checkpoints": 2}, start=start, folder=work, seed=0) as training:
        until = time.monotonic() + 120
        while (code := training.poll()) is None and time.monotonic() < until:
            time.sleep(0.05)
    assert code == 0, last_lines(work / LOG)
    assert [(one.step, (one.path / "weights").read_text()) for one in checkpoints(work)] == [(1, "1"), (2, "1")]
