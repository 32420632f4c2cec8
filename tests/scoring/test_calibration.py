"""Calibration compared with scikit-learn, closed forms and enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax as scipy_log_softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from medbench.harness.contracts import Sample
from medbench.harness.scoring.calibration import Calibration, log_softmax, summarize_calibration

LABELS = "ABCD"
INF, NAN = math.inf, math.nan


def sample(logprobs: Mapping[str, float] | None, gold: str = "A", **changes: Any) -> Sample:
    best = max(logprobs, key=lambda choice: logprobs[choice]).strip() if logprobs else None
    plain: dict[str, Any] = {
        "id": "q",
        "cluster": "q",
        "prompt": "",
        "output": "",
        "finish_reason": "stop",
        "extracted": best,
        "outcome": "answered",
        "span": None,
        "gold": gold,
        "score": float(best == gold),
        "error": None,
        "prompt_tokens": 1,
        "completion_tokens": 0,
        "category": {},
        "logprobs": logprobs,
    }
    return Sample(**{**plain, **changes})


def row(values: Sequence[float], gold: str = "A") -> Sample:
    return sample({f" {label}": value for label, value in zip(LABELS, values, strict=False)}, gold)


def sure(confidence: float, right: bool) -> Sample:
    """Two choices, A more likely."""
    return sample(
        {" A": math.log(confidence), " B": math.log(1 - confidence) if confidence < 1 else -INF}, "A" if right else "B"
    )


def failed() -> Sample:
    return sample(None, score=None, outcome="error", finish_reason="error", error="timeout")


def summary(samples: Sequence[Sample]) -> Calibration:
    found = summarize_calibration(iter(samples))
    assert found is not None
    return found


log = st.floats(-30, 0)
rows = st.lists(st.tuples(st.lists(log, min_size=4, max_size=4), st.sampled_from(LABELS)), min_size=1, max_size=40)
# few distinct confidences, so that many are equal; a half is no unique answer, so from a little above it
pairs = st.lists(st.tuples(st.sampled_from([0.51, 0.6, 0.8, 0.95, 1.0]), st.booleans()), min_size=1, max_size=60)


def probabilities(found: Sequence[tuple[list[float], str]]) -> Any:
    return np.exp(scipy_log_softmax(np.array([values for values, _ in found]), axis=1))


# log_softmax


@given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=10))
def test_log_softmax_equals_scipy(values: list[float]) -> None:
    found = log_softmax({str(index): value for index, value in enumerate(values)})
    assert found is not None
    assert list(found.values()) == pytest.approx(list(scipy_log_softmax(values)), abs=1e-9)


def test_minus_infinity_is_probability_zero() -> None:
    assert log_softmax({"A": -3.0, "B": -INF}) == {"A": 0, "B": -INF}


@pytest.mark.parametrize("values", [[], [NAN, -1.0], [-1.0, NAN], [INF, -1.0], [-INF, -INF], [-INF, NAN]])
def test_values_that_form_no_distribution(values: list[float]) -> None:
    assert log_softmax({str(index): value for index, value in enumerate(values)}) is None


# brier and nll


@given(rows)
def test_brier_and_nll_equal_sklearn(found: list[tuple[list[float], str]]) -> None:
    ours = summary([row(values, gold) for values, gold in found])
    truth, given_ = [gold for _, gold in found], probabilities(found)
    assert ours.brier is not None
    assert 0 <= ours.brier <= 2 + 1e-12
    theirs = brier_score_loss(truth, given_, labels=list(LABELS), scale_by_half=False)
    assert ours.brier == pytest.approx(theirs, abs=1e-12)
    assert ours.nll == pytest.approx(log_loss(truth, given_, labels=list(LABELS)), abs=1e-9)


def test_brier_of_two_choices_is_twice_the_binary_one() -> None:
    chances, right = [0.9, 0.6, 0.7], [True, False, True]
    ours = summary([sure(p, one) for p, one in zip(chances, right, strict=True)])
    assert ours.brier == pytest.approx(2 * brier_score_loss(right, chances))


def test_the_extremes_of_brier() -> None:
    assert summary([row([0, -INF, -INF, -INF], "A")]).brier == 0
    assert summary([row([0, -INF, -INF, -INF], "B")]).brier == 2
    assert summary([row([-1, -1, -1, -1], "B")]).brier == pytest.approx(0.75)


def test_nll_survives_underflow_and_is_none_where_infinite() -> None:
    assert summary([row([0, -2000, -2000, -2000], "B")]).nll == pytest.approx(2000)
    impossible = summary([row([0, -INF, -INF, -INF], "B"), row([0, -1, -1, -1])])
    assert impossible.nll is None
    assert impossible.brier is not None
    assert Calibration.model_validate_json(impossible.model_dump_json()) == impossible


def test_a_gold_answer_outside_the_choices_leaves_brier_and_nll_out() -> None:
    ours = summary([sample({" A": -0.1, " B": -2.0}, "the heart", score=1.0), row([0, -1, -1, -1])])
    assert (ours.brier, ours.nll, ours.accuracy) == (None, None, 1)


# ece


@given(rows)
def test_ece_equals_its_definition(found: list[tuple[list[float], str]]) -> None:
    ours = summary([row(values, gold) for values, gold in found])
    surest = probabilities(found).max(axis=1)
    assume(np.abs(surest * 15 - np.round(surest * 15)).min() > 1e-9)  # not on a bin edge up to rounding
    right = np.array(
        [max(zip(values, LABELS, strict=True), key=lambda one: one[0])[1] == gold for values, gold in found]
    )
    total = 0.0
    for number in range(15):
        inside = (number / 15 < surest) & (surest <= (number + 1) / 15)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - surest[inside].mean())
    assert ours.ece == pytest.approx(total / len(found), abs=1e-12)
    assert ours.accuracy == pytest.approx(right.mean())
    assert ours.confidence == pytest.approx(surest.mean())


@given(st.lists(st.tuples(st.floats(0.501, 0.999), st.booleans()), min_size=2, max_size=60))
def test_bins_equal_sklearn_calibration_curve(found: list[tuple[float, bool]]) -> None:
    assume(len({right for _, right in found}) == 2)
    assume(min(abs(p * 15 - round(p * 15)) for p, _ in found) > 1e-9)
    truth, mean = calibration_curve([right for _, right in found], [p for p, _ in found], n_bins=15)
    bins = summary([sure(p, right) for p, right in found]).bins
    assert [one.accuracy for one in bins] == pytest.approx(list(truth))
    assert [one.confidence for one in bins] == pytest.approx(list(mean))
    assert sum(one.n for one in bins) == len(found)
    assert all(one.low < one.confidence <= one.high for one in bins)


def test_an_edge_belongs_to_the_bin_below() -> None:
    """Five equal choices: 1/5 is 3/15."""
    ours = summary([sample(dict.fromkeys([" A", " B", " C", " D", " E"], -1.0))])
    assert [(one.low, one.high) for one in ours.bins] == [(2 / 15, 3 / 15)]
    assert [(one.low, one.high) for one in summary([sure(1.0, True)]).bins] == [(14 / 15, 1)]


@given(st.lists(st.tuples(st.integers(6, 10), st.integers(1, 5)), min_size=1, max_size=5))
def test_ece_of_perfect_calibration_is_zero(groups: list[tuple[int, int]]) -> None:
    """Of every ten answers at confidence n/10, n are right."""
    samples = [sure(tenths / 10, i < tenths) for tenths, times in groups for i in range(10) for _ in range(times)]
    ours = summary(samples)
    assert ours.ece == pytest.approx(0, abs=1e-12)
    assert ours.ece_adaptive == pytest.approx(0, abs=1e-12)
    assert ours.confidence == pytest.approx(ours.accuracy)


def test_ece_of_confident_wrong_answers_is_one() -> None:
    ours = summary([sure(1.0, False)] * 3)
    assert (ours.ece, ours.ece_adaptive, ours.aurc, ours.brier) == (1, 1, 1, 2)


@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_adaptive_bins_have_equal_sizes(times: int, random: Any) -> None:
    found = [(0.5 + 0.4 * (i + 1) / (15 * times), random.random() < 0.7) for i in range(15 * times)]
    parts = np.array_split(np.array(found, dtype=float), 15)
    expected = np.mean([abs(part[:, 1].mean() - part[:, 0].mean()) for part in parts])
    assert summary([sure(p, right) for p, right in found]).ece_adaptive == pytest.approx(expected, abs=1e-9)


def test_equal_confidences_share_an_adaptive_bin() -> None:
    ours = summary([sure(0.8, i < 3) for i in range(30)])
    assert ours.ece_adaptive == pytest.approx(0.7)


def test_equal_confidences_go_to_the_bin_with_most_of_them() -> None:
    """One answer followed by twenty-nine equal ones: two bins."""
    ours = summary([sure(0.99, False), *[sure(0.6, True)] * 29])
    assert ours.ece_adaptive == pytest.approx((0.99 + 29 * 0.4) / 30)


# risk over coverage


@given(st.lists(st.tuples(st.sampled_from([0.6, 0.8, 0.9]), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=60)
def test_risk_is_the_mean_over_all_orders_of_ties(found: list[tuple[float, bool]]) -> None:
    curves = []
    for way in itertools.permutations(found):
        if all(one[0] >= two[0] for one, two in itertools.pairwise(way)):
            wrong = [not right for _, right in way]
            curves.append([sum(wrong[:taken]) / taken for taken in range(1, len(way) + 1)])
    ours = summary([sure(p, right) for p, right in found])
    expected = np.mean(curves, axis=0)
    assert [risk for _, risk in ours.risk_coverage] == pytest.approx(list(expected))
    assert [coverage for coverage, _ in ours.risk_coverage] == [i / len(found) for i in range(1, len(found) + 1)]
    assert ours.aurc == pytest.approx(expected.mean())


def test_aurc_by_hand() -> None:
    """Geifman and El-Yaniv: the mean of the risks at coverage 1/4, 2/4, 3/4 and 1."""
    best = [sure(0.9, True), sure(0.8, True), sure(0.7, False), sure(0.6, False)]
    worst = [sure(0.9, False), sure(0.8, False), sure(0.7, True), sure(0.6, True)]
    assert summary(best).aurc == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert summary(worst).aurc == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)


@given(pairs, st.integers(0, 30))
def test_the_curve_ends_at_coverage_and_risk_of_all_answers(found: list[tuple[float, bool]], abstained: int) -> None:
    ours = summary([*(sure(p, right) for p, right in found), *[failed()] * abstained])
    coverage, risk = ours.risk_coverage[-1]
    assert coverage == pytest.approx(len(found) / (len(found) + abstained))
    assert risk == pytest.approx(1 - ours.accuracy)
    assert len(ours.risk_coverage) <= 50
    assert all(one[0] < two[0] for one, two in itertools.pairwise(ours.risk_coverage))


def test_a_long_curve_has_fifty_points() -> None:
    random = np.random.default_rng(0)
    ours = summary([sure(p, True) for p in random.uniform(0.5, 1, size=1273)])
    assert len(ours.risk_coverage) == 50
    steps = np.diff([0, *(coverage for coverage, _ in ours.risk_coverage)])
    assert steps == pytest.approx(1 / 50, abs=1 / 1273)


def test_accuracy_at_a_coverage_is_that_of_the_most_confident() -> None:
    samples = [sure(0.95 - 0.04 * i, i < 8) for i in range(10)]
    assert summary(samples).selective == {80: 1, 90: pytest.approx(8 / 9)}


def test_a_coverage_is_rounded_up() -> None:
    """Of seven, six are 80 %; five would be 71 %."""
    assert summary([sure(0.95 - 0.04 * i, i < 5) for i in range(7)]).selective[80] == pytest.approx(5 / 6)


# abstentions


def test_abstentions_are_counted_and_limit_coverage() -> None:
    answered = [sure(0.9, True)] * 6 + [sure(0.6, False)] * 2
    silent = [
        failed(),
        sample(None, extracted=None, outcome="unparsed"),
    ]
    ours = summary([*answered, *silent])
    assert (ours.n, ours.n_abstained) == (10, 2)
    assert (ours.accuracy, ours.confidence) == (0.75, pytest.approx(0.825))
    assert ours.selective == {80: 0.75, 90: None}
    assert ours.risk_coverage[-1] == (0.8, 0.25)
    alone = summary(answered)
    assert (ours.ece, ours.brier, ours.aurc) == (alone.ece, alone.brier, alone.aurc), "silence earns nothing"


@pytest.mark.parametrize("broken", [[NAN, -1.0], [INF, -1.0], [-INF, -INF]])
def test_unusable_log_likelihoods_are_abstentions(broken: list[float]) -> None:
    ours = summary([row([0, -1]), row(broken)])
    assert (ours.n, ours.n_abstained) == (2, 1)


def test_a_failed_row_with_log_likelihoods_is_an_abstention() -> None:
    broken = sample({" A": 0.0, " B": -1.0}, score=None, outcome="error", error="timeout")
    assert summary([row([0, -1]), broken]).n_abstained == 1


def test_generated_replies_have_no_calibration() -> None:
    assert summarize_calibration([]) is None
    assert summarize_calibration([sample(None, extracted="A", score=1.0), failed()]) is None
    assert summarize_calibration([row([NAN, 0])]) is None


# whatever the rows are


@given(rows, st.data())
def test_order_does_not_matter(found: list[tuple[list[float], str]], data: st.DataObject) -> None:
    samples = [*(row(values, gold) for values, gold in found), failed(), sure(0.8, True), sure(0.8, False)]
    assert summary(data.draw(st.permutations(samples))) == summary(samples)


@given(rows)
def test_bounds(found: list[tuple[list[float], str]]) -> None:
    ours = summary([row(values, gold) for values, gold in found])
    for value in (ours.ece, ours.ece_adaptive, ours.aurc, ours.confidence, ours.accuracy):
        assert 0 <= value <= 1
    assert abs(ours.accuracy - ours.confidence) <= ours.ece + 1e-12, "the mean gap is never more than the mean of gaps"
    assert abs(ours.accuracy - ours.confidence) <= ours.ece_adaptive + 1e-12
    assert all(0 <= coverage <= 1 and -1e-12 <= risk <= 1 + 1e-12 for coverage, risk in ours.risk_coverage)
    assert Calibration.model_validate_json(ours.model_dump_json()) == ours


@given(rows, st.floats(-50, 50))
def test_only_differences_of_log_likelihoods_matter(found: list[tuple[list[float], str]], shift: float) -> None:
    moved = summary([row([value + shift for value in values], gold) for values, gold in found])
    plain = summary([row(values, gold) for values, gold in found])
    assert moved.brier == pytest.approx(plain.brier, abs=1e-9)
    assert moved.nll == pytest.approx(plain.nll, abs=1e-9)
    assert moved.confidence == pytest.approx(plain.confidence, abs=1e-9)
