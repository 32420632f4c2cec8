"""Which wing may import which, and which packages may be imported only lazily or in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("harness", "tasks", "trainers", "reports")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# A wing imports from itself and from lower floors (earlier in the list), never from a wing on its own floor.
FLOORS = (
    ("harness/contracts", "harness/config", "harness/files", "harness/secrets", "harness/text"),
    ("harness/hub",),
    ("harness/extraction", "harness/stats", "harness/benchmarks", "harness/checkpoints"),
    ("harness/protocols", "harness/scoring", "tasks"),
    ("harness/engines", "harness/runs"),
    ("harness/evaluation", "harness/judges"),
    ("harness/gates",),
    ("harness/training",),
    ("harness/sweeps",),
    ("reports/read", "trainers/rewards"),
    ("reports/views", "trainers/data", "trainers/trl"),
    ("reports/write", "trainers"),
    ("harness/verdict_server", "harness/synth", "harness/quantise"),
    ("harness/api",),
    ("harness/cli",),
)
GROUND = FLOORS[0]
BARRED = {
    "reports": ("harness/engines", "harness/evaluation", "trainers"),
    "trainers": ("harness/engines", "reports"),
    "harness/api": ("trainers",),
    "harness/cli": ("trainers",),
}
"""Wings that a folder must not import although they are lower: pages read only the disk, trainers ask no model."""

MOST_LOOSE_MODULES = 7
HEAVY = {"ray", "torch", "vllm", "transformers", "lm_eval", "datasets", "peft", "trl", "pandas", "statsmodels"}
ONLY_IN = {
    "ray": tuple(f"harness/engines/replicas/{name}.py" for name in ("cluster", "placement")),
    "vllm": ("harness/engines/vllm.py", "harness/engines/vllm_probe.py"),
    "lm_eval": ("harness/benchmarks/catalog.py", "harness/benchmarks/lm_eval_tasks.py"),
    "openai": tuple(f"harness/engines/{name}.py" for name in ("openai", "server_patience", "server_replies")),
    "trl": ("trainers/",),
    "peft": ("harness/checkpoints/adapted.py", "trainers/"),
}


def wing_of(path: str) -> str:
    """The wing of a module's path ("harness/gates/judge"), or of a name in the module; the longest match."""
    wings = [wing for floor in FLOORS for wing in floor if path == wing or path.startswith(f"{wing}/")]
    return max(wings, key=len, default="")


def imports(source: str, module: str, *, lazy_too: bool = True) -> Iterator[tuple[int, str]]:
    """(line, full name) of each import in `source`; `module` is its path, such as "tasks/medqa/rows.py".

    Without `lazy_too`, only what is imported together with the module: not in functions, not for type checkers only.
    """
    package = ["medbench", *Path(module).parent.parts]
    for node in _nodes(ast.parse(source), lazy_too):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _nodes(tree: ast.AST, lazy_too: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not lazy_too:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
        yield node
        yield from _nodes(node, lazy_too)


def layer_breaches(source: str, module: str) -> list[str]:
    """Imports from a higher floor, from the same floor, or from a barred wing."""
    own = wing_of(module.removesuffix(".py"))
    floors = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}
    barred = [
        name for folder, names in BARRED.items() if module.startswith((f"{folder}/", f"{folder}.py")) for name in names
    ]
    found = []
    for line, name in imports(source, module):
        parts = name.split(".")
        if parts[0] in FOLDERS:
            found.append(f"{module}:{line}: imports {name} by its bare name; write medbench.{name}")
        if parts[0] != "medbench" or len(parts) < 3:
            continue
        other = wing_of("/".join(parts[1:]))
        inside = other == own or (own in GROUND and other in GROUND)
        if not inside and (not other or not own or floors[other] >= floors[own]):
            found.append(f"{module}:{line}: {own or module} may not import {name}")
        elif other.startswith(tuple(barred)) and other != own:
            found.append(f"{module}:{line}: {own} must not import {other}, but imports {name}")
    return found


def place_breaches(source: str, module: str) -> list[str]:
    """Imports of a package outside the only place that may import it."""
    return [
        f"{module}:{line}: {name} may only be imported in {' and '.join(ONLY_IN[name.split('.')[0]])}"
        for line, name in imports(source, module)
        if not module.startswith(ONLY_IN.get(name.split(".")[0], ("",)))
    ]


def eager_breaches(source: str, module: str) -> list[str]:
    """Heavy packages that are imported together with the module."""
    return [
        f"{module}:{line}: {name} must be imported where it is used, inside a function"
        for line, name in imports(source, module, lazy_too=False)
        if name.split(".")[0] in HEAVY
    ]


