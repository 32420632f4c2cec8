"""Damaged input in the suite: all that once did harm, and a fixed share of fresh damage. `make fuzz` tries much more.

Cases run in a process of their own (see campaign.py): some faults could not be ended in this one.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fuzz.campaign import CORPUS, Line, Plan, campaign, table
from fuzz.case import Case, apply, read_case, written
from fuzz.damage import damaged
from fuzz.oracles import run_faults
from fuzz.play import play
from fuzz.trial import CATEGORIES

FAST = ("yaml", "replies", "data", "runs", "training", "sweeps", "judged", "synth")
FRESH = 100
"""Cases of each category, always the same."""
SLOW = ("checkpoints",)
FRESH_CHECKPOINTS = 12


def corpus(*categories: str) -> list[str]:
    return sorted(path.name for path in CORPUS.glob("*.json") if path.name.split("-")[0] in categories)


def tell(lines: list[Line], out: Path) -> str:
    """What to read when a test fails: the counts, and how to see one case again."""
    bad = [f"{line.corpus or line.kept or line.seed}: {'; '.join(line.bad)}\n{line.log}" for line in lines if line.bad]
    return "\n".join([table(lines), *bad[:20], f"again: PYTHONPATH=tests python -m fuzz --replay {out}/FILE"])


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Line]:
    """Corpus file -> what came of it."""
    lines = campaign([Plan(FAST, tuple(corpus(*FAST)), cases=0)], tmp_path_factory.mktemp("corpus"))
    return {line.corpus: line for line in lines if line.corpus}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Line], Path]:
    out = tmp_path_factory.mktemp("fresh")
    return campaign([Plan(FAST, cases=FRESH, seed=0)], out), out


@pytest.mark.slow
@pytest.mark.parametrize("name", corpus(*FAST))
def test_what_once_did_harm_does_none(name: str, replayed: dict[str, Line]) -> None:
    line = replayed[name]
    assert not line.bad, f"{read_case(CORPUS / name).why}: {'; '.join(line.bad)}\n{line.log}"


@pytest.mark.slow
@pytest.mark.parametrize("category", FAST)
def test_fresh_damage_does_no_harm(category: str, fresh: tuple[list[Line], Path]) -> None:
    lines = [line for line in fresh[0] if line.category == category]
    assert len(lines) == FRESH
    assert not any(line.bad for line in lines), tell(lines, fresh[1])


@pytest.mark.engine
def test_damaged_checkpoints_do_no_harm(tmp_path: Path) -> None:
    lines = campaign([Plan(SLOW, tuple(corpus(*SLOW)), cases=FRESH_CHECKPOINTS, seed=0)], tmp_path)
    assert len(lines) == len(corpus(*SLOW)) + FRESH_CHECKPOINTS
    assert not any(line.bad for line in lines), tell(lines, tmp_path)


# --- the fuzzer itself: it draws the same again, and sees what is wrong ------------------------------------------


def test_every_category_has_a_share_in_the_suite_and_in_the_corpus() -> None:
    assert set(CATEGORIES) == {*FAST, *SLOW}
    assert {path.name.split("-")[0] for path in CORPUS.glob("*.json")} == set(CATEGORIES)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".yaml", ".txt"])
def test_damage_is_the_same_for_the_same_seed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_text('{"a": [1, 2.5, "x"], "b": {"c": null}}\n')
    for seed in range(200):
        first, second = (damaged(path, random.Random(seed)) for _ in range(2))
        assert first == second


def test_a_case_is_read_as_it_was_written(tmp_path: Path) -> None:
    changes = {"a": written(b"\xff" * 10), "b": written(b"text"), "c": {"link": "c"}, "d": {"text": "{n},", "times": 3}}
    case = Case("runs", ("gate", "x"), changes, "why", {"A": "b"}, 7, 2)
    (tmp_path / "case.json").write_text(case.to_json(found=["x"]))
    assert read_case(tmp_path / "case.json") == case
    for name, change in changes.items():
        apply(change, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == b"\xff" * 10
    assert (tmp_path / "d").read_text() == "0,1,2,"
    assert (tmp_path / "c").is_symlink()


def _prints(text: str, status: int = 0):
    def function(folder: Path) -> int:
        import sys

        sys.stderr.write(text)
        return status

    return function


def _raises(folder: Path) -> int:
    raise KeyError("name")


def _loops(folder: Path) -> int:
    while True:
        pass


def _fills_memory(folder: Path) -> int:
    return len(bytearray(10**11))


def _writes(folder: Path) -> int:
    (folder / "half.json").write_text("{")
    return 2


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (_raises, "uncaught: KeyError"),
        (_loops, "over 0.2 s of CPU time"),
        (_fills_memory, "uncaught: MemoryError"),
        (_writes, "refused, but wrote or changed half.json"),
        (_prints("x" * 4000), "a line of 4000 characters"),
        (_prints("Traceback (most recent call last):\n"), "a traceback"),
        (_prints("", 2), "refused without a word"),
        (_prints("medbench: a fault of medbench", 70), "uncaught"),
        (_prints("", 5), "exit status 5"),
    ],
)
def test_harm_is_seen(function, fault: str, tmp_path: Path) -> None:
    done = play(("it",), tmp_path, {"it": function}, seconds=0.2)
    assert any(found.startswith(fault) for found in done.faults), done.faults


def test_a_command_without_harm_has_no_fault(tmp_path: Path) -> None:
    done = play(("tasks", "--json"), tmp_path)
    assert (done.status, done.faults) == (0, ())
    assert "medqa" in done.out


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({}, None),
        ({"score": 5.0}, "line 2: score 5.0"),
        ({"score": True}, "line 2: score True"),
        ({"gold": "B"}, "line 2: score 1.0 contradicts answer and gold"),
        ({"completion_tokens": -1}, "line 2: tokens"),
        ({"score": 0.0, "extracted": "B"}, "line 2: contradicts an earlier line of the same question"),
        ({"id": "q2"}, "more answers than the 1 questions"),
    ],
)
def test_a_run_that_cannot_be_true_is_seen(line: dict[str, object], fault: str | None, tmp_path: Path) -> None:
    sound = {"id": "q1", "score": 1.0, "extracted": "A", "gold": "A", "prompt_tokens": 1, "completion_tokens": 1}
    (tmp_path / "samples").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, "tasks": {"toy": {"n": 1}}, "limit": None}))
    (tmp_path / "samples/toy.jsonl").write_text(f"{json.dumps(sound)}\n{json.dumps({**sound, **line})}\n")
    assert run_faults(tmp_path, "toy", "A")[:1] == ([fault] if fault else [])
