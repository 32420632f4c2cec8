"""The first reader still reads what it read: scores under cot-v2 must not change."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from medbench.harness.extraction.answer_v1 import extract

LABELLED = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "extraction.jsonl").open(encoding="utf-8")
]
FOUR = tuple("ABCD")
WORDS = ("yes", "no", "maybe")


def answer(text: str, labels: tuple[str, ...] = FOUR, options: tuple[str, ...] = (), **given: object) -> str | None:
    return extract(text, labels=labels, options=options, **given).answer  # type: ignore[arg-type]


def test_agrees_with_hand_labels() -> None:
    right: Counter[str] = Counter()
    misses = []
    for row in LABELLED:
        found = extract(
            row["text"],
            labels=tuple(row["labels"]),
            options=tuple(row["options"]),
            finish_reason=row["finish_reason"],
            opened=row["opened"],
        )
        agrees = (found.answer, found.outcome) == (row["answer"], row["outcome"])
        right[row["format"]] += agrees
        if not agrees:
            misses.append(f"{row['id']}: label {row['answer']} {row['outcome']}, got {found.answer} {found.outcome}")
    asked = Counter(row["format"] for row in LABELLED)
    for name in asked:
        print(f"{name}: {right[name]}/{asked[name]}")
    print(f"agreement: {right.total() / asked.total():.4f} of {asked.total()}")
    assert asked.total() >= 400
    assert right.total() / asked.total() >= 0.99, "\n".join(misses)
