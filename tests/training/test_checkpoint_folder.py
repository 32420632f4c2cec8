"""The folder between training and loop: checkpoints appear complete, metrics survive kills, logs are quoted.

pytest tests/training/test_checkpoint_folder.py
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.contracts import MedbenchError
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.checkpoint_folder import (
    METRICS,
    MetricsReader,
    append_metrics,
    checkpoints,
    forget_metrics_after,
    last_lines,
    mark_judged,
    publish,
    read_metrics,
    wait_until_judged,
)


def weights(text: str = "weights"):
    def fill(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "model.safetensors").write_text(text)

    return fill


def test_a_published_checkpoint_is_found_with_all_its_files(tmp_path: Path) -> None:
    path = publish(tmp_path, 120, weights())
    assert path == tmp_path / "step-000120"
    assert (path / "sub" / "model.safetensors").read_text() == "weights"
    assert [(one.step, one.path) for one in checkpoints(tmp_path)] == [(120, path)]


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    publish(tmp_path, 1, weights("first"))
    path = publish(tmp_path, 1, weights("second"))
    assert (path / "sub" / "model.safetensors").read_text() == "first"


def test_a_checkpoint_that_fails_while_being_written_never_appears_and_can_be_retried(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        publish(tmp_path, 1, fail)
    assert checkpoints(tmp_path) == []
    path = publish(tmp_path, 1, weights())
    assert sorted(one.name for one in path.iterdir()) == ["sub"]


def test_kill_9_while_publishing_leaves_only_complete_checkpoints(tmp_path: Path) -> None:
    code = """
import sys; from pathlib import Path; from medbench.harness.training.checkpoint_folder import publish
def fill(folder):
    for part in range(20): (folder / f"{part}").write_bytes(b"x" * 10000)
print("ready", flush=True)
for step in range(10**6): publish(Path(sys.argv[1]), step, fill)
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    while not checkpoints(tmp_path):
        time.sleep(0.01)
    time.sleep(0.3)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    found = checkpoints(tmp_path)
    assert found
    assert all(len(list(one.path.iterdir())) == 20 for one in found)


def test_checkpoints_come_in_order_of_step_without_other_folders(tmp_path: Path) -> None:
    for name in ("step-1000000", "step-000200", "step-7", "step-000100.tmp", "step-x", "step-", ".step-000300.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000400").touch()
    assert [one.step for one in checkpoints(tmp_path)] == [7, 200, 1000000]


def test_a_missing_folder_has_no_checkpoints_and_no_metrics(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "none") == []
    assert read_metrics(tmp_path / "none") == []


def test_metrics_come_back_in_order_and_the_last_line_of_a_step_wins(tmp_path: Path) -> None:
    append_metrics(tmp_path, 2, {"loss": 0.5, "note": "x", "list": [1]})
    append_metrics(tmp_path, 1, {"loss": 0.7})
    append_metrics(tmp_path, 2, {"loss": 0.4, "step": 99, "grad_norm": 1.0})
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 0.7},
        {"step": 2, "loss": 0.4, "note": "x", "grad_norm": 1.0},
    ]


def test_infinities_and_nan_are_kept_for_the_watchdogs(tmp_path: Path) -> None:
    append_metrics(tmp_path, 1, {"loss": math.nan, "grad_norm": math.inf})
    (line,) = read_metrics(tmp_path)
    assert math.isnan(float(str(line["loss"])))
    assert line["grad_norm"] == math.inf


HOSTILE = (
    b"",
    b"{",
    b"[1]",
    b"3",
    b'{"loss": 1}',
    b'{"step": "1"}',
    b'{"step": true}',
    b'{"step": -1}',
    b"\xff\xfe",
    b'{"step": 1.5}',
    b"[" * 100_000,
    b'{"step": ' + b"9" * 5000 + b"}",
)


@pytest.mark.parametrize("line", HOSTILE, ids=[str(one[:12]) for one in HOSTILE])
def test_lines_that_are_not_metrics_are_left_out(tmp_path: Path, line: bytes) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "loss": 1}\n' + line + b'\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    assert [one["step"] for one in read_metrics(tmp_path)] == [1, 2]


