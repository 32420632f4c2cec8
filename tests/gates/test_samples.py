"""Gates over several sampled replies to each question: the mean is judged, exactly, live and on finished runs.

pytest tests/gates/test_samples.py
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gate_driver import drive
from support.gate_runs import a_record, a_reference, a_task, answer, stored_run, write_gates, write_medqa

from medbench.harness.cli.main import run
from medbench.harness.contracts import Sample, sample_key
from medbench.harness.evaluation.repeatability import Noise, measure
from medbench.harness.gates.baseline import Reference, by_question
from medbench.harness.gates.ledger import Ledger
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.run_gate import run_gate
from medbench.harness.gates.schedule import Schedule
from medbench.harness.gates.token_limits import Limits, Reply
from medbench.harness.gates.verdict import GateResult
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.records import ModelRecord
from medbench.harness.runs.run_folder import create_run, read_run, read_samples, reopen_run

Capture = pytest.CaptureFixture[str]
SAMPLED = load_protocol("cot-v2", temperature=0.7)


def drawn(ids: Sequence[str], chances: Sequence[float], samples: int, seed: int) -> dict[str, Sample]:
    """Key -> sample; each question is right with its own chance."""
    draw = random.Random(seed)
    found = [
        answer(id, float(draw.random() < chance), repeat=repeat)
        for id, chance in zip(ids, chances, strict=True)
        for repeat in range(samples)
    ]
    return {sample.key: sample for sample in found}


def a_gate(samples: Mapping[str, Sample], per_question: int, order: int = 0, **rule: Any) -> LiveGate:
    ids = list(dict.fromkeys(sample.id for sample in samples.values()))
    return LiveGate(GateFile(gates=[Gate("toy", **rule)]), [a_task(ids)], order, None, samples=per_question)


def judged(gate: LiveGate, samples: Mapping[str, Sample]) -> GateResult:
    drive(gate, {"toy": samples})
    return gate.results()[0]


# ---- what is decided


@pytest.mark.slow
@given(st.integers(1, 30), st.integers(2, 5), st.data())
def test_a_floor_on_the_mean_is_exact_when_all_are_asked(n: int, per_question: int, data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.booleans(), min_size=n * per_question, max_size=n * per_question))
    keys = [(f"q{at // per_question}", at % per_question) for at in range(n * per_question)]
    samples = {
        sample.key: sample
        for (id, repeat), score in zip(keys, scores, strict=True)
        for sample in [answer(id, float(score), repeat=repeat)]
    }
    right = sum(scores)
    assert judged(a_gate(samples, per_question, at_least=right / len(keys)), samples).status == "pass"
    if right < len(keys):
        above = (right + 0.5) / len(keys)
        assert judged(a_gate(samples, per_question, at_least=above), samples).status == "fail"


@pytest.mark.slow
def test_wrong_verdicts_at_the_threshold_are_at_most_alpha() -> None:
    """One sample of all short of the floor, and exactly on it; 120 orders each."""
    ids = [f"q{number}" for number in range(60)]
    chances = [random.Random(number).betavariate(2, 1) for number in range(60)]
    samples = drawn(ids, chances, 4, 0)
    total = sum(sample.score or 0.0 for sample in samples.values())
    wrong = {"pass": 0, "fail": 0}
    for order in range(120):
        below = judged(a_gate(samples, 4, order, at_least=(total + 1) / 240), samples)
        reached = judged(a_gate(samples, 4, order, at_least=total / 240), samples)
        wrong["pass"] += below.status == "pass"
        wrong["fail"] += reached.status == "fail"
    # 0.05 * 120 = 6, and three standard deviations above it
    assert max(wrong.values()) <= 13


def test_several_samples_decide_after_fewer_questions_than_one() -> None:
    """The mean of four samples varies less between questions than one does."""
    ids = [f"q{number}" for number in range(600)]
    used = {}
    for per_question in (1, 4):
        draws = [drawn(ids, [0.6] * 600, per_question, seed) for seed in range(5)]
        used[per_question] = sum(judged(a_gate(some, per_question, at_least=0.55), some).used for some in draws)
    assert used[4] < used[1] / 2


def test_the_baseline_may_have_another_number_of_samples() -> None:
    ids = [f"q{number}" for number in range(300)]
    candidate, base = drawn(ids, [0.6] * 300, 4, 1), drawn(ids, [0.6] * 300, 2, 2)
    reference = Reference("base", {"toy": by_question(base.values(), 2)})
    gate = LiveGate(GateFile(gates=[Gate("toy", margin=0.2)]), [a_task(ids)], 0, reference, samples=4)
    result = judged(gate, candidate)
    assert result.status == "pass"
    assert result.used < 300
    means = [sum(one.score or 0.0 for one in some.values()) / len(some) for some in (candidate, base)]
    whole = LiveGate(
        GateFile(gates=[Gate("toy", margin=0.2)], decide_after="all"), [a_task(ids)], 0, reference, samples=4
    )
    assert judged(whole, candidate).estimate == pytest.approx(means[0] - means[1])


def test_a_stopped_run_is_a_control_whatever_its_number_of_samples(tmp_path: Path) -> None:
    from medbench.harness.gates.baseline import read_controls

    record = read_run(stored_run(tmp_path, "candidate", {"toy": [answer(f"q{i}") for i in range(6)]}))
    old = [answer(f"q{i}", float(repeat < 1), repeat=repeat) for i in (0, 1) for repeat in range(4)]
    half_asked = [answer("q2", 1.0)]
    new = [answer("q1", 0.0), answer("q3", 1.0)]
    stored_run(tmp_path, "a", {"toy": old + half_asked}, n=6, status="running", samples=4, created="2025-01-01")
    stored_run(tmp_path, "b", {"toy": new}, n=6, status="running", created="2025-02-01")
    (found,) = read_controls(tmp_path, record, None, ["toy"], partial=True)
    values = found.values("toy", [f"q{i}" for i in range(4)], "accuracy")
    assert values == pytest.approx({"q0": 0.25, "q1": 0.0, "q2": (0.25 + 0 + 1) / 3, "q3": 1.0})


def test_a_question_of_which_one_sample_failed_is_unknown() -> None:
    ids = [f"q{number}" for number in range(100)]
    samples = drawn(ids, [1.0] * 100, 3, 0)
    samples["q5#1"] = answer("q5", None, repeat=1)
    result = judged(a_gate(samples, 3, at_least=0.99), samples)
    assert (result.status, result.used) == ("pass", 100)
    doubtful = judged(a_gate(samples, 3, at_least=0.995), samples)
    assert doubtful.status == "undecided"
    assert "1 failed" in doubtful.why


# ---- what is asked


def test_all_samples_of_a_question_are_asked_together_along_the_order() -> None:
    ids = [f"q{number}" for number in range(100)]
    samples = drawn(ids, [0.5] * 100, 3, 0)
    gate = a_gate(samples, 3, at_least=0.5)
    asked = [key for _, key in drive(gate, {"toy": samples})]
    assert asked[:4] == [
        gate.orders["toy"][0],
        *(f"{gate.orders['toy'][0]}#{n}" for n in (1, 2)),
        gate.orders["toy"][1],
    ]


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(2, 4))
def test_a_budget_counts_questions_and_begins_none_beyond(budget: int, per_question: int) -> None:
    ids = [f"q{number}" for number in range(30)]
    tasks = [a_task(ids, "a"), a_task(ids, "b")]
    samples = {name: drawn(ids, [0.5] * 30, per_question, 3) for name in "ab"}
    file = GateFile(gates=[Gate("a", at_least=0.5), Gate("b", at_least=0.5)], budget=budget)
    gate = LiveGate(file, tasks, 0, None, samples=per_question)
    asked = drive(gate, samples)
    assert len(asked) <= budget * per_question
    assert gate.used <= budget


def test_replies_longer_than_a_limit_count_by_their_bounds() -> None:
    ids = [f"q{number}" for number in range(40)]
    gate = LiveGate(
        GateFile(gates=[Gate("toy", at_least=0.6)]),
        [a_task(ids)],
        0,
        None,
        samples=2,
        limits=Limits((50,), (0.5, 0.5)),
    )
    schedule = Schedule(gate, {"toy": {}}, 1000)
    for task, id, repeat in takewhile(lambda item: item is not None, schedule.to_send()):
        if repeat:
            schedule.passed("toy", f"{id}#1", 50)
        else:
            schedule.arrived(task, answer(id, 1.0), seconds=0.0)
    assert (gate.position("toy"), gate.position("toy", 50)) == (0, 40)
    (result,) = gate.results()
    # half of each question is known to be right: between 0.5 and 1
    assert result.status == "undecided"
    assert result.interval == (0.5, 1.0)
    with pytest.raises(ValueError, match="order"):
        gate.observe_within("toy", 50, [Reply(ids[0], None, repeat=1)])


def test_what_a_stopped_gate_has_is_not_asked_again_not_even_half_a_question(tmp_path: Path) -> None:
    from medbench.harness.engines.fake import FakeEngine

    class Counting(FakeEngine):
        asked: list[str]

        def generate(self, requests):  # type: ignore[no-untyped-def]
            def counted():  # type: ignore[no-untyped-def]
                for request in requests:
                    if request is not None:
                        self.asked.append(request.id)
                    yield request

            return super().generate(counted())

    ids = [f"q{number}" for number in range(60)]
    samples = drawn(ids, [0.62] * 60, 4, 2)
    replies = {key: {"output": f"The answer is ({'A' if one.score else 'B'})."} for key, one in samples.items()}
    record = a_record("run", {"toy": 60}, samples=4, protocol=SAMPLED.model_dump(mode="json"))
    engine = Counting(replies)
    engine.asked = []

    def gated(run: Any) -> GateResult:
        file = GateFile(gates=[Gate("toy", at_least=0.6)])
        return run_gate(LiveGate(file, [a_task(ids)], 0, None, samples=4), run, SAMPLED, engine, Silent())[0]

    with create_run(tmp_path / "whole", record) as run:
        uninterrupted = gated(run)
    asked, engine.asked = engine.asked, []
    with create_run(tmp_path / "part", record) as run:
        for line in list(read_samples(tmp_path / "whole" / "run", "toy"))[:50]:  # 12 questions and a half
            run.append("toy", line)
    with reopen_run(tmp_path / "part" / "run", record) as run:
        assert gated(run) == uninterrupted
    assert engine.asked == asked[50:]


class Silent:
    """A Progress that shows nothing."""

    def start(self, task: str, total: int, done: int) -> None: ...
    def advance(self, task: str, sample: Sample) -> None: ...
    def expect(self, time: str) -> None: ...


# ---- what is said of noise


def test_the_noise_of_sampling_is_what_runs_with_other_seeds_show() -> None:
    ids = [f"q{number}" for number in range(250)]
    chances = [random.Random(number).betavariate(1, 1) for number in range(250)]
    means, told = [], []
    for seed in range(60):
        gate = a_gate(some := drawn(ids, chances, 4, seed), 4, at_least=0.5)
        gate.observe("toy", [some[sample_key(id, repeat)] for id in gate.orders["toy"] for repeat in range(4)])
        (result,) = gate.results()
        assert result.estimate is not None
        assert result.sampling_noise is not None
        means.append(result.estimate)
        told.append(result.sampling_noise)
    middle = sum(means) / 60
    seen = math.sqrt(sum((one - middle) ** 2 for one in means) / 59)
    # the standard deviation of 60 draws is off by 9 %
    assert sum(told) / 60 == pytest.approx(seen, rel=0.3)


def test_the_noise_of_a_difference_has_that_of_the_baseline_in_it() -> None:
    ids = [f"q{number}" for number in range(200)]
    candidate = drawn(ids, [0.5] * 200, 2, 0)
    file = GateFile(gates=[Gate("toy", margin=0.3)], decide_after="all")

    def noise(reference: Reference) -> float:
        result = judged(LiveGate(file, [a_task(ids)], 0, reference, samples=2), candidate)
        assert result.sampling_noise is not None
        return result.sampling_noise

    several = noise(Reference("base", {"toy": by_question(drawn(ids, [0.5] * 200, 4, 1).values(), 4)}))
    one = noise(a_reference("base", {"toy": drawn(ids, [0.5] * 200, 1, 1)}))
    assert several == pytest.approx(math.sqrt((0.25 / 2 + 0.25 / 4) / 200), rel=0.1)
    assert one == pytest.approx(math.sqrt((0.25 / 2 + 0.25 / 1) / 200), rel=0.1)


@pytest.mark.engine
def test_asking_twice_draws_other_replies_where_the_protocol_samples(tiny_engine: Any) -> None:
    task = a_task([f"q{number}" for number in range(12)])
    sampled = load_protocol("cot-v2", temperature=1.5, max_new_tokens=8)
    greedy = load_protocol("cot-v2", max_new_tokens=8)
    assert measure(task, sampled, tiny_engine, questions=12, seed=0).replies > 6
    assert measure(task, greedy, tiny_engine, questions=12, seed=0).replies == 0


def test_of_more_samples_a_margin_may_be_smaller() -> None:
    noise = Noise(asked=100, replies=100, answers=40, scores=20)
    assert noise.of_difference(400) == pytest.approx(noise.of_difference(100) / 2)


def test_another_seed_of_sampled_replies_is_another_chance(tmp_path: Path) -> None:
    rules = GateFile(gates=[Gate("toy", at_least=0.5)])
    ledger = Ledger(tmp_path, rules, None)
    model = ModelRecord(name="m", kind="replies", fingerprint="f")
    assert [ledger.enter(model, seed).number for seed in (0, 1, 0, 2)] == [1, 2, 1, 3]
    assert ledger.enter(model).number == ledger.enter(model).number == 4


# ---- the command


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    ids = write_medqa(Path("data"), 120)
    for name, chance, seed in (("base", 0.7, 0), ("same", 0.7, 1), ("worse", 0.4, 2)):
        draw = random.Random(seed)
        lines = [
            {"id": id, "sample": repeat, "output": f"The answer is ({'A' if draw.random() < chance else 'B'})."}
            for id in ids
            for repeat in range(4)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ids


COMMON = ("--data", "data", "--quiet")


def test_a_gate_file_asks_for_samples(bench: list[str], capfd: Capture) -> None:
    gates = write_gates(Path("g.yaml"), "{task: medqa, at_least: 0.55}", samples=4, temperature=0.7)
    for name, status in (("same", 0), ("worse", 1)):
        command = ["gate", name, "--gates", str(gates), "--replies", f"{name}.jsonl", *COMMON, "--json"]
        assert run(command) == status
        verdict = json.loads(capfd.readouterr().out)["verdicts"][0]
        (gate,) = verdict["gates"]
        assert verdict["samples"] == read_run(verdict["run"]).samples == 4
        assert gate["why"].startswith("mean accuracy of 4 samples per question")
        assert "sampling noise" in gate["why"]
        assert gate["sampling_noise"] > 0
        stored = list(read_samples(verdict["run"], "medqa"))
        assert len(stored) >= 4 * gate["used"]
        assert len(stored) < 480
        # the verdict on the whole run is the same
        assert run(["eval", name, "--tasks", "medqa", "--samples", "4", "--temperature", "0.7", "--name", f"{name}-all",
                    "--replies", f"{name}.jsonl", *COMMON]) == 0  # fmt: skip
        capfd.readouterr()
        assert run(["gate", f"runs/{name}-all", "--gates", str(gates)]) == status
        capfd.readouterr()


def test_samples_are_the_baseline_s_where_the_protocol_is(bench: list[str], capfd: Capture) -> None:
    assert run(["eval", "base", "--tasks", "medqa", "--samples", "4", "--temperature", "0.7", "--name", "base",
                "--replies", "base.jsonl", *COMMON]) == 0  # fmt: skip
    gates = write_gates(Path("g.yaml"), "{task: medqa, margin: 0.1}")
    capfd.readouterr()
    command = ["gate", "worse", "--gates", str(gates), "--baseline", "runs/base", "--replies", "worse.jsonl"]
    assert run([*command, *COMMON, "--json"]) == 1
    verdict = json.loads(capfd.readouterr().out)["verdicts"][0]
    assert (verdict["samples"], verdict["protocol"]) == (4, "cot-v2+temperature=0.7")


def test_equal_samples_are_refused(tiny_model: Path, bench: list[str], capfd: Capture) -> None:
    gates = write_gates(Path("g.yaml"), "{task: medqa, at_least: 0.5}", samples=4)
    assert run(["gate", str(tiny_model), "--gates", str(gates), *COMMON]) == 2
    error = capfd.readouterr().err
    assert "samples 4: protocol cot-v2 decodes greedily, so all replies would be equal: set a temperature" in error


def test_a_finished_run_with_another_number_of_samples_is_refused(bench: list[str], capfd: Capture) -> None:
    assert run(["score", "base.jsonl", "--task", "medqa", "--name", "r", "--data", "data"]) == 0
    gates = write_gates(Path("g.yaml"), "{task: medqa, at_least: 0.5}", samples=2)
    assert run(["gate", "runs/r", "--gates", str(gates)]) == 2
    assert "4 samples per question, the gate file asks for samples: 2" in capfd.readouterr().err


def test_one_sampled_reply_a_question_is_told_to_be_noisy(bench: list[str], capfd: Capture) -> None:
    gates = write_gates(Path("g.yaml"), "{task: medqa, at_least: 0.2}", temperature=0.7)
    assert run(["gate", "same", "--gates", str(gates), "--replies", "same.jsonl", *COMMON, "--json"]) == 0
    (warning,) = json.loads(capfd.readouterr().out)["verdicts"][0]["warnings"]
    assert warning.startswith("replies are sampled at temperature 0.7, one a question")


def test_a_threshold_within_the_noise_is_warned_of(bench: list[str], capfd: Capture) -> None:
    assert run(["score", "base.jsonl", "--task", "medqa", "--name", "r", "--data", "data"]) == 0
    capfd.readouterr()
    near = round(json.loads(Path("runs/r/results/medqa.json").read_text())["accuracy"], 2)
    gates = write_gates(Path("g.yaml"), f"{{task: medqa, at_least: {near}}}")
    assert run(["gate", "runs/r", "--gates", str(gates), "--json"]) in (0, 1)
    assert "another run of the same checkpoint, sampled anew" in capfd.readouterr().out


@pytest.mark.engine
def test_a_real_engine_is_judged_by_the_mean_of_its_samples(tiny_engine: Any, tmp_path: Path) -> None:
    """A tiny random model is never right, in none of its samples."""
    protocol = load_protocol("cot-v2", max_new_tokens=16, temperature=1.0)
    task = a_task([f"q{number}" for number in range(120)])
    record = a_record("run", {"toy": 120}, samples=3, protocol=protocol.model_dump(mode="json"))
    with create_run(tmp_path, record) as run:
        gate = LiveGate(GateFile(gates=[Gate("toy", at_least=0.9)]), [task], 0, None, samples=3)
        (result,) = run_gate(gate, run, protocol, tiny_engine, Silent())
    assert result.status == "fail"
    samples = by_question(read_samples(tmp_path / "run", "toy"), 3)
    assert len(samples) >= result.used
    assert all(len({one.output for one in some}) > 1 for some in samples.values())


def test_the_mean_of_tasks_is_that_of_all_samples_and_its_noise_theirs() -> None:
    ids = [f"q{number}" for number in range(150)]
    tasks = [a_task(ids, "a"), a_task(ids, "b")]
    samples = {name: drawn(ids, [0.6] * 150, 4, seed) for seed, name in enumerate("ab")}
    scores = [one.score or 0.0 for some in samples.values() for one in some.values()]
    mean = sum(scores) / len(scores)
    for floor, status in ((mean - 0.1, "pass"), (mean + 0.1, "fail"), (mean, "pass"), (mean + 0.0005, "fail")):
        gates = [Gate("a", at_least=0.0), Gate("b", at_least=0.0), Gate("mean", at_least=floor)]
        gate = LiveGate(GateFile(gates=gates), tasks, 0, None, samples=4)
        drive(gate, samples)
        result = gate.results()[-1]
        assert result.status == status
        assert "4 samples per question" in result.why
    assert (result.used, result.estimate) == (300, pytest.approx(mean))
    # each task's: sqrt(0.24 / (4 * 150)) = 0.02
    assert result.sampling_noise == pytest.approx(0.02 / math.sqrt(2), rel=0.1)
