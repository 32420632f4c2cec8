"""`medbench gate` as users meet it: exit statuses, live and finished, resuming, baselines, broken checkpoints, speed.

pytest tests/gates/test_judge.py
"""

from __future__ import annotations

import errno
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import answer, answers, stored_run, write_gates, write_medqa, write_replies
from support.tiny import build_tiny_model

from medbench.harness.benchmarks.partition import partition_of
from medbench.harness.cli.main import run
from medbench.harness.contracts import Engine, MedbenchError
from medbench.harness.engines import fake
from medbench.harness.evaluation.requests import permuted
from medbench.harness.gates.baseline import read_controls
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.records import ModelRecord
from medbench.harness.runs.run_folder import read_result, read_run, read_samples

N = 160
HEAVY = {"torch", "vllm", "transformers", "lm_eval", "datasets", "peft", "statsmodels", "pandas"}
Capture = pytest.CaptureFixture[str]


class Bench:
    """A made-up medqa of 160 questions, candidates with stored replies, and the command to gate them."""

    def __init__(self, folder: Path, capfd: Capture) -> None:
        self.folder, self._capfd = folder, capfd
        self.ids = write_medqa(folder / "data", N)
        self.common = ["--data", str(folder / "data"), "--quiet", "--json"]

    def replies(self, name: str, right: int, *, seed: int = 0, failed: int = 0) -> Path:
        """Replies of which so many are right; `failed` questions have none."""
        chosen = random.Random(seed).sample(self.ids, right + failed)
        known = [id for id in self.ids if id not in chosen[right:]]
        return write_replies(self.folder / f"{name}.jsonl", {id: id in chosen[:right] for id in known})

    def evaluate(self, name: str, right: int, *more: str, seed: int = 0) -> Path:
        """A finished run."""
        replies = self.replies(name, right, seed=seed)
        arguments = ["eval", name, "--tasks", "medqa", "--name", name, "--replies", str(replies), *self.common, *more]
        assert run(arguments) == 0
        self._capfd.readouterr()
        return Path("runs") / name

    def run(self, arguments: list[str]) -> int:
        """The exit status of a command whose output does not matter."""
        status = run(arguments)
        self._capfd.readouterr()
        return status

    def gate(self, candidate: str | Path, gates: Path, *more: str | Path) -> tuple[int, dict[str, Any]]:
        """(exit status, the verdict as JSON; {} where there is none)"""
        status = run(["gate", str(candidate), "--gates", str(gates), *map(str, more), *self.common])
        printed = self._capfd.readouterr()
        self.err = printed.err
        return status, json.loads(printed.out)["verdicts"][0] if printed.out else {}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> Bench:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return Bench(tmp_path, capfd)


def stored_ids(folder: str | Path) -> list[str]:
    return [sample.id for sample in read_samples(folder, "medqa")]


# ---- exit statuses


@pytest.mark.parametrize(
    ("floor", "failed", "status", "overall"),
    [(0.5, 0, 0, "pass"), (0.9, 0, 1, "fail"), (0.7, 20, 3, "not gateable"), (0.75, 6, 3, "undecided")],
)
def test_exit_statuses_of_a_finished_run_and_of_a_live_one(
    bench: Bench, floor: float, failed: int, status: int, overall: str
) -> None:
    gates = write_gates(bench.folder / "gates.yaml", f"{{task: medqa, at_least: {floor}}}")
    replies = bench.replies("c", 118, failed=failed)
    live = bench.gate("c", gates, "--replies", replies)
    assert (live[0], live[1]["overall"]) == (status, overall)
    whole = ["eval", "c", "--tasks", "medqa", "--replies", str(replies), "--name", "whole", *bench.common]
    assert run(whole) == (3 if failed else 0)  # 6 of 160 are more than 2 %
    bench._capfd.readouterr()
    finished = bench.gate("runs/whole", gates)
    assert (finished[0], finished[1]["overall"]) == (status, overall)


def test_wrong_input_exits_2_with_one_line(bench: Bench) -> None:
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.5}")
    replies = bench.replies("c", 100)
    for arguments in (
        ["gate"],
        ["gate", "c"],
        ["gate", "c", "--gates", str(bench.folder / "none.yaml"), "--replies", str(replies)],
        ["gate", "c", "--gates", str(gates), "--replies", str(bench.folder / "none.jsonl"), "--data", "sample"],
        ["gate", "./nothing", "--gates", str(gates), "--data", "sample"],
        ["gate", "no-such-org/no-such-model", "--gates", str(gates), "--data", "sample"],
        ["gate", "c", "--gates", str(gates), "--replies", str(replies), "--data", "sample", "--baseline", "none"],
    ):
        assert run(arguments) == 2, arguments
        printed = bench._capfd.readouterr()
        assert printed.out == ""
        assert len([line for line in printed.err.splitlines() if line.startswith("medbench:")]) == 1
        assert "Traceback" not in printed.err
    assert not Path("runs").exists()


def test_the_worst_of_several_candidates_is_the_exit_status(bench: Bench) -> None:
    runs = {
        "good": answers(90, 10),
        "bad": answers(50, 50),
        "open": answers(69, 28, 3),
    }
    folders = {name: str(stored_run(Path("runs"), name, {"medqa": samples})) for name, samples in runs.items()}
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.7}")
    for names, status in ((("good", "good"), 0), (("good", "open"), 3), (("open", "bad", "good"), 1)):
        assert run(["gate", *(folders[name] for name in names), "--gates", str(gates), "--json"]) == status
        content = json.loads(bench._capfd.readouterr().out)
        assert content["exit"] == status
        assert [verdict["candidate"] for verdict in content["verdicts"]] == list(names)


