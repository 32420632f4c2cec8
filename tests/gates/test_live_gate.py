"""Gates while answers come in: what is asked next and when it stops, that stopping early is rarely wrong, never
completion order, and that stored answers are used again.

pytest tests/gates/test_live_gate.py
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.gate_driver import drive
from support.gate_runs import a_record, a_reference, a_task, answer

from medbench.harness.contracts import Completion, MedbenchError, Request, Sample, Task
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.evaluation.requests import permuted
from medbench.harness.gates.live_gate import FIRST_LOOK, LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.run_gate import run_gate
from medbench.harness.gates.schedule import AHEAD, Schedule
from medbench.harness.gates.verdict import GateResult, overall_of
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.run_folder import Run, create_run, read_samples, reopen_run

COT = load_protocol("cot-v2")
Samples = Mapping[str, Mapping[str, Sample]]


class Silent:
    def start(self, task: str, total: int, done: int) -> None: ...
    def advance(self, task: str, sample: Sample) -> None: ...
    def expect(self, time: str) -> None: ...


def ids_of(n: int) -> list[str]:
    return [f"q{number}" for number in range(n)]


def rules(*gates: dict[str, Any], **settings: Any) -> GateFile:
    return GateFile(gates=[Gate(**({"task": "toy"} | gate)) for gate in gates], **settings)


def candidate(ids: Sequence[str], right: int, seed: int) -> dict[str, Sample]:
    """A made-up candidate that is right on so many of the questions, which ones drawn by `seed`."""
    chosen = set(random.Random(f"right {seed}").sample(ids, right))
    return {id: answer(id, float(id in chosen)) for id in ids}


def flipped(samples: Mapping[str, Sample], lost: int, gained: int, seed: int) -> dict[str, Sample]:
    """Another candidate that differs from the first on so many questions."""
    draw = random.Random(f"flip {seed}")
    right = [id for id, sample in samples.items() if sample.score == 1]
    wrong = [id for id, sample in samples.items() if sample.score == 0]
    changed = dict.fromkeys(draw.sample(right, lost), 0.0) | dict.fromkeys(draw.sample(wrong, gained), 1.0)
    return {id: answer(id, changed.get(id, sample.score)) for id, sample in samples.items()}


def driven(gate: LiveGate, samples: Samples) -> list[GateResult]:
    drive(gate, samples)
    return gate.results()


def live(
    file: GateFile,
    samples: Mapping[str, Sample],
    baseline: Mapping[str, Sample] | None = None,
    controls: Sequence[Mapping[str, Sample]] = (),
    seed: int = 0,
) -> GateResult:
    """The first gate's result on the task "toy"."""
    reference = a_reference("base", {"toy": baseline}) if baseline is not None else None
    others = [a_reference(f"control {number}", {"toy": control}) for number, control in enumerate(controls)]
    gate = LiveGate(file, [a_task(list(samples))], seed, reference, others)
    return driven(gate, {"toy": samples})[0]


# ---- stopping early is rarely wrong


@pytest.mark.slow
def test_wrong_verdicts_at_the_floor_are_at_most_alpha() -> None:
    """100 candidates one answer short of the floor and 100 just on it; 5 % of 100 is 5, three deviations more 11."""
    ids, floor = ids_of(150), rules({"at_least": 0.6})
    passed = sum(live(floor, candidate(ids, 89, seed), seed=seed).status == "pass" for seed in range(100))
    failed = sum(live(floor, candidate(ids, 90, seed), seed=seed).status == "fail" for seed in range(100))
    print(f"of 100: {passed} false passes, {failed} false fails")
    assert passed <= 11
    assert failed <= 11


@pytest.mark.slow
def test_wrong_verdicts_at_the_margin_are_at_most_alpha() -> None:
    """Against a baseline that differs on 8 % of the questions, and is the test's control as well."""
    ids, file = ids_of(150), rules({"margin": 0.02})
    base = candidate(ids, 105, seed=-1)
    passed = failed = 0
    for seed in range(100):
        passed += live(file, flipped(base, 8, 4, seed), base, seed=seed).status == "pass"  # four lost, three allowed
        failed += live(file, flipped(base, 7, 4, seed), base, seed=seed).status == "fail"
    print(f"of 100: {passed} false passes, {failed} false fails")
    assert passed <= 11
    assert failed <= 11


