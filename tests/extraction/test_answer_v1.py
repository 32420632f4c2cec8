"""The first reader still reads what it read: scores under cot-v1 must not change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from medbench.harness.extraction.answer_v1 import extract

DATA = Path(__file__).parents[1] / "data"
READ = "504f6ebd9cfaedeebcac5ab7fbf0f6f45f8ae7d0692a3cfb3615fb25f24e91c3"
"""sha256 of what it read of the labelled replies before there was a second reader, right or wrong."""


def test_it_reads_what_it_read() -> None:
    found = hashlib.sha256()
    for name in ("extraction", "extraction_seen", "extraction_unseen"):
        for row in map(json.loads, (DATA / f"{name}.jsonl").open(encoding="utf-8")):
            labels, options = tuple(row["labels"]), tuple(row["options"])
            one = extract(
                row["text"],
                labels=labels,
                options=options,
                finish_reason=row["finish_reason"],
                opened=row["opened"],
            )
            found.update(json.dumps([row["id"], one.answer, one.outcome, one.span]).encode())
    assert found.hexdigest() == READ
