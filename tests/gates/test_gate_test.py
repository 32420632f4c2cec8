"""What a gate makes of answers: every kind of rule on finished runs, failed requests, and the population's bound.

pytest tests/gates/test_gate_test.py
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, multinomial, norm
from statsmodels.stats.proportion import proportion_confint
from support.gate_runs import SHA, answer, answers, stored_run

from medbench.harness.benchmarks.partition import keep_partition, partition_of
from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.gates.answers import Answers
from medbench.harness.gates.census import CensusTest
from medbench.harness.gates.finished_run import gate_finished_run
from medbench.harness.gates.population import PopulationTest
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.task_mean import MeanTest
from medbench.harness.gates.verdict import GateResult, Verdict
from medbench.harness.stats.score_test import invert, score_test


def judge(
    root: Path,
    gates: Sequence[dict[str, Any]],
    samples: Sequence[Sample] | dict[str, Sequence[Sample]],
    baseline: Sequence[Sample] | dict[str, Sequence[Sample]] | None = None,
    run: dict[str, Any] | None = None,
    **settings: Any,
) -> Verdict:
    """The verdict on a finished run of `samples`; a gate without a task is on "toy"."""
    rules = GateFile(gates=[Gate(**({"task": "toy"} | gate)) for gate in gates], **settings)
    by_task = samples if isinstance(samples, dict) else {"toy": samples}
    folder = stored_run(root, f"c{len(list(root.iterdir()))}", by_task, **(run or {}))
    against = None
    if baseline is not None:
        before = baseline if isinstance(baseline, dict) else {"toy": baseline}
        against = stored_run(root, f"b{len(list(root.iterdir()))}", before)
    return gate_finished_run(folder, rules, against).verdict


def one(root: Path, gate: dict[str, Any], *args: Any, **kwargs: Any) -> GateResult:
    (result,) = judge(root, [gate], *args, **kwargs).gates
    return result


def state_of(
    gate: dict[str, Any],
    samples: Sequence[Sample],
    total: int | None = None,
    *,
    baseline: Mapping[str, float] | None = None,
    unit: float = 1.0,
    resolution: int | None = 1,
    decide: str = "census",
    gates: int = 1,
) -> CensusTest | PopulationTest:
    """The gate's own test after `samples`, of `total` questions; one of `gates` gates."""
    more = [f"rest{number}" for number in range((total or len(samples)) - len(samples))]
    rule = Gate(**({"task": "toy"} | gate))
    held = Answers(rule, [*(sample.id for sample in samples), *more], unit, baseline=baseline)
    test: CensusTest | PopulationTest
    if decide == "census":
        test = CensusTest(held, 0.05, 0.05 / gates, resolution=resolution)
    else:
        test = PopulationTest(held, 0.05, 0.05 / gates)
    test.observe(rule.task, samples)
    return test


# ---- rules on a finished run


