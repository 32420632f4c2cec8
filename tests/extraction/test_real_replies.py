"""Real replies of real models, and forms of replies made after public reports (pytest -s prints the figures)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medbench.harness.extraction.answer import extract
from medbench.harness.extraction.thinking import split_reasoning

MIRAGE = {
    "medqa_cot_gpt-4-32k": 83.97,
    "medqa_cot_gpt-35-turbo-16k": 64.96,
    "medqa_rag_32_gpt-4-32k": 82.80,
    "medqa_rag_32_gpt-35-turbo-16k": 66.61,
    "pubmedqa_cot_gpt-4-32k": 39.6,
    "pubmedqa_cot_gpt-35-turbo-16k": 36.0,
    "pubmedqa_rag_32_gpt-4-32k": 70.6,
    "pubmedqa_rag_32_gpt-35-turbo-16k": 67.4,
}
"""Published accuracies, in percent; their script counts what it cannot read as "A"."""


@pytest.fixture(scope="module")
def replies(data_dir: Path) -> Path:
    folder = data_dir / "replies"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: the data folder holds the benchmarks without replies of other models")
    return folder


@pytest.fixture(scope="module")
def medqa(data_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data_dir / "medqa" / "test.jsonl").open(encoding="utf-8")]


def rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def options_of(row: dict[str, Any], medqa: list[dict[str, Any]]) -> tuple[str, ...]:
    if row["dataset"].startswith("pubmedqa"):
        return ("yes", "no", "maybe")
    if row.get("options"):
        return tuple(dict(row["options"]).values()) if isinstance(row["options"], dict) else tuple(row["options"])
    index = row["ref"].get("medqa_test_index")
    return tuple(medqa[index]["options"].values()) if index is not None else ()


def test_the_answers_behind_closed_thoughts(replies: Path, medqa: list[dict[str, Any]]) -> None:
    """A reply "I" is left out: the source misreads most of them."""
    agree: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for file in sorted(replies.glob("medagents_*zero_shot*.jsonl")):
        for row in rows(file):
            parts = split_reasoning(row["output"])
            if not parts.closed or parts.answer.strip(" *.\n") in ("I", "") or row["official_pred"] is None:
                continue
            found = extract(row["output"], labels=tuple(row["labels"]), options=options_of(row, medqa))
            asked[row["model"]] += 1
            agree[row["model"]] += found.answer == row["official_pred"]
    for model, count in asked.items():
        print(f"{model}: {agree[model]} of {count}, {agree[model] / count:.1%}")
    assert agree.total() / asked.total() >= 0.98


def test_no_answer_is_read_in_a_thought_that_does_not_end(replies: Path, medqa: list[dict[str, Any]]) -> None:
    count = 0
    for file in replies.glob("medagents_*zero_shot*.jsonl"):
        for row in rows(file):
            if "<think>" in row["output"] and "</think>" not in row["output"]:
                count += 1
                assert (
                    extract(row["output"], labels=tuple(row["labels"]), options=options_of(row, medqa)).answer is None
                )
    assert count > 700


@pytest.mark.parametrize("name", MIRAGE)
def test_published_accuracies(replies: Path, medqa: list[dict[str, Any]], name: str) -> None:
    ours = theirs = unread = total = 0
    for row in rows(replies / f"mirage_{name}.jsonl"):
        found = extract(row["output"], labels=tuple(row["labels"]), options=options_of(row, medqa))
        total += 1
        unread += found.answer is None
        ours += found.answer == row["gold"]
        theirs += (found.answer or "A") == row["gold"]
    print(f"{name}: {ours / total:.2%} with {unread} unread; {theirs / total:.2%} if these count as A")
    assert 100 * theirs / total == pytest.approx(MIRAGE[name], abs=0.3)


def test_forms_of_replies(data_dir: Path) -> None:
    folder = data_dir.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: the labelled forms lie beside the data folder, and not everywhere")
    total, misses, invented = 0, [], []
    for row in (row for file in sorted(folder.glob("replies*.jsonl")) for row in rows(file)):
        words = "/" in row["labels"]
        labels = tuple(row["labels"].split("/")) if words else tuple(row["labels"])
        options = tuple(row.get("options") or (labels if words else ()))
        reason = row.get("finish_reason") or "stop"
        found = extract(row["output"], labels=labels, options=options, finish_reason=reason)
        total += 1
        if found.answer != row["answer"]:
            misses.append((row["output"], row["answer"], found.answer))
            invented += [row["output"]] if row["answer"] is None else []
    print(f"{total - len(misses)} of {total}; misses: {misses}")
    assert len(misses) <= 0.03 * total
    assert not invented