def test_the_verdict_lies_in_the_run_folder(bench: Bench) -> None:
    folder = stored_run(Path("runs"), "c", {"medqa": answers(90, 10)})
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.7}", alpha=0.01)
    _, verdict = bench.gate(folder, gates)
    stored = json.loads((folder / "verdict.json").read_text())
    assert stored.items() <= verdict.items()
    assert (verdict["run"], stored["alpha"], stored["protocol"]) == (str(folder), 0.01, "cot-v2")


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """File name -> verdict, of each gate file."""
    return {file.name: json.loads(file.read_text()) for file in (folder / "verdicts").iterdir()}


def test_each_gate_file_and_baseline_keeps_its_verdict(bench: Bench) -> None:
    folder = stored_run(Path("runs"), "c", {"medqa": answers(90, 10)})
    stored_run(Path("runs"), "base", {"medqa": answers(92, 8)})
    easy = write_gates(bench.folder / "easy.yaml", "{task: medqa, at_least: 0.7}")
    hard = write_gates(bench.folder / "hard.yaml", "{task: medqa, at_least: 0.95}")
    assert [bench.gate(folder, file)[0] for file in (easy, hard, easy)] == [0, 1, 0]
    found = kept(folder)
    assert {one["gate_file"]: one["overall"] for one in found.values()} == {"easy.yaml": "pass", "hard.yaml": "fail"}
    assert sorted(name[:5] for name in found) == ["easy-", "hard-"]
    latest = json.loads((folder / "verdict.json").read_text())
    assert latest in found.values()
    assert (latest["gate_file"], len(latest["rules"])) == ("easy.yaml", 64)
    bench.gate(folder, easy, "--baseline", "runs/base")
    assert len(kept(folder)) == 3
    write_gates(bench.folder / "easy.yaml", "{task: medqa, at_least: 0.75}")
    bench.gate(folder, easy)
    assert len(kept(folder)) == 4  # other rules are another gate file


def test_a_kept_verdict_has_the_key_of_its_lines_in_the_ledger(bench: Bench) -> None:
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.5}")
    _, verdict = bench.gate("c", gates, "--replies", bench.replies("c", 130))
    lines = [json.loads(line) for line in Path("runs/ledger.jsonl").read_text().splitlines()]
    assert {line["rules"] for line in lines} == {verdict["rules"]}
    assert list(kept(Path(verdict["run"]))) == [f"gates-{verdict['rules'][:12]}.json"]


def test_a_gate_file_of_any_name_keeps_its_verdict(bench: Bench) -> None:
    folder = stored_run(Path("runs"), "c", {"medqa": answers(90, 10)})
    for name in ("été \u202e‮.yaml", "..yaml", "-", "x" * 240 + ".yaml"):
        gates = write_gates(bench.folder / name, "{task: medqa, at_least: 0.7}")
        _, verdict = bench.gate(folder, gates)
        assert verdict["gate_file"] == name
        assert verdict in [one | {"run": str(folder), "seconds": 0.0} for one in kept(folder).values()]
        shutil.rmtree(folder / "verdicts")


# ---- a live gate


def test_a_live_gate_is_finished_by_eval_resume(bench: Bench) -> None:
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.5}")
    replies = bench.replies("c", 130)
    status, verdict = bench.gate("c", gates, "--replies", replies)
    folder = Path(verdict["run"])
    assert status == 0
    first = stored_ids(folder)
    assert len(first) == verdict["gates"][0]["used"] < N / 2
    assert read_run(folder).status == "running"
    refused, _ = bench.gate(folder, gates)
    assert refused == 2
    assert "--resume" in bench.err
    assert run(["eval", "c", "--tasks", "medqa", "--replies", str(replies), *bench.common, "--resume"]) == 0
    outcome = json.loads(bench._capfd.readouterr().out)
    assert Path(outcome["run"]) == folder
    assert (outcome["status"], outcome["results"]["medqa"]["n"]) == ("complete", N)
    assert stored_ids(folder)[: len(first)] == first
    assert sorted(stored_ids(folder)) == sorted(bench.ids)
    status, verdict = bench.gate(folder, gates)
    assert (status, verdict["gates"][0]["used"], verdict["gates"][0]["estimate"]) == (0, N, 130 / N)


def test_a_limited_run_is_judged_as_far_as_it_goes(bench: Bench) -> None:
    base = bench.evaluate("base", 118)
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, better_by: 0.01}", budget=50)
    limited = bench.evaluate("limited", 120, "--limit", "50", seed=2)
    status, finished = bench.gate(limited, gates, "--baseline", base)
    assert (status, finished["gates"][0]["used"]) == (3, 50)