@given(st.integers(1, 60), st.data())
def test_a_floor_and_a_ceiling_are_exact(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    samples = answers(right, n - right)
    assert state_of({"at_least": right / n}, samples).result().status == "pass"
    assert state_of({"at_most": right / n}, samples).result().status == "pass"
    if right < n:
        assert state_of({"at_least": (right + 0.5) / n}, samples).result().status == "fail"
    if right > 0:
        assert state_of({"at_most": (right - 0.5) / n}, samples).result().status == "fail"


@given(st.integers(1, 60), st.data())
def test_a_margin_is_exact_and_better_by_is_strict(n: int, data: st.DataObject) -> None:
    before = [float(data.draw(st.booleans())) for _ in range(n)]
    after = [float(data.draw(st.booleans())) for _ in range(n)]
    samples = [answer(f"q{i}", score) for i, score in enumerate(after)]
    baseline = {f"q{i}": score for i, score in enumerate(before)}
    difference = int(sum(after) - sum(before))
    if difference <= 0:
        lost = -difference
        assert state_of({"margin": lost / n}, samples, baseline=baseline).result().status == "pass"
        assert state_of({"better_by": 0}, samples, baseline=baseline).result().status == "fail"
        if lost:
            assert state_of({"margin": (lost - 0.5) / n}, samples, baseline=baseline).result().status == "fail"
    else:
        assert state_of({"better_by": difference / n}, samples, baseline=baseline).result().status == "fail"
        assert state_of({"better_by": (difference - 0.5) / n}, samples, baseline=baseline).result().status == "pass"


def test_a_result_says_what_was_found(tmp_path: Path) -> None:
    result = one(tmp_path, {"at_least": 0.6}, answers(62, 38))
    assert (result.status, result.estimate, result.interval) == ("pass", 0.62, None)
    assert (result.threshold, result.used, result.total) == (0.6, 100, 100)
    assert "62.0 %" in result.why
    assert "60.0 %" in result.why
    paired = one(tmp_path, {"margin": 0.02}, answers(62, 38), answers(65, 35))
    assert paired.status == "fail"
    assert paired.estimate == pytest.approx(-0.03)
    assert (paired.threshold, "-3.0 points" in paired.why) == (-0.02, True)


@pytest.mark.parametrize(
    ("metric", "bad"),
    [
        ("unparsed", {"outcome": "unparsed", "score": 0.0, "extracted": None}),
        ("truncated", {"finish_reason": "length"}),
    ],
)
def test_less_of_it_is_better(tmp_path: Path, metric: str, bad: dict[str, Any]) -> None:
    def bads(count: int) -> list[Sample]:
        changed = [answer(f"q{i}", **{"score": 1.0, **bad}) for i in range(count)]
        return [*changed, *(answer(f"q{i}") for i in range(count, 100))]

    def status(gate: dict[str, Any], count: int, before: int | None = None) -> str:
        baseline = None if before is None else bads(before)
        return one(tmp_path, {"metric": metric, **gate}, bads(count), baseline).status

    assert (status({"at_most": 0.05}, 5), status({"at_most": 0.05}, 6)) == ("pass", "fail")
    assert (status({"at_least": 0.05}, 5), status({"at_least": 0.05}, 4)) == ("pass", "fail")
    assert (status({"margin": 0.02}, 12, 10), status({"margin": 0.02}, 13, 10)) == ("pass", "fail")
    assert (status({"better_by": 0.02}, 7, 10), status({"better_by": 0.02}, 8, 10)) == ("pass", "fail")


def test_only_the_questions_of_a_category_count(tmp_path: Path) -> None:
    step1 = [answer(f"a{i}", float(i < 8), category={"step": "1"}) for i in range(10)]
    step2 = [answer(f"b{i}", 0.0, category={"step": "2"}) for i in range(30)]
    result = one(tmp_path, {"at_least": 0.8, "category": {"step": "1"}}, [*step1, *step2])
    assert (result.status, result.used, result.total) == ("pass", 10, 10)
    assert "toy (step 1)" in result.rule
    with pytest.raises(MedbenchError, match=r"no category 'stp'; it has step"):
        one(tmp_path, {"at_least": 0.8, "category": {"stp": "1"}}, [*step1, *step2])
    with pytest.raises(MedbenchError, match="no question"):
        one(tmp_path, {"at_least": 0.8, "category": {"step": "3"}}, [*step1, *step2])


def test_a_category_of_a_limited_run_is_not_judged(tmp_path: Path) -> None:
    """How many of its questions were never asked cannot be known; a whole baseline tells."""
    some = [answer(f"a{i}", category={"step": "1"}) for i in range(10)]
    whole = [answer(f"a{i}", category={"step": "1"}) for i in range(40)]
    gate = {"at_least": 0.5, "category": {"step": "1"}}
    with pytest.raises(MedbenchError, match="--resume"):
        one(tmp_path, gate, some, run={"n": 40, "limit": 10})
    assert one(tmp_path, gate, some, whole, run={"n": 40, "limit": 10}).total == 40


def test_a_limited_run_is_judged_as_far_as_it_goes(tmp_path: Path) -> None:
    from medbench.harness.evaluation.requests import permuted

    order = permuted([f"q{i}" for i in range(400)], seed=0, task="toy")
    first = [answer(id, float(i % 10 < 8)) for i, id in enumerate(order[:100])]
    clear = one(tmp_path, {"at_least": 0.5}, first, run={"n": 400, "limit": 100})
    assert (clear.status, clear.used, clear.total) == ("pass", 100, 400)
    assert clear.log_e_pass is not None
    assert clear.log_e_pass >= math.log(20)
    close = one(tmp_path, {"at_least": 0.79}, first, run={"n": 400, "limit": 100})
    assert close.status == "undecided"
    assert close.interval is not None
    assert close.interval[0] < 0.79 < close.interval[1]


def some_of(gate: dict[str, Any], right: int, asked: int, total: int, **more: Any) -> GateResult:
    """Of `total` questions, `asked` have an answer, `right` of them correct, spread evenly."""
    scores = [float(i * right % asked < right) for i in range(asked)]
    return state_of(gate, [answer(f"q{i}", score) for i, score in enumerate(scores)], total, **more).result()


def test_the_estimate_of_all_questions_is_told_from_what_was_seen() -> None:
    result = some_of({"at_least": 0.62}, 62, 100, 818)
    assert result.estimate is not None
    assert result.status == "undecided"
    assert result.observed == 0.62
    assert f"accuracy about {100 * result.estimate:.1f} % on all 818 (62.0 % on the 100 asked)" in result.why
    decided = some_of({"at_least": 0.3}, 62, 100, 818)
    assert decided.estimate is not None
    assert f"(about {100 * decided.estimate:.1f} % on all 818, 62.0 % on the 100 asked)" in decided.why


def test_the_difference_on_all_questions_is_told_from_what_was_seen() -> None:
    """The baseline answers the first 100 questions as often as the candidate, and none of the others."""
    baseline = {f"q{i}": float(i < 60) for i in range(100)} | {f"rest{i}": 0.0 for i in range(388)}
    result = some_of({"margin": 0.02}, 62, 100, 400, baseline=baseline)
    assert result.estimate is not None
    assert result.observed == pytest.approx(0.02)
    assert result.estimate > 0.1
    assert f"about {100 * result.estimate:+.1f} points on all 400, +2.0 points on the 100 asked" in result.why
    open_still = some_of({"margin": 0.02}, 8, 12, 400, baseline=dict.fromkeys(baseline, 0.6))
    assert open_still.status == "undecided"
    assert "on all 400 against the baseline (" in open_still.why
    assert "points on the 12 asked)" in open_still.why


def test_failed_requests_are_named_with_what_was_asked() -> None:
    scores = [None, *(float(i % 3 > 0) for i in range(99))]
    samples = [answer(f"q{i}", score) for i, score in enumerate(scores)]
    assert "on the 100 asked, 1 failed)" in state_of({"at_least": 0.66}, samples, 818).result().why
    assert "after 100 of 818 questions (1 failed; about" in state_of({"at_least": 0.4}, samples, 818).result().why


@pytest.mark.parametrize(("gates", "level"), [(1, 0.9), (5, 0.94)])
@pytest.mark.parametrize(("decide", "kind"), [("census", "anytime"), ("population", "population")])
def test_an_interval_has_its_level_and_kind(gates: int, level: float, decide: str, kind: str) -> None:
    """1 - alpha - alpha / gates: what the sides of the tests spend."""
    result = some_of({"at_least": 0.6}, 62, 100, 400, decide=decide, gates=gates)
    assert result.interval is not None
    assert (result.interval_level, result.interval_kind) == (level, kind)


def test_no_interval_has_no_level(tmp_path: Path) -> None:
    whole = one(tmp_path, {"at_least": 0.6}, answers(62, 38))
    assert (whole.interval, whole.interval_level, whole.interval_kind) == (None, None, None)
    nothing = state_of({"at_least": 0.6}, [], 100).result()
    assert (nothing.interval_level, nothing.interval_kind) == (None, None)


def test_the_interval_of_a_mean_has_the_level_of_its_tasks_together(tmp_path: Path) -> None:
    floors = [{"task": name, "at_least": 0.0} for name in "ab"]
    mean = {"task": "mean", "at_least": 0.5}
    verdict = judge(tmp_path, [mean, *floors], {"a": answers(300, 100), "b": answers(150, 50)}, decide="population")
    assert verdict.gates[0].interval_level == pytest.approx(1 - 0.05 - 0.05 / 3)
    assert verdict.gates[0].interval_kind == "population"


def test_a_census_of_all_questions_shows_what_new_ones_would_give(tmp_path: Path) -> None:
    verdict = judge(tmp_path, [{"at_least": 0.6}], answers(504, 314))
    (result,) = verdict.gates
    assert result.new_questions == pytest.approx(proportion_confint(504, 818, method="wilson"), abs=1e-9)
    assert "pass (new questions of this kind: 58.2 to 64.9 %)" in result.why
    (warning,) = verdict.warnings
    assert "new questions of this kind: 58.2 to 64.9 %, which includes the threshold 60.0 %" in warning
    clear = judge(tmp_path, [{"at_least": 0.5}], answers(504, 314))
    assert clear.gates[0].new_questions == result.new_questions
    assert clear.warnings == []


def test_a_census_of_a_difference_shows_what_new_questions_would_give(tmp_path: Path) -> None:
    """51 lost, 63 gained of 818: better on these questions, which a new set may well turn."""
    before, after = [1.0] * 51 + [0.0] * 63 + [1.0] * 704, [0.0] * 51 + [1.0] * 63 + [1.0] * 704
    runs = [[answer(f"q{i}", score) for i, score in enumerate(scores)] for scores in (after, before)]
    verdict = judge(tmp_path, [{"better_by": 0.0}], *runs)
    assert verdict.overall == "pass"
    (warning,) = verdict.warnings
    assert "-1.1 to +4.1 points, which includes the threshold +0.0 points" in warning


def test_a_census_of_a_mean_shows_what_new_questions_would_give(tmp_path: Path) -> None:
    floors = [{"task": name, "at_least": 0.1} for name in "ab"]
    samples = {"a": answers(300, 100), "b": answers(150, 50)}
    verdict = judge(tmp_path, [{"task": "mean", "at_least": 0.75}, *floors], samples)
    mean, a, b = (result.new_questions for result in verdict.gates)
    assert mean is not None
    assert a is not None
    assert b is not None
    assert mean[0] == pytest.approx(0.75 - math.hypot(0.75 - a[0], 0.75 - b[0]) / 2)
    assert len(verdict.warnings) == 1


def test_only_a_census_of_all_questions_has_an_interval_for_new_ones(tmp_path: Path) -> None:
    assert some_of({"at_least": 0.6}, 62, 100, 400).new_questions is None
    whole = one(tmp_path, {"at_least": 0.6}, answers(62, 38), decide="population")
    assert whole.new_questions is None
    with_failures = one(tmp_path, {"at_least": 0.61}, answers(60, 37, 3))
    assert with_failures.status == "undecided"
    assert with_failures.new_questions is not None


# ---- the mean of tasks


def two(first: int, second: int) -> dict[str, Sequence[Sample]]:
    return {"a": answers(first, 10 - first), "b": answers(second, 20 - second)}


@pytest.mark.parametrize(
    ("gate", "status"),
    [
        ({"at_least": 0.7}, "pass"),  # (0.6 + 0.8) / 2 is 0.7 but for the last digit
        ({"at_least": 0.701}, "fail"),
        ({"at_most": 0.7}, "pass"),
        ({"at_most": 0.699}, "fail"),
        ({"margin": 0.05}, "pass"),
        ({"margin": 0.049}, "fail"),
        ({"better_by": 0.0}, "fail"),
    ],
)
def test_the_mean_weighs_tasks_alike(tmp_path: Path, gate: dict[str, Any], status: str) -> None:
    floors = [{"task": name, "at_least": 0.0} for name in "ab"]
    verdict = judge(tmp_path, [{"task": "mean", **gate}, *floors], two(6, 16), two(7, 16))
    result = verdict.gates[0]
    assert (result.status, result.used, result.total) == (status, 30, 30)


def test_a_mean_on_the_threshold_is_told_from_one_beside_it() -> None:
    """Whatever the last digit of the sums says."""
    for a in range(11):
        for b in range(21):
            mean = float((Fraction(a, 10) + Fraction(b, 20)) / 2)
            for rule, at, beside in (
                ("at_least", "pass", 1e-6),
                ("at_most", "pass", -1e-6),
                ("better_by", "fail", -1e-6),
            ):
                for threshold, status in ((mean, at), (mean + beside, "fail" if at == "pass" else "pass")):
                    if not 0 <= threshold <= 1:
                        continue
                    gate = {"task": "mean", rule: threshold}
                    base = {f"q{i}": 0.0 for i in range(20)}
                    tests = {
                        name: state_of(gate, answers(right, n - right), baseline=base).answers
                        for name, right, n in (("a", a, 10), ("b", b, 20))
                    }
                    assert MeanTest(Gate(**gate), tests, 0.05, 0.05).result().status == status


def test_the_mean_of_a_limited_run_lies_in_an_interval(tmp_path: Path) -> None:
    from medbench.harness.evaluation.requests import permuted

    samples = {
        name: [answer(id, float(i % 10 < 8)) for i, id in enumerate(permuted(ids, seed=0, task=name)[:150])]
        for name, ids in (("a", [f"q{i}" for i in range(400)]), ("b", [f"q{i}" for i in range(400)]))
    }
    floors = [{"task": name, "at_least": 0.0} for name in "ab"]
    verdict = judge(tmp_path, [{"task": "mean", "at_least": 0.6}, *floors], samples, run={"n": 400, "limit": 150})
    result = verdict.gates[0]
    assert (result.status, result.used, result.total) == ("pass", 300, 800)
    assert result.interval is not None
    assert 0.6 <= result.interval[0] <= 0.8 <= result.interval[1]
    assert (result.interval_kind, result.interval_level) == ("anytime", pytest.approx(1 - 0.05 - 0.05 / 3))
    assert "(80.0 % on the 300 asked)" in result.why


# ---- failed requests


def test_few_failed_requests_count_against_both_sides(tmp_path: Path) -> None:
    samples = answers(60, 37, 3)
    assert one(tmp_path, {"at_least": 0.60}, samples).status == "pass"
    assert one(tmp_path, {"at_least": 0.61}, samples).status == "undecided"
    assert one(tmp_path, {"at_least": 0.63}, samples).status == "undecided"
    assert one(tmp_path, {"at_least": 0.64}, samples).status == "fail"
    assert one(tmp_path, {"at_most": 0.63}, samples).status == "pass"
    assert one(tmp_path, {"at_most": 0.62}, samples).status == "undecided"
    assert one(tmp_path, {"at_most": 0.59}, samples).status == "fail"


def test_a_failed_request_is_no_truncated_and_no_unparsed_answer(tmp_path: Path) -> None:
    samples = answers(96, 0, 4)
    assert one(tmp_path, {"metric": "unparsed", "at_most": 0.04}, samples).status == "pass"
    assert one(tmp_path, {"metric": "unparsed", "at_most": 0.03}, samples).status == "undecided"


@pytest.mark.parametrize(("failed", "status"), [(5, "pass"), (6, "not gateable"), (100, "not gateable")])
def test_too_many_failed_requests_are_not_gateable(tmp_path: Path, failed: int, status: str) -> None:
    verdict = judge(tmp_path, [{"at_least": 0.5}], answers(100 - failed, 0, failed))
    assert verdict.overall == status
    if failed > 5:
        assert str(failed) in verdict.why


def test_the_share_of_failed_requests_is_a_metric_of_its_own(tmp_path: Path) -> None:
    gates = [{"metric": "errors", "at_most": 0.02}, {"at_least": 0.5}]
    assert judge(tmp_path, gates, answers(98, 0, 2)).overall == "pass"
    assert judge(tmp_path, gates, answers(97, 0, 3)).overall == "fail"
    broken = judge(tmp_path, gates, answers(50, 0, 50))
    assert [gate.status for gate in broken.gates] == ["fail", "not gateable"]
    assert broken.overall == "not gateable"


def test_a_run_in_which_nothing_was_scored_is_not_gateable(tmp_path: Path) -> None:
    verdict = judge(tmp_path, [{"at_least": 0.5}], answers(0, 0, 20), run={"status": "failed"})
    assert verdict.overall == "not gateable"
    assert "none of 20" in verdict.why


# ---- tokens and seconds


def test_tokens_per_answer(tmp_path: Path) -> None:
    samples = [answer(f"q{i}", completion_tokens=90 + i) for i in range(21)]
    result = one(tmp_path, {"metric": "tokens_per_answer", "at_most": 100}, samples)
    assert (result.status, result.estimate) == ("pass", pytest.approx(100))
    assert "100.0" in result.why
    assert one(tmp_path, {"metric": "tokens_per_answer", "at_most": 99.9}, samples).status == "fail"
    assert one(tmp_path, {"metric": "tokens_per_answer", "at_least": 100.1}, samples).status == "fail"


@pytest.mark.parametrize("limit", [7, 300, 1000, 2048])
def test_tokens_on_the_threshold_pass_whatever_the_limit(limit: int) -> None:
    samples = [answer(f"q{i}", completion_tokens=1 + i % 6) for i in range(90)]
    mean = sum(sample.completion_tokens for sample in samples) / 90
    for rule in ("at_most", "at_least"):
        gate = {"metric": "tokens_per_answer", rule: mean}
        assert state_of(gate, samples, unit=float(limit), resolution=None).result().status == "pass"


def test_replies_beyond_the_limit_are_counted_as_long_as_they_are(tmp_path: Path) -> None:
    """cot-v2 allows 2,048 tokens; a server that goes past that must not hide it."""
    samples = [answer(f"q{i}", completion_tokens=5000 if i < 10 else 100) for i in range(20)]
    assert one(tmp_path, {"metric": "tokens_per_answer", "at_most": 2549}, samples).status == "fail"
    assert one(tmp_path, {"metric": "tokens_per_answer", "at_most": 2550}, samples).status == "pass"
    early = [answer(f"q{i}", completion_tokens=100) for i in range(200)]
    sure = state_of({"metric": "tokens_per_answer", "at_most": 1000}, early, 400, unit=2048.0, resolution=None)
    assert sure.result().status == "pass"
    over = [*early, answer("long", completion_tokens=10**6)]
    doubt = state_of({"metric": "tokens_per_answer", "at_most": 1000}, over, 400, unit=2048.0, resolution=None)
    assert doubt.result().status == "undecided"


def test_seconds_per_question(tmp_path: Path) -> None:
    from medbench.harness.runs.records import Totals

    run = {"totals": Totals(seconds=150.0)}
    result = one(tmp_path, {"metric": "seconds_per_question", "at_most": 1.5}, answers(100), run=run)
    assert (result.status, result.estimate) == ("pass", 1.5)
    assert one(tmp_path, {"metric": "seconds_per_question", "at_most": 1.4}, answers(100), run=run).status == "fail"


# ---- the verdict of several gates


@pytest.mark.parametrize(
    ("floors", "overall"),
    [((0.5, 0.5), "pass"), ((0.5, 0.7), "fail"), ((0.5, 0.61), "undecided"), ((0.7, 0.61), "fail")],
)
def test_all_gates_must_pass_and_one_fails_all(tmp_path: Path, floors: tuple[float, float], overall: str) -> None:
    samples = {"a": answers(60, 40), "b": answers(60, 37, 3)}
    gates = [{"task": name, "at_least": floor} for name, floor in zip("ab", floors, strict=True)]
    verdict = judge(tmp_path, gates, samples)
    assert verdict.overall == overall
    named = [gate for gate in verdict.gates if gate.status == overall]
    assert all(gate.rule in verdict.why for gate in named) or overall == "pass"


def test_a_wrong_fail_is_shared_among_the_gates_and_a_wrong_pass_is_not(tmp_path: Path) -> None:
    """p of the fail side is 0.02: enough for one gate at 0.05, not for each of four."""
    n, floor = 400, 0.6
    wrong = n - round(n * floor - 2.054 * math.sqrt(n * floor * (1 - floor)))
    for count, status in ((1, "fail"), (4, "undecided")):
        verdict = judge(tmp_path, [{"at_least": floor}] * count, answers(n - wrong, wrong), decide="population")
        assert {gate.status for gate in verdict.gates} == {status}
    for count in (1, 4):
        right = n - wrong + 2 * round(2.054 * math.sqrt(n * floor * (1 - floor)))
        verdict = judge(tmp_path, [{"at_least": floor}] * count, answers(right, n - right), decide="population")
        assert verdict.overall == "pass"
    assert "intersection-union" in verdict.correction


@pytest.mark.parametrize(("floor", "wrong", "status"), [(0.9, 3, "fail"), (0.5, 10, "pass")])
def test_sequential_evidence_for_a_fail_is_shared_among_the_gates_too(floor: float, wrong: int, status: str) -> None:
    """Of 20 gates each needs an e-value of 400 to fail, a single one 20; a pass needs 20 in either case."""
    decided = {}
    for gates in (1, 20):
        state = state_of({"at_least": floor}, [], total=1000, gates=gates)
        state.answers.order = [f"q{i}" for i in range(1000)]
        for used in range(200):
            state.observe("toy", [answer(f"q{used}", float(used % wrong > 0))])
            result = state.result()
            if result.status == status:
                break
        evidence = result.log_e_fail if status == "fail" else result.log_e_pass
        assert evidence is not None
        assert evidence >= math.log(20 * (gates if status == "fail" else 1))
        decided[gates] = result.used
    assert (decided[20] > decided[1]) is (status == "fail")


# ---- population


@pytest.mark.parametrize(("right", "n", "floor"), [(190, 300, 0.6), (100, 100, 0.95), (3, 40, 0.2), (0, 30, 0.1)])
def test_the_bound_of_a_share_is_wilsons(tmp_path: Path, right: int, n: int, floor: float) -> None:
    result = one(tmp_path, {"at_least": floor}, answers(right, n - right), decide="population")
    low, high = proportion_confint(right, n, alpha=0.1, method="wilson")
    assert result.interval == pytest.approx((low, high), abs=1e-9)
    expected = norm.sf((right / n - floor) / math.sqrt(floor * (1 - floor) / n))
    assert result.p_value == pytest.approx(expected)
    assert result.status == ("pass" if low >= floor else "fail" if high < floor else "undecided")


def tango_by_search(gained: int, lost: int, n: int, null: float) -> float:
    """z of the constrained likelihood, its share of losses found by search and not by Tango's formula."""

    def loss(q: float) -> float:
        cells = (gained, q + null), (lost, q), (n - gained - lost, 1 - 2 * q - null)
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -null), (1 - null) / 2
    q = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (gained - lost - n * null) / math.sqrt(n * (2 * q + null - null**2))


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 7, 21), (30, 40, 500), (0, 0, 120), (5, 0, 80), (0, 6, 90)])
@pytest.mark.parametrize("null", [-0.1, -0.02, 0.03])
def test_the_bound_of_a_difference_is_tangos(gained: int, lost: int, n: int, null: float) -> None:
    values = [1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost)
    z = score_test([[value] for value in values], paired=True)
    assert z(null) == pytest.approx(tango_by_search(gained, lost, n, null), rel=1e-3, abs=1e-3)


