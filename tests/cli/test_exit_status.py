"""The exit status is the verdict: no closed pipe, full disk or fault of medbench's own changes it into another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.gate_runs import answers, stored_run

from medbench.harness import api
from medbench.harness.cli import main

COMMAND = [sys.executable, "-m", "medbench.harness.cli"]


@pytest.fixture
def gates(tmp_path: Path) -> Path:
    file = tmp_path / "gates.yaml"
    file.write_text("gates: [{task: medqa, at_least: 0.5}]\n")
    return file


@pytest.fixture
def good_run(tmp_path: Path) -> Path:
    return stored_run(tmp_path, "good", {"medqa": answers(38, 2)})


def without_reader() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def status(arguments: list[str], *, stdout: str = "kept", stderr: str = "kept") -> int:
    """Exit status with either stream `kept`, `gone` (no reader), `full` or `closed`."""
    closed = [number for number, how in ((1, stdout), (2, stderr)) if how == "closed"]
    opened = {"kept": lambda: os.open(os.devnull, os.O_WRONLY), "gone": without_reader}
    opened |= {"full": lambda: os.open("/dev/full", os.O_WRONLY), "closed": opened["kept"]}
    out, err = opened[stdout](), opened[stderr]()
    try:
        return subprocess.run(
            [*COMMAND, *arguments],
            stdout=out,
            stderr=err,
            timeout=120,
            preexec_fn=lambda: [os.close(number) for number in closed],
        ).returncode
    finally:
        os.close(out)
        os.close(err)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "full", "closed"])
def test_wrong_input_is_2_whoever_reads_standard_error(how: str, gates: Path) -> None:
    for arguments in (["gate"], ["score", "nope", "--task", "medqa"], ["compare", "nope", "nope"]):
        assert status(arguments, stderr=how) == 2, arguments


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "full", "closed"])
@pytest.mark.parametrize("at_least", [0.5, 0.99])
def test_a_verdict_keeps_its_status_whoever_reads_standard_output(
    how: str, at_least: float, gates: Path, good_run: Path
) -> None:
    gates.write_text(f"gates: [{{task: medqa, at_least: {at_least}}}]\n")
    arguments = ["gate", str(good_run), "--gates", str(gates)]
    decided = status(arguments)
    assert decided == (0 if at_least == 0.5 else 1)
    assert status(arguments, stdout=how) == decided
    assert status([*arguments, "--json"], stdout=how, stderr=how) == decided


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "full", "closed"])
def test_commands_that_only_print_keep_their_status(how: str, gates: Path) -> None:
    assert status(["--help"], stdout=how) == 0
    assert status(["validate", str(gates)], stdout=how) == 0
    gates.write_text("gates: 3\n")
    assert status(["validate", str(gates)], stdout=how) == 2


@pytest.mark.parametrize(
    "raised", [KeyError("x\ny"), RecursionError(), MemoryError(), SystemExit(0), BaseException("panic")]
)
def test_a_fault_of_medbenchs_own_is_70_and_one_line(
    raised: BaseException, gates: Path, good_run: Path, monkeypatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(api, "gate_all", faulty)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    junit, summary = tmp_path / "j.xml", tmp_path / "s.md"
    files = ["--junit", str(junit), "--summary", str(summary)]
    assert main.run(["gate", str(good_run), "--gates", str(gates), *files]) == 70
    (line,) = capfd.readouterr().err.splitlines()
    assert "fault of medbench" in line
    (kept,) = tmp_path.glob("medbench-fault-*.txt")
    assert str(kept) in line
    assert "Traceback" in kept.read_text()
    assert type(raised).__name__ in kept.read_text()
    root = ElementTree.parse(junit).getroot()
    assert [case.get("classname") for case in root.iter("testcase")] == [str(good_run)]
    assert len(list(root.iter("error"))) == 1
    assert not list(root.iter("failure"))
    assert root.find("testsuite").get("errors") == "1"
    assert "medbench gate: NO VERDICT" in summary.read_text()


def test_help_lists_the_exit_statuses(capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    shown = capfd.readouterr().out
    for number in ("0", "1", "2", "3", "4", "70"):
        assert f"\n  {number} " in shown
