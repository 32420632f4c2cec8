"""Weights of advantages by domain and difficulty.

pytest tests/trainers/test_domain_weights.py
"""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.config import check_mapping
from medbench.trainers.domain_weights import FEW, AdvantageSettings, DomainWeights, clustered

HALF = (0.0, 0.0, 1.0, 1.0)
ALL, NONE = (1.0,) * 4, (0.0,) * 4
GROUPS = st.lists(
    st.tuples(st.sampled_from(["common", "rare"]), st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4)),
    min_size=1,
    max_size=60,
)


def settings(**changes: object) -> AdvantageSettings:
    return AdvantageSettings(**{"kind": "domain", "by": "source", "warmup": 0, "cap": 100.0} | changes)  # type: ignore[arg-type]


def test_two_domains_of_one_cluster_each_by_hand() -> None:
    """9 questions right in half, 1 right in a quarter: raw weights 1/(N mu^2), as each domain is one cluster."""
    rare = (0.0, 0.0, 0.0, 1.0)
    found = DomainWeights(settings()).weights([*[("common", HALF)] * 9, ("rare", rare)])
    raw_common, raw_rare = 1 / (9 * 0.5**2), 1 / (1 * 0.25**2)
    mean = (9 * raw_common + raw_rare) / 10
    assert found[:9] == pytest.approx([raw_common / mean] * 9)
    assert found[9] == pytest.approx(raw_rare / mean)


def test_two_clusters_of_a_domain_by_hand() -> None:
    """30 easy and 10 hard questions: two clusters, whose mean is weighted by 1/N_c."""
    hard = (0.0, 0.0, 0.0, 1.0)
    found = DomainWeights(settings()).weights([*[("one", ALL)] * 30, *[("one", hard)] * 10])
    domain = (1.0 / 30 + 0.25 / 10) / (1 / 30 + 1 / 10)
    easy_raw, hard_raw = (1 / (math.sqrt(40) * domain * math.sqrt(n) * p) for n, p in ((30, 1.0), (10, 0.25)))
    mean = (30 * easy_raw + 10 * hard_raw) / 40
    assert found[0] == pytest.approx(easy_raw / mean)
    assert found[-1] == pytest.approx(hard_raw / mean)


def test_rare_and_hard_weighs_most_and_common_and_easy_least() -> None:
    hard, easy = (0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 1.0, 1.0)
    groups = [(name, one) for name, count in (("common", 90), ("rare", 30)) for one in [hard, easy] * (count // 2)]
    weights = dict(zip(groups, DomainWeights(settings()).weights(groups), strict=True))
    assert weights["rare", hard] > weights["rare", easy] > weights["common", easy]
    assert weights["common", hard] > weights["common", easy]


@given(GROUPS)
def test_weights_are_finite_positive_and_within_the_cap(groups: list[tuple[str, list[float]]]) -> None:
    for weight in DomainWeights(settings(cap=4.0)).weights(groups):
        assert 0.25 <= weight <= 4.0


def test_questions_that_nobody_answers_have_a_finite_weight() -> None:
    found = DomainWeights(settings()).weights([("one", NONE)] * 40 + [("one", ALL)] * 40)
    assert all(math.isfinite(weight) and weight > 0 for weight in found)


def test_weights_are_1_until_the_warmup_is_over() -> None:
    memory = DomainWeights(settings(warmup=10))
    assert memory.weights([("common", ALL)] * 9 + [("rare", HALF)]) == [1.0] * 10
    assert memory.weights([("rare", HALF)])[0] > 1


def test_memory_is_bounded_but_counts_all_questions() -> None:
    memory = DomainWeights(settings(memory=5))
    memory.weights([("common", HALF)] * 100)
    state = memory.state()
    assert state["common"]["seen"] == 100
    assert len(state["common"]["recent"]) == 5


def test_a_restored_memory_goes_on_as_the_old_one() -> None:
    first = [("common", ALL), ("rare", HALF)] * 15
    memory, other = DomainWeights(settings()), DomainWeights(settings())
    memory.weights(first)
    other.restore(json.loads(json.dumps(memory.state())))
    again = [("rare", NONE), ("common", HALF)]
    assert memory.weights(again) == other.weights(again)


def test_few_questions_are_one_cluster_and_clusters_do_not_depend_on_the_order_seen() -> None:
    assert len(clustered({ALL: 1, NONE: FEW - 2}, 10)) == 1
    forwards = {NONE: 20, HALF: 20, ALL: 20}
    assert clustered(forwards, 10) == clustered(dict(reversed(forwards.items())), 10)
    assert sorted(clustered(forwards, 10)) == [[NONE], [HALF], [ALL]]
    assert len(clustered(forwards, 2)) == 2


def test_settings_that_were_written_as_json_are_read_again() -> None:
    for one in (AdvantageSettings(), settings()):
        assert AdvantageSettings.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"kind": "domain"}, "needs by"),
        ({"kind": "group", "by": "source"}, "by belongs to kind: domain"),
        ({"kind": "domain", "by": "source", "floor": 0}, "greater than 0"),
        ({"kind": "domain", "by": "source", "memory": 10**9}, "less than or equal"),
        ({"kind": "domains", "by": "source"}, "'group' or 'domain'"),
    ],
)
def test_faults_are_told(content: dict[str, object], says: str) -> None:
    _, faults = check_mapping(content, AdvantageSettings, "recipe.yaml")
    assert says in " ".join(faults)