def test_tangos_interval_of_a_published_table() -> None:
    """Fagerland, Lydersen and Laake (2014), airway hyper-responsiveness: 1, 1, 7, 12; -0.517 to -0.026."""
    z = score_test([[value] for value in [1.0] + [-1.0] * 7 + [0.0] * 13], paired=True)
    assert invert(z, 1.959964, -1, 1) == pytest.approx(-0.517, abs=6e-4)
    assert invert(z, -1.959964, -1, 1) == pytest.approx(-0.026, abs=6e-4)
    assert invert(z, 1.0, -1, 1) == pytest.approx(brentq(lambda null: z(null) - 1.0, -0.999, 0.999), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "floor"), [(60, 0.9), (100, 0.95), (300, 0.6), (1273, 0.85)])
def test_false_passes_and_fails_of_a_floor_at_the_boundary(n: int, floor: float) -> None:
    """Exact: summed over every number of right answers."""
    passes = fails = 0.0
    for right in range(n + 1):
        chance = float(binom.pmf(right, n, floor))
        if chance > 1e-9:
            status = state_of({"at_least": floor}, answers(right, n - right), decide="population").result().status
            passes, fails = passes + chance * (status == "pass"), fails + chance * (status == "fail")
    print(f"floor {floor} on {n}: false passes {passes:.3f}, false fails {fails:.3f}")
    assert passes <= 0.065
    assert fails <= 0.075  # steps of one answer near 1 are as wide as that


