"""Tasks of other packages, on the command line; what of the YAML is known without lm_eval."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medbench.harness.benchmarks.task_folders import core_tasks, task_labels

TOY = Path(__file__).parents[1] / "plugins" / "medbench_toy_task"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for sys.path in which the toy package is installed."""
    site = tmp_path / "site"
    shutil.copytree(TOY / "medbench_toy_task", site / "medbench_toy_task")
    _describe(site, "medbench-toy-task", "colours = medbench_toy_task")
    return site


def _describe(site: Path, name: str, line: str) -> None:
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[medbench.tasks]\n{line}\n")


def medbench(site: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    env.pop("MEDBENCH_DATA", None)
    command = [sys.executable, "-m", "medbench.harness.cli", *map(str, words)]
    return subprocess.run(command, cwd=site.parent, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_task_of_another_package_is_listed_asked_and_gated(site: Path, tmp_path: Path) -> None:
    listed = json.loads(medbench(site, "tasks", "--json").stdout)
    assert {"colours", "medqa"} <= {task["name"] for task in listed["tasks"]}
    replies = tmp_path / "replies.jsonl"
    replies.write_text("".join(json.dumps({"id": id, "output": "The answer is (A)."}) + "\n" for id in "1234"))
    asked = ["--replies", replies, "--data", "sample", "--quiet", "--json"]
    done = medbench(site, "eval", "mine", "--tasks", "colours", "--name", "mine", *asked)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"]["colours"]["accuracy"] == 0.5
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: [{task: colours, at_least: 0.75}]\n")
    gated = medbench(site, "gate", "mine", "--gates", gates, *asked)
    assert gated.returncode == 1, gated.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("mine = there_is_no_such_module", "there_is_no_such_module) cannot be imported"),
        ("mine = json", "holds no task YAML"),
        ("mine = medbench.tasks", "both have a task of this name"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(tmp_path: Path, line: str, says: str) -> None:
    _describe(tmp_path / "site", "broken", line)
    done = medbench(tmp_path / "site", "eval", "m", "--tasks", "medqa", "--data", "sample", "--replies", "none.jsonl")
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_core_tasks_and_labels_are_those_of_the_yaml() -> None:
    assert core_tasks() == ("medqa", "mmlu_pro_medical", "pubmedqa")
    assert task_labels()["mmlu_pro_health"].label == "MMLU-Pro Health"


def test_labels_are_read_without_anything_heavy() -> None:
    code = (
        "import sys; from medbench.harness.benchmarks.task_folders import core_tasks; core_tasks(); "
        "print([name for name in ('lm_eval', 'datasets', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