def test_a_limited_run_that_a_gate_extends_is_unfinished_again(bench: Bench) -> None:
    """Else a gate killed amid a block would leave a run that claims to hold the first questions of the order."""
    replies = bench.replies("c", 120)
    evaluated = ["eval", "c", "--tasks", "medqa", "--replies", str(replies), *bench.common]
    assert run([*evaluated, "--limit", "40"]) == 0
    folder = Path(json.loads(bench._capfd.readouterr().out)["run"])
    easy = write_gates(bench.folder / "easy.yaml", "{task: medqa, at_least: 0.3}")
    _, verdict = bench.gate("c", easy, "--replies", replies)
    first = verdict["gates"][0]["used"]
    assert first <= 40
    assert (read_run(folder).status, read_run(folder).limit) == ("running", None)
    hard = write_gates(bench.folder / "hard.yaml", "{task: medqa, at_least: 0.65}")
    _, verdict = bench.gate("c", hard, "--replies", replies)
    assert N > verdict["gates"][0]["used"] > first
    assert len(stored_ids(folder)) > 40
    assert (read_run(folder).status, read_run(folder).limit) == ("running", None)
    assert run([*evaluated, "--resume"]) == 0
    assert (read_run(folder).status, len(stored_ids(folder))) == ("complete", N)


def test_a_gate_that_asked_every_question_seals_the_run(bench: Bench) -> None:
    replies = bench.replies("c", 120)
    hard = write_gates(bench.folder / "hard.yaml", "{task: medqa, at_least: 0.745}")
    _, verdict = bench.gate("c", hard, "--replies", replies)
    assert verdict["gates"][0]["used"] == N
    assert read_run(Path(verdict["run"])).status == "complete"
    assert read_result(Path(verdict["run"]), "medqa").n == N


@pytest.mark.slow
def test_the_same_command_twice_writes_the_same_bytes(bench: Bench) -> None:
    base = bench.evaluate("base", 120)
    bench.evaluate("other", 125, seed=3)
    gates = write_gates(
        bench.folder / "gates.yaml", "{task: medqa, margin: 0.05}", "{task: medqa, at_least: 0.5}",
        "{task: medqa, metric: unparsed, at_most: 0.05}", "{task: medqa, metric: tokens_per_answer, at_most: 50}",
        "{task: medqa, metric: seconds_per_question, at_most: 5}",
    )  # fmt: skip
    replies = bench.replies("c", 132, seed=1)
    first = bench.gate("c", gates, "--replies", replies, "--baseline", base)
    folder = Path(first[1]["run"])
    written, stored = (folder / "verdict.json").read_bytes(), (folder / "samples/medqa.jsonl").read_bytes()
    assert first[0] == 0
    assert first[1]["gates"][0]["used"] < N
    second = bench.gate("c", gates, "--replies", replies, "--baseline", base)
    assert second[0] == 0
    assert (folder / "verdict.json").read_bytes() == written
    assert (folder / "samples/medqa.jsonl").read_bytes() == stored
    shutil.rmtree(folder)
    quick = write_gates(bench.folder / "quick.yaml", "{task: medqa, margin: 0.05}", "{task: medqa, at_least: 0.5}")
    verdicts = []
    for _ in range(2):
        bench.gate("c", quick, "--replies", replies, "--baseline", base)
        verdicts.append((folder / "verdict.json").read_bytes())
        shutil.rmtree(folder)
    assert verdicts[0] == verdicts[1]


def test_stored_runs_are_controls_and_named(bench: Bench) -> None:
    """The baseline, any complete run on the same questions, and what stopped runs answered; not a damaged one."""
    base = bench.evaluate("base", 120)
    bench.evaluate("other", 120, seed=0)
    bench.evaluate("limited", 120, "--limit", "30")
    bench.evaluate("direct", 120, "--protocol", "direct-v1")
    shutil.copytree("runs/other", "runs/damaged")
    Path("runs/damaged/samples/medqa.jsonl").write_text("{}\n")
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, margin: 0.1}")
    replies = bench.replies("c", 118, seed=0)
    status, verdict = bench.gate("c", gates, "--replies", replies, "--baseline", base)
    (gate,) = verdict["gates"]
    assert status == 0
    assert verdict["baseline"] == "base"
    assert set(gate["controls"]) <= {"base", "other", "earlier checkpoints"}
    assert gate["controls"]
    assert gate["saved"] > 0
    assert f"about {gate['saved']} questions saved by control variates" in gate["why"]


def test_a_run_that_is_newer_than_the_candidate_s_is_no_control(tmp_path: Path) -> None:
    """What was trained after a checkpoint was asked may have learned from its answers, and so from its order."""
    record = read_run(stored_run(tmp_path, "candidate", {"toy": answers(5, 5)}))
    stored_run(tmp_path, "older", {"toy": answers(5, 5)}, created="2025-12-31T23:59:59+00:00")
    stored_run(tmp_path, "newer", {"toy": answers(5, 5)}, created="2026-01-01T00:00:01+00:00")
    assert [one.name for one in read_controls(tmp_path, record, None, ["toy"])] == ["older"]


def test_stopped_runs_are_one_control_of_their_newest_answers(tmp_path: Path) -> None:
    record = read_run(stored_run(tmp_path, "candidate", {"toy": answers(5, 5)}))
    old = [answer(f"q{i}", 1.0) for i in (0, 1, 2, 3)]
    new = [answer(f"q{i}", 0.0) for i in (3, 4)]
    stored_run(tmp_path, "old", {"toy": old}, n=10, status="running", created="2025-01-01T00:00:00+00:00")
    stored_run(tmp_path, "new", {"toy": new}, n=10, status="running", created="2025-02-01T00:00:00+00:00")
    assert read_controls(tmp_path, record, None, ["toy"]) == []
    (found,) = read_controls(tmp_path, record, None, ["toy"], partial=True)
    ids = [f"q{i}" for i in range(6)]
    assert found.name == "earlier checkpoints"
    assert found.values("toy", ids, "accuracy") == dict(zip(ids, [1, 1, 1, 0, 0, 0.6], strict=True))


