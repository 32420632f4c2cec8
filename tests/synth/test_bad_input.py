"""What is wrong with a recipe, a source or a folder is said in one line, with exit status 2, before anything is asked.

pytest tests/synth/test_bad_input.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.synth import good_reply, recipe, write_replies, write_rows

from medbench.harness.cli.main import run
from medbench.harness.synth.candidates import CANDIDATES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    questions = write_rows(tmp_path / "rows.jsonl", 4)
    write_replies(tmp_path / "replies.jsonl", questions, lambda q, n: good_reply(q, q.gold, n), 1)
    return tmp_path


def line(folder: Path, path: Path, capfd: pytest.CaptureFixture[str], *more: str, status: int = 2) -> str:
    """The one line that `medbench synth` says."""
    capfd.readouterr()
    assert run(["synth", str(path), "--out", str(folder / "out"), "--quiet", *more]) == status
    printed, said = capfd.readouterr()
    assert printed == ""
    assert said.startswith("medbench: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"samplng": {}}, "samplng: unknown key; did you mean sampling"),
        ({"filters": {"formm": True}}, "filters.formm: unknown key"),
        ({"sources": [{"path": "rows.jsonl", "kind": "diagnose"}]}, "no such kind; did you mean diagnosis"),
        ({"sources": [{"path": "rows.jsonl", "kind": "mine.yaml"}]}, "mine.yaml: no such file"),
        ({"sources": []}, "sources: list should have at least 1 item"),
        ({"sources": [{"path": "nowhere.jsonl"}]}, "nowhere.jsonl: no such file"),
        ({"kinds": [{"matches": "(", "kind": "general"}]}, "not a regular expression"),
        ({"filters": {"pass_rate": [0.5, 0.2]}}, "pass_rate: must be [least, most]"),
        ({"filters": {"pass_rate": [0.1, 0.9], "answer": False}}, "needs answers that are right or wrong"),
        ({"verify": {"rounds": 1}, "filters": {"answer": False}}, "only wrong answers are tried again"),
        ({"verify": {"rounds": 1, "strategies": ["backtracking"]}}, "add another strategy"),
        ({"verify": {"strategies": ["guessing"]}}, "verify.strategies.0"),
        ({"sampling": {"attempts": 0}}, "sampling.attempts"),
        (
            {
                "generator": {"model": "m", "replies": None, "engine": "hf"},
                "sampling": {"attempts": 2, "temperature": 0.0},
            },
            "attempts at temperature 0 would be equal",
        ),
        ({"generator": {"engine": "vlm"}}, "no such engine"),
        ({"generator": {"replies": "gone.jsonl"}}, "gone.jsonl: no such file"),
        ({"benchmarks": ["medqq"], "filters": {"contamination": {}}}, "medqq"),
        ({"filters": {"judge": {"name": "llm"}}}, "filters.judge.name: unknown key"),
    ],
)
def test_a_fault_of_the_recipe_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], more: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(folder)
    assert said in line(folder, recipe(folder, **more), capfd, "--data", "sample")
    assert not (folder / "out" / CANDIDATES).exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Why?", "options": {"A": "x", "B": "y"}}, "rows.jsonl:1: no column answer_idx or answer"),
        ({"question": "Why?", "options": {"A": "x", "B": "y"}, "answer_idx": "E"}, "is not one of the options"),
        ({"title": "no question at all"}, "match no format"),
        ({"case": "A man.", "reasoning": "So.", "answer": "Rest."}, "with which no reply can be compared"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2},
            "a chat with 2 questions",
        ),
    ],
)
def test_a_row_that_asks_nothing_usable_is_named(
    folder: Path, capfd: pytest.CaptureFixture[str], row: dict[str, Any], said: str
) -> None:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert said in line(folder, recipe(folder), capfd)


def test_a_source_without_rows_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.jsonl").write_text("\n")
    assert "rows.jsonl: no rows" in line(folder, recipe(folder), capfd)


def test_a_judge_without_a_text_to_judge_by_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    judge = {"judge": "command", "command": "cat"}
    said = line(folder, recipe(folder, filters={"judge": judge}), capfd)
    assert "rows.jsonl:1: no source to judge by: set filters.judge.against: reference" in said


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"judge": "llm"}, "filters.judge: the judge llm needs model"),
        ({"judge": "nobody"}, "filters.judge: judge 'nobody': no such judge"),
        ({"judge": "command", "command": "no-such-program"}, "no such program"),
    ],
)
def test_a_judge_that_cannot_be_used_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], judge: dict[str, Any], said: str
) -> None:
    row = {
        "question": "Does it help?",
        "context": {"contexts": ["It helped."]},
        "long_answer": "Yes.",
        "final_decision": "yes",
    }
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert said in line(folder, recipe(folder, filters={"judge": judge}), capfd)


@pytest.mark.parametrize(
    ("reply", "said"),
    [("", "none of 4 replies has any text, all of them empty"), (None, "the first: no reply is stored")],
)
def test_a_generator_that_returns_nothing_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], reply: str | None, said: str
) -> None:
    id = "other" if reply is None else None
    rows = (folder / "rows.jsonl").read_text().count("\n")
    from support.synth import questions_in

    ids = [id] if id else [one.id for one in questions_in(folder / "rows.jsonl")]
    (folder / "replies.jsonl").write_text("".join(json.dumps({"id": one, "output": reply or ""}) + "\n" for one in ids))
    assert rows == 4
    assert said in line(folder, recipe(folder), capfd)


def test_a_generator_that_returns_nothing_is_stopped_early(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    questions = write_rows(folder / "rows.jsonl", 200)
    write_replies(folder / "replies.jsonl", questions, lambda q, n: "", 1)
    assert "none of 50 replies has any text" in line(folder, recipe(folder), capfd)


def test_a_folder_is_not_written_twice_without_resume(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["synth", str(recipe(folder)), "--out", str(folder / "out"), "--quiet"]) == 0
    assert "exists already: add --resume" in line(folder, recipe(folder), capfd)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"sampling": {"seed": 1}}, "sampling"),
        ({"verify": {"rounds": 1}}, "verify"),
        ({"generator": {"replies": "others.jsonl"}}, "generator"),
        ({"kinds": [{"matches": "man", "kind": "general"}]}, "kinds"),
    ],
)
def test_the_folder_of_another_recipe_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], more: dict[str, Any], part: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "others.jsonl").write_text(
        (folder / "replies.jsonl").read_text() + "\n".join([json.dumps({"id": "new", "output": "x"}), ""])
    )
    assert run(["synth", str(recipe(folder)), "--out", "out", "--quiet"]) == 0
    before = (folder / "out/synth.json").read_bytes()
    said = line(folder, recipe(folder, **more), capfd, "--resume")
    assert "belongs to another recipe" in said
    assert part in said
    assert (folder / "out/synth.json").read_bytes() == before


def test_changed_rows_are_another_recipe(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["synth", str(recipe(folder)), "--out", str(folder / "out"), "--quiet"]) == 0
    rows = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join([*rows[1:], rows[0]]))
    assert "(data changed" in line(folder, recipe(folder), capfd, "--resume")


def test_a_folder_of_something_else_is_left_alone(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    (folder / "out/thesis.txt").write_text("mine")
    assert "is not a folder of medbench synth" in line(folder, recipe(folder), capfd, "--resume")
    assert [path.name for path in (folder / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damage", [b"{}\n", b"\xff\n", b"[]\n", b'{"at": -1}\n'])
def test_a_damaged_journal_is_named_with_its_line(
    folder: Path, capfd: pytest.CaptureFixture[str], damage: bytes
) -> None:
    assert run(["synth", str(recipe(folder)), "--out", str(folder / "out"), "--quiet"]) == 0
    journal = folder / "out" / CANDIDATES
    first, _, rest = journal.read_bytes().partition(b"\n")
    journal.write_bytes(first + b"\n" + damage + rest + b'{"at": 3')
    before = {path: path.read_bytes() for path in (folder / "out").glob("*.json*")}
    assert f"{CANDIDATES}:2: not a line written by medbench synth" in line(folder, recipe(folder), capfd, "--resume")
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_record_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["synth", str(recipe(folder)), "--out", str(folder / "out"), "--quiet"]) == 0
    record = folder / "out" / "synth.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "generator": {"model": [content["generator"]["model"]]}}))
    assert "generator.model" in line(folder, recipe(folder), capfd, "--resume")


def test_a_reply_that_is_there_twice_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = {"sampling": {"attempts": 2}}
    assert run(["synth", str(recipe(folder, **more)), "--out", str(folder / "out"), "--quiet"]) == 0
    journal = folder / "out" / CANDIDATES
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], *lines]))
    assert "is there twice" in line(folder, recipe(folder, **more), capfd, "--resume")


def test_out_is_needed_but_for_a_dry_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["synth", str(recipe(folder))]) == 2
    assert "--out FOLDER is missing" in capfd.readouterr().err