@pytest.mark.parametrize(("n", "losses", "gains"), [(120, 0.02, 0.0), (120, 0.04, 0.02), (200, 0.06, 0.04)])
def test_false_passes_of_a_margin_at_the_boundary(n: int, losses: float, gains: float) -> None:
    """Exact: over every number of losses and gains. A candidate two points worse, with a margin of two points."""
    passes = 0.0
    for lost in range(40):
        for gained in range(40 if gains else 1):
            chance = float(multinomial.pmf([lost, gained, n - lost - gained], n, [losses, gains, 1 - losses - gains]))
            if chance > 1e-7:
                z = score_test([[-1.0]] * lost + [[1.0]] * gained + [[0.0]] * (n - lost - gained), paired=True)
                passes += chance * (norm.sf(z(-0.02)) <= 0.05)
    print(f"margin 0.02 on {n}, {losses} lost, {gains} gained: false passes {passes:.3f}")
    assert passes <= 0.09


@pytest.mark.slow
def test_duplicates_count_once_for_the_population() -> None:
    """Pairs that always agree: 150 questions in truth, not 300; false passes stay at alpha."""
    draw = random.Random(1)
    passes = naive = 0
    for _ in range(400):
        scores = [float(draw.random() < 0.6) for _ in range(150)]
        samples = [answer(f"q{i}-{j}", s, cluster=f"q{i}") for i, s in enumerate(scores) for j in range(2)]
        passes += state_of({"at_least": 0.6}, samples, decide="population").result().status == "pass"
        apart = [answer(s.id, s.score) for s in samples]
        naive += state_of({"at_least": 0.6}, apart, decide="population").result().status == "pass"
    assert passes <= 33
    assert naive >= 36


