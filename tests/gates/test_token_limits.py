"""Gates that do not wait for long replies: what they may conclude from them, that they err no more often, and that
neither the clock nor a restart changes a verdict.

pytest tests/gates/test_token_limits.py
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gate_runs import a_record, a_task, answer, write_medqa
from support.stragglers import LIMITS, World, wrong_share
from support.streaming_engine import StreamingEngine

from medbench.harness import api
from medbench.harness.contracts import Sample
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.evaluation.requests import permuted
from medbench.harness.gates.answers import Answers
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.run_gate import run_gate
from medbench.harness.gates.schedule import Schedule
from medbench.harness.gates.token_limits import NO_LIMITS, Limits, Reply, limits_for
from medbench.harness.gates.verdict import GateResult
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.run_folder import Run, create_run, read_samples, reopen_run
from medbench.harness.stats import sequential
from medbench.harness.stats.sequential import SequentialTest

COT = load_protocol("cot-v2")
TWO = Limits((10, 50), (0.2, 0.2, 0.6))


class Silent:
    def start(self, task: str, total: int, done: int) -> None: ...
    def advance(self, task: str, sample: Sample) -> None: ...
    def expect(self, time: str) -> None: ...


def replies_of(samples: Mapping[str, Sample]) -> dict[str, dict[str, Any]]:
    """As many words as the sample has tokens."""
    return {
        id: {"output": "so " * (sample.completion_tokens - 4) + f"The answer is ({'A' if sample.score else 'B'})."}
        for id, sample in samples.items()
    }


def candidate(right: int, wrong: int, *, long_wrong: int = 0, long_right: int = 0, seed: int = 0) -> dict[str, Sample]:
    """Replies of 8 tokens, but for so many of 200."""
    kinds = [(1.0, 8)] * right + [(0.0, 8)] * wrong + [(0.0, 200)] * long_wrong + [(1.0, 200)] * long_right
    random.Random(seed).shuffle(kinds)
    return {f"q{at}": answer(f"q{at}", score, completion_tokens=tokens) for at, (score, tokens) in enumerate(kinds)}


def rules(**gate: Any) -> GateFile:
    settings = {"budget": gate.pop("budget")} if "budget" in gate else {}
    return GateFile(gates=[Gate(**({"task": "toy"} | gate))], **settings)


def gated(root: Path, file: GateFile, samples: Mapping[str, Sample], engine: FakeEngine, limits: Limits) -> GateResult:
    record = a_record("run", {"toy": len(samples)})
    exists = (root / "run").exists()
    with reopen_run(root / "run", record) if exists else create_run(root, record) as run:
        return judged(run, file, samples, engine, limits)


def judged(run: Run, file: GateFile, samples: Mapping[str, Sample], engine: FakeEngine, limits: Limits) -> GateResult:
    gate = LiveGate(file, [a_task(list(samples))], 0, None, unit=2048, limits=limits)
    (result,) = run_gate(gate, run, COT, engine, Silent())
    return result


@pytest.mark.slow
def test_leaving_stragglers_out_errs_and_limits_in_tokens_do_not() -> None:
    """Where long replies are mostly wrong, what finishes first is too good; and the other way round."""
    for world in (World(long_are_right=False), World(long_are_right=True)):
        assert wrong_share("stragglers left out", world, orders=5, count=120) >= 0.8
        assert wrong_share("in order, limits in tokens", world, orders=12, count=120) <= 0.1


@pytest.mark.slow
def test_errors_at_the_boundary_stay_below_alpha_with_limits() -> None:
    for world in (World(long_are_right=False), World(long_are_right=True)):
        assert wrong_share("in order, limits in tokens", world, orders=50, count=120) <= 0.05 + 2.5 * 0.031


@pytest.mark.slow
def test_the_mixture_averages_at_most_one_over_all_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six questions, all 720 orders; the null hypothesis holds by one question."""
    monkeypatch.setattr(sequential, "BLOCK", 2)
    scores, within = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    for level, versions in (
        ({"alpha_pass": 0.3, "alpha_fail": None}, (within, scores)),
        ({"alpha_pass": None, "alpha_fail": 0.3}, ([1.0, *scores[1:5], 1.0], scores)),
    ):
        e_values, decided = [], 0
        for order in itertools.permutations(range(6)):
            at_least = 4 / 6 if level["alpha_pass"] else 3 / 6
            test = SequentialTest([str(at) for at in order], at_least=at_least, weights=(0.4, 0.6), **level)
            for number, version in enumerate(versions):
                test.observe([version[at] for at in order], number)
            e_values.append(np.exp(test._log_e[:, 0]))
            decided += test.evidence().decision is not None
        assert np.all(np.mean(e_values, axis=0) <= 1 + 1e-9)
        assert np.mean(np.max(e_values, axis=1) >= 1 / 0.3) <= 0.3 + 1e-9
        assert decided / 720 <= 0.3


