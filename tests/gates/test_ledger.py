"""The ledger of alpha: numbers, shares, retries, fresh starts, killed writers and damage.

pytest tests/gates/test_ledger.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gate_runs import answer, stored_run

from medbench.harness.contracts import MedbenchError
from medbench.harness.gates.ledger import LEDGER, Ledger
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.runs.records import ModelRecord
from medbench.harness.stats.spending import spent_alpha

RULES = GateFile(gates=[Gate("medqa", at_least=0.6)])


def model(name: str, **changes: str) -> ModelRecord:
    return ModelRecord(name=name, kind="full", fingerprint=name, **changes)


def numbers(ledger: Ledger, names: str) -> list[int]:
    return [ledger.enter(model(name)).number for name in names]


def test_each_checkpoint_gets_the_next_number_and_a_retry_keeps_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs", RULES, None)
    assert numbers(ledger, "abacb") == [1, 2, 1, 3, 2]
    assert ledger.enter(model("c")).alpha == pytest.approx(spent_alpha(0.05, 3))
    assert ledger.enter(model("a", tokenizer_sha256="other")).number == 4
    assert ledger.enter(model("a", config_sha256="other")).number == 5


@settings(max_examples=50)
@given(alpha=st.floats(0.001, 0.4), tries=st.integers(1, 300))
def test_all_checkpoints_together_spend_at_most_alpha(alpha: float, tries: int) -> None:
    assert sum(spent_alpha(alpha, number) for number in range(1, tries + 1)) < alpha


def test_every_gate_file_and_baseline_has_its_own_count(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    base = stored_run(runs, "base", {"medqa": [answer("q1")]})
    stricter = GateFile(gates=[Gate("medqa", at_least=0.7)])
    assert numbers(Ledger(runs, RULES, None), "ab") == [1, 2]
    assert numbers(Ledger(runs, stricter, None), "ab") == [1, 2]
    assert numbers(Ledger(runs, RULES, base), "ab") == [1, 2]
    assert numbers(Ledger(runs, RULES, None), "c") == [3]


def test_a_fresh_start_needs_a_reason_that_is_stored(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, RULES, None)
    assert numbers(ledger, "ab") == [1, 2]
    ledger.start_afresh("new data, trained from the base again")
    assert numbers(ledger, "cb") == [1, 2]
    events = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert [event["event"] for event in events] == ["entered", "entered", "fresh", "entered", "entered"]
    assert events[2]["reason"] == "new data, trained from the base again"


def test_passes_earn_alpha_where_the_rate_of_false_passes_is_promised(tmp_path: Path) -> None:
    """e-LOND: alpha x 6 / (pi k)^2 x (1 + passes so far)."""
    rules = RULES.model_copy(update={"control": "fdr"})
    ledger = Ledger(tmp_path, rules, None)
    for number, name in enumerate("abcdef", 1):
        entry = ledger.enter(model(name))
        assert entry.alpha == pytest.approx(min(0.05, spent_alpha(0.05, number) * number))
        ledger.passed(entry)
        ledger.passed(entry)  # twice counts once
    assert ledger.enter(model("a")).alpha == pytest.approx(spent_alpha(0.05, 1))


def test_fdr_needs_evidence_that_is_an_e_value() -> None:
    with pytest.raises(MedbenchError, match="control: fdr needs decide: census"):
        GateFile(gates=[Gate("medqa", at_least=0.6)], control="fdr", decide="population")


def test_many_processes_get_different_numbers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, RULES, None)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: ledger.enter(model(name)).number, map(str, range(40))))
    assert sorted(found) == list(range(1, 41))


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_last_line_was_no_entry(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path, RULES, None)
    numbers(ledger, "ab")
    whole = (tmp_path / LEDGER).read_bytes()
    (tmp_path / LEDGER).write_bytes(whole[:-cut])
    assert numbers(ledger, "ca") == [2, 1]
    assert all(json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines())


@pytest.mark.parametrize("line", ["{}", "null", "x", '{"event": "entered"}', '{"schema_version": 9, "event": "fresh"}'])
def test_a_damaged_line_is_named_and_nothing_is_counted_wrongly(tmp_path: Path, line: str) -> None:
    ledger = Ledger(tmp_path, RULES, None)
    numbers(ledger, "ab")
    path = tmp_path / LEDGER
    damaged = path.read_text().splitlines(keepends=True)[0] + line + "\n"
    path.write_text(damaged)
    with pytest.raises(MedbenchError, match=r"ledger\.jsonl:2: .*the ledger is damaged") as fault:
        ledger.enter(model("c"))
    assert "\n" not in str(fault.value)
    assert path.read_text() == damaged


def test_kill_9_of_a_writer_loses_no_number_that_it_told(tmp_path: Path) -> None:
    code = """
import sys; from pathlib import Path
sys.path.insert(0, sys.argv[2])
from gates.test_ledger import RULES, Ledger, model
ledger = Ledger(Path(sys.argv[1]), RULES, None)
for number in range(10**6):
    print(ledger.enter(model(str(number))).number, flush=True)
"""
    tests = str(Path(__file__).parents[1])
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), tests], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    told = 20 + len(process.stdout.read().split("\n")[:-1])
    process.wait()
    ledger = Ledger(tmp_path, RULES, None)
    assert ledger.enter(model("new")).number >= told + 1
    assert ledger.enter(model("5")).number == 6
