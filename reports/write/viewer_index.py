"""The small file of each task that the viewer filters and lists by; its format stands in viewer_data.

python -c "from medbench.reports.write.viewer_index import script; print(script('f', 'a < b'))"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from medbench.harness.runs.sample_line import Line
from medbench.reports.read.folders import natural

PART_ROWS = 20_000

RIGHT, WRONG, UNPARSED, TRUNCATED, ERROR, REFUSED, AMBIGUOUS, EMPTY = FLAGS = tuple(1 << bit for bit in range(8))
FLAG_NAMES = ("right", "wrong", "unparsed", "truncated", "error", "refused", "ambiguous", "empty")
OUTCOMES = {
    "answered": 0,
    "unparsed": UNPARSED,
    "truncated": UNPARSED,
    "ambiguous": UNPARSED | AMBIGUOUS,
    "refused": UNPARSED | REFUSED,
    "empty": UNPARSED | EMPTY,
    "error": ERROR,
}

Put = Callable[[str, bytes], None]
"""Writes a file, named by its path under the task's data folder."""


@dataclass(slots=True)
class Columns:
    """The index, growing row by row."""

    ids: list[str] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    extracted: list[str | None] = field(default_factory=list)
    gold: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    repeat: list[int] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    """Place in `combinations`."""
    combinations: dict[tuple[tuple[str, str], ...], int] = field(default_factory=dict)

    def add(self, lines: Sequence[Line], heads: Sequence[str]) -> None:
        self.ids += [line.id for line in lines]
        self.clusters += [line.cluster for line in lines]
        self.flags += map(flags_of, lines)
        self.extracted += [line.extracted for line in lines]
        self.gold += [line.gold for line in lines]
        self.heads += heads
        self.repeat += [line.repeat for line in lines]
        self.scores += [line.score for line in lines]
        self.tokens += [line.completion_tokens for line in lines]
        combinations = self.combinations
        self.category += [combinations.setdefault(tuple(line.category.items()), len(combinations)) for line in lines]


@dataclass(slots=True)
class Chunks:
    """The chunks written so far."""

    starts: list[int] = field(default_factory=list)
    """First row of each."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each file."""
    rows: int = 0

    def add(self, rows: int, size: int) -> None:
        self.starts.append(self.rows)
        self.sizes.append(size)
        self.rows += rows


def flags_of(line: Line) -> int:
    flags = OUTCOMES[line.outcome]
    if line.finish_reason == "length":
        flags |= TRUNCATED
    if line.score is not None:
        flags |= RIGHT if line.score == 1 else WRONG
    return flags


def script(function: str, *arguments: Any) -> bytes:
    """A call with JSON arguments that is no markup, wherever it is put; bytes are JSON already."""
    parts = [part if isinstance(part, bytes | bytearray) else msgspec.json.encode(part) for part in arguments]
    content = b",".join(parts)
    content = content.replace(b"<", b"\\u003c")
    content = content.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return b"%b(%b);\n" % (function.encode(), content)


def write_index(columns: Columns, chunks: Chunks, fault: str, task: str, call: tuple[str, str], put: Put) -> None:
    """`call`: run id and task's slug."""
    total = len(columns.ids)
    parts = max(1, -(-total // PART_ROWS))
    values, codes = _categories(columns)
    counts = Counter(columns.flags)
    head = {
        "name": task,
        "total": total,
        "parts": parts,
        "values": values,
        "chunks": chunks.starts,
        "sizes": chunks.sizes,
        "counts": {
            name: sum(n for flags, n in counts.items() if flags & flag)
            for name, flag in zip(FLAG_NAMES, FLAGS, strict=True)
        },
        "fault": fault or None,
    }
    whole = all(score is None or score in (0, 1) for score in columns.scores)
    for part in range(parts):
        rows = slice(part * PART_ROWS, (part + 1) * PART_ROWS)
        content: dict[str, Any] = {
            "n": len(columns.ids[rows]),
            "ids": columns.ids[rows],
            "flags": columns.flags[rows],
            "extracted": columns.extracted[rows],
            "gold": columns.gold[rows],
            "heads": columns.heads[rows],
            "category": {name: [places[combo] for combo in columns.category[rows]] for name, places in codes.items()},
        }
        if any(columns.repeat):
            content["repeat"] = columns.repeat[rows]
        if not whole:
            content["scores"] = columns.scores[rows]
        if part == 0:
            content |= head
        put(f"index-{part}.js" if part else "index.js", script("medbenchIndex", *call, part, content))


def _categories(columns: Columns) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """(field -> values in natural order, field -> place of the value for each combination, -1 for none)."""
    combinations = [dict(combination) for combination in columns.combinations]
    fields = sorted({name for combination in combinations for name in combination})
    values = {
        name: sorted({some[name] for some in combinations if name in some}, key=lambda text: (natural(text), text))
        for name in fields
    }
    places = {name: {value: place for place, value in enumerate(some)} for name, some in values.items()}
    return values, {
        name: [places[name].get(some.get(name, ""), -1) if name in some else -1 for some in combinations]
        for name in fields
    }
