"""YAML that is small and would take for ever, all memory or the whole screen: refused at once, by a named limit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from medbench.harness.cli.validate import faults_of
from medbench.harness.config import check_yaml, parse_yaml
from medbench.harness.evaluation.options import EvalConfig
from medbench.harness.training.recipe import check_recipe

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {k0: v}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: v}}\n" for n in range(1, 30))
LONG_TEXT = f"a: &a {'x' * 60_000}\nb: [{', '.join(['*a'] * 5000)}]\n"
CIRCLE = "seed: &a [*a]\n"
CIRCLE_IN_CONFIG = (
    "name: r\nstart: smollm2-135m\nwatchdogs: &w {self: *w}\nstages:\n- name: a\n  trainer: command\n"
    "  config: &c {command: [train], env: *c}\n  gates: {gates: []}\n"
)
LIMITED = {
    "aliases": (BOMB, "aliases"),
    "aliases in a gate file": (f"{BOMB}gates: *a9\n", "aliases"),
    "aliases in a recipe": (f"{BOMB}name: *a9\nstages: [{{config: *a9, name: *a9}}]\n", "aliases"),
    "aliases of a long text": (LONG_TEXT, "aliases"),
    "merges": (MERGES, "aliases"),
    "circle": (CIRCLE, "contains itself"),
    "circle in a recipe": (CIRCLE_IN_CONFIG, "contains itself"),
    "circle of keys": ("a: &a {? *a : 1}\n", "contains itself"),
    "depth": ("seed: " + "[" * 300 + "]" * 300 + "\n", "deep"),
    "great depth": ("[" * 60_000, "deep"),
    "depth of keys": ("{" * 60_000, "deep"),
    "depth by aliases": ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 400)), "deep"),
    "size": ("seed: 1\n" + "# x\n" * 100_000, "KiB"),
    "one long key": ("x" * 400_000 + ": 1\n", "KiB"),
    "a long number": (f"seed: {'1' * 100_000}\n", "number"),
    "a long sexagesimal number": (f"seed: {'1' + ':1' * 50_000}\n", "number"),
    "a long fraction": (f"temperature: 0.{'1' * 100_000}\n", "number"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_a_limit_is_told_at_once_in_one_short_line(name: str, tmp_path: Path) -> None:
    text, limit = LIMITED[name]
    path = tmp_path / "any.yaml"
    path.write_text(text)
    started = time.process_time()
    for lines in (check_yaml(path, EvalConfig)[1], check_recipe(path), faults_of(path)[1]):
        (line,) = lines
        assert line.startswith(f"{path}: ")
        assert limit in line
        assert len(line) < 500
        assert "\n" not in line
    assert time.process_time() - started < 20  # without limits: minutes, or for ever


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"k{n}: v" for n in range(9_000)),
        "\n".join(f"k{n}: v" for n in range(9_000)) + "\nk7: again\n",
        "engine_config: {" + ", ".join(f"k{n}: v" for n in range(9_000)) + "}",
        f"seed: {{{', '.join(f'k{n}: v' for n in range(9_000))}}}",
        f"{'k' * 100_000}: 1\n",
        f"tasks: [{'1, ' * 40_000}1]\n",
        f"seed: &s {'x' * 100_000}\nlimit: *s\n",
        "'a\\nb': 1\n\"c\\n\\x1b[2J\\u2028d\": 2\n",
    ],
    ids=["keys", "a repeated key", "nested keys", "a large value", "a long key", "a long list", "a long text", "lines"],
)
def test_what_is_within_the_limits_is_told_in_few_short_lines(text: str, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(text)
    started = time.process_time()
    lines = check_yaml(path, EvalConfig)[1]
    assert time.process_time() - started < 20
    assert 0 < len(lines) <= 21
    assert all(line.startswith(f"{path}: ") and len(line) < 700 and line.isprintable() for line in lines)


def test_a_repeated_key_is_named_short(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{'k' * 900}: 1\n{'k' * 900}: 2\n")
    (line,) = parse_yaml(tmp_path / "a.yaml")[1]
    assert "is given twice" in line
    assert len(line) < 500


def test_ordinary_aliases_and_merges_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "base: &base {seed: 1, limit: 2}\nmore: &more {<<: *base, seed: 3}\nlast: {<<: *more, limit: 4}\n"
        "both: {<<: [*base, {shots: 5}], seed: 6}\nlist: [*base, *base]\n"
    )
    content, faults = parse_yaml(tmp_path / "a.yaml")
    assert faults == []
    assert content["more"] == {"seed": 3, "limit": 2}
    assert content["last"] == {"seed": 3, "limit": 4}
    assert content["both"] == {"seed": 6, "limit": 2, "shots": 5}
    assert content["list"] == [{"seed": 1, "limit": 2}] * 2


def test_a_device_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    (line,) = parse_yaml(Path("/dev/zero"))[1]
    assert line.startswith("/dev/zero: ")
