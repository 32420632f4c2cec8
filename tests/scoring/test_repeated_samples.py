"""Several replies per question: pass@k, votes, agreement and intervals, by enumeration, scipy and simulation."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import f_oneway, hypergeom

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.scoring.repeated_samples import Sampling, answer_of, majority, pass_at_k, summarize_sampling
from medbench.harness.stats.intervals import wilson_interval

Answers = Sequence[str | None]


def sample(id: str, answer: str | None, repeat: int = 0, **changes: Any) -> Sample:
    """A reply to a question whose right answer is A."""
    plain: dict[str, Any] = {
        "id": id,
        "cluster": id,
        "prompt": "Question?",
        "output": "The answer is (A).",
        "finish_reason": "stop",
        "extracted": answer,
        "outcome": "answered" if answer else "unparsed",
        "span": None,
        "gold": "A",
        "score": float(answer == "A"),
        "error": None,
        "prompt_tokens": 5,
        "completion_tokens": 10,
        "category": {},
        "repeat": repeat,
    }
    return Sample(**{**plain, **changes})


def failed(id: str, repeat: int = 0) -> Sample:
    return sample(id, None, repeat, score=None, outcome="error", finish_reason="error", error="timeout", output="")


def replies(questions: Sequence[Answers], clusters: Sequence[int] | None = None) -> list[Sample]:
    return [
        sample(f"q{i}", answer, repeat, cluster=f"c{clusters[i] if clusters else i}")
        for i, answers in enumerate(questions)
        for repeat, answer in enumerate(answers)
    ]


def summary(questions: Sequence[Answers], clusters: Sequence[int] | None = None) -> Sampling:
    found = summarize_sampling(replies(questions, clusters))
    assert found is not None
    return found


answer = st.sampled_from(["A", "B", "C", None])
question = st.lists(answer, min_size=1, max_size=6)
questions = st.lists(question, min_size=1, max_size=12)
full = st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(answer, min_size=k, max_size=k), min_size=1, max_size=12))


# pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@given(n=st.integers(1, 400), data=st.data())
def test_pass_at_k_is_the_exact_ratio_of_binomials(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-11)
    assert pass_at_k(n, c, k) == pytest.approx(1 - hypergeom.pmf(0, n, c, k), abs=1e-9)


@given(n=st.integers(2, 60), data=st.data())
def test_pass_at_k_grows_with_k_and_with_right_completions(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n - 1))
    assert 0 <= pass_at_k(n, c, k) <= min(pass_at_k(n, c, k + 1), pass_at_k(n, c + 1, k)) + 1e-15
    assert pass_at_k(n, c + 1, k) <= 1


def test_pass_at_1_is_the_share_right_and_at_n_whether_any_is() -> None:
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3, rel=1e-14)
    assert pass_at_k(10, 0, 10) == 0
    assert pass_at_k(10, 1, 10) == 1


def test_pass_at_k_is_precise_for_small_probabilities_and_large_numbers() -> None:
    assert pass_at_k(10**9, 1, 1) == pytest.approx(1e-9, rel=1e-12)
    assert pass_at_k(100_000, 5, 50_000) == pytest.approx(1 - 0.5**5, rel=1e-3)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0), (0, 0, 1)])
def test_pass_at_k_refuses_invalid_arguments(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {c} right in {n}"):
        pass_at_k(n, c, k)


# majority


def test_majority_names_all_that_tie() -> None:
    assert majority({"A": 3, "B": 1}) == ("A",)
    assert majority({"B": 2, "C": 1, "A": 2}) == ("A", "B")
    assert majority({}) == majority({"A": 0}) == ()


@given(question)
def test_a_tied_vote_is_worth_the_mean_of_random_tie_breaking(answers: list[str | None]) -> None:
    votes = Counter(answer for answer in answers if answer is not None)
    wins = [
        bool(votes) and max(votes, key=lambda answer: (votes[answer], ranks.index(answer))) == "A"
        for ranks in itertools.permutations("ABC")
    ]
    assert summary([answers]).maj_at_k == pytest.approx(sum(wins) / len(wins))


def test_replies_without_an_answer_do_not_vote() -> None:
    assert summary([["A", None, None, None]]).maj_at_k == 1
    assert summary([[None, None]]).maj_at_k == 0
    assert summary([["A", "B", None]]).maj_at_k == 0.5


def test_the_vote_of_a_partial_score_is_that_score() -> None:
    half = [sample("q", "x", repeat, score=0.5) for repeat in range(2)] + [sample("q", "y", 2, score=1.0)]
    found = summarize_sampling(half)
    assert found is not None
    assert found.maj_at_k == 0.5
    assert found.pass_at == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3), 3: 1}, "only a whole score is right"


# summarize_sampling


def test_a_summary_worked_out_by_hand() -> None:
    found = summary([["A", "A", "A", "B"], ["B", "B", "A", None], ["A", "A", "A", "A"]])
    assert (found.k, found.n, found.n_short) == (4, 3, 0)
    assert found.accuracy == pytest.approx((3 / 4 + 1 / 4 + 1) / 3)
    assert found.maj_at_k == pytest.approx(2 / 3)
    assert found.pass_at == {1: pytest.approx(2 / 3), 2: pytest.approx((1 + 1 / 2 + 1) / 3), 4: 1}
    assert found.agreement == pytest.approx((3 / 6 + 1 / 6 + 1) / 3)
    assert found.unanimous == pytest.approx(1 / 3)
    assert found.within == pytest.approx((3 / 12 + 3 / 12 + 0) / 3)


def test_without_scores_there_is_no_summary() -> None:
    assert summarize_sampling([]) is None
    assert summarize_sampling([failed("q1"), failed("q2")]) is None


def test_failed_requests_are_in_no_figure() -> None:
    rest = replies([["A", "A", "B"], ["B", "A", "A"]])
    assert summarize_sampling([*rest, failed("q0", 3), failed("q9")]) == summarize_sampling(rest)


def test_questions_with_fewer_replies_count_once_and_are_left_out_of_higher_pass_at_k() -> None:
    found = summary([["A", "B", "B", "B"], ["A"], ["A", "A", "A"]])
    assert (found.k, found.n, found.n_short) == (4, 3, 2)
    assert found.accuracy == pytest.approx((1 / 4 + 1 + 1) / 3)
    assert found.pass_at == {
        1: pytest.approx((1 / 4 + 1 + 1) / 3),
        2: pytest.approx((1 / 2 + 1) / 2),
        4: 1,
    }
    assert found.agreement == pytest.approx((3 / 6 + 1) / 2)
    assert found.unanimous == pytest.approx(1 / 2)


def test_a_single_reply_is_assumed_to_be_as_noisy_as_the_others() -> None:
    found = summary([["A", "B"], ["A"], ["B"], ["A", "A"]])
    assert found.within == pytest.approx((1 / 2 + 0) / 2)
    of_means = (2 * (3 / 8) ** 2 + (1 / 8) ** 2 + (5 / 8) ** 2) / 3
    assert found.between == pytest.approx(max(0, of_means - (1 / 4 + 1 / 4 + 1 / 4 + 0) / 4))
    assert of_means > 3 / 16


def test_unparsed_replies_agree_with_nothing() -> None:
    found = summary([[None, None], ["A", "A"]])
    assert (found.agreement, found.unanimous) == (0.5, 0.5)


def test_one_reply_per_question_is_the_plain_score() -> None:
    found = summary([["A"]] * 30 + [["B"]] * 10)
    assert found.interval == found.maj_interval == pytest.approx(wilson_interval(30, 40))
    assert found.pass_at == {1: 0.75}
    assert (found.between, found.within, found.agreement, found.unanimous) == (None, None, None, None)


@pytest.mark.parametrize("k", [2, 8])
def test_identical_replies_are_worth_one(k: int) -> None:
    found = summary([["A"] * k] * 30 + [["B"] * k] * 10)
    assert found.interval == pytest.approx(wilson_interval(30, 40))
    assert (found.within, found.agreement, found.unanimous) == (0, 1, 1)
    assert found.between == pytest.approx(0.75 * 0.25 * 40 / 39)
    assert summary([["A"] * k] * 40).interval == pytest.approx(wilson_interval(40, 40))


@pytest.mark.parametrize("k", [1, 4])
def test_duplicate_questions_are_worth_one(k: int) -> None:
    apart = [["A"] * k] * 30 + [["B"] * k] * 10
    twice = summary(apart * 2, clusters=[*range(40), *range(40)])
    assert twice.interval == pytest.approx(summary(apart).interval)
    assert twice.maj_interval == pytest.approx(summary(apart).maj_interval)


@given(st.integers(2, 6).flatmap(lambda k: st.lists(st.lists(answer, min_size=k, max_size=k), min_size=2, max_size=9)))
def test_the_variance_components_equal_analysis_of_variance(found: list[list[str | None]]) -> None:
    """One-way random effects: within is the mean square within, between the rest of the mean square between."""
    k = len(found[0])
    scores = [[float(answer == "A") for answer in answers] for answers in found]
    ours = summary(found)
    assert ours.within is not None
    assert ours.between is not None
    assert ours.within == pytest.approx(float(np.mean([np.var(row, ddof=1) for row in scores])))
    assume(ours.within > 0)
    ratio = f_oneway(*scores).statistic
    assert ours.between == pytest.approx(max(0.0, (ratio - 1) * ours.within / k), abs=1e-9)


@pytest.mark.slow
@given(st.lists(st.lists(st.sampled_from("AB"), min_size=4, max_size=4), min_size=3, max_size=40))
def test_the_interval_is_wilsons_at_the_effective_sample_size(found: list[list[str]]) -> None:
    ours, n, k = summary(found), len(found), 4
    assert ours.between is not None
    assert ours.within is not None
    variance = (ours.between + ours.within / k) / n * (n - 1) / n
    assume(ours.between > 0 and 0 < ours.accuracy < 1)
    worth = ours.accuracy * (1 - ours.accuracy) / variance
    assume(worth < n * k)
    assert ours.interval == pytest.approx(wilson_interval(ours.accuracy * worth, worth), abs=1e-9)


def test_the_variance_components_are_unbiased() -> None:
    random = np.random.default_rng(0)
    parts = []
    for _ in range(300):
        right = random.random((60, 5)) < random.beta(2, 1, size=(60, 1))
        found = summary([["A" if one else "B" for one in row] for row in right])
        parts.append((found.between, found.within))
    between, within = np.mean(parts, axis=0)
    assert between == pytest.approx(1 / 18, rel=0.05), "the variance of Beta(2, 1)"
    assert within == pytest.approx(1 / 6, rel=0.05), "its mean of p (1 - p)"


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [(2.0, 1.0), (0.5, 0.3)])
def test_the_interval_has_its_nominal_coverage_for_new_questions(a: float, b: float) -> None:
    """100 questions, each with its own probability, and four replies to each."""
    random = np.random.default_rng(1)
    runs, n, k, held, naive_held, fixed_held = 1000, 100, 4, 0, 0, 0
    truth = a / (a + b)
    for _ in range(runs):
        right = random.binomial(k, random.beta(a, b, size=n))
        low, high = summary([["A"] * int(one) + ["B"] * (k - int(one)) for one in right]).interval
        held += low <= truth <= high
        low, high = wilson_interval(float(right.sum()), n * k)
        naive_held += low <= truth <= high
        low, high = wilson_interval(float(right.sum()) / k, n)
        fixed_held += low <= truth <= high
    assert 0.935 < held / runs < 0.97
    assert naive_held / runs < 0.91, "as if all replies were independent, it is too narrow"
    assert fixed_held > held, "as if the replies to a question were one, it is too wide"


@given(questions, st.data())
def test_order_does_not_matter(found: list[list[str | None]], data: st.DataObject) -> None:
    thirds = [sample("part", "A", repeat, score=repeat / 7) for repeat in range(5)]
    straight = [*replies(found, [i // 2 for i in range(len(found))]), *thirds]
    assert summarize_sampling(data.draw(st.permutations(straight))) == summarize_sampling(iter(straight))


@given(questions)
def test_bounds(found: list[list[str | None]]) -> None:
    ours = summary(found)
    assert 0 <= ours.interval[0] <= ours.accuracy + 1e-12
    assert ours.accuracy <= ours.interval[1] + 1e-12 <= 1 + 1e-12
    assert 0 <= ours.maj_interval[0] <= ours.maj_at_k + 1e-12
    assert ours.maj_at_k <= ours.maj_interval[1] + 1e-12 <= 1 + 1e-12
    assert list(ours.pass_at) == sorted({*(power for power in (1, 2, 4) if power <= ours.k), ours.k})
    if ours.agreement is not None and ours.unanimous is not None:
        assert 0 <= ours.unanimous <= ours.agreement <= 1
    assert Sampling.model_validate_json(ours.model_dump_json()) == ours


@given(full)
def test_pass_at_k_grows_from_the_accuracy_to_any_right(found: list[list[str | None]]) -> None:
    ours = summary(found)
    rates = list(ours.pass_at.values())
    assert rates[0] == pytest.approx(ours.accuracy)
    assert all(before <= after + 1e-12 for before, after in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(sum("A" in answers for answers in found) / len(found))


# shuffled options


def test_shuffled_options_vote_by_text() -> None:
    """The same option three times, under three letters."""
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    shown = [
        sample("q", letter, repeat, gold=letter, score=1.0, order=order)
        for repeat, (letter, order) in enumerate(zip("ACB", orders, strict=True))
    ]
    assert [answer_of(one) for one in shown] == ["A", "A", "A"]
    found = summarize_sampling(shown)
    assert found is not None
    assert (found.maj_at_k, found.agreement, found.unanimous) == (1, 1, 1)


def test_an_answer_in_the_questions_own_order_is_unchanged() -> None:
    assert answer_of(sample("q", "maybe")) == "maybe"
    assert answer_of(sample("q", None, order=(1, 0))) is None


def test_a_letter_beyond_the_options_is_a_wrong_answer() -> None:
    assert answer_of(sample("q", "C", order=(1, 0))) == "C"


@pytest.mark.parametrize(
    ("answer", "order"),
    [("yes", (1, 0)), ("", (0, 1)), ("A", (5, 7)), ("A", (0, 0)), ("B", (-1, -2)), ("A", ())],
)
def test_an_invalid_order_is_reported(answer: str, order: tuple[int, ...]) -> None:
    with pytest.raises(MedbenchError, match="sample q#1: the answer") as caught:
        answer_of(sample("q", answer, 1, order=order))
    assert "\n" not in str(caught.value)


def test_more_options_than_letters_are_reported() -> None:
    with pytest.raises(MedbenchError, match="does not fit the order"):
        answer_of(sample("q", "A", order=tuple(range(30))))


# start-up


@pytest.mark.parametrize(
    "module",
    ["scoring.repeated_samples", "scoring.option_order_bias", "benchmarks.option_order", "scoring.calibration"],
)
def test_importing_takes_no_numerical_package(module: str) -> None:
    check = f"import medbench.harness.{module}, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0