def test_equal_versions_are_the_test_itself() -> None:
    draw = random.Random(3)
    scores = [float(draw.random() < 0.8) for _ in range(90)]
    order = [f"q{number}" for number in range(100)]
    one = SequentialTest(order, at_least=0.6, alpha_pass=0.05, alpha_fail=None)
    three = SequentialTest(order, at_least=0.6, alpha_pass=0.05, alpha_fail=None, weights=(0.1, 0.3, 0.6))
    one.observe(scores)
    for version in range(3):
        three.observe(scores, version)
        assert three.evidence().log_e_pass <= one.evidence().log_e_pass + 1e-9
    assert math.isclose(three.evidence().log_e_pass, one.evidence().log_e_pass)
    assert three.evidence().interval == one.evidence().interval
    assert three.evidence().decision == one.evidence().decision == "pass"


@pytest.mark.parametrize(
    ("gate", "ended", "ran_on"),
    [
        ({"at_least": 0.5}, (1.0, 1.0), (0.0, 1.0)),
        ({"metric": "truncated", "at_most": 0.1}, (1.0, 1.0), (0.0, 1.0)),
        ({"metric": "unparsed", "at_most": 0.1}, (1.0, 1.0), (0.0, 1.0)),
        ({"metric": "errors", "at_most": 0.1}, (1.0, 1.0), (0.0, 1.0)),
        ({"metric": "tokens_per_answer", "at_most": 80}, (0.92, 0.92), (0.0, 1.0)),
        ({"metric": "tokens_per_answer", "at_least": 20}, (0.08, 0.08), (0.0, 1.0)),
    ],
)
def test_a_reply_beyond_the_limit_counts_by_its_bounds(gate: dict[str, Any], ended: Any, ran_on: Any) -> None:
    answers = Answers(Gate(**({"task": "toy"} | gate)), ["a", "b", "c", "d"], 100.0 if "tokens" in str(gate) else 1.0)
    replies = [
        Reply("a", answer("a", 1.0, completion_tokens=8)),
        Reply("b", answer("b", 1.0, completion_tokens=51)),  # known by now, but not within the limit
        Reply("c", None),
        Reply("d", answer("d", None)),
        Reply("of another category", None),
    ]
    found = answers.within(50, replies)
    assert [pytest.approx(one) for one in found] == [ended, ran_on, ran_on, ran_on]
    assert (answers.ahead, answers.failed) == (4, 0 if gate.get("metric") == "errors" else 1)


def test_a_verdict_does_not_wait_for_long_replies_that_cannot_change_it(tmp_path: Path) -> None:
    samples = candidate(right=250, wrong=20, long_wrong=30)
    soon = gated(tmp_path / "soon", rules(at_least=0.6), samples, StreamingEngine(replies_of(samples)), TWO)
    assert soon.status == "pass"
    assert "longer than 10 tokens and counted against it" in soon.why
    stored = list(read_samples(tmp_path / "soon" / "run", "toy"))
    assert stored
    assert all(sample.completion_tokens == 8 for sample in stored)  # nothing of a reply that was not finished


def test_a_fail_takes_long_replies_for_right(tmp_path: Path) -> None:
    samples = candidate(right=100, wrong=170, long_wrong=30)
    soon = gated(tmp_path / "far", rules(at_least=0.7), samples, StreamingEngine(replies_of(samples)), TWO)
    assert (soon.status, "longer than" in soon.why) == ("fail", True)
    near = gated(tmp_path / "near", rules(at_least=0.4), samples, StreamingEngine(replies_of(samples)), TWO)
    assert (near.status, "longer than" in near.why) == ("fail", False)