@pytest.mark.parametrize("gap", [-0.15, -0.10, 0.10, 0.15])
def test_clear_candidates_are_decided_early_and_as_the_whole_would_be(gap: float) -> None:
    ids, used = ids_of(400), 0
    for seed in range(10):
        result = live(rules({"at_least": 0.6}), candidate(ids, round(400 * (0.6 + gap)), seed), seed=seed)
        assert result.status == ("pass" if gap > 0 else "fail")
        assert result.total == 400
        used += result.used
    print(f"gap {gap:+.2f}: {used / 40:.0f} % of the questions")
    assert used <= 10 * 400 * (0.65 if abs(gap) < 0.12 else 0.45)


@pytest.mark.slow
def test_a_loop_that_spends_little_on_passes_need_not_pay_for_its_fails() -> None:
    """With a tiny alpha for passes a bad candidate fails as soon as with the usual one, and a good one passes later."""
    ids = ids_of(400)

    def asked(right: int, alpha: float, alpha_fail: float | None) -> tuple[str, int]:
        used = 0
        for seed in range(8):
            samples = candidate(ids, right, seed)
            file = rules({"at_least": 0.6}, alpha=alpha)
            (result,) = driven(LiveGate(file, [a_task(ids)], seed, None, alpha_fail=alpha_fail), {"toy": samples})
            used += result.used
        return result.status, used

    assert asked(200, 0.0001, 0.05) == asked(200, 0.05, None)
    assert asked(200, 0.0001, None)[1] > asked(200, 0.05, None)[1]
    assert asked(280, 0.0001, 0.05)[1] > asked(280, 0.05, None)[1]
    assert {asked(280, 0.0001, 0.05)[0], asked(280, 0.05, None)[0]} == {"pass"}


@pytest.mark.slow
def test_a_live_verdict_is_the_finished_one_but_for_alpha() -> None:
    """200 verdicts on 50 made-up candidates of every strength, against a baseline that they resemble more or less."""
    ids, draw, wrong = ids_of(200), random.Random(7), []
    for seed in range(50):
        base = candidate(ids, draw.randint(60, 140), seed)
        samples = flipped(base, draw.randint(0, 25), draw.randint(0, 25), seed)
        for gate in ({"at_least": 0.5}, {"margin": 0.03}, {"at_most": 0.6}, {"better_by": 0.0}):
            result = live(rules(gate), samples, base, seed=seed)
            whole = LiveGate(rules(gate), [a_task(ids)], seed, a_reference("base", {"toy": base}))
            whole.observe("toy", [samples[id] for id in permuted(ids, seed=seed, task="toy")])
            (finished,) = whole.results()
            assert finished.status in ("pass", "fail")
            assert result.status in ("pass", "fail")  # without a budget a live gate ends in a decision
            assert finished.estimate is not None
            if result.status != finished.status:
                wrong.append(abs(finished.estimate - finished.threshold))
    print(f"{len(wrong)} of 200 live verdicts differ from the whole; the widest gap among them {max(wrong, default=0)}")
    assert len(wrong) <= 10
    assert max(wrong, default=0.0) < 0.10


def test_easy_questions_first_in_the_file_change_nothing() -> None:
    """The order is by hash of the id: a file that has the easy questions first gives no early pass."""
    ids = ids_of(300)
    samples = {id: answer(id, float(number < 150)) for number, id in enumerate(ids)}
    forwards = live(rules({"at_least": 0.7}), samples)
    backwards = live(rules({"at_least": 0.7}), dict(reversed(samples.items())))
    assert forwards == backwards
    assert forwards.status == "fail"


