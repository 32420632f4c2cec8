"""Intervals against scipy and statsmodels and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medbench.harness.stats.intervals import (
    clustered_interval,
    clustered_mean,
    clustered_mean_interval,
    wilson_interval,
)

Clusters = list[tuple[int, float]]


def ones(right: int, wrong: int) -> Clusters:
    return [(1, 1.0)] * right + [(1, 0.0)] * wrong


# clusters of 1 to 4 questions, each with its number of right ones
clusters = st.lists(st.integers(1, 4).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size))), min_size=1)


def as_floats(found: list[tuple[int, int]]) -> Clusters:
    return [(size, float(right)) for size, right in found]


def robust_variance(found: Clusters) -> float:
    n, mean = sum(size for size, _ in found), sum(score for _, score in found) / sum(size for size, _ in found)
    return sum((score - size * mean) ** 2 for size, score in found) / n**2


# wilson_interval


@given(n=st.integers(1, 5000), share=st.floats(0, 1), alpha=st.sampled_from([0.001, 0.05, 0.1, 0.32]))
def test_wilson_is_scipy_s(n: int, share: float, alpha: float) -> None:
    from scipy.stats import binomtest

    right = round(share * n)
    theirs = binomtest(right, n).proportion_ci(confidence_level=1 - alpha, method="wilson")
    assert wilson_interval(right, n, alpha) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_lies_in_the_unit_interval_around_the_share(n: int, share: float) -> None:
    low, high = wilson_interval(share * n, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert low < high


def test_known_sampling_errors() -> None:
    """+-1.8 points on MedQA's 1,273 at 87 %, +-1.9 on 1,535 at 82 %, +-3.5 on PubMedQA's 500 at 79.6 %."""
    for n, share, half in [(1273, 0.87, 0.018), (1535, 0.82, 0.019), (500, 0.796, 0.035)]:
        low, high = wilson_interval(share * n, n)
        assert (high - low) / 2 == pytest.approx(half, abs=0.001)


# clustered_interval


@given(right=st.integers(0, 300), wrong=st.integers(0, 300))
def test_questions_that_are_all_different_have_wilson_s_interval(right: int, wrong: int) -> None:
    assume(right + wrong > 0)
    found = clustered_interval(ones(right, wrong))
    assert found == pytest.approx(wilson_interval(right, right + wrong), abs=1e-12)


@given(found=clusters)
def test_clusters_never_narrow_the_interval(found: list[tuple[int, int]]) -> None:
    n, right = sum(size for size, _ in found), sum(score for _, score in found)
    low, high = clustered_interval(as_floats(found))
    plain = wilson_interval(right, n)
    assert low <= plain[0] + 1e-12
    assert high >= plain[1] - 1e-12


@given(found=clusters)
def test_the_interval_lies_in_the_unit_interval_and_holds_the_mean(found: list[tuple[int, int]]) -> None:
    mean = sum(score for _, score in found) / sum(size for size, _ in found)
    low, high = clustered_interval(as_floats(found))
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1


@pytest.mark.slow
@given(found=clusters, data=st.data())
def test_the_interval_does_not_depend_on_order(found: list[tuple[int, int]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(found))
    assert clustered_interval(as_floats(shuffled)) == pytest.approx(clustered_interval(as_floats(found)), abs=1e-12)


@given(right=st.integers(1, 200), wrong=st.integers(1, 200), times=st.integers(2, 4))
def test_questions_asked_several_times_count_once(right: int, wrong: int, times: int) -> None:
    repeated = [(times, float(times))] * right + [(times, 0.0)] * wrong
    once = wilson_interval(right, right + wrong)
    assert clustered_interval(repeated) == pytest.approx(once, abs=1e-9)
    naive = wilson_interval(times * right, times * (right + wrong))
    assert once[1] - once[0] > naive[1] - naive[0]


@given(found=clusters)
@settings(max_examples=50)
def test_the_variance_is_statsmodels_cluster_robust_one(found: list[tuple[int, int]]) -> None:
    import statsmodels.api as sm

    n, right = sum(size for size, _ in found), sum(score for _, score in found)
    mean = right / n
    assume(len(found) > 1 and 0 < right < n)
    scores = [float(one < score) for size, score in found for one in range(size)]
    groups = [at for at, (size, _) in enumerate(found) for _ in range(size)]
    fit = sm.OLS(np.array(scores), np.ones(n)).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(groups), "use_correction": False}
    )
    theirs = float(fit.cov_params()[0, 0])
    assert robust_variance(as_floats(found)) == pytest.approx(theirs, rel=1e-9, abs=1e-15)
    # the interval is Wilson's at as many questions as that variance is worth, and never at more than there are
    worth = min(n, mean * (1 - mean) / theirs) if theirs > 0 else n
    assert clustered_interval(as_floats(found)) == pytest.approx(wilson_interval(mean * worth, worth), abs=1e-9)


def test_partial_scores_are_taken() -> None:
    low, high = clustered_interval([(1, 0.5)] * 100)
    assert 0 < low < 0.5 < high < 1


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_coverage_with_clusters_is_near_what_it_says(share: float) -> None:
    """150 sources of one to four versions of a question: within one, all answers are alike or all independent."""
    random = np.random.default_rng(0)
    runs, held, naive_held = 1500, 0, 0
    for _ in range(runs):
        sizes = random.integers(1, 5, size=150)
        alike = random.random(150) < 0.8
        right = np.where(alike, sizes * (random.random(150) < share), random.binomial(sizes, share))
        found = [(int(size), float(score)) for size, score in zip(sizes, right, strict=True)]
        low, high = clustered_interval(found)
        held += low <= share <= high
        low, high = wilson_interval(float(right.sum()), int(sizes.sum()))
        naive_held += low <= share <= high
    assert 0.935 < held / runs < 0.97
    assert naive_held / runs < 0.85, "as if independent, the interval is far too narrow"


# clustered_mean


def test_without_clusters_the_error_is_the_usual_one() -> None:
    values = [1.0, 0.0, -1.0, 0.0, 1.0, 1.0]
    mean, error = clustered_mean([[value] for value in values])
    assert mean == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values) / math.sqrt(len(values)))


# clustered_mean_interval


def test_a_mean_of_zeros_and_ones_in_clusters_of_one_has_about_wilsons_interval() -> None:
    values = [[1.0]] * 300 + [[0.0]] * 700
    assert clustered_mean_interval(values) == pytest.approx(wilson_interval(300, 1000), abs=5e-4)


@pytest.mark.parametrize(("a", "b"), [(2, 2), (0.5, 0.5), (5, 1)])
def test_the_interval_of_a_mean_covers_it_and_is_narrower_than_that_of_a_share(a: float, b: float) -> None:
    draws = np.random.default_rng(0).beta(a, b, size=(400, 30))
    found = [clustered_mean_interval([[value] for value in draw]) for draw in draws]
    assert np.mean([low <= a / (a + b) <= high for low, high in found]) >= 0.92
    width = np.mean([high - low for low, high in found])
    assert width < np.mean([np.ptp(clustered_interval([(1, value) for value in draw])) for draw in draws])


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_the_interval_of_equal_values_is_that_of_so_many_clusters(value: float) -> None:
    low, high = clustered_mean_interval([[value, value]] * 20)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.1