def test_a_control_of_the_baselines_name_does_no_harm(bench: Bench) -> None:
    base = bench.evaluate("base", 120)
    shutil.copytree(base, bench.folder / "elsewhere" / "base")
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, margin: 0.1}")
    replies = bench.replies("c", 125, seed=1)
    status, _ = bench.gate("c", gates, "--replies", replies, "--baseline", bench.folder / "elsewhere" / "base")
    assert status == 0


@pytest.mark.parametrize("salt", ["one", "two", "three", None])
def test_answers_learned_along_the_order_of_the_seed_do_not_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, salt: str | None
) -> None:
    """A model of 63.8 % that knows the first 40 questions passed a floor of 66 %, after 32 of them."""
    if salt is None:
        monkeypatch.delenv("MEDBENCH_ORDER_SALT")
    else:
        monkeypatch.setenv("MEDBENCH_ORDER_SALT", salt)
    ids = write_medqa(bench.folder / "data", 818)
    first = permuted(ids, seed=0, task="medqa")[:40]
    others = random.Random(0).sample([id for id in ids if id not in first], round(0.638 * 818) - 40)
    learned = write_replies(bench.folder / "learned.jsonl", {id: id in {*first, *others} for id in ids})
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.66}")
    status, verdict = bench.gate("learned", gates, "--replies", learned)
    assert (status, verdict["overall"]) == (1, "fail")
    assert verdict["order_seed"] == read_run(Path(verdict["run"])).order_seed


def test_each_checkpoint_is_counted_and_told(bench: Bench) -> None:
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.5}")
    found = [
        bench.gate(name, gates, "--replies", bench.replies(name, 150, seed=seed))[1] for seed, name in enumerate("abca")
    ]
    assert [verdict["number"] for verdict in found] == [1, 2, 3, 4]  # another file of replies is another model
    assert "checkpoint 4 of this gate file; it may pass wrongly with a chance of at most 0.19 % of the 5 %" in bench.err
    again = bench.gate("b", gates, "--replies", bench.replies("b", 150, seed=1))[1]
    for key in ("number", "alpha", "order_seed", "overall", "run"):
        assert again[key] == found[1][key]
    fresh = bench.gate("d", gates, "--replies", bench.replies("d", 150, seed=9), "--fresh-ledger", "another base")[1]
    assert fresh["number"] == 1
    assert [json.loads(line)["event"] for line in Path("runs/ledger.jsonl").read_text().splitlines()].count(
        "fresh"
    ) == 1


def test_a_refused_gate_is_not_counted(bench: Bench) -> None:
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, category: {no_such: field}, at_least: 0.5}")
    assert bench.gate("a", gates, "--replies", bench.replies("a", 150))[0] == 2
    assert not Path("runs").exists()


def test_a_verdict_can_wait_for_every_question(bench: Bench) -> None:
    replies = bench.replies("c", 150)
    early = write_gates(bench.folder / "early.yaml", "{task: medqa, at_least: 0.5}")
    late = write_gates(bench.folder / "late.yaml", "{task: medqa, at_least: 0.5}", decide_after="all")
    status, verdict = bench.gate("c", early, "--replies", replies)
    assert (status, verdict["gates"][0]["used"] < N) == (0, True)
    status, verdict = bench.gate("c", late, "--replies", replies)
    assert (status, verdict["gates"][0]["used"], verdict["gates"][0]["estimate"]) == (0, N, 150 / N)
    limited = bench.evaluate("limited", 150, "--limit", "60")
    status, verdict = bench.gate(limited, late)
    assert (status, verdict["overall"]) == (3, "undecided")
    assert "undecided until all questions are asked (decide_after: all)" in verdict["gates"][0]["why"]


def test_a_failed_gate_waits_too(bench: Bench) -> None:
    gates = write_gates(
        bench.folder / "g.yaml", "{task: medqa, at_least: 0.9}", "{task: medqa, at_least: 0.1}", decide_after="all"
    )
    status, verdict = bench.gate("c", gates, "--replies", bench.replies("c", 80))
    assert (status, [gate["used"] for gate in verdict["gates"]]) == (1, [N, N])
    assert [gate["status"] for gate in verdict["gates"]] == ["fail", "pass"]


def test_a_budget_ends_a_live_gate_undecided(bench: Bench) -> None:
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.74}", budget=50)
    status, verdict = bench.gate("c", gates, "--replies", bench.replies("c", 120))
    assert (status, verdict["overall"], verdict["gates"][0]["used"]) == (3, "undecided", 50)
    assert len(stored_ids(verdict["run"])) == 50


def test_a_partition_is_gated_by_itself(bench: Bench) -> None:
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.72}", partition="gate")
    replies = bench.replies("c", 120)
    _, verdict = bench.gate("c", gates, "--replies", replies)
    arguments = ["eval", "c", "--tasks", "medqa", "--replies", str(replies), *bench.common, "--resume"]
    assert run([*arguments, "--partition", "gate"]) == 0
    folder = json.loads(bench._capfd.readouterr().out)["run"]
    assert folder == verdict["run"]
    assert {partition_of(sample.cluster) for sample in read_samples(folder, "medqa")} == {"gate"}
    assert verdict["gates"][0]["total"] == len(stored_ids(folder)) < N
    assert run([*arguments, "--partition", "report"]) == 0
    report = json.loads(bench._capfd.readouterr().out)["run"]
    assert set(stored_ids(report)).isdisjoint(stored_ids(folder))
    assert len(stored_ids(report)) + len(stored_ids(folder)) == N
    status, _ = bench.gate(report, gates)
    assert status == 2
    assert "partition report, the gate file asks for gate" in bench.err


