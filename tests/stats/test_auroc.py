"""AUROC with ties and clusters, beside scikit-learn's."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import roc_auc_score

from medbench.harness.stats.auroc import auroc_of


@pytest.mark.parametrize("digits", [1, 6])
def test_the_value_is_that_of_scikit_learn_also_with_ties(digits: int) -> None:
    draw = random.Random(digits)
    positive = [draw.random() < 0.4 for _ in range(300)]
    scores = [round(draw.gauss(0.5 * one, 1), digits) for one in positive]
    found = auroc_of(scores, positive, [str(at) for at in range(300)])
    assert found is not None
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    assert found.low < found.value < found.high


def test_a_score_that_tells_nothing_is_a_half_and_one_that_tells_all_is_one() -> None:
    positive = [True, False] * 20
    clusters = [str(at // 4) for at in range(40)]
    nothing = auroc_of([0.5] * 40, positive, clusters)
    everything = auroc_of([float(one) for one in positive], positive, clusters)
    assert nothing is not None
    assert everything is not None
    assert (nothing.low, nothing.value, nothing.high) == (0.5, 0.5, 0.5)
    assert (everything.low, everything.value, everything.high) == (1, 1, 1)


def test_items_in_few_clusters_make_the_interval_wider() -> None:
    draw = random.Random(0)
    shifts = [draw.gauss(0, 1) for _ in range(12)]
    positive = [at % 2 == 0 for at in range(240)]
    scores = [shifts[at // 20] * (1 if one else -1) + draw.gauss(0.7 * one, 1) for at, one in enumerate(positive)]
    alone = auroc_of(scores, positive, [str(at) for at in range(240)])
    together = auroc_of(scores, positive, [str(at // 20) for at in range(240)])
    assert alone is not None
    assert together is not None
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_without_both_kinds_of_items_there_is_none(positive: list[bool]) -> None:
    assert auroc_of([0.1, 0.2], positive, ["a", "b"]) is None