def test_a_control_that_resembles_the_candidate_spares_questions() -> None:
    ids, without, with_control = ids_of(500), 0, 0
    for seed in range(6):
        control = candidate(ids, 400, seed)
        samples = flipped(control, 12, 8, seed)
        plain = live(rules({"at_least": 0.73}), samples, seed=seed)
        sharp = live(rules({"at_least": 0.73}), samples, controls=[control], seed=seed)
        assert (plain.status, sharp.status) == ("pass", "pass")
        assert plain.controls == {}
        assert plain.saved == 0
        without, with_control = without + plain.used, with_control + sharp.used
    assert sharp.controls.keys() == {"control 0"}
    assert sharp.saved > 0
    assert str(sharp.saved) in sharp.why
    print(f"questions: {without} without a control, {with_control} with one")
    assert with_control < 0.7 * without


def test_a_control_that_misses_a_question_is_left_out() -> None:
    ids = ids_of(300)
    control = candidate(ids, 200, seed=1)
    del control["q7"]
    result = live(rules({"at_least": 0.5}), candidate(ids, 200, seed=2), controls=[control])
    assert result.controls == {}
    assert result.status == "pass"


# ---- what is asked next, and when it ends


def two_tasks(right_a: int, right_b: int, n: int = 200) -> tuple[list[Task], dict[str, dict[str, Sample]]]:
    ids = ids_of(n)
    tasks = [a_task(ids, "a"), a_task(ids, "b")]
    return tasks, {"a": candidate(ids, right_a, 1), "b": candidate(ids, right_b, 2)}


def test_each_task_is_asked_along_its_order() -> None:
    tasks, samples = two_tasks(130, 125)
    file = rules({"task": "a", "at_least": 0.6}, {"task": "b", "at_least": 0.6})
    items = drive(LiveGate(file, tasks, 3, None), samples)
    assert [name for name, _ in items[: 2 * FIRST_LOOK]] == ["a"] * FIRST_LOOK + ["b"] * FIRST_LOOK
    for name in "ab":
        asked = [id for task, id in items if task == name]
        assert asked == permuted(ids_of(200), seed=3, task=name)[: len(asked)]


def test_one_fail_ends_it_and_leaves_the_other_task_undecided() -> None:
    tasks, samples = two_tasks(0, 200)
    file = rules({"task": "a", "at_least": 0.6}, {"task": "b", "at_least": 0.6})
    gate = LiveGate(file, tasks, 0, None)
    assert {name for name, _ in drive(gate, samples)} == {"a"}
    results = gate.results()
    assert [result.status for result in results] == ["fail", "undecided"]
    assert results[1].estimate is None
    assert results[1].interval == (0.0, 1.0)
    assert overall_of(results)[0] == "fail"


def test_a_task_whose_gates_are_decided_is_asked_no_more() -> None:
    tasks, samples = two_tasks(200, 123)
    file = rules({"task": "a", "at_least": 0.5}, {"task": "b", "at_least": 0.6})
    gate = LiveGate(file, tasks, 0, None)
    names = [name for name, _ in drive(gate, samples)]
    assert names.count("a") <= 64 < names.count("b")
    assert overall_of(gate.results())[0] == "pass"


def test_answers_out_of_the_order_are_refused() -> None:
    samples = candidate(ids_of(40), 20, 0)
    gate = LiveGate(rules({"at_least": 0.5}), [a_task(list(samples))], 0, None)
    with pytest.raises(ValueError, match="order"):
        gate.observe("toy", list(samples.values()))


@pytest.mark.parametrize("budget", [1, 40, 100])
def test_a_budget_leaves_what_is_open_undecided(budget: int) -> None:
    tasks, samples = two_tasks(121, 121)
    file = rules({"task": "a", "at_least": 0.6}, {"task": "b", "at_least": 0.6}, budget=budget)
    gate = LiveGate(file, tasks, 0, None)
    results = driven(gate, samples)
    assert sum(result.used for result in results) == gate.used == budget
    assert overall_of(results)[0] == "undecided"


def test_the_population_is_asked_all_questions_before_it_is_looked_at() -> None:
    tasks, samples = two_tasks(0, 200)
    file = rules({"task": "a", "at_least": 0.6}, {"task": "b", "at_least": 0.6}, decide="population")
    results = driven(LiveGate(file, tasks, 0, None), samples)
    assert [(result.status, result.used) for result in results] == [("fail", 200), ("pass", 200)]


