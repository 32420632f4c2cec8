"""Whatever a message quotes, it stays one line of bearable length that cannot drive a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medbench.harness.cli.main import run
from medbench.harness.cli.streams import say
from medbench.harness.text import foreign, message

DRIVES = "\x1b[2J\x1b]0;title\x07\r\n\u2028\u202egpj \x9b31m"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("replies.jsonl").write_text('{"id": "1", "output": "A"}\n')


def written(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


PROTOCOL = "name: p\nabout: p\nmethod: generate\nprompt: "
HOSTILE = {
    "file": lambda: ["score", f"no{DRIVES}.jsonl", "--task", "medqa"],
    "option": lambda: ["score", f"--x{DRIVES}"],
    "command": lambda: [DRIVES],
    "long command": lambda: ["x" * 100_000],
    "task": lambda: ["score", "replies.jsonl", "--data", "sample", "--task", DRIVES + "t" * 5000],
    "name": lambda: ["eval", "m", "--replies", "replies.jsonl", "--data", "sample", "--name", DRIVES + "n" * 9000],
    "model": lambda: ["eval", DRIVES + "m" * 9000, "--data", "sample", "--tasks", "medqa"],
    "engine": lambda: ["eval", "m", "--engine", DRIVES + "e" * 9000, "--data", "sample", "--tasks", "medqa"],
    "url": lambda: ["eval", "m", "--data", "sample", "--base-url", "http://h" + DRIVES + "u" * 9000],
    "key": lambda: ["gate", "r", "--gates", written("g.yaml", f"{json.dumps(DRIVES + 'k' * 900)}: 1\n")],
    "value": lambda: ["gate", "r", "--gates", written("g.yaml", f"gates: {json.dumps(DRIVES + 'v' * 9000)}\n")],
    "broken yaml": lambda: ["gate", "r", "--gates", written("g.yaml", "gates: *" + "a" * 9000 + "\n")],
    "template": lambda: [
        "score", "replies.jsonl", "--task", "medqa", "--data", "sample", "--protocol",
        written("p.yaml", PROTOCOL + "\"{{ raise_exception('x' * 9000) }}{{ ('y' * 9000)() }}\"\n"),
    ],
    "validate": lambda: ["validate", written("v.yaml", f"{json.dumps(DRIVES + 'k' * 900)}: 1\n")],
    "validated file": lambda: ["validate", f"no{DRIVES}.yaml"],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_fault_with_hostile_text_is_one_bounded_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(HOSTILE[name]()) == 2
    printed = capfd.readouterr()
    lines = [line for line in (printed.err + printed.out).split("\n") if line]
    told = [line for line in lines if "built-in sample" not in line]
    assert len(told) == 1, told
    assert len(told[0]) < 2600
    assert all(character.isprintable() for character in told[0])


def test_a_file_of_replies_has_a_line_for_each_fault(capfd: pytest.CaptureFixture[str]) -> None:
    Path("bad.jsonl").write_text(f'{{"id": {json.dumps(DRIVES)}, "output": 3}}\n' * 3)
    assert run(["score", "bad.jsonl", "--task", "medqa", "--data", "sample"]) == 2
    lines = [line for line in capfd.readouterr().err.split("\n") if "bad.jsonl" in line]
    assert [line.split(" ")[0] for line in lines] == ["medbench:", "bad.jsonl:1:", "bad.jsonl:2:", "bad.jsonl:3:"]
    assert all(character.isprintable() for line in lines for character in line)


def test_the_end_of_a_long_message_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    say("start " + "x" * 100_000 + " end: how to fix it")
    printed = capfd.readouterr().err
    assert printed.startswith("start ")
    assert printed.endswith("end: how to fix it\n")
    assert len(printed) < 2100


def test_ordinary_text_is_left_alone() -> None:
    for text in ("Größe 診断 🏳️‍🌈 \\n", "", "a" * 200):
        assert foreign(text) == text
        assert message(text) == text


@pytest.mark.parametrize("value", [None, 3, 1.5, [1, "a"], {"a": [1]}, "x" * 10_000, [["a" * 10_000] * 1000] * 1000])
def test_a_foreign_value_is_short(value: object) -> None:
    assert len(foreign(value)) < 240


def test_a_foreign_value_may_be_deep_or_contain_itself() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    circle: dict[str, object] = {}
    circle["self"] = circle
    assert len(foreign(deep)) < 240
    assert len(foreign(circle)) < 240
    while deep:  # else its destruction nests as deeply
        deep = deep.pop()  # type: ignore[assignment]