@pytest.mark.slow
def test_neither_speed_nor_a_kill_changes_a_verdict(tmp_path: Path) -> None:
    for number, (file, samples) in enumerate(
        [
            (rules(at_least=0.6), candidate(250, 20, long_wrong=30)),
            (rules(at_least=0.75), candidate(180, 100, long_right=20)),
            (rules(metric="tokens_per_answer", at_most=100), candidate(180, 100, long_right=20)),
        ]
    ):
        replies = replies_of(samples)
        plain = gated(tmp_path / f"{number}", file, samples, StreamingEngine(replies), NO_LIMITS)
        for places in (1, 7, 64, 1000):
            found = gated(tmp_path / f"{number} {places}", file, samples, StreamingEngine(replies, places), TWO)
            assert found.status == plain.status
        for stop_after in (5, 40):
            folder = tmp_path / f"{number} killed {stop_after}"
            with pytest.raises(KeyboardInterrupt):
                gated(folder, file, samples, StreamingEngine(replies, stop_after=stop_after), TWO)
            kept = {sample.id for sample in read_samples(folder / "run", "toy")}
            again = StreamingEngine(replies)
            assert gated(folder, file, samples, again, TWO).status == plain.status
            assert kept
            assert kept.isdisjoint(again.asked)


def test_a_budget_holds_with_limits(tmp_path: Path) -> None:
    samples = candidate(180, 100, long_right=20)
    engine = StreamingEngine(replies_of(samples))
    result = gated(tmp_path, rules(at_least=0.66, budget=50), samples, engine, TWO)
    assert (result.status, result.used, len(engine.asked)) == ("undecided", 50, 50)


def test_an_engine_that_reports_nothing_loses_nothing_but_the_shares_of_the_limits(tmp_path: Path) -> None:
    samples = candidate(250, 20, long_wrong=30)
    found = gated(tmp_path, rules(at_least=0.6), samples, FakeEngine(replies_of(samples)), TWO)
    assert found.status == "pass"


def test_replies_out_of_the_fixed_order_are_refused() -> None:
    samples = candidate(10, 10)
    gate = LiveGate(rules(at_least=0.5), [a_task(list(samples))], 0, None, limits=TWO)
    first, second = permuted(list(samples), seed=0, task="toy")[:2]
    gate.observe_within("toy", 10, [Reply(first, None)])
    with pytest.raises(ValueError, match="out of the fixed order"):
        gate.observe_within("toy", 50, [Reply(second, None)])


def test_the_limits_depend_on_the_protocol_alone() -> None:
    assert limits_for(COT).tokens == (256, 1024, 1536)
    assert math.isclose(sum(limits_for(COT).weights), 1)
    assert limits_for(load_protocol("medhelm-letter")) == limits_for(load_protocol("lm-eval-logprob")) == NO_LIMITS
    assert limits_for(COT) == LIMITS


def test_a_schedule_takes_a_passed_limit_for_the_lower_ones_too() -> None:
    samples = candidate(0, 0, long_wrong=40)
    gate = LiveGate(rules(at_least=0.5), [a_task(list(samples))], 0, None, limits=TWO)
    schedule = Schedule(gate, {"toy": {}}, 40)
    for id in gate.orders["toy"]:
        schedule.passed("toy", id, 50)
    assert (gate.position("toy"), gate.position("toy", 10), gate.position("toy", 50)) == (0, 40, 40)


@pytest.mark.engine
def test_vllm_reports_what_a_verdict_needs(tiny_engine: Any, tmp_path: Path) -> None:
    """A tiny random model is never right; many of its replies run on to the end."""
    protocol = load_protocol("cot-v2", max_new_tokens=128, temperature=1.5)
    task = a_task([f"q{number}" for number in range(150)])
    results = {}
    for name, limits in (("limits", limits_for(protocol)), ("whole", NO_LIMITS)):
        with create_run(tmp_path / name, a_record("run", {"toy": 150})) as run:
            gate = LiveGate(rules(at_least=0.9), [task], 0, None, unit=128, limits=limits)
            (results[name],) = run_gate(gate, run, protocol, tiny_engine, Silent())
            stored = list(read_samples(run.folder, "toy"))
            assert all(sample.completion_tokens == 128 or sample.finish_reason == "stop" for sample in stored)
    assert results["limits"].status == results["whole"].status == "fail"
    assert "tokens and counted against it" in results["limits"].why
    estimate = results["limits"].estimate
    assert estimate is not None
    assert estimate < 0.5


def test_an_engine_of_the_caller_that_reports_running_replies_gets_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ids = write_medqa(Path("data"), 300)
    long = set(ids[::4])
    replies = {
        id: {"output": "so " * (1800 if id in long else 1) + f"The answer is ({'B' if id in long else 'A'})."}
        for id in ids
    }
    verdict = api.gate(
        "m", [Gate(task="medqa", at_least=0.6)], engine=StreamingEngine(replies), data="data", quiet=True
    )
    assert verdict.overall == "pass"
    assert "of them longer than 256 tokens and counted against it" in verdict.gates[0].why