def test_a_category_alone_is_judged_but_all_of_the_task_is_asked() -> None:
    ids = ids_of(300)
    step = {id: {"step": "1" if number % 3 else "2"} for number, id in enumerate(ids)}
    samples = {id: answer(id, float(step[id]["step"] == "1"), category=step[id]) for id in ids}
    gate = LiveGate(rules({"at_least": 0.9, "category": {"step": "1"}}), [a_task(ids, category=step)], 0, None)
    (result,) = driven(gate, {"toy": samples})
    assert (result.status, result.total) == ("pass", 200)
    assert result.used < gate.used <= 300


def test_the_mean_of_tasks_is_decided_early() -> None:
    tasks, samples = two_tasks(360, 360, n=400)
    file = rules({"task": "mean", "at_least": 0.6}, {"task": "a", "at_least": 0.1}, {"task": "b", "at_least": 0.1})
    gate = LiveGate(file, tasks, 0, None)
    results = driven(gate, samples)
    assert overall_of(results)[0] == "pass"
    assert (results[0].used, results[0].total) == (gate.used, 800)
    assert gate.used < 500


def test_a_mean_of_which_a_task_was_not_asked_is_undecided() -> None:
    tasks, samples = two_tasks(0, 200)
    file = rules({"task": "mean", "at_least": 0.3}, {"task": "a", "at_least": 0.6}, {"task": "b", "at_least": 0.6})
    results = driven(LiveGate(file, tasks, 0, None), samples)
    assert [result.status for result in results] == ["undecided", "fail", "undecided"]


def test_a_baseline_that_misses_answers_is_refused_with_how_many_it_has() -> None:
    samples = candidate(ids_of(40), 20, 0)
    base = dict(list(candidate(ids_of(40), 20, 1).items())[:30]) | {"q35": answer("q35", None)}
    with pytest.raises(MedbenchError, match="answers 30 of the 40 questions of toy"):
        LiveGate(rules({"margin": 0.02}), [a_task(list(samples))], 0, a_reference("base", {"toy": base}))
    with pytest.raises(MedbenchError, match="needs --baseline"):
        LiveGate(rules({"margin": 0.02}), [a_task(list(samples))], 0, None)


# ---- failed requests


def test_a_slip_in_the_first_block_does_not_save_a_bad_checkpoint() -> None:
    """Two failed requests among 32 are too many for a verdict; with more answers they are few."""
    ids = ids_of(300)
    order = permuted(ids, seed=0, task="toy")
    samples = {id: answer(id, None if id in order[:2] else 0.0) for id in ids}
    result = live(rules({"at_least": 0.6}), samples)
    assert result.status == "fail"
    assert 32 < result.used < 150


def test_a_dead_engine_is_not_asked_everything() -> None:
    samples = {id: answer(id, None) for id in ids_of(1000)}
    result = live(rules({"at_least": 0.6}), samples)
    assert result.status == "not gateable"
    assert result.used < 100


def test_failed_requests_count_against_a_pass_and_a_fail() -> None:
    """4 % of requests fail; at a floor that the rest alone would just reach, the verdict stays open."""
    ids = ids_of(200)
    samples = candidate(ids, 130, 5)
    for id in random.Random(0).sample(ids, 8):
        samples[id] = answer(id, None)
    right = sum(sample.score == 1 for sample in samples.values())
    assert live(rules({"at_least": (right + 4) / 200}), samples).status == "undecided"
    assert live(rules({"at_least": (right - 30) / 200}), samples).status == "pass"
    assert live(rules({"at_least": (right + 40) / 200}), samples).status == "fail"


# ---- in a run folder


class Counting(FakeEngine):
    """Remembers what it was asked."""

    def __init__(self, replies: Mapping[str, Mapping[str, Any]], delay: float = 0.0) -> None:
        super().__init__(replies, delay)
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in requests:
            if request is None:
                return
            self.asked.append(request.id.partition("/")[2])
            yield from super().generate([request])


class InBlocks(Counting):
    """Does not say how many places it has, and takes all requests before it answers the last of them first."""

    places: int | None = None  # type: ignore[assignment]

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        yield from reversed(list(super().generate(requests)))