def sources(*folders: str) -> list[tuple[str, str]]:
    return [
        (path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
        for path in MODULES
        if path.relative_to(ROOT).parts[0] in folders
    ]


@pytest.mark.parametrize(
    ("check", "module", "source", "breaks"),
    [
        (layer_breaches, "tasks/a/rows.py", "from medbench.harness.benchmarks.rows import benchmark", False),
        (layer_breaches, "tasks/a/rows.py", "from medbench.tasks.b import rows", False),
        (layer_breaches, "tasks/a/rows.py", "from medbench.reports.write import pages", True),
        (layer_breaches, "tasks/a/rows.py", "from ...reports.write import pages", True),
        (layer_breaches, "harness/gates/judge.py", "from medbench.harness.engines.pool import EngineKeeper", False),
        (layer_breaches, "harness/gates/judge.py", "def f():\n    from medbench.harness.cli import options", True),
        (layer_breaches, "harness/engines/pool.py", "from medbench.harness.runs.records import RunRecord", True),
        (layer_breaches, "harness/stats/sequential.py", "from medbench.harness.extraction.answer import extract", True),
        (layer_breaches, "harness/training/loop.py", "def f():\n    import medbench.trainers.sft", True),
        (layer_breaches, "harness/cli/main.py", "def f():\n    from medbench.reports.write import report", False),
        (layer_breaches, "harness/cli/main.py", "def f():\n    import medbench.trainers.sft", True),
        (layer_breaches, "reports/views/run.py", "from medbench.reports.write import pages", True),
        (layer_breaches, "reports/read/collect.py", "from medbench.harness.engines.fake import FakeEngine", True),
        (layer_breaches, "trainers/sft.py", "from medbench.trainers.trl import run", False),
        (layer_breaches, "trainers/trl/run.py", "from medbench.trainers import sft", True),
        (layer_breaches, "harness/loose.py", "from medbench.harness.gates import judge", True),
        (layer_breaches, "harness/training/loop.py", "import harness.runs", True),
        (place_breaches, "harness/runs/compare.py", "def f():\n    from vllm import LLM", True),
        (place_breaches, "harness/engines/vllm.py", "def f():\n    from vllm import LLM", False),
        (place_breaches, "trainers/sft.py", "import trl, peft", False),
        (place_breaches, "reports/pages.py", "import lm_eval.tasks", True),
        (eager_breaches, "harness/runs/compare.py", "import torch.nn", True),
        (eager_breaches, "harness/runs/compare.py", "class A:\n    import pandas", True),
        (eager_breaches, "harness/runs/compare.py", "try:\n    import datasets\nexcept ImportError: ...", True),
        (eager_breaches, "harness/runs/compare.py", "def f():\n    import torch", False),
        (eager_breaches, "harness/runs/compare.py", "if TYPE_CHECKING:\n    import torch", False),
    ],
)
def test_the_rules_find_breaches_and_nothing_else(check, module: str, source: str, breaks: bool) -> None:
    assert bool(check(source, module)) is breaks


def test_every_module_of_the_core_belongs_to_a_wing() -> None:
    loose = [module for _, module in sources("harness") if not wing_of(module.removesuffix(".py"))]
    assert loose == ["harness/__init__.py"]


def test_few_modules_are_directly_in_harness() -> None:
    assert len(list((ROOT / "harness").glob("*.py"))) <= MOST_LOOSE_MODULES


def test_every_package_is_named_in_pyproject() -> None:
    """One that is not would be missing from the wheel."""
    found = {path.parent.relative_to(ROOT) for path in MODULES if path.name == "__init__.py"}
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {".".join(("medbench", *folder.parts)) for folder in found} == {*named} - {"medbench"}


def test_a_wing_imports_only_downwards() -> None:
    assert [line for source, module in sources(*FOLDERS) for line in layer_breaches(source, module)] == []


def test_each_heavy_package_has_one_place() -> None:
    assert [line for source, module in sources(*FOLDERS) for line in place_breaches(source, module)] == []


def test_harness_imports_heavy_packages_lazily() -> None:
    assert [line for source, module in sources("harness") for line in eager_breaches(source, module)] == []


def test_no_module_is_a_catch_all() -> None:
    assert [path.name for path in MODULES if path.name in ("utils.py", "common.py", "types.py")] == []


def test_help_starts_without_anything_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "medbench.harness.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert imported & {"torch", "vllm", "transformers", "lm_eval", "datasets"} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_bare_name_cannot_be_imported(folder: str) -> None:
    command = [sys.executable, "-c", f"import {folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert f"ImportError: import this as medbench.{folder}" in done.stderr