def test_the_population_asks_more_than_the_census(tmp_path: Path) -> None:
    samples = answers(62, 38)
    assert one(tmp_path, {"at_least": 0.6}, samples).status == "pass"
    result = one(tmp_path, {"at_least": 0.6}, samples, decide="population")
    assert result.status == "undecided"
    assert result.p_value is not None
    assert result.p_value > 0.05
    assert one(tmp_path, {"at_least": 0.6}, samples).p_value is None


def test_a_limited_run_is_not_judged_for_the_population(tmp_path: Path) -> None:
    """Its test allows one look; a run could be gated, extended and gated again."""
    floor = [{"at_least": 0.6}]
    with pytest.raises(MedbenchError, match=r"asked 100 of the 400 questions of toy.*without --limit"):
        judge(tmp_path, floor, answers(90, 10), run={"n": 400, "limit": 100}, decide="population")
    assert judge(tmp_path, floor, answers(90, 10), run={"limit": 100}, decide="population").overall == "pass"


def test_failed_requests_count_against_both_sides_for_the_population_too(tmp_path: Path) -> None:
    clean = one(tmp_path, {"at_least": 0.6}, answers(640, 360), decide="population")
    holes = one(tmp_path, {"at_least": 0.6}, answers(640, 320, 40), decide="population")
    assert clean.status == "pass"
    assert holes.p_value == pytest.approx(clean.p_value)
    assert holes.estimate == pytest.approx(640 / 960)
    assert one(tmp_path, {"at_least": 0.7}, answers(640, 320, 40), decide="population").status == "undecided"


