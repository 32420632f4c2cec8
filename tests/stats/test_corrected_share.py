"""Corrected shares: exact cases, properties, and a small simulation (tests/bench/judged_shares.py has more)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.stats.corrected_share import UNKNOWN, Labelled, corrected_by_error_rates, prediction_powered

BITS = st.integers(0, 1)


def labelled(right: int, missed: int, false: int, rejected: int) -> list[Labelled]:
    """Counts of (verdict, label) = (1, 1), (0, 1), (1, 0), (0, 0), each in a cluster of its own."""
    pairs = [(1, 1)] * right + [(0, 1)] * missed + [(1, 0)] * false + [(0, 0)] * rejected
    return [Labelled(str(at), *pair) for at, pair in enumerate(pairs)]


def test_a_judged_share_is_corrected_by_sensitivity_and_specificity() -> None:
    # sensitivity 0.9, specificity 0.8, judged 0.55: (0.55 + 0.8 - 1) / 0.7
    found = corrected_by_error_rates([[1]] * 55 + [[0]] * 45, labelled(90, 10, 20, 80))
    assert found.value == pytest.approx(0.5)
    assert 0.3 < found.low < 0.5 < found.high < 0.7


def test_a_judge_without_errors_leaves_the_share_as_it_is() -> None:
    found = corrected_by_error_rates([[1]] * 300 + [[0]] * 700, labelled(500, 0, 0, 500))
    assert found.value == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize("counts", [(50, 50, 50, 50), (30, 70, 60, 40)])
def test_a_judge_no_better_than_chance_tells_nothing(counts: tuple[int, int, int, int]) -> None:
    assert corrected_by_error_rates([[1]] * 55 + [[0]] * 45, labelled(*counts)) == UNKNOWN


@pytest.mark.parametrize("counts", [(4, 0, 0, 100), (100, 0, 0, 4), (0, 0, 0, 0)])
def test_too_few_labels_tell_nothing(counts: tuple[int, int, int, int]) -> None:
    assert corrected_by_error_rates([[1], [0]], labelled(*counts)) == UNKNOWN


def test_labels_of_these_replies_correct_the_mean_verdict() -> None:
    # the judge calls everything supported; a person half of it
    found = prediction_powered([[1]] * 900, labelled(50, 0, 50, 0))
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.402, abs=0.01)  # as of the labels alone
    assert found.high == pytest.approx(0.598, abs=0.01)


def test_a_good_judge_makes_the_interval_narrower() -> None:
    judged = [[1]] * 600 + [[0]] * 400
    good, useless = labelled(57, 3, 2, 38), labelled(36, 24, 24, 16)
    narrow, wide = prediction_powered(judged, good), prediction_powered(judged, useless)
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)


@given(
    st.lists(st.lists(BITS, min_size=1, max_size=4), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 20), BITS, BITS), max_size=60),
)
def test_an_interval_lies_in_0_to_1_and_holds_its_value(
    judged: list[list[int]], items: list[tuple[int, int, int]]
) -> None:
    known = [Labelled(str(cluster), verdict, label) for cluster, verdict, label in items]
    for method in (corrected_by_error_rates, prediction_powered):
        found = method(judged, known)
        assert 0 <= found.low <= found.high <= 1
        assert found.value is None or found.low <= found.value <= found.high


def test_swapping_the_two_labels_mirrors_the_result() -> None:
    judged = [[1]] * 55 + [[0]] * 45
    known = labelled(40, 9, 12, 39)
    swapped = [Labelled(one.cluster, 1 - one.verdict, 1 - one.label) for one in known]
    for method in (corrected_by_error_rates, prediction_powered):
        found, mirrored = method(judged, known), method([[1 - v for v in c] for c in judged], swapped)
        assert found.value is not None
        assert mirrored.value is not None
        assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx(
            (1 - found.value, 1 - found.high, 1 - found.low)
        )


def test_intervals_cover_the_truth_for_a_middling_judge() -> None:
    draw = np.random.default_rng(0)
    hits = [0, 0]
    for _ in range(200):
        share, items = 0.7, []
        for cluster in range(240):
            truth = (draw.random(3) < draw.beta(2.1, 0.9)).astype(int)
            verdicts = np.where(truth == 1, draw.random(3) < 0.85, draw.random(3) > 0.75).astype(int)
            items.append([Labelled(str(cluster), int(v), int(t)) for v, t in zip(verdicts, truth, strict=True)])
        judged = [[one.verdict for one in cluster] for cluster in items[60:]]
        known = [one for cluster in items[:60] for one in cluster]
        for at, method in enumerate((corrected_by_error_rates, prediction_powered)):
            found = method(judged, known)
            hits[at] += found.low <= share <= found.high
    assert all(180 <= hit <= 199 for hit in hits), hits
