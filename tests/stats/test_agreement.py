"""Agreement of two coders, beside other implementations of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, recall_score

from medbench.harness.stats.agreement import Agreement, agreement_of

LABELS = ("supported", "contradicted", "not covered")


def drawn(questions: int, agree: float, seed: int = 0) -> list[tuple[str, str, str]]:
    draw = random.Random(seed)
    items = []
    for question in range(questions):
        for _ in range(draw.randrange(1, 6)):
            person = draw.choice(LABELS)
            items.append((f"q{question}", person, person if draw.random() < agree else draw.choice(LABELS)))
    return items


def test_kappa_and_rates_are_those_of_scikit_learn() -> None:
    items = drawn(80, 0.7)
    person, judge = ([one[at] for one in items] for at in (1, 2))
    found = agreement_of(items, positive="supported")
    assert found.kappa
    assert found.sensitivity
    assert found.specificity
    assert found.kappa.value == pytest.approx(cohen_kappa_score(person, judge))
    is_positive = [[label == "supported" for label in labels] for labels in (person, judge)]
    assert found.sensitivity.value == pytest.approx(recall_score(*is_positive))
    assert found.specificity.value == pytest.approx(recall_score(*is_positive, pos_label=False))
    assert found.share.value == pytest.approx(sum(map(str.__eq__, person, judge)) / len(items))


def test_alpha_is_that_of_a_worked_example() -> None:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section A: two observers, ten units, 0.095
    first, second = "0100000000", "1110010010"
    found = agreement_of([(str(at), *pair) for at, pair in enumerate(zip(first, second, strict=True))])
    assert found.alpha
    assert round(found.alpha.value, 3) == 0.095


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from("xyz")), min_size=1))
def test_every_measure_lies_in_its_range_and_does_not_depend_on_the_order(items: list[tuple[str, str, str]]) -> None:
    found = agreement_of(items, positive="x")
    for name in ("share", "kappa", "alpha", "sensitivity", "specificity"):
        estimate = getattr(found, name)
        if estimate is not None:
            assert -1 <= estimate.value <= 1
            assert estimate.low <= estimate.high
    assert agreement_of(sorted(items, reverse=True), positive="x") == found


def test_one_label_for_everything_says_nothing_of_agreement_beyond_chance() -> None:
    found = agreement_of([("a", "yes", "yes"), ("b", "yes", "yes")], positive="yes")
    assert (found.share.value, found.kappa, found.alpha) == (1.0, None, None)
    assert found.sensitivity
    assert found.sensitivity.value == 1.0
    assert found.specificity is None


def width(found: Agreement) -> float:
    assert found.kappa
    return found.kappa.high - found.kappa.low


def test_the_same_steps_in_fewer_questions_are_less_certain() -> None:
    items = drawn(60, 0.6)
    apart = agreement_of([(str(at), *labels) for at, (_, *labels) in enumerate(items)])
    repeated = agreement_of([(str(at), *labels) for at, (_, *labels) in enumerate(items) for _ in range(4)])
    assert width(repeated) == pytest.approx(width(apart), rel=0.05)


def test_no_items_are_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        agreement_of([])
