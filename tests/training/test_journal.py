"""The journal of a training: events come back however the writer was killed, and damage is reported by line.

pytest tests/training/test_journal.py
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.gates.verdict import GateResult, Verdict
from medbench.harness.training.journal import (
    JOURNAL,
    SCHEMA_VERSION,
    TRAINING,
    AlarmRaised,
    AttemptEnded,
    AttemptStarted,
    Event,
    Gated,
    Journal,
    Measured,
    Promoted,
    StageStarted,
    Training,
    TrainingEnded,
    create_training,
    read_events,
    read_training,
)

GATE = GateResult(
    rule="medqa: accuracy at least 0.6",
    task="medqa",
    metric="accuracy",
    status="pass",
    estimate=0.7,
    interval=(0.6, 0.8),
    threshold=0.6,
    used=10,
    total=20,
    log_e_pass=3.1,
    why="shown",
)
VERDICT = Verdict(
    overall="pass",
    why="all pass",
    alpha=0.05,
    decide="census",
    partition="gate",
    correction="none",
    candidate="c",
    fingerprint="f",
    baseline=None,
    protocol="cot-v2",
    gates=[GATE],
)
EVENTS: list[Event] = [
    StageStarted(stage="sft", start="/base", fingerprint="abc", prepared=["500 rows"], elapsed=0.5),
    Measured(stage="sft", partition="gate", verdict=None, run="runs/base", whole=True, questions=9),
    AttemptStarted(stage="sft", attempt=1, seed=0, start="/base", config={"rate": 1e-4, "betas": [0.9, 1]}, alpha=0.03),
    AlarmRaised(stage="sft", attempt=1, step=3, kind="kl", reason="far — «away»\nand on", stop=True),
    Gated(
        stage="sft",
        attempt=1,
        step=5,
        checkpoint="1-sft/attempt-1/step-000005",
        verdict=VERDICT,
        alpha=0.01,
        run=None,
        seconds=1.5,
        questions=10,
    ),
    AttemptEnded(stage="sft", attempt=1, outcome="failed", reason="no", step=None, diverged=True),
    Promoted(stage="sft", attempt=2, step=5, checkpoint="1-sft/promoted", fingerprint="def"),
    TrainingEnded(outcome="passed", reason="all gates", checkpoint="1-sft/promoted", elapsed=9.0),
]
TRAINING_RECORD = Training(
    name="mine",
    created="2026-01-01T00:00:00Z",
    command=["medbench"],
    recipe={"name": "mine"},
    recipe_sha256="0",
    start="base",
    fingerprint="abc",
)


def write(folder: Path, events: list[Event]) -> bytes:
    with Journal(folder) as journal:
        for event in events:
            journal.append(event)
    return (folder / JOURNAL).read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("journal"), EVENTS)


def test_every_event_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, EVENTS)
    assert list(read_events(tmp_path)) == EVENTS


@settings(max_examples=300)
@given(data=st.data())
def test_any_prefix_of_its_bytes_reads_as_a_prefix_of_its_events(tmp_path_factory, content: bytes, data) -> None:
    cut = data.draw(st.integers(0, len(content)))
    folder = tmp_path_factory.mktemp("prefix")
    (folder / JOURNAL).write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    assert list(read_events(folder)) == EVENTS[:whole]
    with Journal(folder) as journal:  # a session continues from there, as if nothing had been torn
        assert journal.events == EVENTS[:whole]
        for event in EVENTS[whole:]:
            journal.append(event)
    assert (folder / JOURNAL).read_bytes() == content


@settings(max_examples=100)
@given(reason=st.text(), config=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_any_text_comes_back(tmp_path_factory, reason: str, config: dict) -> None:
    folder = tmp_path_factory.mktemp("text")
    events: list[Event] = [
        StageStarted(stage=reason, start="", fingerprint="f", prepared=[]),
        AttemptStarted(stage=reason, attempt=1, seed=0, start="", config=config, alpha=0.1),
        AttemptEnded(stage=reason, attempt=1, outcome="failed", reason=reason, step=None),
        TrainingEnded(outcome="failed", reason=reason, checkpoint=None),
    ]
    write(folder, events)
    assert list(read_events(folder)) == events


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_line_is_reported_and_never_silently_lost(tmp_path_factory, content: bytes, data) -> None:
    lines = content.splitlines(keepends=True)
    index = data.draw(st.integers(0, len(lines) - 1))
    damaged = data.draw(
        st.sampled_from([b"\n", b"{}\n", b"null\n", b'{"event": "gone"}\n', b"\xff\n", lines[index][9:]])
    )
    folder = tmp_path_factory.mktemp("damaged")
    (folder / JOURNAL).write_bytes(b"".join([*lines[:index], damaged, *lines[index + 1 :]]))
    with pytest.raises(MedbenchError) as caught:
        list(read_events(folder))
    assert str(caught.value).startswith(f"{folder / JOURNAL}:{index + 1}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(MedbenchError, match="damaged"):
        Journal(folder)


@pytest.mark.parametrize("index", range(len(EVENTS) - 1))
def test_a_line_that_others_need_is_missed(tmp_path: Path, content: bytes, index: int) -> None:
    lines = content.splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:index], *lines[index + 1 :]]))
    if isinstance(EVENTS[index], StageStarted | AttemptStarted | AttemptEnded):
        with pytest.raises(MedbenchError, match="a line is missing"):
            list(read_events(tmp_path))
    else:
        assert list(read_events(tmp_path)) == [*EVENTS[:index], *EVENTS[index + 1 :]]


def test_an_unknown_key_is_damage(tmp_path: Path) -> None:
    line = TrainingEnded(outcome="failed", reason="x", checkpoint=None).model_dump_json()
    (tmp_path / JOURNAL).write_text(line[:-1] + ',"more":1}\n')
    with pytest.raises(MedbenchError, match=r"journal\.jsonl:1: .*more"):
        list(read_events(tmp_path))


def test_kill_9_of_a_writer_loses_no_event_that_it_reported(tmp_path: Path) -> None:
    code = """
