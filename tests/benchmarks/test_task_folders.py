"""Tasks of other packages on the command line, and what is read from the YAML without lm_eval."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medbench.harness.benchmarks.task_folders import core_tasks, task_labels, tasks_folder

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
def test_a_task_of_another_package_is_listed_evaluated_and_gated(site: Path, tmp_path: Path) -> None:
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


def fails_in_one_line(site: Path, task: str) -> str:
    """The error line of an evaluation of `task`."""
    done = medbench(site, "eval", "m", "--tasks", task, "--data", "sample", "--replies", "none.jsonl")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


BROKEN = [
    ("mine = there_is_no_such_module", "there_is_no_such_module) cannot be imported"),
    ("mine = json", "no task YAML in its folder"),
    ("mine = csv", "is not a package, nor in one"),
    ("mine = json:dumps", "cannot be imported"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "says"), BROKEN)
def test_a_broken_plugin_is_one_line_where_it_is_asked_for_and_a_warning_in_the_list(
    tmp_path: Path, line: str, says: str
) -> None:
    site = tmp_path / "site"
    _describe(site, "broken", line)
    assert says in fails_in_one_line(site, "mine")
    listed = medbench(site, "tasks")
    assert listed.returncode == 0
    assert "medqa" in listed.stdout
    (warning,) = listed.stderr.splitlines()
    assert warning.startswith("warning: tasks mine (")
    assert says in warning


@pytest.mark.slow
def test_other_tasks_do_without_a_broken_plugin(tmp_path: Path) -> None:
    _describe(tmp_path / "site", "broken", "mine = there_is_no_such_module")
    assert fails_in_one_line(tmp_path / "site", "medqa") == "medbench: none.jsonl: no such file"


@pytest.mark.slow
def test_a_name_that_two_packages_use_is_refused_and_the_others_are_not(site: Path) -> None:
    yaml = site / "medbench_toy_task" / "colours" / "colours.yaml"
    more = yaml.read_text().replace("task: colours", "task: medqa")
    (yaml.parent / "medqa.yaml").write_text(more)
    clash = (
        "task medqa: medbench and medbench_toy_task both have a task of this name: uninstall one, or rename its task"
    )
    assert fails_in_one_line(site, "medqa") == f"medbench: {clash}"
    assert fails_in_one_line(site, "colours") == "medbench: none.jsonl: no such file"
    listed = medbench(site, "tasks", "--json")
    names = [task["name"] for task in json.loads(listed.stdout)["tasks"]]
    assert "colours" in names
    assert "medqa" not in names
    assert listed.stderr == f"warning: {clash}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  n: 4\n", "", "colours.yaml: metadata: n: missing"),
        ("  n: 4\n", "  n: four\n", "colours.yaml: metadata: n: input should be a valid integer"),
        ("rows.dataset", "rows.datasets", "colours.yaml) cannot be loaded: AttributeError: "),
        ("colours/test.jsonl", "colours/tests.jsonl", "sample: the task has no built-in sample: add tests.jsonl"),
    ],
)
def test_a_faulty_task_of_a_plugin_is_one_line(site: Path, old: str, new: str, says: str) -> None:
    path = site / "medbench_toy_task" / "colours" / "colours.yaml"
    path.write_text(path.read_text().replace(old, new))
    assert says in fails_in_one_line(site, "colours")


@pytest.mark.slow
def test_a_yaml_file_that_cannot_be_parsed_breaks_its_plugin_alone(site: Path) -> None:
    (site / "medbench_toy_task" / "colours" / "colours.yaml").write_text("task: [colours\n")
    assert "colours.yaml: not YAML (" in fails_in_one_line(site, "colours")
    assert fails_in_one_line(site, "medqa") == "medbench: none.jsonl: no such file"


def test_the_toy_package_has_the_current_copy_of_the_include_base() -> None:
    """Plugins copy it: lm-eval resolves `include` by path, and medbench's folder is elsewhere in every install."""
    assert (TOY / "medbench_toy_task" / "_medbench_yaml").read_bytes() == (
        tasks_folder() / "_medbench_yaml"
    ).read_bytes()


@pytest.mark.slow
def test_a_plugin_does_not_change_the_default_tasks(site: Path) -> None:
    path = site / "medbench_toy_task" / "colours" / "colours.yaml"
    path.write_text(path.read_text().replace("  n: 4\n", "  n: 4\n  core: true\n"))
    listed = json.loads(medbench(site, "tasks", "--json").stdout)["tasks"]
    assert {task["name"] for task in listed if task["core"]} == set(core_tasks())


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
