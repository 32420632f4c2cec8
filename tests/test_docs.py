"""The documents: links lead somewhere, commands exist, the Python example runs."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import yaml
from support.gate_runs import write_gates, write_medqa, write_replies

import medbench
from medbench.harness.cli.main import cli, run

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_exist(document: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    for line in re.findall(r"^medbench .*$", "\n".join(blocks), re.MULTILINE):
        words = line.partition("#")[0].split()[1:]
        assert words[0] in cli.commands, line
        known = {option for parameter in cli.commands[words[0]].params for option in parameter.opts}
        assert [word for word in words if word.startswith("--") and word not in known] == [], line


def test_every_recipe_and_gate_file_shown_is_valid(tmp_path: Path) -> None:
    shown = [block for path in DOCUMENTS for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)]
    rules = [block for block in shown if "gates" in yaml.safe_load(block)]
    assert len(rules) >= 1
    for number, block in enumerate(rules):
        file = tmp_path / f"gates-{number}.yaml"
        file.write_text(block)
        assert run(["validate", str(file)]) == 0, block


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As it is printed, with stored replies in place of the two models and a made-up medqa in place of the hub."""
    monkeypatch.chdir(tmp_path)
    ids = write_medqa(tmp_path / "data", 32)
    replies = write_replies(tmp_path / "replies.jsonl", dict.fromkeys(ids, True))
    write_gates(tmp_path / "gates.yaml", "{task: medqa, margin: 0.02}")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    evaluate, gate = medbench.evaluate, medbench.gate
    stored = {"replies": replies, "data": tmp_path / "data", "quiet": True}
    monkeypatch.setattr(
        medbench, "evaluate", lambda model, tasks: evaluate(model, tasks=tasks[:1], **stored), raising=False
    )
    monkeypatch.setattr(medbench, "gate", lambda *words, **named: gate(*words, **named, **stored), raising=False)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("1.0 pass ")
    assert printed.count(" A A\n") == 32


def test_what_docstrings_import_exists() -> None:
    missing = []
    for path in (path for top in ("harness", "tasks", "trainers", "reports") for path in (ROOT / top).rglob("*.py")):
        head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for module, names in re.findall(r"from (medbench[\w.]*) import ([\w, ]+)", head):
            found = importlib.import_module(module)
            missing += [f"{path}: {module}.{name}" for name in names.split(", ") if not hasattr(found, name.strip())]
    assert missing == []