class Batching(Counting):
    """Continuous batching: keeps its places full, and finishes a random one of those under way."""

    def __init__(self, replies: Mapping[str, Mapping[str, Any]], places: int, seed: int) -> None:
        super().__init__(replies)
        self.places, self._draw = places, random.Random(seed)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        source, under_way = iter(requests), []
        while True:
            while len(under_way) < self.places and (request := next(source, None)) is not None:
                under_way.append(request)
            if not under_way:
                return
            yield from super().generate([under_way.pop(self._draw.randrange(len(under_way)))])


def replies_of(samples: Mapping[str, Sample]) -> dict[str, dict[str, Any]]:
    """A where the sample is right, else B; a failed request has no reply."""
    return {
        id: {"output": f"The answer is ({'A' if sample.score else 'B'})."}
        for id, sample in samples.items()
        if sample.score is not None
    }


def a_run(root: Path, n: int) -> Run:
    record = a_record("run", {"toy": n})
    return reopen_run(root / "run", record) if (root / "run").exists() else create_run(root, record)


def gated(root: Path, file: GateFile, samples: Mapping[str, Sample], engine: Counting) -> list[GateResult]:
    with a_run(root, len(samples)) as run:
        return run_gate(LiveGate(file, [a_task(list(samples))], 0, None), run, COT, engine, Silent())


def test_what_comes_back_first_changes_neither_verdict_nor_questions(tmp_path: Path) -> None:
    samples = candidate(ids_of(300), 210, 0)
    file, replies = rules({"at_least": 0.6}), replies_of(samples)
    (alone,) = gated(tmp_path / "alone", file, samples, Counting(replies))
    assert alone.used < 300
    engines = [InBlocks(replies), *(Batching(replies, places, seed=places) for places in (1, 2, 7, 64, 1000))]
    for number, engine in enumerate(engines):
        assert gated(tmp_path / str(number), file, samples, engine) == [alone]
        stored = {sample.id for sample in read_samples(tmp_path / str(number) / "run", "toy")}
        assert stored >= set(permuted(list(samples), seed=0, task="toy")[: alone.used])
        assert stored <= set(engine.asked)


def test_answers_that_finished_beyond_the_verdict_are_kept_for_the_next_gate(tmp_path: Path) -> None:
    samples = candidate(ids_of(300), 210, 0)
    first = Batching(replies_of(samples), 200, seed=1)
    (early,) = gated(tmp_path, rules({"at_least": 0.6}), samples, first)
    kept = {sample.id for sample in read_samples(tmp_path / "run", "toy")}
    assert len(kept) > early.used
    gated(tmp_path, rules({"at_least": 0.69}), samples, second := Counting(replies_of(samples)))
    assert kept.isdisjoint(second.asked)


def test_no_more_is_under_way_than_the_verdict_likely_needs() -> None:
    ids = ids_of(1000)
    samples = candidate(ids, 630, 1)
    schedule = Schedule(LiveGate(rules({"at_least": 0.6}), [a_task(ids)], 0, None), {"toy": {}}, places=20)
    stream = schedule.to_send()
    first = list(iter(lambda: next(stream), None))
    assert len(first) == math.ceil(AHEAD * FIRST_LOOK)
    for _, id, _ in first:
        schedule.arrived("toy", samples[id], seconds=1.0)
    (demand,) = schedule.gate.demands()
    then = list(iter(lambda: next(stream), None))
    assert len(first) + len(then) - schedule.gate.used == min(1000 - schedule.gate.used, math.ceil(AHEAD * demand.more))


def test_all_places_are_filled_whatever_the_forecast_says() -> None:
    schedule = Schedule(LiveGate(rules({"at_least": 0.6}), [a_task(ids_of(1000))], 0, None), {"toy": {}}, places=256)
    stream = schedule.to_send()
    first = list(iter(lambda: next(stream), None))
    assert len(first) == 256
    for _, id, _ in first:
        schedule.arrived("toy", answer(id, 0.0), seconds=1.0)
    assert schedule.done
    assert list(stream) == []


