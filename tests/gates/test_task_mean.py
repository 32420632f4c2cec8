"""The gate on the mean of tasks while answers come in.

pytest tests/gates/test_task_mean.py
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from support.gate_driver import drive
from support.gate_runs import a_reference, a_task, answer

from medbench.harness.contracts import Sample
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.schedule import Schedule
from medbench.harness.gates.token_limits import NO_LIMITS, Limits, Reply
from medbench.harness.gates.verdict import GateResult

Samples = Mapping[str, Mapping[str, Sample]]


def candidate(name: str, right: int, n: int, seed: int = 0) -> dict[str, Sample]:
    ids = [f"{name}{number}" for number in range(n)]
    chosen = set(random.Random(f"{name} {seed}").sample(ids, right))
    return {id: answer(id, float(id in chosen)) for id in ids}


def changed(samples: Mapping[str, Sample], lost: int, gained: int, seed: int = 0) -> dict[str, Sample]:
    draw = random.Random(f"changed {seed}")
    right = [id for id, sample in samples.items() if sample.score == 1]
    wrong = [id for id, sample in samples.items() if sample.score == 0]
    flips = dict.fromkeys(draw.sample(right, lost), 0.0) | dict.fromkeys(draw.sample(wrong, gained), 1.0)
    return {id: answer(id, flips.get(id, sample.score)) for id, sample in samples.items()}


def gate_on(
    rule: dict[str, Any],
    samples: Samples,
    baseline: Samples | None = None,
    limits: Limits = NO_LIMITS,
    seed: int = 0,
) -> LiveGate:
    """The rule on the mean of all tasks, and floors of 0 that name them."""
    floors = [Gate(task, at_least=0.0) for task in samples]
    tasks = [a_task(list(some), name) for name, some in samples.items()]
    reference = a_reference("base", baseline) if baseline is not None else None
    return LiveGate(GateFile(gates=[Gate("mean", **rule), *floors]), tasks, seed, reference, limits=limits)


def judged(rule: dict[str, Any], samples: Samples, baseline: Samples | None = None, seed: int = 0) -> GateResult:
    gate = gate_on(rule, samples, baseline, seed=seed)
    drive(gate, samples)
    return gate.results()[0]


def along(gate: LiveGate, samples: Samples, task: str, start: int, stop: int) -> list[Sample]:
    return [samples[task][id] for id in gate.orders[task][start:stop]]


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        ({"at_least": 0.58}, "pass"),
        ({"at_least": 0.82}, "fail"),
        ({"at_most": 0.82}, "pass"),
        ({"at_most": 0.58}, "fail"),
    ],
)
def test_a_clear_mean_is_decided_early(rule: dict[str, float], status: str) -> None:
    samples = {"a": candidate("a", 240, 400), "b": candidate("b", 160, 200)}
    result = judged(rule, samples)
    assert (result.status, result.total) == (status, 600)
    assert result.used < 400
    assert result.interval is not None
    low, high = result.interval
    assert low <= 0.7 <= high
    assert (result.interval_level, result.interval_kind) == (pytest.approx(1 - 0.05 - 0.05 / 3), "anytime")
    evidence = (result.log_e_pass, result.log_e_fail)
    assert max(one for one in evidence if one is not None) >= 2.99


@pytest.mark.parametrize(("lost", "status"), [((4, 2), "pass"), ((84, 42), "fail")])
def test_a_margin_on_the_mean_is_helped_by_the_baseline_s_answers(lost: tuple[int, int], status: str) -> None:
    base = {"a": candidate("a", 240, 400), "b": candidate("b", 140, 200)}
    samples = {"a": changed(base["a"], lost[0], 4), "b": changed(base["b"], lost[1], 2)}
    result = judged({"margin": 0.05}, samples, base)
    assert result.status == status
    assert result.used < 250


@pytest.mark.slow
def test_wrong_verdicts_at_the_threshold_are_at_most_alpha() -> None:
    """60 candidates one answer of the larger task short, and 60 on it; 5 % of 60 is 3, three deviations more 8."""
    passed = failed = 0
    for seed in range(60):
        b = candidate("b", 24, 40, seed)
        short, exact = ({"a": candidate("a", right, 80, seed), "b": b} for right in (55, 56))
        passed += judged({"at_least": 0.65}, short, seed=seed).status == "pass"
        failed += judged({"at_least": 0.65}, exact, seed=seed).status == "fail"
    print(f"of 60: {passed} false passes, {failed} false fails")
    assert max(passed, failed) <= 8


def test_which_task_s_answers_come_first_changes_nothing() -> None:
    samples = {"a": candidate("a", 150, 250), "b": candidate("b", 90, 120), "c": candidate("c", 60, 120)}
    found = []
    for steps in ([("a", 96), ("b", 96), ("c", 96)], [("c", 8), ("b", 8), ("a", 8)] * 12):
        gate = gate_on({"at_least": 0.6}, samples)
        for task, size in steps:
            at = gate.position(task)
            gate.observe(task, along(gate, samples, task, at, at + size))
            gate.results()
        found.append(gate.results()[0])
    assert found[0] == found[1]
    assert found[0].used == 288


def test_the_task_that_the_mean_waits_for_is_asked() -> None:
    samples = {"a": candidate("a", 320, 500), "b": candidate("b", 320, 500)}
    gate = gate_on({"at_least": 0.6}, samples)
    for task, stop in (("a", 200), ("b", 32)):
        gate.observe(task, along(gate, samples, task, 0, stop))
    (demand,) = gate.demands()
    assert demand.task == "b"
    assert demand.more >= 8
    answered = {task: {one.id: one for one in along(gate, samples, task, 0, gate.position(task))} for task in samples}
    asked = [item for item, _ in zip(Schedule(gate, answered, places=8).to_send(), range(8), strict=False)]
    assert asked == [("b", id, 0) for id in gate.orders["b"][32:40]]


def test_all_tasks_are_asked_where_nothing_is_known_yet() -> None:
    """However much larger one of them is."""
    samples = {"a": candidate("a", 600, 1000), "b": candidate("b", 120, 200)}
    gate = gate_on({"at_least": 0.6}, samples)
    schedule = Schedule(gate, {task: {} for task in samples}, places=8)
    counts = dict.fromkeys(samples, 0)
    for item, _ in zip(schedule.to_send(), range(240), strict=False):
        assert item is not None
        counts[item[0]] += 1
        schedule.arrived(item[0], samples[item[0]][item[1]], seconds=0.0)
    assert abs(counts["a"] - counts["b"]) <= 40


def test_a_mean_is_decided_before_long_replies_end() -> None:
    """Of every ten replies one is longer than the limit, and counts as wrong until it ends."""
    samples = {name: candidate(name, 190, 200) for name in "ab"}
    gate = gate_on({"at_least": 0.6}, samples, limits=Limits((256,), (0.4, 0.6)))
    for start in range(0, 80, 8):
        for task in samples:
            some = along(gate, samples, task, start, start + 8)
            gate.observe_within(task, 256, [Reply(one.id, one if int(one.id[1:]) % 10 else None) for one in some])
    result = gate.results()[0]
    assert (result.status, result.total) == ("pass", 400)
    assert 0 < result.used <= 160


def test_tasks_of_a_mean_that_likely_fails_are_asked_in_turn() -> None:
    samples = {"a": candidate("a", 120, 400), "b": candidate("b", 80, 200)}
    gate = gate_on({"at_least": 0.5}, samples)
    asked = [task for task, _ in drive(gate, samples)]
    assert gate.results()[0].status == "fail"
    assert abs(asked.count("a") - asked.count("b")) <= 16


@pytest.mark.parametrize("decide_after", ["evidence", "all"])
def test_a_mean_on_its_threshold_asks_everything_and_is_exact(decide_after: str) -> None:
    samples = {"a": candidate("a", 30, 60), "b": candidate("b", 20, 40)}
    gate = gate_on({"at_least": 0.5}, samples)
    gate.rules = gate.rules.model_copy(update={"decide_after": decide_after})
    asked = drive(gate, samples)
    result = gate.results()[0]
    assert result.status == "pass"
    if len(asked) == 100:
        assert (result.estimate, result.interval, result.used) == (0.5, None, 100)
    assert len(asked) == 100 or decide_after == "evidence"


@pytest.mark.parametrize(
    ("floor", "status"), [(0.64, "pass"), (0.65, "undecided"), (0.655, "undecided"), (0.67, "fail")]
)
def test_failed_requests_count_as_wrong_for_a_pass_and_right_for_a_fail(floor: float, status: str) -> None:
    """65 of 100 and 129 to 131 of 200 right, if the failed requests are."""
    samples = {"a": candidate("a", 65, 100), "b": candidate("b", 129, 200)}
    wrong = [id for id, sample in samples["b"].items() if sample.score == 0]
    samples["b"] |= {id: answer(id, None) for id in wrong[:3]}
    gate = gate_on({"at_least": floor}, samples)
    for task, some in samples.items():
        gate.observe(task, along(gate, samples, task, 0, len(some)))
    result = gate.results()[0]
    assert result.status == status
    assert result.interval == pytest.approx((0.6475, 0.655))


def test_nothing_is_said_before_the_first_answer() -> None:
    samples = {"a": candidate("a", 6, 10), "b": candidate("b", 6, 10)}
    result = gate_on({"at_least": 0.5}, samples).results()[0]
    assert (result.status, result.used, result.estimate, result.interval) == ("undecided", 0, None, (0, 1))
    assert result.interval_level is None
