"""What is printed while questions are answered."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import answer

from medbench.harness.contracts import Sample
from medbench.harness.evaluation import progress
from medbench.harness.evaluation.progress import progress_for


def a_sample(score: float | None = 1.0, **changes: Any) -> Sample:
    return answer("1", score, **{"prompt_tokens": 100, "completion_tokens": 50} | changes)


@pytest.fixture
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", -1.0)


def test_plain_lines_where_standard_error_is_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_for(quiet=False) as shown:
        shown.start("medqa", 3, 0)
        for score in (1.0, 0.0, 1.0):
            shown.advance("medqa", a_sample(score))
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err
    first, last = err.splitlines()
    assert first == "medqa: 3 questions"
    assert last.startswith("medqa: 3/3, ")
    assert "accuracy 0.667" in last
    assert last.endswith("0:00 left")
    assert re.search(r" [1-9]\d* tokens/s", last)


def test_tokens_that_were_not_counted_are_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_for(quiet=False) as shown:
        shown.start("medqa", 1, 0)
        shown.advance("medqa", a_sample(prompt_tokens=0, completion_tokens=0))
    assert ", - tokens/s" in capsys.readouterr().err


def test_lines_come_at_intervals_and_not_for_every_question(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_for(quiet=False) as shown:
        shown.start("medqa", 1000, 0)
        for _ in range(999):
            shown.advance("medqa", a_sample())
        assert len(capsys.readouterr().err.splitlines()) == 1
        shown.advance("medqa", a_sample())
    assert capsys.readouterr().err.startswith("medqa: 1000/1000, ")


@pytest.mark.usefixtures("every_line")
def test_counts_and_errors_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_for(quiet=False) as shown:
        shown.start("medqa", 4, 0)
        for score in (None, 1.0, 0.0, None):
            shown.advance("medqa", a_sample(score))
    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == [f"medqa: {n}/4" for n in (1, 2, 3, 4)]
    assert "accuracy -, 1 errors" in lines[0]
    assert "accuracy 1.000, 1 errors" in lines[1]
    assert "accuracy 0.500, 1 errors" in lines[2]
    assert "accuracy 0.500, 2 errors" in lines[3]


@pytest.mark.usefixtures("every_line")
def test_tasks_are_counted_separately(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_for(quiet=False) as shown:
        shown.start("medqa", 1, 0)
        shown.start("pubmedqa", 2, 0)
        shown.advance("medqa", a_sample(1.0))
        shown.advance("pubmedqa", a_sample(0.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["medqa: 1 questions", "pubmedqa: 2 questions"]
    assert "medqa: 1/1" in lines[2]
    assert "accuracy 1.000" in lines[2]
    assert "pubmedqa: 1/2" in lines[3]
    assert "accuracy 0.000" in lines[3]


@pytest.mark.usefixtures("every_line")
def test_a_resumed_run_says_so_and_continues_counting(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_for(quiet=False) as shown:
        shown.start("medqa", 5, 3)
        shown.advance("medqa", a_sample())
        shown.advance("medqa", a_sample())
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "medqa: 5 questions, 3 answered before"
    assert [line.split(",")[0] for line in lines] == ["medqa: 4/5", "medqa: 5/5"]


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_for(quiet=True) as shown:
        shown.start("medqa", 2, 1)
        shown.advance("medqa", a_sample())
    assert capsys.readouterr() == ("", "")


def test_the_rate_is_that_of_this_session_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_for(quiet=False) as shown:
        shown.start("medqa", 1_000_001, 1_000_000)
        shown.advance("medqa", a_sample())
    (rate,) = re.findall(r"([\d.]+) questions/s, (\d+) tokens/s", capsys.readouterr().err)
    assert float(rate[1]) / float(rate[0]) == pytest.approx(150, rel=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a pseudo-terminal drops its output when its end closes")
def test_bars_where_standard_error_is_a_terminal() -> None:
    import pty

    code = (
        "import test_progress\n"
        "with test_progress.progress_for(quiet=False) as shown:\n"
        "    shown.start('[red]medqa[/red]', 3, 1)\n"
        "    for score in (1.0, 0.0):\n"
        "        shown.advance('[red]medqa[/red]', test_progress.a_sample(score))\n"
    )
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    master, terminal = pty.openpty()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "COLUMNS": "160", "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=terminal, env=environment, timeout=60
    )
    os.close(terminal)
    text = os.read(master, 1 << 16).decode()
    os.close(master)
    assert done.returncode == 0, text
    assert done.stdout == b""
    assert "[red]medqa[/red]" in text
    assert "3/3" in text
    assert "accuracy 0.500" in text
