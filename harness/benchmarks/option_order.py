"""Orders in which the options of a question are shown."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import replace

from medbench.harness.contracts import LETTERS, Question

_ONE = r"\(?[A-Z]\)?"
_POINTS = re.compile(
    rf"\b(of|all|none|both)( the)? (above|below)\b|\b(option|choice|answer)s? {_ONE}(?!\w)"
    rf"|^\W*(both |either |neither |only )?{_ONE}(\s*(,|;|&|\+|/|\band\b|\bor\b|\bnor\b)+\s*{_ONE})+(?!\w)"
    r"(\W*(only|alone|(are|is) .*))?\W*$",
    re.IGNORECASE,
)
"""An option that refers to others by their position: "None of the above", "Both A and C"."""


def can_shuffle(question: Question) -> bool:
    """Whether the options mean the same in any order.

    They do not if the labels are the options (yes/no/maybe), or if an option refers to others by their position.
    """
    size = len(question.options)
    lettered = size > 1 and question.labels == tuple(LETTERS[:size]) and question.labels != question.options
    return lettered and not any(_POINTS.search(option) for option in question.options)


def shuffled(question: Question, repeat: int, seed: int) -> tuple[Question, tuple[int, ...]]:
    """(the question with its options in the order of `repeat`, position -> index in the original order).

    Labels keep their positions; options and gold answer move. Raises ValueError unless `can_shuffle`.
    """
    if not can_shuffle(question):
        raise ValueError(f"question {question.id}: its options cannot be shuffled")
    order = permutation(len(question.options), repeat, seed, question.id)
    gold = order.index(question.labels.index(question.gold))
    moved = replace(question, options=tuple(question.options[i] for i in order), gold=question.labels[gold])
    return moved, order


def permutation(size: int, repeat: int, seed: int, id: str) -> tuple[int, ...]:
    """Position -> index in the original order, which is the order of repeat 0.

    Depends only on the arguments (through sha256), so it is the same on every machine.

    Any `size` repeats that start at a multiple of `size` form a Latin square: each option is once at each position. The
    gold letter is therefore spread as evenly as possible, and any two orders of a square have different texts at each
    letter, which tells a model that follows the letter from one that follows the text. Within a square, each option
    moves along a seeded cycle through all options; plain rotations would keep all neighbours together. Each further
    square starts from another arrangement of the options after the first. All `size`! orders occur before one is
    repeated.
    """
    square, row = divmod(repeat, size)
    cycle = sorted(range(size), key=lambda index: _hash("cycle", seed, id, index))
    places = {index: place for place, index in enumerate(cycle)}
    behind = _arrangement(size - 1, _scattered(square, math.factorial(size - 1), seed, id))
    start = (0, *(1 + index for index in behind))
    return tuple(cycle[(places[index] + row) % size] for index in start)


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, ("options", *parts))).encode()).digest())


def _scattered(number: int, count: int, seed: int, id: str) -> int:
    """A seeded permutation of 0..count-1, applied to `number`; 0 stays 0."""
    stride = _hash("stride", seed, id) % count
    while math.gcd(stride, count) != 1:
        stride += 1
    return number * stride % count


def _arrangement(size: int, rank: int) -> tuple[int, ...]:
    """The permutation of 0..size-1 that is number `rank` in alphabetical order; 0 is 0, 1, 2, ..."""
    left, found = list(range(size)), []
    for behind in range(size - 1, -1, -1):
        at, rank = divmod(rank, math.factorial(behind))
        found.append(left.pop(at))
    return tuple(found)