def test_the_baselines_protocol_is_the_candidates(bench: Bench) -> None:
    base = bench.evaluate("base", 120, "--protocol", "direct-v1")
    replies = bench.replies("c", 130)
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, margin: 0.05}")
    status, verdict = bench.gate("c", gates, "--replies", replies, "--baseline", base)
    assert (status, verdict["protocol"]) == (0, "direct-v1")
    other = write_gates(bench.folder / "other.yaml", "{task: medqa, margin: 0.05}", protocol="cot-v2")
    status, _ = bench.gate("c", other, "--replies", replies, "--baseline", base)
    assert status == 2
    assert "protocol direct-v1 and cot-v2" in bench.err


def test_a_finished_run_of_another_protocol_than_the_files_is_refused(bench: Bench) -> None:
    folder = stored_run(Path("runs"), "c", {"medqa": answers(90, 10)})
    floor = "{task: medqa, at_least: 0.7}"
    assert bench.gate(folder, write_gates(bench.folder / "same.yaml", floor, protocol="cot-v2"))[0] == 0
    for name, settings in (("direct", {"protocol": "direct-v1"}), ("short", {"max_new_tokens": 16})):
        assert bench.gate(folder, write_gates(bench.folder / f"{name}.yaml", floor, **settings))[0] == 2
        assert "was evaluated under protocol cot-v2, not the gate file's" in bench.err


def test_a_limit_in_the_config_is_not_a_budget(bench: Bench) -> None:
    (bench.folder / "eval.yaml").write_text("{limit: 5, seed: 3}\n")
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.5}")
    replies = bench.replies("c", 130)
    _, verdict = bench.gate("c", gates, "--replies", replies, "--config", bench.folder / "eval.yaml")
    record = read_run(verdict["run"])
    assert (record.limit, record.seed) == (None, 3)


def test_an_unknown_category_is_one_line(bench: Bench) -> None:
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, category: {meta: step1}, at_least: 0.5}")
    assert bench.gate("c", gates, "--replies", bench.replies("c", 130))[0] == 2
    assert "no category 'meta'; it has meta_info" in bench.err
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, category: {meta_info: step1}, at_least: 0.5}")
    status, verdict = bench.gate("c", gates, "--replies", bench.replies("c", 130))
    assert (status, verdict["gates"][0]["total"]) == (0, N / 4)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "medbench.harness.cli", *map(str, arguments)]


@pytest.mark.slow
def test_an_interrupted_gate_goes_on_where_it_was(bench: Bench) -> None:
    (bench.folder / "slow.yaml").write_text("engine_config: {delay: 0.5}\n")
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.74}")
    replies = bench.replies("c", 120)
    arguments = ["gate", "c", "--gates", gates, "--replies", replies, "--data", bench.folder / "data", "--quiet"]
    slow = subprocess.Popen(command(*arguments, "--config", bench.folder / "slow.yaml"), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (found := list(Path("runs").glob("*/samples/medqa.jsonl"))) or len(found[0].read_bytes()) < 5000:
        assert slow.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    slow.send_signal(signal.SIGINT)
    _, err = slow.communicate(timeout=60)
    assert slow.returncode == 4, err.decode()
    assert b"Traceback" not in err
    folder = found[0].parent.parent
    before = stored_ids(folder)
    assert 0 < len(before) < N
    status, verdict = bench.gate("c", gates, "--replies", replies)
    assert Path(verdict["run"]) == folder
    assert stored_ids(folder)[: len(before)] == before
    shutil.rmtree(folder)
    again, fresh = bench.gate("c", gates, "--replies", replies)
    assert again == status
    assert fresh["gates"] == verdict["gates"]


# ---- baselines that cannot be compared with


def without_samples(folder: Path) -> None:
    (folder / "samples" / "toy.jsonl").unlink()


def half_answered(folder: Path) -> None:
    path = folder / "samples" / "toy.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:50]))


def damaged(folder: Path) -> None:
    (folder / "samples" / "toy.jsonl").write_text("{}\n")


BASELINES: dict[str, tuple[dict[str, Any], Callable[[Path], None] | None, str]] = {
    "no records": ({}, without_samples, "no samples of toy"),
    "half": ({}, half_answered, "50 answers, but run.json says that the run is finished and asked 100"),
    "damaged": ({}, damaged, "not a sample written by medbench"),
    "protocol": ({"protocol": load_protocol("direct-v1").model_dump(mode="json")}, None, "direct-v1 and cot-v2"),
    "version": ({"described": {"version": "2"}}, None, "toy version 2 and 1"),
    "split": ({"described": {"split": "dev"}}, None, "toy split dev and test"),
    "data": ({"described": {"sha256": "1" * 64}}, None, "other questions of toy: 60 of 100 match"),
    "partition": ({"partition": "gate"}, None, "partition gate and all"),
}


@pytest.mark.parametrize("as_baseline", [True, False])
def test_a_finished_run_with_too_few_answers_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], as_baseline: bool
) -> None:
    stored_run(tmp_path, "candidate", {"toy": [answer(f"q{i}") for i in range(30)]})
    stored_run(tmp_path, "short", {"toy": [answer(f"q{i}") for i in range(30)]}, n=999_999)
    rules = write_gates(tmp_path / "gates.yaml", "{task: toy, at_least: 0.5}")
    margin = write_gates(tmp_path / "margin.yaml", "{task: toy, margin: 0.1}")
    candidate, short = str(tmp_path / "candidate"), str(tmp_path / "short")
    alone = [short, "--gates", str(rules)]
    arguments = [candidate, "--gates", str(margin), "--baseline", short] if as_baseline else alone
    assert run(["gate", *arguments]) == 2
    assert "30 answers, but run.json says that the run is finished and asked 999999" in capfd.readouterr().err


