"""Shares of the training rows: nested, in proportion, and blind to the order of the file.

pytest tests/trainers/test_subset.py
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from support.tiny_training import write_questions

from medbench.harness.contracts import LETTERS, Question
from medbench.trainers.data.conversations import Turn, conversation
from medbench.trainers.data.questions import Row
from medbench.trainers.data.rows import Source, load_rows
from medbench.trainers.data.subset import nested_subset

SHARES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.3, 0.5, 0.77, 1.0)


def row(number: int, answer: str) -> Row:
    labels = tuple(LETTERS[:4])
    return Row(
        f"file:{number}", Question(str(number), str(number), f"question {number}", labels, labels, answer), "", ""
    )


def uneven(n: int, seed: int) -> list[Row]:
    """`n` rows, most with the same answer."""
    draw = random.Random(seed)
    return [row(at, draw.choices("ABCD", weights=(60, 30, 9, 1))[0]) for at in range(n)]


def taken(rows: Sequence[Row], fraction: float) -> set[str]:
    return {rows[at].question.question for at in nested_subset(rows, fraction)}


@pytest.mark.parametrize("n", [1, 2, 7, 100, 1003])
def test_a_smaller_share_is_part_of_every_larger_one(n: int) -> None:
    rows = uneven(n, seed=n)
    for smaller, larger in pairwise(SHARES):
        assert taken(rows, smaller) <= taken(rows, larger)
    assert taken(rows, 1.0) == {one.question.question for one in rows}


@pytest.mark.parametrize("fraction", SHARES)
def test_a_share_has_each_answer_in_proportion_to_within_a_row(fraction: float) -> None:
    rows = uneven(1000, seed=1)
    everything = Counter(one.question.gold for one in rows)
    found = Counter(rows[at].question.gold for at in nested_subset(rows, fraction))
    for answer, n in everything.items():
        assert abs(found[answer] - fraction * n) <= 1, answer


@pytest.mark.parametrize(
    ("n", "fraction", "size"), [(500, 0.01, 5), (500, 0.1, 50), (7, 0.1, 1), (10, 0.3, 3), (3, 1, 3)]
)
def test_a_share_is_rounded_up_and_never_empty(n: int, fraction: float, size: int) -> None:
    assert len(nested_subset(uneven(n, seed=0), fraction)) == size


def test_the_order_of_the_file_does_not_matter_and_indices_ascend() -> None:
    rows = uneven(300, seed=2)
    other = random.Random(0).sample(rows, len(rows))
    assert taken(rows, 0.1) == taken(other, 0.1)
    assert nested_subset(rows, 0.1) == sorted(nested_subset(rows, 0.1))
    assert taken(rows, 0.1) != {one.question.question for one in rows[:30]}


def test_equal_rows_are_counted_one_by_one() -> None:
    assert len(nested_subset([row(1, "A")] * 10, 0.5)) == 5


def test_chats_are_drawn_without_strata() -> None:
    chats = [
        conversation(f"file:{at}", [Turn("user", f"hello {at}"), Turn("assistant", "hello", taught=True)])
        for at in range(50)
    ]
    assert len(nested_subset(chats, 0.1)) == 5
    assert set(nested_subset(chats, 0.1)) <= set(nested_subset(chats, 0.5))


def test_yes_and_no_stay_balanced_in_rows_as_they_are_read(tmp_path: Path) -> None:
    write_questions(tmp_path / "train.jsonl", 200, first=1, seed=0)
    rows = load_rows([Source(path=str(tmp_path / "train.jsonl"))])
    found = Counter(rows[at].question.gold for at in nested_subset(rows, 0.05))  # type: ignore[union-attr]
    assert found == {"yes": 5, "no": 5}