def test_a_schedule_never_waits_with_nothing_under_way() -> None:
    ids = ids_of(200)
    for right in (0, 119, 120, 121, 200):
        samples = candidate(ids, right, 3)
        gate = LiveGate(
            rules({"at_least": 0.6}, {"metric": "tokens_per_answer", "at_most": 900}), [a_task(ids)], 0, None
        )
        assert len(drive(gate, {"toy": samples})) == gate.used


def test_a_budget_limits_what_is_sent(tmp_path: Path) -> None:
    samples = candidate(ids_of(300), 180, 0)
    engine = Batching(replies_of(samples), 256, seed=3)
    (result,) = gated(tmp_path, rules({"at_least": 0.6}, budget=50), samples, engine)
    assert (result.status, result.used, len(engine.asked)) == ("undecided", 50, 50)


def test_a_second_gate_asks_nothing_again(tmp_path: Path) -> None:
    samples = candidate(ids_of(300), 210, 0)
    first, second = Counting(replies_of(samples)), Counting({})
    before = gated(tmp_path, rules({"at_least": 0.6}), samples, first)
    assert gated(tmp_path, rules({"at_least": 0.6}), samples, second) == before
    assert second.asked == []
    harder = gated(tmp_path, rules({"at_least": 0.68}), samples, third := Counting(replies_of(samples)))
    assert third.asked != []
    assert set(third.asked).isdisjoint(first.asked)
    assert harder[0].used == len(first.asked) + len(third.asked)


def test_answers_that_a_run_has_beyond_the_block_wait_for_their_turn(tmp_path: Path) -> None:
    """An interrupted evaluation holds the short answers of later questions: they are no evidence before their turn."""
    samples = candidate(ids_of(300), 210, 0)
    order = permuted(list(samples), seed=0, task="toy")
    with a_run(tmp_path, 300) as run:
        for id in [*order[250:], *order[5:20]]:
            run.append("toy", samples[id])
    engine = Counting(replies_of(samples))
    result = gated(tmp_path, rules({"at_least": 0.6}), samples, engine)
    assert result == gated(tmp_path / "fresh", rules({"at_least": 0.6}), samples, Counting(replies_of(samples)))
    assert engine.asked == [*order[:5], *order[20 : result[0].used]]


def test_a_request_that_failed_is_asked_again_by_the_next_gate(tmp_path: Path) -> None:
    samples = candidate(ids_of(100), 66, 0)
    order = permuted(list(samples), seed=0, task="toy")
    holes = {id: reply for id, reply in replies_of(samples).items() if id not in order[10:13]}
    (first,) = gated(tmp_path, rules({"at_least": 0.65}), samples, Counting(holes))
    assert first.status == "undecided"
    (second,) = gated(tmp_path, rules({"at_least": 0.65}), samples, engine := Counting(replies_of(samples)))
    assert second.status == "pass"
    assert sorted(engine.asked) == sorted(order[10:13])
    stored = [sample.id for sample in read_samples(tmp_path / "run", "toy")]
    assert sorted(stored) == sorted(samples)


@pytest.mark.parametrize(("at_most", "status"), [(0.0005, "fail"), (5.0, "pass")])
def test_the_pace_is_judged_when_the_rest_is_and_again_alike(tmp_path: Path, at_most: float, status: str) -> None:
    samples = candidate(ids_of(200), 120, 0)
    file = rules({"at_least": 0.6}, {"metric": "seconds_per_question", "at_most": at_most})
    first = gated(tmp_path, file, samples, Counting(replies_of(samples), delay=0.002))
    assert [result.status for result in first] == ["pass", status]
    assert first[1].estimate is not None
    assert first[1].estimate > 0.002
    assert gated(tmp_path, file, samples, Counting({})) == first


def test_a_pace_alone_is_known_after_a_few_questions(tmp_path: Path) -> None:
    samples = candidate(ids_of(500), 120, 0)
    file = rules({"metric": "seconds_per_question", "at_most": 5})
    (result,) = gated(tmp_path, file, samples, Counting(replies_of(samples)))
    assert (result.status, result.used) == ("pass", 64)
