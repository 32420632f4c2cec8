"""The documents: links have targets, commands exist, examples are valid and run."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import click
import pytest
import yaml
from support.gate_runs import write_gates, write_medqa, write_replies

import medbench
from medbench.harness.cli.main import cli, run
from medbench.harness.training.recipe import read_config
from medbench.trainers import grpo, sft

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_have_targets(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_exist(document: Path) -> None:
    for line in re.findall(r"^medbench .*$", "\n".join(blocks("sh", document)), re.MULTILINE):
        words = line.partition("#")[0].split()[1:]
        assert words[0] in cli.commands, line
        known = {option for parameter in parameters_of(cli.commands[words[0]]) for option in parameter.opts}
        assert [word for word in words if word.startswith("--") and word not in known] == [], line


def parameters_of(command: click.Command) -> list[click.Parameter]:
    """Those of its subcommands too."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return [*command.params, *(parameter for one in below for parameter in one.params)]


def blocks(language: str, *documents: Path) -> list[str]:
    found = rf"```{language}\n(.*?)```"
    return [block for path in documents for block in re.findall(found, path.read_text(encoding="utf-8"), re.DOTALL)]


@pytest.mark.parametrize(
    ("key", "kind", "document"),
    [
        ("gates", "gate file", "README.md"),
        ("gates", "gate file", "docs/gates.md"),
        ("stages", "recipe", "docs/training.md"),
        ("generator", "synth recipe", "docs/synth.md"),
        ("prompt", "protocol", "docs/extending.md"),
    ],
)
def test_the_yaml_shown_is_valid(
    key: str, kind: str, document: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = [block for block in blocks("yaml", ROOT / document) if re.search(rf"^{key}:", block, re.MULTILINE)]
    assert shown
    for block in shown:
        (tmp_path / "shown.yaml").write_text(block)
        assert run(["validate", str(tmp_path / "shown.yaml")]) == 0, capsys.readouterr().out
        assert capsys.readouterr().out == f"{tmp_path / 'shown.yaml'}: valid {kind}\n"


def test_the_training_data_shown_is_valid() -> None:
    shown = [block for block in blocks("yaml", ROOT / "docs" / "training.md") if block.startswith("config:")]
    data, judged = ({**yaml.safe_load(block)["config"], "training": {"steps": 1}} for block in shown)
    assert len(read_config(sft.Config, data, "shown").data) == 4
    assert read_config(grpo.Config, {**judged, "rollout": {"completions": 2}}, "shown").rewards.factuality


def test_the_plugins_shown_are_the_tested_ones() -> None:
    extending = ROOT / "docs" / "extending.md"
    tested = "\n".join(
        path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "tests" / "plugins").rglob("*"))
        if path.suffix in (".py", ".toml", ".yaml")
    )
    shown = [*blocks("python", extending), *blocks("toml", extending), *blocks("yaml", extending)]
    shown = [block for block in shown if not re.search("^prompt:", block, re.MULTILINE)]
    assert len(shown) == 7
    assert [block for block in shown if block not in tested] == []


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As printed, but with stored replies instead of the two models and an invented medqa instead of the Hub's."""
    monkeypatch.chdir(tmp_path)
    ids = write_medqa(tmp_path / "data", 32)
    replies = write_replies(tmp_path / "replies.jsonl", dict.fromkeys(ids, True))
    write_gates(tmp_path / "gates.yaml", "{task: medqa, margin: 0.02}")
    (example,) = blocks("python", ROOT / "README.md")
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
