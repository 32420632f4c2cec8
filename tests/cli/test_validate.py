"""`medbench validate`: every shipped YAML file is valid, and faults are reported by file and key path.

pytest tests/cli/test_validate.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medbench.harness.cli.validate import faults_of

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    path
    for folder in ("harness", "tasks", "trainers")
    for path in (ROOT / folder).rglob("*.yaml")
    if path.parent.name != "accelerate"  # accelerate's own files, which recipes name
)
TASK = """
include: ../_medbench_yaml
task: mine
custom_dataset: !function rows.dataset
metadata:
  version: 1
  about: mine
  chance: 0.25
  n: 10
  categories: []
  files: {test: [mine/test.jsonl]}
  hub: {path: org/mine, splits: {test: test}}
  sha256: {test: abc}
"""
PROTOCOL = "{name: mine, about: mine, method: generate, prompt: '{{ question }}'}\n"


def validated(path: Path, text: str) -> tuple[str, list[str]]:
    """(kind, faults without the file that each is checked to start with)."""
    path.write_text(text)
    kind, faults = faults_of(path)
    assert all(fault.startswith(f"{path}: ") and "\n" not in fault for fault in faults)
    return kind, [fault.removeprefix(f"{path}: ") for fault in faults]


def run(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medbench.harness.cli", "validate", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_glob_descends() -> None:
    parents = {path.parent.relative_to(ROOT).as_posix() for path in SHIPPED}
    assert {
        "harness/protocols",
        "tasks/medqa",
        "tasks/pubmedqa",
        "tasks/mmlu_pro_medical",
        "trainers/recipes",
    } <= parents


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shipped_yaml_is_valid(path: Path) -> None:
    kind, faults = faults_of(path)
    assert faults == []
    top, below, *_ = path.relative_to(ROOT).parts
    expected = {"tasks": "task", "harness": "protocol", "trainers": "recipe"}.get(top)
    assert kind.endswith("of synth") if (top, below) == ("harness", "synth") else kind == expected


@pytest.mark.parametrize(
    ("text", "kind"), [(TASK, "task"), (PROTOCOL, "protocol"), ("{tasks: [medqa], limit: 5}", "eval config")]
)
def test_the_kind_of_a_file_follows_from_its_keys(tmp_path: Path, text: str, kind: str) -> None:
    assert validated(tmp_path / "any.yaml", text) == (kind, [])


def test_a_file_of_references_is_recognised_and_checked(tmp_path: Path) -> None:
    shipped = (ROOT / "reports" / "references.yaml").read_text()
    assert validated(tmp_path / "mine.yaml", shipped) == ("file of references", [])
    kind, faults = validated(tmp_path / "mine.yaml", "references: [{model: m, scores: {medqa: 101}, url: x}]\n")
    assert kind == "file of references"
    wrong = {"scores.medqa", "url", "protocol", "source"}
    assert {fault.split(": ")[0] for fault in faults} == {f"references.0.{key}" for key in wrong}


def test_all_faults_of_a_task_are_reported_at_once(tmp_path: Path) -> None:
    _, faults = validated(
        tmp_path / "mine.yaml",
        """
include: ../_medbench_yaml
task: [mine]
metadata:
  version: 0
  abuot: mine
  chance: 2
  n: ten
  categories: []
  files: {test: mine/test.jsonl}
  hub: {pth: org/mine, splits: {test: test}}
  sha256: {test: abc}
""",
    )
    assert {
        fault.split(": ")[0] if not fault.startswith("metadata: ") else fault.split(": ")[1] for fault in faults
    } == {
        "custom_dataset",
        "task",
        "version",
        "about",
        "abuot",
        "chance",
        "n",
        "files.test",
        "hub.path",
        "hub.pth",
    }
    assert any(fault.endswith("abuot: unknown key; did you mean about?") for fault in faults)
    assert any(fault.endswith("hub.pth: unknown key; did you mean path?") for fault in faults)


def test_a_hash_of_a_split_without_files_is_a_fault(tmp_path: Path) -> None:
    _, faults = validated(tmp_path / "mine.yaml", TASK.replace("{test: abc}", "{test: abc, tset: abc}"))
    assert faults == ["metadata.sha256.tset: no such split in files"]


@pytest.mark.parametrize("metadata", ["3", "null", "[]", "text"])
def test_metadata_that_is_not_a_mapping_is_a_fault(tmp_path: Path, metadata: str) -> None:
    text = TASK.split("metadata:")[0] + f"metadata: {metadata}\n"
    kind, faults = validated(tmp_path / "mine.yaml", text)
    assert kind == "task"
    assert any(fault.startswith("metadata") for fault in faults)


def test_a_hash_that_is_not_a_mapping_is_a_fault(tmp_path: Path) -> None:
    _, faults = validated(tmp_path / "mine.yaml", TASK.replace("{test: abc}", "5"))
    assert any("sha256" in fault for fault in faults)


def test_all_faults_of_a_protocol_are_reported_at_once(tmp_path: Path) -> None:
    _, faults = validated(
        tmp_path / "mine.yaml",
        "{name: Mine Own, about: mine, method: guess, prompt: '{% if %}', promt: x, decoding: {temperature: -1}}\n",
    )
    assert {fault.split(": ")[0] for fault in faults} == {"name", "method", "prompt", "promt", "decoding.temperature"}


def test_a_prompt_that_uses_an_unknown_name_is_a_fault(tmp_path: Path) -> None:
    _, faults = validated(tmp_path / "mine.yaml", PROTOCOL.replace("question", "questoin"))
    assert [fault.split(": ")[0] for fault in faults] == ["prompt"]
    assert "questoin" in faults[0]


def test_all_faults_of_an_eval_config_are_reported_at_once(tmp_path: Path) -> None:
    _, faults = validated(tmp_path / "eval.yaml", "{limti: 3, seed: -1, engine_config: {dtpye: auto}}\n")
    assert {fault.split(": ")[0] for fault in faults} == {"limti", "seed", "engine_config.dtpye"}


@pytest.mark.parametrize(
    "text",
    ["", "- a\n", "a: b: c\n", "[" * 5000, "a: 2024-13-45\n", "metadata: !function [a]\n"],
    ids=["empty", "list", "broken", "too deep", "no date", "no function"],
)
def test_anything_but_a_yaml_mapping_is_one_line(tmp_path: Path, text: str) -> None:
    _, faults = validated(tmp_path / "any.yaml", text)
    assert len(faults) == 1


def test_functions_named_in_a_task_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text("raise SystemExit('imported')\n")
    assert validated(tmp_path / "mine.yaml", TASK) == ("task", [])
    assert "rows" not in sys.modules


def test_the_command_exits_0_if_all_files_are_valid(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(PROTOCOL)
    done = run(tmp_path / "mine.yaml", SHIPPED[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"{tmp_path / 'mine.yaml'}: valid protocol"
    assert len(done.stdout.splitlines()) == 2


def test_the_command_exits_2_and_reports_the_faults_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "eval.yaml").write_text("{limti: 3, seed: -1}\n")
    (tmp_path / "good.yaml").write_text(PROTOCOL)
    done = run(tmp_path / "eval.yaml", tmp_path / "good.yaml", tmp_path / "none.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert {line.split(": ")[1] for line in lines} == {"limti", "seed", "valid protocol", "no such file"}
