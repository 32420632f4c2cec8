"""A finished run read back: what it holds, how it prints, and what is not a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.gate_runs import answers, stored_run

from medbench.harness.contracts import MedbenchError
from medbench.harness.runs.stored_run import load_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return stored_run(tmp_path, "base", {"medqa": answers(30, 10), "pubmedqa": answers(5, 3, 2)})


def test_a_run_is_read_back_with_its_results_and_samples(folder: Path) -> None:
    run = load_run(str(folder))
    assert (run.folder, run.record.run_id, list(run.results)) == (folder, "base", ["medqa", "pubmedqa"])
    assert run.results["medqa"].accuracy == 0.75
    assert sorted(sample.score or 0 for sample in run.samples("medqa")) == [0.0] * 10 + [1.0] * 30
    assert json.loads(json.dumps(run.as_json()))["results"]["pubmedqa"]["n_error"] == 2


def test_a_run_prints_one_line_per_task(folder: Path) -> None:
    first, medqa, pubmedqa = repr(load_run(folder)).splitlines()
    assert first == f"StoredRun({str(folder)!r}: base, cot-v2, complete)"
    assert medqa == "  medqa: 75.0 % [59.8, 85.8], n=40"
    assert pubmedqa.startswith("  pubmedqa: 62.5 % [")


def test_a_task_without_a_score_prints_its_errors(tmp_path: Path) -> None:
    folder = stored_run(tmp_path, "dead", {"medqa": answers(0, 0, 3)}, status="failed")
    assert repr(load_run(folder)).endswith("  medqa: not scored, 3 of 3 requests failed")


def test_a_task_that_is_not_in_the_run_is_one_line(folder: Path) -> None:
    with pytest.raises(MedbenchError, match=r"no task 'medqq'; did you mean medqa"):
        load_run(folder).samples("medqq")


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    folder = stored_run(tmp_path, "half", {"medqa": answers(3)}, status="running")
    with pytest.raises(MedbenchError, match=r"half: the run is not finished: continue it with --resume"):
        load_run(folder)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MedbenchError, match=r"run\.json: no such file"):
            load_run(folder)


def test_a_run_without_its_results_is_refused(folder: Path) -> None:
    (folder / "results" / "medqa.json").unlink()
    with pytest.raises(MedbenchError, match=r"medqa\.json: no such file"):
        load_run(folder)
