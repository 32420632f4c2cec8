"""Where cells are trained, and their recipes as files.

pytest tests/sweeps/test_cells.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from medbench.harness.contracts import MedbenchError
from medbench.harness.sweeps.cell_process import PARENT
from medbench.harness.sweeps.cells import Place, places_of, write_recipe
from medbench.harness.training.recipe import Cell, Recipe, read_recipe
from medbench.harness.training.train import recipe_sha256

GATES = {"gates": [{"task": "medqa", "at_least": 0.5}]}


def recipe(*, engine: dict[str, Any] | None = None, **launch: Any) -> Recipe:
    stage = {
        "name": "sft",
        "trainer": "command",
        "config": {"command": ["true"], "settings": {"rate": 1e-05}},
        "launch": launch,
        "gates": GATES,
    }
    return Recipe.model_validate(
        {"name": "one", "start": "a", "engine": engine or {}, "watchdogs": {"window": 5}, "stages": [stage]}
    )


@pytest.mark.parametrize(
    ("visible", "given", "parallel", "devices"),
    [
        ("0,1,2,3", {}, None, ["0", "1", "2", "3"]),
        ("4,5,6,7", {"processes": 2}, None, ["4,5", "6,7"]),
        ("0,1,2", {"processes": 2}, None, ["0,1,2"]),
        ("0,1,2,3", {"engine": {"tensor_parallel_size": 4}}, None, ["0,1,2,3"]),
        ("0,1,2,3", {}, 2, ["0,1", "2,3"]),
        ("0,1,2,3", {}, 1, [None]),
        ("0,1", {"env": {"CUDA_VISIBLE_DEVICES": "0"}}, None, [None]),
        ("", {}, None, [None]),
        ("", {}, 2, [None, None]),
    ],
)
def test_gpus_are_divided_among_cells(
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    given: dict[str, Any],
    parallel: int | None,
    devices: list[str | None],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert places_of([recipe(), recipe(**given)], parallel) == [Place(one) for one in devices]


@pytest.mark.parametrize(
    ("given", "parallel", "says"),
    [
        ({}, 5, "5 cells at a time take 5 GPUs, and there are 4"),
        ({"processes": 2}, 3, "3 cells at a time take 6 GPUs"),
        ({"env": {"CUDA_VISIBLE_DEVICES": "0"}}, 2, "the recipe's launch or engine chooses GPUs itself"),
        ({"engine": {"replicas": 2}}, 2, "the recipe's launch or engine chooses GPUs itself"),
    ],
)
def test_more_cells_than_there_are_gpus_for_are_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], parallel: int, says: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(MedbenchError, match=says):
        places_of([recipe(), recipe(**given)], parallel)


def test_a_cells_file_is_read_as_its_recipe(tmp_path: Path) -> None:
    one = recipe()
    path = write_recipe(tmp_path, Cell("one", {}, one))
    found = read_recipe(path)
    assert found == one
    assert recipe_sha256(found) == recipe_sha256(one)


def test_a_cells_process_says_what_is_wrong_in_one_line_and_dies_with_the_sweep(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medbench.harness.sweeps.cell_process", str(tmp_path / "no.yaml"), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, PARENT: str(os.getpid())}, timeout=60
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.splitlines() == [f"{tmp_path / 'no.yaml'}: no such file"]

    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import os, time\\n"
        "from medbench.harness.training.worker import die_with\\ndie_with(os.getppid())\\n"
        "print(1, flush=True)\\ntime.sleep(60)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    until = time.monotonic() + 15
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "left behind"
        time.sleep(0.05)
