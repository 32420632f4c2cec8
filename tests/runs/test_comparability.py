"""Runs whose replies were computed differently are compared, with a warning: that alone moves scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from support.gate_runs import a_record, answers, stored_run, write_gates

from medbench.harness.cli.main import run
from medbench.harness.runs.comparability import setup_warnings
from medbench.harness.runs.records import AdapterRecord, ExpertsRecord, ModelRecord
from medbench.reports.read.collect import collect
from medbench.reports.write.pages import compare_page

VLLM = {"vllm": "0.31.0", "device": "cuda", "dtype": "bfloat16", "batch_invariant": False}


def engine(name: str = "vllm", **settings: Any) -> dict[str, Any]:
    return {"name": name, "settings": {**VLLM, **settings}}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (engine(), []),
        (engine(max_num_seqs=4, gpu_memory_utilization=0.5, tensor_parallel_size=1), []),
        (engine(vllm="0.30.2"), ["vLLM 0.31.0 and 0.30.2"]),
        (engine(dtype="float32"), ["dtype bfloat16 and float32"]),
        (engine(dtype="torch.bfloat16"), []),
        (engine(batch_invariant=True), ["batch-invariant mode off and on"]),
        (engine(tensor_parallel_size=2), ["tensor parallel size 1 and 2"]),
        (engine(device="cpu"), ["device cuda and cpu"]),
        ({"name": "hf", "settings": {"device": "cuda", "dtype": "float16"}}, ["engine vllm and hf", "float16"]),
        ({"name": "openai", "settings": {"base_url": "http://x"}}, ["engine vllm and openai"]),
        ({"name": "fake"}, ["engine vllm and stored replies"]),
        (engine(vllm="0.30.2", dtype="float32"), ["vLLM 0.31.0 and 0.30.2, dtype bfloat16 and float32"]),
    ],
)
def test_what_alone_moves_scores_is_named(other: dict[str, Any], said: list[str]) -> None:
    a, b = a_record("a", {"toy": 3}, engine=engine()), a_record("b", {"toy": 3}, engine=other)
    found = setup_warnings(a, b)
    assert len(found) == bool(said)
    for words in said:
        assert words in found[0]
        assert "\n" not in found[0]


def test_compare_warns_in_its_table_and_in_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    a = stored_run(tmp_path, "a", {"toy": answers(5, 3)}, engine=engine())
    b = stored_run(tmp_path, "b", {"toy": answers(6, 2)}, engine=engine(dtype="float32"))
    assert run(["compare", str(a), str(b)]) == 0
    assert "warning: a and b" in capfd.readouterr().out
    assert run(["compare", str(a), str(b), "--json"]) == 0
    (warning,) = json.loads(capfd.readouterr().out)["warnings"]
    assert "dtype bfloat16 and float32" in warning
    assert run(["compare", str(a), str(a), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["warnings"] == []


def test_the_compare_page_warns(tmp_path: Path) -> None:
    stored_run(tmp_path, "a", {"toy": answers(5, 3)}, engine=engine())
    stored_run(tmp_path, "b", {"toy": answers(6, 2)}, engine=engine(dtype="float32"))
    a, b = collect([tmp_path]).runs
    assert "dtype bfloat16 and float32" in compare_page(a, b, [], {}, "")
    assert "computed differently" not in compare_page(a, a, [], {}, "")


def test_a_gate_against_a_baseline_warns_and_decides_as_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a = stored_run(tmp_path, "a", {"toy": answers(5, 3)}, engine=engine())
    b = stored_run(tmp_path, "b", {"toy": answers(6, 2)}, engine=engine(vllm="0.30.2"))
    gates = write_gates(tmp_path / "gates.yaml", "{task: toy, margin: 0.5}")
    assert run(["gate", str(b), "--gates", str(gates), "--baseline", str(a), "--json"]) == 0
    (warning,) = json.loads(capfd.readouterr().out)["verdicts"][0]["warnings"]
    assert "vLLM 0.31.0 and 0.30.2" in warning
    assert json.loads((b / "verdict.json").read_text())["warnings"] == [warning]
    assert run(["gate", str(a), "--gates", str(gates), "--baseline", str(a), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["verdicts"][0]["warnings"] == []


def adapted(served: Literal["lora", "merged"]) -> ModelRecord:
    adapter = AdapterRecord(name="x", path="x", fingerprint="f", tokenizer_sha256="t", rank=8)
    experts = ExpertsRecord(base="b", served=served, adapters={"toy": adapter})
    return ModelRecord(name="x", kind="experts", fingerprint="f", experts=experts)


def test_adapters_beside_their_base_and_merged_ones_are_computed_differently() -> None:
    merged = ModelRecord(name="x", kind="adapter", fingerprint="f")
    full = ModelRecord(name="x", kind="full", fingerprint="f")
    beside, alone, base = (a_record("a", {"toy": 3}, model=one) for one in (adapted("lora"), merged, full))
    (warning,) = setup_warnings(beside, alone)
    assert "adapters beside their base and merged" in warning
    assert setup_warnings(a_record("a", {"toy": 3}, model=adapted("merged")), alone) == []
    assert setup_warnings(beside, base) == []