@given(st.data())
def test_metrics_of_a_resumed_training_are_those_of_an_uninterrupted_one(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("metrics")
    steps = data.draw(st.integers(1, 12))
    for step in range(1, steps + 1):
        append_metrics(folder, step, {"loss": 1 / step})
    through = (folder / METRICS).read_bytes()
    cut = data.draw(st.integers(0, len(through)))
    (folder / METRICS).write_bytes(through[:cut])
    whole = through[:cut].count(b"\n")
    last = data.draw(st.integers(0, whole))  # the last checkpoint may be older than the last line
    forget_metrics_after(folder, last)
    for step in range(last + 1, steps + 1):
        append_metrics(folder, step, {"loss": 1 / step})
    assert read_metrics(folder) == [{"step": step, "loss": 1 / step} for step in range(1, steps + 1)]


@given(cuts=st.lists(st.integers(0, 400), max_size=8), again=st.booleans())
def test_a_growing_file_is_read_as_if_from_its_beginning(tmp_path_factory, cuts: list[int], again: bool) -> None:
    folder = tmp_path_factory.mktemp("metrics")
    reader = MetricsReader(folder)
    whole = b"".join(
        b'{"step": %d, "loss": %d}\n' % (step % 7, step) + b"{torn\n" * (step % 3 == 0) for step in range(14)
    )
    for cut in sorted(cuts):
        (folder / METRICS).write_bytes(whole[:cut])
        assert reader.read() == read_metrics(folder)
    if again:  # as a training that resumes does
        append_metrics(folder, 9, {"loss": 9})
        forget_metrics_after(folder, 3)
        assert reader.read() == read_metrics(folder)
        append_metrics(folder, 4, {"loss": 0.25})
    assert reader.read() == read_metrics(folder)


def test_metrics_are_parsed_once(tmp_path: Path) -> None:
    append_metrics(tmp_path, 1, {"loss": 1})
    reader = MetricsReader(tmp_path)
    assert reader.read() is reader.read()


def test_metrics_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / METRICS).mkdir()
    with pytest.raises(MedbenchError, match="cannot be read"):
        read_metrics(tmp_path)


def test_training_waits_only_if_asked_and_until_its_own_step_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(checkpoint_folder.WAIT, raising=False)
    wait_until_judged(tmp_path, 1)
    monkeypatch.setenv(checkpoint_folder.WAIT, "1")
    waiting = threading.Thread(target=wait_until_judged, args=(tmp_path, 2), daemon=True)
    waiting.start()
    mark_judged(tmp_path, 1)
    waiting.join(0.6)
    assert waiting.is_alive()
    mark_judged(tmp_path, 2)
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        (b"", "(it printed nothing)"),
        (b"\n \n\t\n", "(it printed nothing)"),
        (b"1\n2\n\n3\n4\n5\n6\n", "2 | 3 | 4 | 5 | 6"),
        (b"  10%|#   | 1/9\r  20%|##  | 2/9\rdone\n", "10%|# | 1/9 | 20%|## | 2/9 | done"),
        (b"\x1b[2K\x1b]8;;file:///x\x1b\\train.py\x1b]8;;\x1b\\:3: \x1b[31mKeyError\x1b[m", "train.py:3: KeyError"),
        (b"\x1b[1;31mError\x1b[0m: \xff\x00\x07no memory", "Error: � no memory"),
        ("Verlust größer als 1\u2028‮".encode(), "Verlust größer als 1"),
    ],
)
def test_the_end_of_a_log_is_one_printable_line(tmp_path: Path, text: bytes, quoted: str) -> None:
    (tmp_path / "log.txt").write_bytes(text)
    assert last_lines(tmp_path / "log.txt") == quoted


def test_only_the_end_of_a_huge_log_is_read(tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("wb") as file:
        file.seek(1 << 32)  # sparse
        file.write(b"\n" + b"x" * 5000 + b"\nRuntimeError: the end\n")
    quoted = last_lines(tmp_path / "log.txt")
    assert quoted.endswith(" | RuntimeError: the end")
    assert len(quoted) <= 2000


def test_a_missing_log_and_an_unreadable_one(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none") == "(it printed nothing)"
    with pytest.raises(MedbenchError, match="cannot be read"):
        last_lines(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_log_without_permission_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch(mode=0)
    with pytest.raises(MedbenchError, match="Permission denied"):
        last_lines(tmp_path / "log.txt")