import sys; from pathlib import Path; from medbench.harness.training.journal import Journal, TrainingEnded
with Journal(Path(sys.argv[1])) as journal:
    for number in range(10**6):
        journal.append(TrainingEnded(outcome="failed", reason=str(number) * 50, checkpoint=None))
        print(number, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.3)
    writer.send_signal(signal.SIGKILL)
    told = [int(line) for line in writer.stdout.read().splitlines() if line]
    writer.wait()
    with Journal(tmp_path) as journal:
        assert len(journal.events) > told[-1]
        assert [event.reason[:1] for event in journal.events[:3]] == ["0", "1", "2"]  # type: ignore[union-attr]


def test_a_second_writer_is_refused_and_the_first_continues(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        code = (
            "import sys, pathlib; from medbench.harness.training.journal import Journal; "
            "Journal(pathlib.Path(sys.argv[1]))"
        )
        second = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
        assert "another medbench train is using it" in second.stderr.splitlines()[-1]
        journal.append(EVENTS[0])
    assert write(tmp_path, EVENTS[1:2]).count(b"\n") == 2


def test_a_full_disk_is_an_interruption_and_can_be_resumed(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(EVENTS[0])
        size = (tmp_path / JOURNAL).stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
        try:
            with pytest.raises(Interrupted, match="cannot be written") as caught:
                journal.append(EVENTS[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert "\n" not in str(caught.value)
    assert list(read_events(tmp_path)) == EVENTS[:1]
    write(tmp_path, EVENTS[1:])
    assert list(read_events(tmp_path)) == EVENTS


def test_training_json_comes_back(tmp_path: Path) -> None:
    create_training(tmp_path / "new" / "train-mine", TRAINING_RECORD)
    assert read_training(tmp_path / "new" / "train-mine") == TRAINING_RECORD


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "valid dictionary"),
        ("{}", "name: field required"),
        (f'{{"schema_version": {SCHEMA_VERSION + 1}}}', "upgrade medbench"),
    ],
    ids=["none", "torn", "deep", "list", "empty", "newer"],
)
def test_anything_but_a_training_is_one_line(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / TRAINING).write_text(text)
    with pytest.raises(MedbenchError, match=told) as caught:
        read_training(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / TRAINING))
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MedbenchError, match="cannot be created"):
        create_training(tmp_path / "file" / "train-mine", TRAINING_RECORD)


def test_infinities_and_lone_surrogates_do_not_damage_it(tmp_path: Path) -> None:
    gate = GATE.model_copy(update={"log_e_fail": float("-inf")})
    verdict = VERDICT.model_copy(update={"gates": [gate], "candidate": "caf\udce9"})
    gated = Gated(
        stage="sft", attempt=1, step=5, checkpoint="c", verdict=verdict, alpha=0.01, run=None, seconds=1.0, questions=3
    )
    started = AttemptStarted(stage="sft", attempt=1, seed=0, start="/b", config={"most": float("inf")}, alpha=0.03)
    with Journal(tmp_path) as journal:
        journal.append(StageStarted(stage="sft", start="/b", fingerprint="f", prepared=[]))
        journal.append(started)
        journal.append(gated)
    _, first, second = read_events(tmp_path)
    assert first == started
    assert isinstance(second, Gated)
    assert second.verdict.gates[0].log_e_fail == float("-inf")
    assert second.verdict.candidate == "caf?"
