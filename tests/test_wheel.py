"""The package as others get it: sdist and wheel are built from what git tracks, and the wheel works where it is alone.

The wheel goes into a fresh environment that borrows this one's other packages. Its commands run in an empty folder,
with none of this environment's variables.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from medbench.harness.cli.main import run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STORED = ROOT / "tests" / "data" / "schema_1"
TOPS = ("harness", "tasks", "trainers", "reports")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STORED_REPLIES = (
    "--replies", STORED / "replies.jsonl", "--data", "sample", "--tasks", "medqa,pubmedqa", "--partition", "gate",
    "--protocol", "cot-v1", "--max-new-tokens", "64", "--quiet",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Installed:
    """The wheel in its environment."""

    python: Path
    site: Path
    """site-packages, which hold the wheel alone."""
    home: Path
    """An empty folder, where its commands run."""

    def call(self, *words: str | Path, status: int = 0) -> str:
        """Standard output of a program of the environment."""
        env = {"PATH": os.defpath, "HOME": str(self.home), "MEDBENCH_CACHE": str(self.home / "cache")}
        program, *arguments = map(str, words)
        done = subprocess.run(
            [self.python.with_name(program), *arguments],
            cwd=self.home,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout


def tracked() -> list[str]:
    """Files that git tracks, but for those that are deleted in the working tree."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout: what belongs into the wheel is what git tracks")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the sdist and of the wheel that was built from it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    for folder in ("harness", "harness/engines"):  # what an import leaves behind is not shipped
        (tree / folder / "__pycache__").mkdir()
        (tree / folder / "__pycache__" / "left.cpython-311.pyc").touch()
    # not in the tree, where a folder `build` would be taken for the module
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree], cwd=out, check=True, timeout=300
    )
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    (site,) = (folder / "env").glob("lib/*/site-packages")
    # what a .pth file adds is searched last, and .pth files in there, such as an editable medbench's, are not read
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "borrowed.pth").write_text("\n".join(others) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(pip, check=True, timeout=300)
    (folder / "home").mkdir()
    return Installed(python, site, folder / "home")


def test_the_wheel_holds_what_git_tracks_and_nothing_else(wheel: Path) -> None:
    root = [name for name in ("__init__.py", "py.typed") if (ROOT / name).exists()]
    expected = {f"medbench/{name}" for name in tracked() if name.startswith(tuple(f"{top}/" for top in TOPS))}
    expected |= {f"medbench/{name}" for name in root}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert sorted(expected - held) == []
    assert sorted(held - expected) == []


def test_every_package_of_the_tree_is_in_a_folder_that_is_shipped() -> None:
    packages = {name.split("/")[0] for name in tracked() if name.endswith("/__init__.py")}
    assert packages - {"tests"} == set(TOPS)


def test_types_are_shipped(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"medbench/{top}/py.typed" for top in TOPS} <= held


def test_the_sdist_holds_the_package_and_no_tests(built: Path, wheel: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    packaged = {name.removeprefix("medbench/") for name in zipfile.ZipFile(wheel).namelist()
                if ".dist-info/" not in name}  # fmt: skip
    assert packaged <= held
    assert {"LICENSE", "README.md", "pyproject.toml"} <= held
    assert [name for name in held if name.startswith(("tests", ".", "build"))] == []


def test_an_index_would_take_both(built: Path) -> None:
    files = sorted(built.iterdir())
    assert len(files) == 2
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_it_is_the_wheel_that_is_imported(installed: Installed) -> None:
    names = [f"medbench.{top}" for top in TOPS]
    code = f"import sys, {', '.join(names)}; print(*(sys.modules[name].__file__ for name in {names}), sep='\\n')"
    found = [Path(line) for line in installed.call("python", "-c", code).splitlines()]
    assert found == [installed.site / "medbench" / top / "__init__.py" for top in TOPS]


def test_the_version_is_that_of_the_project(installed: Installed, wheel: Path) -> None:
    version = PROJECT["version"]
    assert wheel.name == f"medbench-{version}-py3-none-any.whl"
    assert installed.call("medbench", "--version") == f"medbench, version {version}\n"
    code = "from medbench.harness import __version__; print(__version__)"
    assert installed.call("python", "-c", code) == f"{version}\n"


def test_tasks_and_protocols_are_all_there(installed: Installed, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "--json"]) == 0
    expected = json.loads(capfd.readouterr().out)
    found = json.loads(installed.call("medbench", "tasks", "--json"))
    assert {"medqa", "mmlu_pro_medical", "mmlu_pro_health", "pubmedqa", "pubmedqa_1k"} <= {
        task["name"] for task in found["tasks"]
    }
    for task in (*expected["tasks"], *found["tasks"]):
        task.pop("path")
    assert found == expected


def test_a_task_shows_a_prompt(installed: Installed) -> None:
    assert "Think step by step" in installed.call("medbench", "tasks", "medqa")


def test_from_stored_replies_to_a_verdict_and_pages(installed: Installed) -> None:
    name = "candidate"
    told = json.loads(installed.call("medbench", "eval", name, *STORED_REPLIES, "--name", name, "--json"))
    assert told["results"]["medqa"]["accuracy"] == pytest.approx(13 / 18)
    given = ("--task", "mmlu_pro_medical", "--data", "sample", "--name", "weak", "--json")
    scored = installed.call("medbench", "score", STORED / "weak.jsonl", *given)
    assert json.loads(scored)["results"]["mmlu_pro_medical"]["n"] == 49
    base = STORED / "runs" / "base"
    judged = installed.call("medbench", "gate", f"runs/{name}", "--gates", STORED / "gates.yaml", "--baseline", base,
                            "--json", status=1)  # fmt: skip
    assert json.loads(judged)["verdicts"][0]["overall"] == "fail"
    shown = json.loads(installed.call("medbench", "report", "runs", "-o", "site", "--json"))
    assert (shown["runs"], shown["broken"]) == (2, 0)
    assert (installed.home / "site" / "index.html").stat().st_size > 1000
    assert list((installed.home / "site" / "assets").rglob("uPlot*"))


def test_what_is_shipped_is_sound(installed: Installed) -> None:
    recipes = sorted((installed.site / "medbench").glob("*/recipes/*.yaml"))
    protocols = sorted((installed.site / "medbench").rglob("protocols/*.yaml"))
    assert len(recipes) >= 3
    said = installed.call("medbench", "validate", *recipes, *protocols)
    assert len(said.splitlines()) == len(recipes) + len(protocols)


def test_a_training_is_planned(installed: Installed) -> None:
    start = installed.home / "start"
    start.mkdir()
    (start / "config.json").write_text("{}")
    (start / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros(4, dtype=np.float32)}, start / "model.safetensors")
    stage = {"name": "one", "trainer": "command", "config": {"command": ["true", "{start}", "{folder}"]},
             "gates": {"gates": [{"task": "medqa", "at_least": 0.5}]}}  # fmt: skip
    recipe = {"name": "mine", "start": "start", "benchmarks": ["medqa"], "stages": [stage]}
    (installed.home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = ("train", "recipe.yaml", "--data", "sample", "--dry-run", "--json")
    plan = json.loads(installed.call("medbench", *given))["plan"]
    assert "stage 1, one: trainer command, one process" in plan


def test_trainers_are_found_by_their_entry_points(installed: Installed) -> None:
    code = (
        "from importlib.metadata import entry_points\n"
        "from medbench.harness.training.trainer_plugins import GROUP, find_trainer\n"
        "names = sorted({point.name for point in entry_points(group=GROUP)})\n"
        "print(*(f'{name} {find_trainer(name).__file__}' for name in names), sep='\\n')"
    )
    found = dict(line.split(" ", 1) for line in installed.call("python", "-c", code).splitlines())
    assert found.keys() == PROJECT["entry-points"]["medbench.trainers"].keys()
    assert all(Path(file).is_relative_to(installed.site / "medbench") for file in found.values())


@pytest.fixture
def plugin(installed: Installed) -> Callable[[str], None]:
    """Installs a module as another package's trainer."""

    def plugin(name: str) -> None:
        lines = ["from pydantic import BaseModel", "class Config(BaseModel): ...",
                 "def train(config, *, start, folder, seed): ..."]  # fmt: skip
        (installed.site / f"{name}.py").write_text("\n".join(lines) + "\n")
        info = installed.site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[medbench.trainers]\n{name} = {name}\n")

    return plugin


def test_a_trainer_of_another_package_is_found(installed: Installed, plugin: Callable[[str], None]) -> None:
    plugin("foreign_trainer")
    code = (
        "from medbench.harness.training.trainer_plugins import find_trainer; "
        "print(find_trainer('foreign_trainer').__name__)"
    )
    assert installed.call("python", "-c", code) == "foreign_trainer\n"
