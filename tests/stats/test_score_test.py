"""Score tests of means: closed forms, and coverage where scores are means of several replies.

pytest tests/stats/test_score_test.py -s
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from medbench.harness.stats.intervals import clustered_mean
from medbench.harness.stats.score_test import _likeliest_variance, _tango, invert, score_test

Z = 1.959964
K = 4
"""Replies a question."""


@given(st.integers(0, 80), st.integers(0, 80), st.integers(0, 80), st.floats(-0.99, 0.99))
def test_of_flips_the_likeliest_variance_is_tangos(gained: int, lost: int, same: int, null: float) -> None:
    counts = {-1.0: lost, 0.0: same, 1.0: gained}
    seen = np.array([value for value, count in counts.items() if count])
    n = gained + lost + same
    assume(n > 0)
    shares = np.array([count / n for count in counts.values() if count])
    found = _likeliest_variance(seen, shares, null, -1.0, 1.0)
    assert found == pytest.approx(_tango(gained, lost, n, null), abs=1e-6)


@given(st.integers(0, 80), st.integers(0, 80), st.floats(0.01, 0.99))
def test_of_rights_and_wrongs_the_likeliest_variance_is_wilsons(right: int, wrong: int, null: float) -> None:
    counts = {0.0: wrong, 1.0: right}
    assume(right + wrong > 0)
    seen = np.array([value for value, count in counts.items() if count])
    shares = np.array([count / (right + wrong) for count in counts.values() if count])
    assert _likeliest_variance(seen, shares, null, 0.0, 1.0) == pytest.approx(null * (1 - null), abs=1e-6)


@pytest.mark.parametrize("null", [-0.4, -0.1, 0.02, 0.3])
@pytest.mark.parametrize("counts", [(0, 3, 30, 5, 0), (1, 0, 20, 9, 2), (0, 0, 46, 1, 0), (0, 0, 10, 0, 3)])
def test_the_likeliest_variance_is_found_by_search_too(counts: tuple[int, ...], null: float) -> None:
    lattice = np.array([-1.0, -0.5, 0.0, 0.25, 1.0])
    n = sum(counts)

    def unlikely(p: Any) -> float:
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in zip(counts, p, strict=True) if count)

    allowed = [count > 0 or place in (0, 4) for place, count in enumerate(counts)]
    limits = ({"type": "eq", "fun": lambda p: p.sum() - 1}, {"type": "eq", "fun": lambda p: p @ lattice - null})
    best = minimize(
        unlikely, np.full(5, 0.2), bounds=[(0, 1 if one else 0) for one in allowed], constraints=limits,
        options={"ftol": 1e-13, "maxiter": 1000},
    )  # fmt: skip
    seen = np.array([value for value, count in zip(lattice, counts, strict=True) if count])
    shares = np.array([count / n for count in counts if count])
    found = _likeliest_variance(seen, shares, null, -1.0, 1.0)
    assert found == pytest.approx(float(best.x @ (lattice - null) ** 2), rel=2e-3)


lattice = st.integers(-K, K).map(lambda steps: steps / K)


@settings(deadline=None)
@given(st.lists(st.lists(lattice, min_size=1, max_size=3), min_size=1, max_size=30), st.booleans())
def test_z_falls_as_the_null_rises(clusters: list[list[float]], paired: bool) -> None:
    some = clusters if paired else [[abs(value) for value in cluster] for cluster in clusters]
    z = score_test(some, paired=paired)
    found = [z(null) for null in np.linspace(-0.99 if paired else 0.01, 0.99, 41)]
    assert all(before >= after - 1e-9 for before, after in pairwise(found))


@settings(deadline=None)
@given(st.lists(lattice, min_size=1, max_size=40))
def test_exchanging_the_runs_turns_the_interval_around(values: list[float]) -> None:
    there, back = (score_test([[sign * value] for value in values], paired=True) for sign in (1, -1))
    assert invert(there, Z, -1.0, 1.0) == pytest.approx(-invert(back, -Z, -1.0, 1.0), abs=1e-9)


def test_a_score_beyond_1_widens_the_interval_and_is_no_fault() -> None:
    z = score_test([[value] for value in (0.2, 0.5, 1.4, 0.9)], paired=False)
    low, high = invert(z, Z, 0.0, 1.0), invert(z, -Z, 0.0, 1.0)
    assert 0 < low < 0.75 < high < 1


def differences(draw: np.random.Generator, n: int, change: tuple[str, float, float]) -> tuple[Any, float]:
    """(B minus A of n questions with K replies each, the true mean)"""
    kind, one, two = change
    if kind == "few":  # a share `one` of the questions loses; a share `two` of these one reply of K, the others all
        loses, little = draw.random(n) < one, draw.random(n) < two
        return -np.where(loses, np.where(little, 1 / K, 1.0), 0.0), -one * (two / K + 1 - two)
    chance = draw.beta(one, two, n)  # equal models; how far from settled the questions are
    return draw.binomial(K, chance) / K - draw.binomial(K, chance) / K, 0.0


def coverage(n: int, change: tuple[str, float, float], rounds: int = 600) -> tuple[float, float]:
    """How often the score interval and the normal one hold the true mean."""
    draw = np.random.default_rng(7)
    score = normal = 0
    for _ in range(rounds):
        found, truth = differences(draw, n, change)
        clusters = [[value] for value in found.tolist()]
        score += abs(score_test(clusters, paired=True)(truth)) <= Z
        mean, error = clustered_mean(clusters)
        normal += abs(mean - truth) <= Z * (error or 1 / n)
    return score / rounds, normal / rounds


@pytest.mark.parametrize("n", [46, 250])
@pytest.mark.parametrize(
    "change", [("few", 0.02, 1.0), ("few", 0.02, 0.5), ("few", 0.05, 0.5), ("beta", 0.05, 0.05), ("beta", 1.0, 1.0)]
)
def test_the_interval_of_several_replies_covers_the_truth(n: int, change: tuple[str, float, float]) -> None:
    score, normal = coverage(n, change)
    print(f"{n} questions, {K} replies each, {change}: score {score:.3f}, normal {normal:.3f}")
    assert score >= 0.93  # 0.95 less two standard errors of 600 rounds


def test_the_normal_interval_does_not_cover_the_truth_where_few_questions_differ() -> None:
    assert coverage(46, ("few", 0.05, 0.5))[1] < 0.9


def test_tokens_whose_ends_are_out_of_reach_have_the_clustered_standard_error() -> None:
    tokens = [[(95 + i % 11) / 2048] for i in range(198)]
    mean, error = clustered_mean(tokens)
    assert score_test(tokens, paired=False, bounded=False)(0.04) == pytest.approx((mean - 0.04) / error)
