"""The expected time of a verdict against the time that a simulated engine takes."""

from __future__ import annotations

import random
import re
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bench.verdict_time import LIMITS, MOST, Engine, lognormal
from support.gate_runs import a_record, a_task, answer

from medbench.harness.contracts import Completion, Request
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.evaluation import progress
from medbench.harness.evaluation.progress import progress_for
from medbench.harness.gates import run_gate as module
from medbench.harness.gates.expected_time import Expected, ExpectedTime, area_under_survival
from medbench.harness.gates.live_gate import Demand, LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.run_gate import run_gate
from medbench.harness.gates.schedule import Schedule
from medbench.harness.gates.token_limits import NO_LIMITS, Limits
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.run_folder import create_run

FIRST = 2.0
"""Seconds, as run_gate waits."""
KINDS = ("lognormal", "two lengths", "one length")


def lengths_of(kind: str, questions: int, seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    if kind == "lognormal":
        return lognormal([500.0] * questions, draw)
    if kind == "two lengths":  # a model whose replies are short, or run on to the limit
        return {f"q{number}": draw.choices((80, 200, MOST), (46, 46, 8))[0] for number in range(questions)}
    return {f"q{number}": 400 for number in range(questions)}


def floor(at_least: float, **settings: Any) -> GateFile:
    return GateFile(gates=[Gate("health", at_least=at_least)], **settings)


@dataclass
class Simulated:
    """A gate on a model with this share of right answers, in an engine that is bench.verdict_time's model of one."""

    rules: GateFile
    lengths: Mapping[str, int]
    capacity: int
    right: float = 0.7
    limits: Limits = NO_LIMITS
    seed: int = 0
    arrivals: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        self.samples = {
            id: answer(id, float(draw.random() < self.right), completion_tokens=n) for id, n in self.lengths.items()
        }
        self.gate = LiveGate(self.rules, [a_task(list(self.lengths), "health")], self.seed, None, limits=self.limits)
        self.engine = Engine(self.lengths, self.capacity)
        self.schedule = Schedule(self.gate, {"health": {}}, self.engine.capacity)
        self.clock = ExpectedTime(self.engine.capacity, MOST)

    def _ids(self) -> Iterator[str | None]:
        for item in self.schedule.to_send():
            if item is not None:
                task, id, _ = item
                self.clock.sent(task, id, self.engine.clock)
            yield item and item[1]

    def times(self) -> Iterator[float]:
        """Runs to the verdict; yields the time after an event in thirty from FIRST on."""
        events = 0
        with closing(self.engine.generate(self._ids(), self.limits.tokens)) as stream:
            for id, limit in stream:
                if limit is None:
                    self.arrivals[id] = self.engine.clock
                    self.clock.arrived("health", self.samples[id], self.engine.clock)
                    self.schedule.arrived("health", self.samples[id], seconds=0.0)
                else:
                    self.schedule.passed("health", id, limit)
                if self.schedule.done:
                    return
                events += 1
                if self.engine.clock >= FIRST and events % 30 == 0:
                    yield self.engine.clock
        assert self.schedule.done

    def expected(self, now: float, demands: Sequence[Demand] | None = None) -> Expected | None:
        return self.clock.expected(self.gate, demands or self.schedule.demands, self.schedule.answered, now)

    def told(self) -> list[tuple[float, Expected]]:
        """Runs to the verdict: what was expected, and when."""
        return [(now, one) for now in self.times() if (one := self.expected(now)) is not None]


@pytest.mark.parametrize("capacity", [32, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_run_takes_no_longer_than_was_said_at_any_time(kind: str, capacity: int) -> None:
    for seed in range(2):
        run = Simulated(floor(0.6, decide_after="all"), lengths_of(kind, 800, seed), capacity)
        told = run.told()
        whole = run.engine.clock
        assert min(now + one.most for now, one in told) > 0.9 * whole
        assert all(one.likely is None for _, one in told)
        if kind != "one length":  # whose first wave says nothing before it ends, all at once
            assert told[0][0] < 0.15 * whole


@pytest.mark.parametrize("capacity", [32, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_in_the_second_half_is_near(kind: str, capacity: int) -> None:
    run = Simulated(floor(0.6, decide_after="all"), lengths_of(kind, 2000, 3), capacity)
    told = run.told()
    later = [now + one.most for now, one in told if now > run.engine.clock / 2]
    assert len(later) > 10
    assert statistics.median(later) < 1.3 * run.engine.clock


@pytest.mark.parametrize("limits", [NO_LIMITS, LIMITS])
@pytest.mark.parametrize("kind", KINDS)
def test_an_early_verdict_is_within_the_most(kind: str, limits: Limits) -> None:
    run = Simulated(floor(0.6), lengths_of(kind, 800, 5), 32, limits=limits)
    told = run.told()
    assert run.gate.used < 800
    assert told
    assert all(now + one.most >= run.engine.clock for now, one in told)
    assert all(one.likely is None or one.likely <= one.most for _, one in told)


@pytest.mark.parametrize("more", [40, 400])
@pytest.mark.parametrize("capacity", [32, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_the_likely_time_is_that_of_the_answers_still_needed(kind: str, capacity: int, more: int) -> None:
    run = Simulated(floor(0.69, alpha=1e-12), lengths_of(kind, 1600, 4), capacity)
    order, told = run.gate.orders["health"], []
    for now in run.times():
        position = run.gate.position("health")
        if 200 < position < 1000:
            expected = run.expected(now, [Demand("health", more, 0.0, fails=False, seen=True)])
            assert expected is not None
            assert expected.likely is not None
            told.append((now, expected.likely, position + more))
    errors = []
    for now, likely, end in told:
        errors.append((now + likely - max(run.arrivals[id] for id in order[:end])) / run.engine.clock)
    assert errors
    assert abs(statistics.mean(errors)) < 0.1, errors


def a_gate(*tasks: str, **settings: Any) -> LiveGate:
    rules = GateFile(gates=[Gate(name, at_least=0.6) for name in tasks], **settings)
    return LiveGate(rules, [a_task([f"q{number}" for number in range(100)], name) for name in tasks], 0, None)


def steady(
    clock: ExpectedTime, gate: LiveGate, seconds: Mapping[str, float], answers: int
) -> dict[str, dict[str, Any]]:
    """One reply at a time, each task's taking so many seconds; so many answers of each task."""
    now, answered = 0.0, dict[str, dict[str, bool]]((name, {}) for name in gate.orders)
    for name, each in seconds.items():
        for id in gate.orders[name][:answers]:
            clock.sent(name, id, now)
            now += each
            clock.arrived(name, answer(id), now)
            answered[name][id] = True
    clock.sent(*next((name, order[answers]) for name, order in gate.orders.items()), now)
    return answered


def seen(task: str, more: float, *, fails: bool = False) -> Demand:
    return Demand(task, more, 0.0, fails=fails, seen=True)


def test_requests_that_wait_for_a_place_count() -> None:
    """Twelve sent at once to an engine with four places, 5 s each: at 5 s, eight are left, which take 10 s."""
    gate, clock = a_gate("slow", budget=12), ExpectedTime(4, 10)
    order = gate.orders["slow"][:12]
    for id in order:
        clock.sent("slow", id, 0.0)
    for id in order[:4]:
        clock.arrived("slow", answer(id), 5.0)
    unseen = Demand("slow", 32, 0.0, fails=False, seen=False)
    found = clock.expected(gate, [unseen], {"slow": dict.fromkeys(order[:4], True)}, 5.0)
    assert found is not None
    assert 10 <= found.most <= 25


def test_each_task_counts_with_its_own_pace() -> None:
    gate, clock = a_gate("slow", "fast"), ExpectedTime(1, MOST)
    answered = steady(clock, gate, {"slow": 10.0, "fast": 1.0}, 50)
    expected = {name: clock.expected(gate, [seen(name, 100)], answered, 550.0) for name in ("slow", "fast")}
    assert [one and one.likely for one in expected.values()] == pytest.approx([49 * 10 + 10, 50 * 1 + 10], abs=1)
    both = clock.expected(gate, [seen("slow", 100), seen("fast", 100)], answered, 550.0)
    assert both is not None
    assert both.likely == pytest.approx(49 * 10 + 50 + 10, abs=1)
    assert both.most > both.likely


def test_the_nearest_fail_settles_the_verdict() -> None:
    gate, clock = a_gate("slow", "fast"), ExpectedTime(1, MOST)
    answered = steady(clock, gate, {"slow": 10.0, "fast": 1.0}, 50)
    found = clock.expected(gate, [seen("slow", 100), seen("fast", 60, fails=True)], answered, 550.0)
    assert found is not None
    assert found.likely == pytest.approx(10 * 1 + 10, abs=1)
    assert found.most > 49 * 10 + 50


def test_before_a_task_is_looked_at_there_is_only_the_most() -> None:
    gate, clock = a_gate("slow", "fast"), ExpectedTime(1, MOST)
    answered = steady(clock, gate, {"slow": 10.0, "fast": 1.0}, 50)
    unseen = Demand("fast", 32, 0.0, fails=False, seen=False)
    found = clock.expected(gate, [seen("slow", 60), unseen], answered, 550.0)
    assert found is not None
    assert found.likely is None


@pytest.mark.parametrize("settings", [{"decide_after": "all"}, {"decide": "population"}])
def test_where_everything_is_asked_there_is_only_the_most(settings: dict[str, Any]) -> None:
    gate, clock = a_gate("health", **settings), ExpectedTime(1, MOST)
    answered = steady(clock, gate, {"health": 2.0}, 50)
    found = clock.expected(gate, [seen("health", 60)], answered, 100.0)
    assert found is not None
    assert found.likely is None


def test_a_budget_bounds_the_most() -> None:
    most = []
    for budget in (None, 61):
        gate, clock = a_gate("health", budget=budget), ExpectedTime(1, MOST)
        found = clock.expected(gate, [seen("health", 60)], steady(clock, gate, {"health": 2.0}, 50), 100.0)
        assert found is not None
        most.append(found.most)
    assert most[0] > 49 * 2 > most[1] > 10 * 2


def test_answers_of_earlier_sessions_cost_nothing() -> None:
    gate, clock = a_gate("health"), ExpectedTime(1, MOST)
    order = gate.orders["health"]
    clock.sent("health", order[90], 0.0)
    clock.arrived("health", answer(order[90]), 3.0)
    clock.sent("health", order[91], 3.0)
    found = clock.expected(gate, [seen("health", 100)], {"health": dict.fromkeys(order[:91])}, 3.0)
    assert found is not None
    assert found.likely == pytest.approx(8 * 3 + 3)


def test_nothing_is_said_before_the_first_answer() -> None:
    gate, clock = a_gate("health"), ExpectedTime(1, MOST)
    demands = gate.demands()
    assert clock.expected(gate, demands, {"health": {}}, 0.0) is None
    clock.sent("health", gate.orders["health"][0], 0.0)
    assert clock.expected(gate, demands, {"health": {}}, 5.0) is None


def test_a_request_that_runs_counts_as_longer_than_it_is_by_now() -> None:
    assert area_under_survival([1.0, 2.0, 6.0], [], 6.0) == pytest.approx(3.0)
    # Kaplan and Meier's estimate by hand: S = 3/4 after 1, 3/4 x 1/2 after 3, and 0 after 4
    assert area_under_survival([1.0, 3.0, 4.0], [2.0], 4.0) == pytest.approx(1 + 0.75 * 2 + 0.375 * 1)
    assert area_under_survival([1.0], [1.0], 5.0) == pytest.approx(1 + 0.5 * 4)


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (Expected(41.0, 118.0), "about 40 s, at most 2 min"),
        (Expected(4.4, 61.0), "about 4 s, at most 2 min"),
        (Expected(None, 7.2), "at most 8 s"),
        (Expected(100.0, 110.0), "at most 2 min"),
        (Expected(0.2, 3590.0), "about 1 s, at most 1 h"),
        (Expected(4000.0, 7900.0), "about 1 h 10 min, at most 2 h 20 min"),
    ],
)
def test_it_is_said_in_round_numbers(expected: Expected, words: str) -> None:
    assert str(expected) == words


class Slow(FakeEngine):
    """Works on eight replies at once and finishes them in turn, one every few milliseconds."""

    places = 8

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        source, running = iter(requests), deque[Request]()
        while True:
            while len(running) < self.places and (request := next(source, None)) is not None:
                running.append(request)
            if not running:
                return
            time.sleep(0.004)
            yield from super().generate([running.popleft()])


def judge(root: Path, engine: FakeEngine, *, quiet: bool) -> None:
    rules = GateFile(gates=[Gate("toy", at_least=0.45)])
    with create_run(root, a_record("run", {"toy": 400})) as run, progress_for(quiet=quiet) as bars:
        gate = LiveGate(rules, [a_task([f"q{number}" for number in range(400)])], 0, None)
        (result,) = run_gate(gate, run, load_protocol("cot-v2"), engine, bars)
        assert result.status == "pass"


REPLIES = {f"q{number}": {"output": f"The answer is ({'AB'[number % 2]})."} for number in range(400)}


def test_a_gate_says_when_its_verdict_is_expected_and_keeps_it_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXPECT_SECONDS", 0.05)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.2)
    judge(tmp_path, Slow(REPLIES), quiet=False)
    first, said, *lines = capsys.readouterr().err.splitlines()
    assert first == "toy: 400 questions"
    assert re.fullmatch(r"verdict in at most \d+ (s|min)", said)
    assert any(re.search(r", verdict in (about \d+ s, )?at most \d+ (s|min)$", line) for line in lines)


def test_a_gate_says_nothing_where_it_is_over_at_once_or_must_be_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(tmp_path / "stored", FakeEngine(REPLIES), quiet=False)
    monkeypatch.setattr(module, "EXPECT_SECONDS", 0.05)
    judge(tmp_path / "quiet", Slow(REPLIES), quiet=True)
    assert "verdict" not in capsys.readouterr().err
