"""Dropping cells: the best one is dropped no more often than alpha allows, and clearly worse ones are dropped early.

pytest tests/sweeps/test_halving.py
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence

import pytest

from medbench.harness.sweeps.halving import FIRST_ROUND, Halving, Score, rounds

Scores = Mapping[str, Sequence[Score]]


def raced(scores: Scores, *, alpha: float = 0.05, ends: Sequence[int] | None = None, samples: int = 1) -> Halving:
    """The rule on cells whose scores are given along the order."""
    n = len(next(iter(scores.values())))
    rule = Halving(list(scores), [str(at) for at in range(n)], alpha, samples)
    begin = 0
    for end in ends or rounds(n):
        rule.observe({cell: scores[cell][begin:end] for cell in rule.left})
        begin = end
        if len(rule.left) == 1:
            break
    return rule


def drawn(shares: Mapping[str, float], n: int, seed: int) -> dict[str, list[float]]:
    """Scores with exactly these means, in an order of chance for each cell."""
    draw = random.Random(seed)
    return {
        cell: draw.sample([1.0] * round(n * share) + [0.0] * (n - round(n * share)), n)
        for cell, share in shares.items()
    }


def test_alpha_is_divided_over_the_other_cells() -> None:
    assert Halving([*"abcde"], ["1"], alpha=0.08).alpha_each == pytest.approx(0.02)
    assert Halving(["a"], ["1"], alpha=0.08).alpha_each == 0.08


@pytest.mark.parametrize(("n", "ends"), [(10, [10]), (32, [32]), (33, [32, 33]), (250, [32, 64, 128, 250])])
def test_rounds_double_and_end_with_the_last_question(n: int, ends: list[int]) -> None:
    assert rounds(n) == ends


def test_a_cell_that_is_far_behind_is_dropped_in_the_first_round_and_asked_no_more() -> None:
    rule = raced(drawn({"good": 0.9, "bad": 0.1, "fair": 0.85}, 256, seed=0))
    drop = next(one for one in rule.dropped if one.cell == "bad")
    assert drop.after <= FIRST_ROUND
    assert not drop.exact
    assert drop.log_e >= math.log(2 / 0.05)
    assert len(rule.scores["bad"]) == FIRST_ROUND
    assert len(rule.scores["good"]) > FIRST_ROUND


def test_equal_cells_are_all_left() -> None:
    same = drawn({"a": 0.5}, 128, seed=0)["a"]
    rule = raced({"a": same, "b": same, "c": same[::-1]})
    assert set(rule.left) == {"a", "b", "c"}


def test_when_all_is_asked_the_order_of_totals_decides_exactly() -> None:
    rule = raced({"a": [1.0] * 20 + [0.0] * 20, "b": [1.0] * 19 + [0.0] * 21})
    (drop,) = rule.dropped
    assert (drop.cell, drop.by, drop.exact) == ("b", "a", True)


def test_a_difference_that_the_rest_could_undo_drops_nobody() -> None:
    scores = {"a": [1.0, 1.0, 0.0] + [0.0] * 97, "b": [0.0, 0.0, 1.0] + [0.0] * 97}
    assert raced(scores, ends=[3]).left == ["a", "b"]


def test_failed_requests_count_for_the_cell_that_would_be_dropped() -> None:
    good: list[Score] = [1.0] * 64
    assert raced({"a": good, "b": [0.0] * 64}).left == ["a"]
    failed: list[Score] = [None] * 64
    assert set(raced({"a": good, "b": failed}).left) == {"a", "b"}
    assert set(raced({"a": failed, "b": [0.0] * 64}).left) == {"a", "b"}


def test_means_of_several_replies_are_scores_too() -> None:
    draw = random.Random(0)
    good = [draw.choice([0.75, 1.0]) for _ in range(64)]
    bad = [draw.choice([0.0, 0.25]) for _ in range(64)]
    assert raced({"good": good, "bad": bad}, samples=4).left == ["good"]


def test_a_round_needs_the_same_questions_of_every_cell_that_is_left() -> None:
    rule = Halving(["a", "b"], ["1", "2"])
    with pytest.raises(ValueError, match="same questions"):
        rule.observe({"a": [1.0]})
    with pytest.raises(ValueError, match="same questions"):
        rule.observe({"a": [1.0], "b": [1.0, 0.0]})


def test_the_same_answers_drop_the_same_cells_whatever_their_order() -> None:
    scores = drawn({"a": 0.8, "b": 0.3, "c": 0.6, "d": 0.55}, 128, seed=3)
    turned = {cell: scores[cell] for cell in reversed(scores)}
    assert set(raced(scores).left) == set(raced(turned).left)


@pytest.mark.slow
def test_over_all_orders_of_few_questions_the_best_is_dropped_no_more_often_than_alpha() -> None:
    """Exact: every permutation, with a look after every question, at an alpha that lets much be dropped early."""
    n, alpha = 5, 0.45
    cells = {"best": [1, 1, 0, 1, 0], "equal": [0, 1, 1, 0, 1], "worse": [1, 0, 0, 0, 1], "last": [0, 0, 0, 1, 0]}
    wrong = early = total = 0
    for order in itertools.permutations(range(n)):
        rule = raced(
            {cell: [float(of[at]) for at in order] for cell, of in cells.items()}, alpha=alpha, ends=range(1, n + 1)
        )
        total += 1
        wrong += "best" not in rule.left
        early += any(not drop.exact and drop.after < n for drop in rule.dropped)
    assert wrong / total <= alpha
    assert "best" in rule.left  # never by the exact decision at the end


@pytest.mark.slow
def test_near_equal_cells_rarely_cost_the_best_one_its_place() -> None:
    """Races of four cells within two points, at alpha 0.4, which are never asked all, so that nothing is exact."""
    races, alpha, wrong, stopped = 120, 0.4, 0, 0
    shares = {"best": 0.52, **{f"near-{at}": 0.5 for at in range(3)}}
    for seed in range(races):
        rule = raced(drawn(shares, 100, seed), alpha=alpha, ends=[32, 64])
        wrong += "best" not in rule.left
        stopped += bool(rule.dropped)
    assert stopped  # it is no empty promise: some are dropped
    assert wrong <= alpha * races + 4 * math.sqrt(races * alpha * (1 - alpha))