@pytest.mark.parametrize(
    ("gate", "status"),
    [
        ({"metric": "tokens_per_answer", "at_most": 102}, "pass"),
        ({"metric": "tokens_per_answer", "at_most": 98}, "fail"),
        ({"metric": "tokens_per_answer", "at_most": 100}, "undecided"),
        ({"metric": "unparsed", "at_most": 0.05}, "pass"),
        ({"metric": "truncated", "at_least": 0.05}, "fail"),
    ],
)
def test_other_metrics_of_the_population(tmp_path: Path, gate: dict[str, Any], status: str) -> None:
    samples = [answer(f"q{i}", completion_tokens=95 + i % 11) for i in range(198)]
    result = one(tmp_path, gate, samples, decide="population")
    assert result.status == status
    assert result.interval is not None
    assert result.estimate is not None
    assert result.interval[0] - 1e-9 <= result.estimate <= result.interval[1] + 1e-9


def test_the_mean_of_tasks_for_the_population(tmp_path: Path) -> None:
    """Its bound is the mean of the tasks' bounds, each at its share of alpha, so that all hold at once."""
    floors = [{"task": name, "at_least": 0.0} for name in "ab"]
    samples = {"a": answers(300, 100), "b": answers(150, 50)}
    bounds = [
        proportion_confint(right, n, alpha=2 * 0.05 / 2, method="wilson")[0] for right, n in ((300, 400), (150, 200))
    ]
    low = sum(bounds) / 2
    for floor, status in ((low - 1e-6, "pass"), (low + 1e-6, "undecided")):
        verdict = judge(tmp_path, [{"task": "mean", "at_least": floor}, *floors], samples, decide="population")
        result = verdict.gates[0]
        assert result.interval is not None
        assert result.interval[0] == pytest.approx(low)
        assert result.status == status


