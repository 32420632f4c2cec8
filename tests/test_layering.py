"""Who may import whom, what may be imported only lazily, and how long a module may be.

pytest tests/test_layering.py
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("harness", "tasks", "trainers", "reports")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
HEAVY = {"torch", "vllm", "transformers", "lm_eval", "datasets", "peft", "trl", "pandas", "statsmodels"}
ONLY_IN = {
    "vllm": ("harness/engines/vllm.py",),
    "lm_eval": ("harness/benchmarks/catalog.py", "harness/benchmarks/lm_eval_tasks.py"),
    "openai": ("harness/engines/openai.py",),
    "trl": ("trainers/",),
    "peft": ("harness/checkpoints/merge.py", "trainers/"),
}
MOST_LINES = 400


def imports(source: str, module: str, *, lazy_too: bool = True) -> Iterator[tuple[int, str]]:
    """(line, full name) of what `source` imports, `module` being its own path such as "tasks/medqa/rows.py".

    Without `lazy_too`, only what is imported when the module is: not in functions, nor for type checkers alone.
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
    """Imports of another of our folders than the module's own and harness; cli.py alone may join them."""
    own = Path(module).parts[0]
    allowed = set(FOLDERS) if module == "harness/cli.py" else {own, "harness"}
    found = []
    for line, name in imports(source, module):
        parts = name.split(".")
        if parts[0] in FOLDERS:
            found.append(f"{module}:{line}: imports {name} by its bare name; write medbench.{name}")
        elif parts[0] == "medbench" and len(parts) > 1 and parts[1] not in allowed:
            found.append(f"{module}:{line}: {own} imports {name}")
    return found


def place_breaches(source: str, module: str) -> list[str]:
    """Imports of a package outside the one place that is kept for it."""
    return [
        f"{module}:{line}: {name} may only be imported in {' and '.join(ONLY_IN[name.split('.')[0]])}"
        for line, name in imports(source, module)
        if not module.startswith(ONLY_IN.get(name.split(".")[0], ("",)))
    ]


def eager_breaches(source: str, module: str) -> list[str]:
    """Heavy packages that importing the module would import."""
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
        (layer_breaches, "tasks/a/rows.py", "from medbench.reports import pages", True),
        (layer_breaches, "tasks/a/rows.py", "from ...reports import pages", True),
        (layer_breaches, "tasks/a/rows.py", "from medbench import trainers", True),
        (layer_breaches, "harness/loop.py", "def f():\n    import medbench.trainers.sft", True),
        (layer_breaches, "harness/cli.py", "def f():\n    import medbench.trainers.sft", False),
        (layer_breaches, "harness/loop.py", "import harness.store", True),
        (place_breaches, "harness/store.py", "def f():\n    from vllm import LLM", True),
        (place_breaches, "harness/engines/vllm.py", "def f():\n    from vllm import LLM", False),
        (place_breaches, "trainers/sft.py", "import trl, peft", False),
        (place_breaches, "reports/pages.py", "import lm_eval.tasks", True),
        (eager_breaches, "harness/store.py", "import torch.nn", True),
        (eager_breaches, "harness/store.py", "class A:\n    import pandas", True),
        (eager_breaches, "harness/store.py", "try:\n    import datasets\nexcept ImportError: ...", True),
        (eager_breaches, "harness/store.py", "def f():\n    import torch", False),
        (eager_breaches, "harness/store.py", "if TYPE_CHECKING:\n    import torch", False),
    ],
)
def test_the_rules_fire_on_what_breaks_them_alone(check, module: str, source: str, breaks: bool) -> None:
    assert bool(check(source, module)) is breaks


def test_folders_import_only_harness_and_themselves() -> None:
    assert [line for source, module in sources(*FOLDERS) for line in layer_breaches(source, module)] == []


def test_each_heavy_package_has_one_place() -> None:
    assert [line for source, module in sources(*FOLDERS) for line in place_breaches(source, module)] == []


def test_harness_imports_heavy_packages_lazily() -> None:
    assert [line for source, module in sources("harness") for line in eager_breaches(source, module)] == []


def test_no_module_is_too_long() -> None:
    lengths = {module: source.count("\n") for source, module in sources(*FOLDERS)}
    assert {module: lines for module, lines in lengths.items() if lines > MOST_LINES} == {}


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
