"""What a kill leaves is gone on with: nothing is asked twice, and the files are those of an uninterrupted run.

pytest tests/synth/test_synth_resume.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.synth import good_reply, lines_of, recipe, write_replies, write_rows, wrong_letter

from medbench.harness.cli.main import run
from medbench.harness.contracts import Completion, Question, Request
from medbench.harness.engines.fake import FakeEngine, read_replies
from medbench.harness.synth import generate
from medbench.harness.synth.candidates import CANDIDATES
from medbench.harness.synth.synth import SynthOptions, synthesize

WRITTEN = ("README.md", "rejected.jsonl", "accepted/multiple_choice.jsonl")


def build(folder: Path, n: int, **generator: Any) -> Path:
    """A recipe on `n` questions with three attempts and up to two more rounds each."""
    questions = write_rows(folder / "rows.jsonl", n)

    def reply(question: Question, sample: int) -> str:
        letter = question.gold if int(question.id[-2:], 16) % 3 == sample % 3 else wrong_letter(question)
        return good_reply(question, letter, sample)

    write_replies(folder / "replies.jsonl", questions, reply, 9)
    return recipe(folder, generator=generator, sampling={"attempts": 3}, verify={"rounds": 2})


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in WRITTEN}


def keys(folder: Path) -> Counter[tuple[int, int, int]]:
    return Counter((one["at"], one["attempt"], one["round"]) for one in lines_of(folder / CANDIDATES))


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_no_byte_of_the_result(tmp_path: Path) -> None:
    path = build(tmp_path, 60, engine_config={"delay": 0.004})
    synthesize(SynthOptions(path, tmp_path / "whole"), lambda _: None)
    out, kills = tmp_path / "torn", 0
    journal = out / CANDIDATES
    command = [
        sys.executable,
        "-m",
        "medbench.harness.cli",
        "synth",
        str(path),
        "--out",
        str(out),
        "--resume",
        "--quiet",
    ]
    for wanted in (60, 200, 10**9):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= wanted:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
    assert process.returncode == 0
    assert kills == 2
    assert contents(out) == contents(tmp_path / "whole")
    assert keys(out) == keys(tmp_path / "whole")
    assert set(keys(out).values()) == {1}
    assert sorted(one.name for one in out.iterdir()) == sorted(one.name for one in (tmp_path / "whole").iterdir())


class Interrupted(Exception):
    pass


class Breaks(FakeEngine):
    """Stored replies, and an end after so many. Replies to requests under way come last first."""

    places = 7

    def __init__(self, replies: Path, after: int, asked: list[str]) -> None:
        super().__init__(read_replies(replies)[0])
        self._left = after
        self._asked = asked

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        under_way: list[Request] = []
        for request in requests:
            if request is None or len(under_way) >= self.places:
                yield self._answer(under_way)
            if request is not None:
                under_way.append(request)
        while under_way:
            yield self._answer(under_way)

    def _answer(self, under_way: list[Request]) -> Completion:
        if not self._left:
            raise Interrupted
        self._left -= 1
        request = under_way.pop()
        self._asked.append(f"{request.id} {request.seed}")
        return self._complete(request)


@pytest.mark.parametrize("step", [1, 13, 100])
def test_replies_in_any_order_and_any_number_of_interruptions_give_the_same_files(tmp_path: Path, step: int) -> None:
    path = build(tmp_path, 8)
    synthesize(SynthOptions(path, tmp_path / "whole"), lambda _: None)
    asked: list[str] = []
    while True:
        engine = Breaks(tmp_path / "replies.jsonl", step, asked)
        # what is compared with the stored replies' fingerprint is this engine's
        engine.fingerprint = read_replies(tmp_path / "replies.jsonl")[1]  # type: ignore[attr-defined]
        try:
            synthesize(SynthOptions(path, tmp_path / "torn", resume=True, engine=engine), lambda _: None)
            break
        except Interrupted:
            continue
    assert max(Counter(asked).values()) == 1
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_a_torn_last_line_is_cut_off_and_asked_again(tmp_path: Path) -> None:
    path = build(tmp_path, 4)
    synthesize(SynthOptions(path, tmp_path / "whole"), lambda _: None)
    synthesize(SynthOptions(path, tmp_path / "torn"), lambda _: None)
    journal = tmp_path / "torn" / CANDIDATES
    whole = journal.read_bytes()
    for cut in (1, 200, len(whole) // 2, len(whole) - 5):
        journal.write_bytes(whole[:-cut])
        synthesize(SynthOptions(path, tmp_path / "torn", resume=True), lambda _: None)
        assert contents(tmp_path / "torn") == contents(tmp_path / "whole")
        assert keys(tmp_path / "torn") == keys(tmp_path / "whole")


def test_what_a_killed_selection_left_is_removed(tmp_path: Path) -> None:
    path = build(tmp_path, 4)
    synthesize(SynthOptions(path, tmp_path / "out"), lambda _: None)
    before = contents(tmp_path / "out")
    for name in (".rejected.jsonl.part", "accepted/.pubmedqa.jsonl.part", "accepted/.multiple_choice.jsonl.part"):
        (tmp_path / "out" / name).write_text("half a li")
    synthesize(SynthOptions(path, tmp_path / "out", resume=True), lambda _: None)
    assert contents(tmp_path / "out") == before
    assert list((tmp_path / "out").rglob("*.part")) == []


def test_no_engine_starts_where_every_reply_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(tmp_path, 4)
    synthesize(SynthOptions(path, tmp_path / "out"), lambda _: None)
    monkeypatch.setattr(FakeEngine, "generate", None)
    synthesize(SynthOptions(path, tmp_path / "out", resume=True), lambda _: None)


def test_only_so_many_questions_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question's replies come last of all: others are not begun without end meanwhile."""
    monkeypatch.setattr(generate, "LEAST_OPEN", 4)
    monkeypatch.setattr(generate, "OPEN_REPLIES", 4)
    path = build(tmp_path, 40)
    order: list[int] = []

    class Starves(FakeEngine):
        places = 1000
        fingerprint = "starves"

        def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
            under_way: list[Request] = []
            for request in requests:
                if request is not None:
                    under_way.append(request)
                    order.append(int(request.id.partition("/")[0]))
                    continue
                under_way.sort(key=lambda one: -int(one.id.partition("/")[0]))
                yield self._complete(under_way.pop(0))
            while under_way:
                yield self._complete(under_way.pop(0))

    engine = Starves(read_replies(tmp_path / "replies.jsonl")[0])
    found = synthesize(SynthOptions(path, tmp_path / "out", engine=engine), lambda _: None)
    assert found.card.questions == 40
    newest = 0
    first_seen = [at for place, at in enumerate(order) if at not in order[:place]]
    assert first_seen == sorted(first_seen)
    lines = [one["at"] for one in lines_of(tmp_path / "out" / CANDIDATES)]
    for place, at in enumerate(lines):
        newest = max(newest, at)
        assert newest - min(lines[place:]) < 4


def test_two_processes_do_not_write_one_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from medbench.harness.files import locked

    path = build(tmp_path, 2)
    assert run(["synth", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    lock = locked(tmp_path / "out")
    try:
        assert run(["synth", str(path), "--out", str(tmp_path / "out"), "--resume", "--quiet"]) == 2
    finally:
        lock.release()
    assert "being written by another process" in capfd.readouterr().err
