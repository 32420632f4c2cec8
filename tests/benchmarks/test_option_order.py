"""Options in other orders: the orders themselves, the gold answer that moves with them, and models that follow letters.

pytest tests/benchmarks/test_option_order.py
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from medbench.harness.benchmarks.option_order import can_shuffle, permutation, shuffled
from medbench.harness.contracts import MedbenchError, Question, Sample
from medbench.harness.scoring.option_order_bias import Shuffling, summarize_shuffling
from medbench.harness.stats.intervals import wilson_interval

LETTERS = "ABCDEFGHIJ"
Order = tuple[int, ...]
sizes = st.integers(2, 10)
seeds = st.integers(0, 2**40)
ids = st.text(max_size=12)


def question(size: int = 4, right: int = 0, id: str = "q", **changes: Any) -> Question:
    plain: dict[str, Any] = {
        "id": id,
        "cluster": id,
        "question": "Which?",
        "options": tuple(f"option {index}" for index in range(size)),
        "labels": tuple(LETTERS[:size]),
        "gold": LETTERS[right],
    }
    return Question(**{**plain, **changes})


def reply(asked: Question, order: Order | None, repeat: int, letter: str | None, **changes: Any) -> Sample:
    plain: dict[str, Any] = {
        "id": asked.id,
        "cluster": asked.cluster,
        "prompt": "",
        "output": "",
        "finish_reason": "stop",
        "extracted": letter,
        "outcome": "answered" if letter else "unparsed",
        "span": None,
        "gold": asked.gold,
        "score": float(letter == asked.gold),
        "error": None,
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "category": {},
        "repeat": repeat,
        "order": order,
    }
    return Sample(**{**plain, **changes})


Model = Callable[[Question], str | None]
"""The question as shown -> the letter chosen."""


def asked(model: Model, size: int = 4, orders: int = 4, n: int = 40, seed: int = 0) -> list[Sample]:
    """`n` questions with the gold answer at each position in turn, each in several orders."""
    found = []
    for number in range(n):
        for repeat in range(orders):
            shown, order = shuffled(question(size, number % size, f"q{number}"), repeat, seed)
            found.append(reply(shown, order, repeat, model(shown)))
    return found


def summary(samples: Sequence[Sample]) -> Shuffling:
    found = summarize_shuffling(iter(samples))
    assert found is not None
    return found


def text_of(shown: Question, index: int) -> str:
    """A model that always chooses option `index` of the original order."""
    return shown.labels[shown.options.index(f"option {index}")]


# permutation


@given(size=sizes, repeat=st.integers(0, 10**9), seed=seeds, id=ids)
def test_each_order_is_a_permutation(size: int, repeat: int, seed: int, id: str) -> None:
    assert sorted(permutation(size, repeat, seed, id)) == list(range(size))


@given(size=sizes, seed=seeds, id=ids)
def test_the_first_order_is_the_original_one(size: int, seed: int, id: str) -> None:
    assert permutation(size, 0, seed, id) == tuple(range(size))


@given(size=sizes, seed=seeds, id=ids, square=st.integers(0, 1000))
def test_each_square_of_repeats_has_each_option_once_per_position(size: int, seed: int, id: str, square: int) -> None:
    rows = [permutation(size, square * size + row, seed, id) for row in range(size)]
    assert all(sorted(place) == list(range(size)) for place in zip(*rows, strict=True))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", [0, 7])
def test_all_orders_occur_before_one_is_repeated(size: int, seed: int) -> None:
    number = len(list(itertools.permutations(range(size))))
    found = [permutation(size, repeat, seed, "q") for repeat in range(2 * number)]
    assert len(set(found[:number])) == number
    assert found[number:] == found[:number]


@given(size=st.integers(7, 10), seed=seeds, id=ids)
@settings(max_examples=20)
def test_many_orders_of_many_options_are_distinct(size: int, seed: int, id: str) -> None:
    assert len({permutation(size, repeat, seed, id) for repeat in range(300)}) == 300


def test_orders_are_the_same_on_every_machine() -> None:
    assert [permutation(4, repeat, 0, "q1") for repeat in range(6)] == [
        (0, 1, 2, 3),
        (1, 3, 0, 2),
        (3, 2, 1, 0),
        (2, 0, 3, 1),
        (0, 3, 2, 1),
        (1, 2, 0, 3),
    ]
    assert permutation(10, 11, 3, "q1") == (6, 9, 8, 1, 0, 4, 3, 5, 7, 2)


def test_orders_depend_on_seed_and_question() -> None:
    assert len({permutation(10, 1, seed, "q") for seed in range(50)}) > 45
    assert len({permutation(10, 1, 0, f"q{number}") for number in range(50)}) > 45


def test_gold_moves_to_all_other_positions_equally_often() -> None:
    places = Counter(permutation(4, 1, 0, f"q{number}").index(2) for number in range(3000))
    assert set(places) == {0, 1, 3}
    assert chisquare([places[place] for place in (0, 1, 3)]).pvalue > 0.001


def test_neighbours_are_separated() -> None:
    """Plain rotations would keep all four pairs of neighbours among five options together, and the outer two."""
    orders = [permutation(5, repeat, 0, f"q{number}") for number in range(300) for repeat in range(1, 5)]
    together = sum((two - one) % 5 == 1 for order in orders for one, two in itertools.pairwise(order))
    assert together / len(orders) / 4 < 0.4, "1 of plain rotations, a quarter by chance"


# shuffled


@given(size=sizes, repeat=st.integers(0, 10**6), seed=seeds, id=ids, data=st.data())
def test_options_and_gold_move_together_and_labels_stay(
    size: int, repeat: int, seed: int, id: str, data: st.DataObject
) -> None:
    own = question(size, data.draw(st.integers(0, size - 1)), id)
    shown, order = shuffled(own, repeat, seed)
    assert order == permutation(size, repeat, seed, id)
    assert shown.options == tuple(own.options[index] for index in order)
    assert shown.labels == own.labels
    right = own.options[own.labels.index(own.gold)]
    assert shown.options[shown.labels.index(shown.gold)] == right
    assert (shown.id, shown.cluster, shown.question) == (own.id, own.cluster, own.question)
    if repeat == 0:
        assert shown == own


def test_the_gold_letter_is_each_letter_once_in_as_many_repeats_as_options() -> None:
    letters = [shuffled(question(5, 3), repeat, 0)[0].gold for repeat in range(10)]
    assert sorted(letters[:5]) == sorted(letters[5:]) == list("ABCDE")


YES_NO = question(options=("yes", "no", "maybe"), labels=("yes", "no", "maybe"), gold="yes")


@pytest.mark.parametrize("repeat", [0, 1])
def test_a_question_that_cannot_be_shuffled_is_refused(repeat: int) -> None:
    with pytest.raises(ValueError, match="question q: its options cannot be shuffled"):
        shuffled(YES_NO, repeat, 0)


@pytest.mark.parametrize(
    ("options", "can"),
    [
        (("Iron", "Zinc"), True),
        (("All of the options given are correct", "Zinc"), True),
        (("Skin above the clavicle", "10 mm below the level of the recession"), True),
        (("Hepatitis A and B viruses", "Vitamins A, D and E"), True),
        (("A", "B", "AB", "O"), True),
        (("Type A", "Influenza A or B"), True),
        (("None of the above", "Zinc"), False),
        (("Zinc", "all of above"), False),
        (("None the above", "Zinc"), False),
        (("Iron", "Zinc", "Both A and B"), False),
        (("Iron", "Zinc", "A & B"), False),
        (("Iron", "Zinc", "(A), (B) and (C) are correct"), False),
        (("Iron", "Zinc", "A,B"), False),
        (("Iron", "Zinc", "Neither B nor C."), False),
        (("Iron", "Zinc", "The same as option B"), False),
        (("Iron",), False),
    ],
)
def test_an_option_that_refers_to_others_by_position_forbids_shuffling(options: tuple[str, ...], can: bool) -> None:
    assert can_shuffle(question(options=options, labels=tuple(LETTERS[: len(options)]))) is can


def test_labels_that_are_not_letters_cannot_be_shuffled() -> None:
    assert not can_shuffle(YES_NO)
    assert not can_shuffle(question(options=(), labels=()))
    assert not can_shuffle(question(options=("A", "B"), labels=("A", "B")))
    assert not can_shuffle(question(options=("Iron", "Zinc"), labels=("1", "2"), gold="1"))
    assert not can_shuffle(question(options=("Iron", "Zinc"), labels=("B", "A")))


def test_nearly_all_real_questions_can_be_shuffled(data_dir: Path) -> None:
    for file in ("medqa/test.jsonl", "mmlu_pro_medical/health.jsonl", "mmlu_pro_medical/biology.jsonl"):
        rows = [json.loads(line)["options"] for line in (data_dir / file).open()]
        texts = [tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in rows]
        kept = [can_shuffle(question(options=row, labels=tuple(LETTERS[: len(row)]))) for row in texts]
        assert sum(kept) / len(kept) > 0.995, [row for row, can in zip(texts, kept, strict=True) if not can]


# summarize_shuffling


def test_a_model_that_reads_follows_the_text() -> None:
    found = summary(asked(lambda shown: shown.gold))
    assert (found.n, found.orders, found.n_compared) == (40, 4, 40)
    assert (found.accuracy, found.follows_text, found.follows_letter, found.consistent) == (1, 1, 0, 1)
    assert found.follows_text_interval == found.consistent_interval == pytest.approx(wilson_interval(40, 40))
    assert found.follows_letter_interval == pytest.approx(wilson_interval(0, 40))


def test_a_model_that_is_wrong_but_consistent_follows_the_text() -> None:
    found = summary([one for one in asked(lambda shown: text_of(shown, 1), n=4) if one.id == "q0"])
    assert (found.accuracy, found.follows_text, found.consistent) == (0, 1, 1)


def test_a_model_that_always_says_a_follows_the_letter() -> None:
    found = summary(asked(lambda shown: "A"))
    assert (found.follows_letter, found.follows_text, found.consistent) == (1, 0, 0)
    assert found.accuracy == pytest.approx(0.25), "whole squares have gold at each place once"
    assert found.letters["A"].model_dump() == {"gold": 0.25, "chosen": 1, "accuracy": 1}
    assert {letter: found.letters[letter].accuracy for letter in "BCD"} == {"B": 0, "C": 0, "D": 0}


def test_accuracy_by_gold_letter_shows_a_blind_spot() -> None:
    """A model that reads the options but never says D."""
    found = summary(asked(lambda shown: shown.gold if shown.gold != "D" else "A"))
    assert {letter: one.accuracy for letter, one in found.letters.items()} == {"A": 1, "B": 1, "C": 1, "D": 0}
    assert found.letters["D"].chosen == 0
    assert found.letters["A"].chosen == 0.5
    assert found.accuracy == 0.75
    assert (found.follows_text, found.follows_letter, found.consistent) == (1, 0, 0)


def test_as_much_letter_as_text_is_neither() -> None:
    """Four orders: two answers share a letter, the other two share a text."""
    own = question(4)
    orders: list[Order] = [(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)]
    samples = [reply(own, order, i, letter) for i, (order, letter) in enumerate(zip(orders, "AABA", strict=True))]
    found = summary(samples[:2] + samples[2:3])
    # A is option 0, then option 1; B is option 3: no text twice, one letter twice
    assert (found.follows_letter, found.follows_text) == (1, 0)
    # B of the first order and A of the second are option 1; A of the third shares its letter with the second
    tied = [reply(own, order, i, letter) for i, (order, letter) in enumerate(zip(orders, "BAA", strict=False))]
    found = summary(tied)
    assert (found.n_compared, found.follows_letter, found.follows_text, found.consistent) == (1, 0, 0, 0)


def test_orders_that_do_not_move_the_answer_cannot_tell() -> None:
    own = question(4)
    found = summary([reply(own, (0, 1, 2, 3), 0, "A"), reply(own, (0, 2, 3, 1), 1, "A")])
    assert (found.n_compared, found.follows_letter, found.follows_text, found.consistent) == (1, 0, 0, 1)


def test_orders_without_an_answer_break_consistency_and_are_not_compared() -> None:
    silent = summary(asked(lambda shown: None))
    assert (silent.n, silent.accuracy, silent.n_compared) == (40, 0, 0)
    assert silent.follows_letter is silent.follows_text is silent.consistent is silent.consistent_interval is None
    assert silent.letters["A"].chosen == 0
    once = summary(asked(lambda shown: shown.gold if shown.gold != "B" else None))
    assert (once.n_compared, once.follows_text, once.consistent) == (40, 1, 0)
    lone = summary(asked(lambda shown: shown.gold if shown.gold == "B" else None))
    assert lone.n_compared == 0


def test_engine_errors_count_nowhere() -> None:
    rest = asked(lambda shown: shown.gold)
    broken = reply(question(4, 0, "q0"), (1, 0, 3, 2), 9, None, score=None, outcome="error", error="timeout")
    elsewhere = reply(question(4, 0, "q99"), (1, 0, 3, 2), 1, None, score=None, outcome="error", error="timeout")
    assert summary([*rest, broken, elsewhere]) == summary(rest)


def test_without_other_orders_there_is_no_result() -> None:
    assert summarize_shuffling([]) is None
    assert summarize_shuffling([reply(question(), None, repeat, "A") for repeat in range(3)]) is None
    assert summarize_shuffling([reply(question(), (0, 1, 2, 3), 0, None, score=None)]) is None


def test_the_original_order_need_not_be_stored() -> None:
    written = asked(lambda shown: shown.gold if shown.id != "q3" else "C")
    bare = [
        reply(question(4, int(one.id[1:]) % 4, one.id), None, 0, one.extracted) if one.repeat == 0 else one
        for one in written
    ]
    assert summary(bare) == summary(written)


def test_questions_in_their_original_order_only_are_left_out() -> None:
    some = asked(lambda shown: "A", n=8)
    assert summary([*some, reply(YES_NO, None, 0, "yes")]) == summary(some)


def test_duplicate_questions_count_as_one() -> None:
    apart = asked(lambda shown: "A" if shown.id < "q2" else shown.gold)
    copies = [
        reply(
            question(4, id=f"{one.id}-copy", cluster=one.cluster),
            one.order,
            one.repeat,
            one.extracted,
            gold=one.gold,
            score=one.score,
        )
        for one in apart
    ]
    once, twice = summary(apart), summary([*apart, *copies])
    assert twice.n == 2 * once.n
    assert twice.follows_letter_interval == pytest.approx(once.follows_letter_interval)
    assert twice.consistent_interval == pytest.approx(once.consistent_interval)
    assert twice.interval == pytest.approx(once.interval)


def test_an_answer_that_is_not_a_letter_is_named() -> None:
    with pytest.raises(MedbenchError, match="sample q#1: the answer 'yes' does not fit the order"):
        summarize_shuffling([reply(question(), (1, 0, 2, 3), 1, "yes")])


def test_a_letter_beyond_the_options_has_no_text() -> None:
    """Some published extractors return it; J every time is not the same text every time."""
    always = summary(asked(lambda shown: "J"))
    assert (always.n_compared, always.accuracy, always.letters["J"].chosen) == (0, 0, 1)
    once = summary(asked(lambda shown: shown.gold if shown.gold != "B" else "J"))
    assert (once.n_compared, once.follows_text, once.consistent) == (40, 1, 0)


answers = st.lists(st.lists(st.sampled_from(["A", "B", "C", None]), min_size=1, max_size=6), min_size=1, max_size=8)


def drawn(found: list[list[str | None]]) -> list[Sample]:
    samples = []
    for number, letters in enumerate(found):
        for repeat, letter in enumerate(letters):
            shown, order = shuffled(question(3, number % 3, f"q{number}", cluster=f"c{number // 2}"), repeat, 0)
            samples.append(reply(shown, order, repeat, letter))
    return samples


@given(answers)
def test_the_shares_are_their_definition(found: list[list[str | None]]) -> None:
    samples = drawn(found)
    letter, text, same, compared = 0, 0, 0, 0
    for number in range(len(found)):
        all_of_it = [one for one in samples if one.id == f"q{number}"]
        mine = [one for one in all_of_it if one.extracted]
        if len(mine) < 2:
            continue
        compared += 1
        wanted = [one.order[LETTERS.index(one.extracted)] for one in mine if one.order and one.extracted]
        same_letter = same_text = 0
        for i, j in itertools.combinations(range(len(mine)), 2):
            same_letter += mine[i].extracted == mine[j].extracted and wanted[i] != wanted[j]
            same_text += wanted[i] == wanted[j] and mine[i].extracted != mine[j].extracted
        letter += same_letter > same_text
        text += same_text > same_letter
        same += len(set(wanted)) == 1 and len(mine) == len(all_of_it)
    ours = summary(samples)
    assert ours.n_compared == compared
    if compared:
        assert ours.follows_letter == pytest.approx(letter / compared)
        assert ours.follows_text == pytest.approx(text / compared)
        assert ours.consistent == pytest.approx(same / compared)
    assert sum(one.gold for one in ours.letters.values()) == pytest.approx(1)
    answered = sum(letter is not None for letters in found for letter in letters)
    assert sum(one.chosen for one in ours.letters.values()) == pytest.approx(answered / len(samples))


@given(answers, st.data())
def test_order_of_lines_does_not_matter(found: list[list[str | None]], data: st.DataObject) -> None:
    samples = drawn(found)
    ours = summary(samples)
    assert summary(data.draw(st.permutations(samples))) == ours
    assert Shuffling.model_validate_json(ours.model_dump_json()) == ours