# ---- partitions


@given(st.lists(st.integers(0, 40), min_size=1, max_size=80))
def test_partitions_share_nothing_and_leave_nothing_out(clusters: list[int]) -> None:
    from medbench.harness.contracts import Data, Question, Task

    questions = tuple(Question(f"q{i}", f"c{c}", "Q?", (), (), "A") for i, c in enumerate(clusters))
    task = Task("toy", "1", "test", 0.5, questions, Data("local", SHA, True))
    gate, report = (keep_partition(task, half).questions for half in ("gate", "report"))
    assert {q.id for q in gate} | {q.id for q in report} == {q.id for q in questions}
    assert not {q.id for q in gate} & {q.id for q in report}
    assert not {q.cluster for q in gate} & {q.cluster for q in report}
    assert keep_partition(task, "all") == task


def test_partitions_are_halves() -> None:
    sides = [partition_of(f"c{i}") for i in range(2000)]
    assert 900 < sides.count("gate") < 1100


def test_a_run_of_another_partition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="partition all, the gate file asks for gate"):
        judge(tmp_path, [{"at_least": 0.5}], answers(10), partition="gate")
    assert (
        judge(tmp_path, [{"at_least": 0.5}], answers(10), run={"partition": "gate"}, partition="gate").overall == "pass"
    )


# ---- the file


def test_a_verdict_is_json_that_any_parser_reads(tmp_path: Path) -> None:
    """Evidence can be infinite (the rest cannot change it); JSON has no infinity."""
    samples = answers(60, 20, 2)
    folder = stored_run(tmp_path, "c", {"toy": samples}, n=100, limit=60)
    gate_finished_run(folder, GateFile(gates=[Gate(task="toy", at_least=0.1), Gate(task="toy", at_least=0.9)]), None)
    content = json.loads((folder / "verdict.json").read_text(), parse_constant=pytest.fail)
    assert content["schema_version"] == 1
    assert [gate["status"] for gate in content["gates"]] == ["pass", "fail"]
