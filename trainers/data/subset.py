"""A share of the rows to train on, for data-efficiency curves.

    nested_subset(rows, 0.01)          # indices; part of nested_subset(rows, 0.1), which is part of all

All rows are put into one order, of which a share is the beginning: so shares are nested whatever their sizes. In the
order each answer is spread evenly: a row's place is its rank among the rows with the same answer, by a hash of their
content, over the number of these rows. So each beginning has every answer in proportion, to within a row. The order of
the files, their names and the rows' numbers have no part in it.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

from medbench.trainers.data.conversations import Conversation
from medbench.trainers.data.questions import Row

SALT = "medbench data fraction"


def nested_subset(rows: Sequence[Row | Conversation], fraction: float) -> list[int]:
    """Indices of ceil(fraction * n) of the n rows, at least one, ascending. `fraction`: above 0, at most 1."""
    size = max(1, math.ceil(fraction * len(rows) - 1e-9))
    if size >= len(rows):
        return list(range(len(rows)))
    digests = [_digest(row) for row in rows]
    same_answer: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        same_answer[_answer(row)].append(at)
    place = {}
    for members in same_answer.values():
        for rank, at in enumerate(sorted(members, key=lambda at: digests[at])):
            place[at] = (rank + 0.5) / len(members)
    order = sorted(range(len(rows)), key=lambda at: (place[at], digests[at]))
    return sorted(order[:size])


def _answer(row: Row | Conversation) -> str:
    """What rows are stratified by; "" for chats and free text, whose answers are all different."""
    return row.question.gold if isinstance(row, Row) and row.question.labels else ""


def _digest(row: Row | Conversation) -> bytes:
    answer = "" if isinstance(row, Conversation) else row.question.gold
    return hashlib.sha256(f"{SALT}\0{row.screened(0).text}\0{answer}".encode("utf-8", "replace")).digest()
