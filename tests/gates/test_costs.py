"""What a candidate costs beside its baseline, in the verdict and wherever it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lxml import html
from support.gate_runs import answers, stored_run, write_gates

from medbench.harness.cli.main import run
from medbench.harness.cli.verdict_output import markdown
from medbench.harness.gates.costs import Cost, CostRow, rows_of
from medbench.harness.gates.finished_run import gate_finished_run
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.runs.records import ModelRecord, Totals
from medbench.reports.read.collect import collect
from medbench.reports.read.records import Collection
from medbench.reports.write.pages import run_page

VLLM = {"name": "vllm"}


def a_run(root: Path, name: str, weight_bytes: int, seconds: float) -> Path:
    model = ModelRecord(name=name, kind="full", fingerprint=name, weight_bytes=weight_bytes)
    totals = Totals(seconds=seconds, prompt_tokens=900, completion_tokens=100)
    return stored_run(root, name, {"medqa": answers(6, 4)}, model=model, totals=totals, engine=VLLM)


@pytest.fixture
def judged(tmp_path: Path) -> tuple[Path, Path]:
    """(baseline, candidate): half the size, and twice as fast."""
    return a_run(tmp_path, "base", 200 << 20, 10.0), a_run(tmp_path, "small", 100 << 20, 5.0)


def test_size_and_speed_stand_beside_the_baseline_s(judged: tuple[Path, Path]) -> None:
    base, small = judged
    verdict = gate_finished_run(small, GateFile(gates=[Gate(task="medqa", margin=0.5)]), base).verdict
    assert [one.run for one in verdict.costs] == ["base", "small"]
    assert rows_of(verdict.costs) == [
        CostRow("weights, MiB", "200.0", "100.0", "-50 %"),
        CostRow("seconds a question", "1", "0.5", "-50 %"),
        CostRow("tokens a second", "100", "200", "+100 %"),
        CostRow("tokens an answer", "10", "10", "+0 %"),
    ]
    assert "| weights, MiB | 200.0 | 100.0 | -50 % |" in markdown(verdict)


def test_the_command_and_the_page_show_them(
    judged: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base, small = judged
    gates = write_gates(tmp_path / "gates.yaml", "{task: medqa, margin: 0.5}")
    run(["gate", str(small), "--gates", str(gates), "--baseline", str(base)])
    assert "seconds a question: 0.5, baseline 1 (-50 %)" in capfd.readouterr().out
    assert len(json.loads((small / "verdict.json").read_text())["costs"]) == 2
    shown = next(one for one in collect([tmp_path]).runs if one.id == "small")
    tree = html.document_fromstring(run_page(Collection((shown,)), shown))
    (table,) = [one for one in tree.xpath("//table") if "Costs beside" in one.text_content()]
    assert "weights, MiB200.0100.0-50 %" in table.text_content().replace("\n", "")


def test_without_a_baseline_there_is_nothing_to_compare(judged: tuple[Path, Path]) -> None:
    verdict = gate_finished_run(judged[1], GateFile(gates=[Gate(task="medqa", at_least=0.1)]), None).verdict
    assert verdict.costs == []
    assert "cost" not in markdown(verdict)


def test_what_one_run_did_not_measure_is_left_out(tmp_path: Path) -> None:
    replies, own = stored_run(tmp_path, "replies", {"medqa": answers(6, 4)}), a_run(tmp_path, "own", 100, 5.0)
    verdict = gate_finished_run(own, GateFile(gates=[Gate(task="medqa", margin=0.5)]), replies).verdict
    assert verdict.costs[0].seconds_per_question is None
    assert rows_of(verdict.costs) == []
    assert rows_of([Cost(run="a", weight_bytes=0), Cost(run="b", weight_bytes=1)]) == []