def test_a_run_json_that_cannot_be_read_is_a_faulty_run_and_no_broken_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "looped"
    folder.mkdir()
    (folder / "run.json").symlink_to("run.json")
    rules = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.5}")
    assert run(["gate", str(folder), "--gates", str(rules)]) == 2
    assert "run.json: cannot be read" in capfd.readouterr().err


def test_a_control_that_cannot_be_read_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = read_run(stored_run(tmp_path, "candidate", {"toy": [answer("q1")]}))
    for name, target in (("looped", "run.json"), ("dangling", "nowhere")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").symlink_to(target)
    (tmp_path / "no-run").mkdir()
    assert read_controls(tmp_path, record, None, ["toy"]) == []
    assert [name in caplog.text for name in ("looped", "dangling", "no-run")] == [True, True, False]


def test_a_file_of_an_earlier_gate_is_not_left_as_this_one_s(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = stored_run(tmp_path, "candidate", {"toy": [answer("q1")]})
    rules = write_gates(tmp_path / "gates.yaml", "{task: toy, at_least: 0.5}")
    outputs = ["--junit", str(tmp_path / "gate.xml"), "--summary", str(tmp_path / "gate.md")]
    assert run(["gate", str(folder), "--gates", str(rules), *outputs]) == 0
    assert 'errors="0"' in (tmp_path / "gate.xml").read_text()
    assert run(["gate", str(folder), "--gates", str(tmp_path / "missing.yaml"), *outputs]) == 2
    assert 'errors="1"' in (tmp_path / "gate.xml").read_text()
    assert 'failures="0"' in (tmp_path / "gate.xml").read_text()
    assert "NO VERDICT" in (tmp_path / "gate.md").read_text()
    assert "missing.yaml" in (tmp_path / "gate.md").read_text()


def test_a_verdict_that_is_not_stored_is_not_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = stored_run(tmp_path, "candidate", {"toy": [answer("q1")]})
    rules = write_gates(tmp_path / "gates.yaml", "{task: toy, at_least: 0.5}")
    (folder / "verdict.json" / "in-the-way").mkdir(parents=True)
    assert run(["gate", str(folder), "--gates", str(rules)]) == 0
    found = capfd.readouterr()
    assert "the verdict stands, but is not stored" in found.err
    assert "verdict.json" not in found.out


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_that_cannot_be_compared_with_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, spoil, says = BASELINES[name]
    samples = [answer(f"q{i}") for i in range(40, 140)] if name == "data" else answers(70, 30)
    base = stored_run(tmp_path, "base", {"toy": samples}, **changes)
    if spoil:
        spoil(base)
    candidate = stored_run(tmp_path, "c", {"toy": answers(72, 28)})
    gates = write_gates(tmp_path / "gates.yaml", "{task: toy, margin: 0.02}")
    assert run(["gate", str(candidate), "--gates", str(gates), "--baseline", str(base)]) == 2
    printed = capfd.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == ""
    assert says in line
    assert not (candidate / "verdict.json").exists()


def test_a_margin_needs_a_baseline_that_has_the_task(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    candidate = stored_run(tmp_path, "c", {"toy": answers(72, 28)})
    base = stored_run(tmp_path, "base", {"other": answers(72, 28)})
    gates = write_gates(tmp_path / "gates.yaml", "{task: toy, margin: 0.02}")
    assert run(["gate", str(candidate), "--gates", str(gates)]) == 2
    assert "needs --baseline" in capfd.readouterr().err
    assert run(["gate", str(candidate), "--gates", str(gates), "--baseline", str(base)]) == 2
    assert "base has no toy" in capfd.readouterr().err


def test_a_live_gate_refuses_a_baseline_of_other_questions(bench: Bench) -> None:
    base = bench.evaluate("base", 120)
    lines = (bench.folder / "data/medqa/test.jsonl").read_text().splitlines(keepends=True)
    (bench.folder / "data/medqa/test.jsonl").write_text("".join(lines[10:]))
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, margin: 0.02}")
    replies = bench.replies("c", 130)
    assert bench.gate("c", gates, "--replies", replies, "--baseline", base)[0] == 2
    assert f"other questions of medqa: {N - 10} of {N - 10} match" in bench.err
    assert [path.name for path in Path("runs").glob("[!.]*")] == ["base"]


# ---- broken checkpoints


def broken_checkpoints(tiny_model: Path, root: Path) -> dict[str, str]:
    """name of the folder -> what is wrong with it"""
    from safetensors.torch import load_file, save_file

    for name in ("truncated", "no shard", "nan", "garbage", "no weights"):
        shutil.copytree(tiny_model, root / name)
    weights = "model.safetensors"
    with (root / "truncated" / weights).open("r+b") as file:
        file.truncate(100_000)
    tensors = load_file(tiny_model / weights)
    first, *others = sorted(tensors)
    (root / "no shard" / weights).unlink()
    save_file({name: tensors[name] for name in others}, root / "no shard" / "model-00002-of-00002.safetensors")
    weight_map = {first: "model-00001-of-00002.safetensors"} | dict.fromkeys(others, "model-00002-of-00002.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (root / "no shard" / f"{weights}.index.json").write_text(json.dumps(index))
    tensors[first][..., -1] = float("nan")
    save_file(tensors, root / "nan" / weights, metadata={"format": "pt"})
    (root / "garbage" / weights).write_bytes(b"\xff" * 4096)
    (root / "no weights" / weights).unlink()
    return {
        "truncated": "truncated",
        "no shard": "model-00001-of-00002.safetensors",
        "nan": "NaN or infinity",
        "garbage": "not a safetensors file",
        "no weights": "no *.safetensors",
    }


def test_a_broken_checkpoint_fails_and_the_others_are_still_judged(bench: Bench, tiny_model: Path) -> None:
    broken = broken_checkpoints(tiny_model, bench.folder)
    whole = stored_run(Path("runs"), "whole", {"medqa": answers(90, 10)})
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.7}")
    names = [str(bench.folder / name) for name in broken]
    junit = bench.folder / "v.xml"
    arguments = ["--gates", str(gates), "--junit", str(junit), "--summary", str(bench.folder / "v.md"), *bench.common]
    assert run(["gate", *names, str(whole), *arguments]) == 1
    *failed, passed = json.loads(bench._capfd.readouterr().out)["verdicts"]
    assert passed["overall"] == "pass"
    for verdict, (name, says) in zip(failed, broken.items(), strict=True):
        assert (verdict["overall"], verdict["candidate"]) == ("fail", str(bench.folder / name))
        assert [gate["rule"] for gate in verdict["gates"]] == ["invalid checkpoint"]
        assert says in verdict["why"]
        assert verdict["run"] is None
    assert junit.read_text().count("<failure ") == len(broken)
    assert [path.name for path in Path("runs").iterdir()] == ["whole"]


def without_permission(file: str) -> Callable[[Bench, Path, pytest.MonkeyPatch], None]:
    def refuse(bench: Bench, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = Path.open

        def refusing(path: Path, *arguments: Any, **named: Any) -> Any:
            if path.name == file:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(path, *arguments, **named)

        monkeypatch.setattr(Path, "open", refusing)

    return refuse


def a_cache_that_is_a_file(bench: Bench, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.folder / "cache").write_text("")


def a_full_disk(bench: Bench, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)


def a_base_that_is_on_the_hub(bench: Bench, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    as_adapter(checkpoint, "no-such-org/no-such-model")


def no_peft(bench: Bench, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = shutil.copytree(checkpoint, bench.folder / "base")
    as_adapter(checkpoint, str(base))
    monkeypatch.setitem(sys.modules, "peft", None)


def as_adapter(checkpoint: Path, base: str) -> None:
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")


MACHINE_FAULTS: dict[str, tuple[int, Callable[[Bench, Path, pytest.MonkeyPatch], None]]] = {
    "config without permission": (2, without_permission("config.json")),
    "weights without permission": (2, without_permission("model.safetensors")),
    "tokenizer without permission": (2, without_permission("tokenizer.json")),
    "cache is a file": (2, a_cache_that_is_a_file),
    "full disk": (4, a_full_disk),
    "hub offline": (2, a_base_that_is_on_the_hub),
    "peft missing": (2, no_peft),
}


@pytest.mark.parametrize("name", MACHINE_FAULTS)
def test_a_fault_of_the_machine_is_no_verdict_on_a_sound_checkpoint(
    bench: Bench, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    status, break_machine = MACHINE_FAULTS[name]
    checkpoint = shutil.copytree(tiny_model, bench.folder / "sound")
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.7}")
    break_machine(bench, checkpoint, monkeypatch)
    assert bench.gate(checkpoint, gates, "--engine", "hf") == (status, {})
    assert "Traceback" not in bench.err
    assert "damaged" not in bench.err


def test_a_checkpoint_that_is_not_there_is_no_verdict(bench: Bench) -> None:
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.7}")
    assert bench.gate(bench.folder / "nothing", gates) == (2, {})
    assert "no such folder" in bench.err


# ---- speed


@pytest.mark.slow
def test_finished_runs_are_judged_at_once_and_without_torch(tmp_path: Path) -> None:
    """The three benchmarks at their full sizes, against a baseline, five gates; measured by the process itself."""
    sizes = {"medqa": 1273, "mmlu_pro_medical": 1535, "pubmedqa": 500}

    def scores(seed: int) -> dict[str, Any]:
        draw = random.Random(seed)
        return {
            task: [answer(f"q{i}", float(draw.random() < 0.8), prompt="Q? " * 200) for i in range(n)]
            for task, n in sizes.items()
        }

    stored_run(tmp_path, "base", scores(1))
    stored_run(tmp_path, "c", scores(2), model=ModelRecord(name="step-800", kind="full", fingerprint="c"))
    gates = write_gates(
        tmp_path / "gates.yaml", "{task: medqa, margin: 0.05}", "{task: mmlu_pro_medical, at_least: 0.7}",
        "{task: pubmedqa, metric: unparsed, at_most: 0.05}", "{task: medqa, metric: tokens_per_answer, at_most: 100}",
        "{task: mean, margin: 0.05}",
    )  # fmt: skip
    arguments = ("gate", tmp_path / "c", "--gates", gates, "--baseline", tmp_path / "base", "--summary", tmp_path / "s")
    program = [sys.executable, "-X", "importtime", *command(*arguments)[1:]]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "numpy" in imported
    assert imported & HEAVY == set()
    script = "import resource, subprocess, sys\nsubprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)\n"
    script += "used = resource.getrusage(resource.RUSAGE_CHILDREN)\nprint(used.ru_utime + used.ru_stime)"
    started = time.monotonic()
    timed = subprocess.run([sys.executable, "-c", script, *command(*arguments)], capture_output=True, text=True)
    wall = time.monotonic() - started
    seconds = float(timed.stdout)
    print(f"medbench gate on {sum(sizes.values())} answers: {seconds:.2f} s of processor time, {wall:.2f} s in all")
    assert seconds < 3
    assert "step-800" in done.stdout
    assert len(re.findall(r"│ +pass +│", done.stdout)) == 5


# ---- what must not change a run, and what must not cost a verdict


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_resume_that_cannot_start_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quarter of its requests failed a run is not gateable; a failed --resume once made it pass."""
    replies = bench.replies("holes", 110, failed=40)
    arguments = ["eval", "holes", "--tasks", "medqa", "--name", "holes", *bench.common]
    assert bench.run([*arguments, "--replies", str(replies)]) == 3
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.6}")
    assert bench.gate("runs/holes", gates)[0] == 3
    before = files_of(Path("runs/holes"))

    def broken(*_: object) -> Engine:
        raise MedbenchError("no server answers")

    with monkeypatch.context() as patch:
        patch.setattr(fake, "start", broken)
        assert bench.run([*arguments, "--replies", str(replies), "--resume"]) == 2
    assert files_of(Path("runs/holes")) == before
    assert bench.run([*arguments, "--replies", str(replies), "--resume"]) == 3  # asked again, and failed again
    assert bench.gate("runs/holes", gates)[0] == 3


def test_a_sealed_run_without_its_results_is_sealed_again(bench: Bench) -> None:
    folder = bench.evaluate("whole", 100)
    before = files_of(folder)
    shutil.rmtree(folder / "results")
    bench.evaluate("whole", 100, "--resume")
    assert files_of(folder)["results/medqa.json"] == before["results/medqa.json"]


def test_a_verdict_that_cannot_be_stored_is_given_all_the_same(bench: Bench) -> None:
    folder = bench.evaluate("whole", 150)
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.6}")
    (folder / "verdict.json").mkdir()
    status, verdict = bench.gate(folder, gates)
    assert (status, verdict["overall"]) == (0, "pass")
    assert "the verdict stands, but is not stored" in bench.err
    assert "--resume" not in bench.err
    (folder / "verdict.json").rmdir()
    shutil.rmtree(folder / "verdicts")
    (folder / "verdicts").write_text("in the way")
    status, verdict = bench.gate(folder, gates)
    assert (status, verdict["overall"]) == (0, "pass")
    assert bench.err.count("the verdict stands, but is not stored") == 1
    assert json.loads((folder / "verdict.json").read_text())["overall"] == "pass"


def test_a_run_that_cannot_be_read_is_left_out_as_a_control_with_its_reason(bench: Bench) -> None:
    bench.evaluate("other", 100)
    record = Path("runs/other/run.json")
    record.write_text(record.read_text().replace('"cot-v2"', "null"))
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.5}")
    status, _ = bench.gate("new", gates, "--engine", "fake", "--replies", bench.replies("new", 150))
    assert status == 0
    assert "left out as a control" in bench.err


def test_a_baseline_of_a_newer_medbench_is_refused_in_one_line(bench: Bench) -> None:
    folder = bench.evaluate("other", 100)
    content = json.loads((folder / "run.json").read_text())
    content["protocol"]["dialect"] = "new"
    (folder / "run.json").write_text(json.dumps(content))
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, margin: 0.5}")
    candidate = bench.replies("new", 150)
    status, _ = bench.gate("new", gates, "--baseline", folder, "--engine", "fake", "--replies", candidate)
    assert status == 2
    assert "name a protocol in the gate file, or upgrade medbench" in bench.err


# ---- one warm engine for several checkpoints


@pytest.mark.engine
def test_checkpoints_of_the_same_weights_are_each_asked_with_their_own_template(bench: Bench) -> None:
    model = build_tiny_model(bench.folder / "first")
    second = Path(shutil.copytree(model, bench.folder / "second"))
    template = second / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant", "<|im_start|>assistant\n(corrected)"))
    gates = write_gates(bench.folder / "gates.yaml", "{task: medqa, at_least: 0.5}", max_new_tokens=4, budget=32)
    config = bench.folder / "engine.yaml"
    config.write_text("engine_config: {kv_cache_gib: 1, max_model_len: 1024}\n")
    arguments = ["gate", str(model), str(second), "--gates", str(gates), "--config", str(config)]
    assert run([*arguments, *bench.common]) in (1, 3)
    prompts = {
        name: [sample.prompt for folder in Path("runs").glob(f"*{name}*") for sample in read_samples(folder, "medqa")]
        for name in ("first", "second")
    }
    assert len(prompts["first"]) == len(prompts["second"]) > 0
    assert not any("(corrected)" in prompt for prompt in prompts["first"])
    assert all("(corrected)" in prompt for prompt in prompts["second"])
