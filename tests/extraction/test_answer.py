"""Extraction: agreement with hand-labelled replies, fixed rules, properties of any reply, and hostile sizes.

pytest tests/extraction/test_answer.py -s prints the agreement by format class.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.contracts import Extraction
from medbench.harness.extraction.answer import extract

DATA = Path(__file__).parents[1] / "data"
SETS = {
    name: [json.loads(line) for line in (DATA / f"{name}.jsonl").open(encoding="utf-8")]
    for name in ("extraction", "extraction_seen", "extraction_unseen", "extraction_independent")
}
"""Labelled by hand. The last two are one set, split by sha256 of the id. At the first try 92.4 and 93.9 % were read as
labelled (by the first reader 58.0 and 65.3 %), and with what was wrong in the seen half fixed, 94.9 % of the unseen.
The "independent" 130 were written afterwards by a labeller who knew neither the reader nor the other sets: 126 (96.9 %)
at the first try, with no answer where there is none; by the first reader 94."""
LABELLED = [row for rows in SETS.values() for row in rows]
FOUR = tuple("ABCD")
WORDS = ("yes", "no", "maybe")


def answer(text: str, labels: tuple[str, ...] = FOUR, options: tuple[str, ...] = (), **given: object) -> str | None:
    return extract(text, labels=labels, options=options, **given).answer  # type: ignore[arg-type]


def read(row: dict[str, Any]) -> Extraction:
    return extract(
        row["text"],
        labels=tuple(row["labels"]),
        options=tuple(row["options"]),
        finish_reason=row["finish_reason"],
        opened=row["opened"],
    )


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("The answer is (B).\n\nQuestion: Which drug?\nA. x\nB. y\nThe answer is (C).", "went_on"),
        ("The answer is (B).\n\nQuestion: Which drug?", "went_on"),
        ("Question: Which drug is it?\nThe answer is (B).", None),
        ("The question asks for a drug. The answer is (B).", None),
    ],
)
def test_a_reply_that_goes_on_with_a_question_keeps_its_first_answer_and_says_so(text: str, note: str | None) -> None:
    found = extract(text, labels=FOUR)
    assert (found.answer, found.note) == ("B", note)


@pytest.mark.parametrize(
    ("name", "least"),
    [("extraction", 0.99), ("extraction_seen", 0.99), ("extraction_unseen", 0.99), ("extraction_independent", 0.96)],
)
def test_agrees_with_hand_labels(name: str, least: float) -> None:
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    misses, invented = [], []
    for row in SETS[name]:
        found = read(row)
        agrees = found.answer == row["answer"]
        asked[row["format"]] += 1
        right[row["format"]] += agrees
        if not agrees:
            misses.append(f"{row['id']}: label {row['answer']}, got {found.answer} {found.outcome}")
        if row["answer"] is None and found.answer is not None:
            invented.append(row["id"])
    for kind in asked:
        print(f"{kind}: {right[kind]}/{asked[kind]}")
    print(f"{name}: {right.total() / asked.total():.4f} of {asked.total()}")
    assert right.total() / asked.total() >= least, "\n".join(misses)
    assert not invented


def test_outcomes_agree_with_hand_labels() -> None:
    misses = [row["id"] for row in SETS["extraction"] if read(row).outcome != row["outcome"]]
    assert not misses


def test_labels_are_consistent() -> None:
    assert len({row["id"] for row in LABELLED}) == len(LABELLED)
    for row in LABELLED:
        assert (row["answer"] is not None) == (row.get("outcome", "answered" if row["answer"] else "") == "answered"), (
            row["id"]
        )
        assert row["answer"] is None or row["answer"] in row["labels"], row["id"]


@pytest.mark.parametrize("text", ["<think>The answer is B.", "<think>a</think> The answer is B. <think>but"])
def test_unclosed_reasoning_has_no_answer(text: str) -> None:
    assert extract(text, labels=FOUR).outcome == "unparsed"
    assert extract(text, labels=FOUR, finish_reason="length").outcome == "truncated"


def test_reasoning_that_the_prompt_opened_must_be_closed() -> None:
    assert answer("The answer is B.", opened=True) is None
    assert answer("Maybe A. </think> The answer is B.", opened=True) == "B"
    assert answer("Maybe A. </think> The answer is B.") == "B"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is A or B.",
        "The answer is (A) and (C).",
        "Answer: A/B",
        "**Answer: B. Aspirin** or **C. Heparin**",
        "The answer is a combination of (A, B, D).",
        "Both A and C are correct.",
    ],
)
def test_naming_several_labels_is_not_an_answer(text: str) -> None:
    found = extract(text, labels=FOUR, options=("Iron", "Aspirin", "Heparin", "Zinc"))
    assert (found.answer, found.outcome) == (None, "ambiguous")


def test_a_later_statement_corrects_an_earlier_one() -> None:
    assert answer("The answer is A. Wait, no, the answer is (C).") == "C"
    assert answer("The answer is (C).\n\nFinal Answer: **D**") == "D"


def test_a_letter_outside_the_labels_is_no_answer_and_no_earlier_one_is_taken() -> None:
    assert answer("I think B. The answer is (E).") is None


def test_the_prompts_own_placeholder_is_no_answer() -> None:
    assert answer("The answer is (B). I finished with 'The answer is (X)'.") == "B"


@pytest.mark.parametrize(
    "text",
    ["A patient with hepatitis B and vitamin D deficiency.", "I think so.", "The answer is not A.", "B is wrong."],
)
def test_letters_that_are_not_answers(text: str) -> None:
    assert answer(text, labels=tuple("ABCDEFGHIJ")) is None


def test_words_inside_prose_are_not_answers() -> None:
    assert answer("There is no evidence of benefit.", WORDS, WORDS) is None
    assert answer("Yes, the effect was clear.", WORDS, WORDS) == "yes"
    assert extract("The answer is yes and no.", labels=WORDS, options=WORDS).outcome == "ambiguous"


def test_an_options_text_counts_as_its_letter() -> None:
    options = ("Aspirin", "Low-dose aspirin", "Heparin", "Warfarin")
    assert answer("The answer is low dose aspirin.", options=options) == "B"
    assert answer("Heparin", options=options) == "C"
    assert answer("The answer is aspirin.", options=("Aspirin", "aspirin", "Zinc", "Iron")) is None


@pytest.mark.parametrize("row", [row for row in LABELLED if row["answer"]], ids=lambda row: row["id"])
def test_the_span_contains_the_answer(row: dict[str, object]) -> None:
    text, labels, options = str(row["text"]), tuple(row["labels"]), tuple(row["options"])  # type: ignore[arg-type]
    found = extract(text, labels=labels, options=options, opened=bool(row["opened"]))
    assert found.span is not None
    read = text[slice(*found.span)]
    index = labels.index(str(found.answer))
    assert extract(f"Answer: {read}", labels=labels, options=options).answer == found.answer, (read, options[index])


@given(st.text(max_size=300), st.booleans(), st.sampled_from(["stop", "length"]), st.sampled_from([FOUR, WORDS]))
def test_any_text_gives_one_of_the_labels_or_a_reason(
    text: str, opened: bool, reason: str, labels: tuple[str, ...]
) -> None:
    found = extract(text, labels=labels, options=labels, finish_reason=reason, opened=opened)
    assert (found.outcome == "answered") == (found.answer is not None)
    assert found.answer is None or found.answer in labels
    if found.answer is not None:
        assert found.span is not None
        assert 0 <= found.span[0] < found.span[1] <= len(text)


@given(st.text(alphabet=st.characters(blacklist_characters="<>|"), max_size=200), st.sampled_from(FOUR))
def test_a_closing_statement_wins_over_any_text(text: str, letter: str) -> None:
    assert answer(f"{text}\n\nThe answer is ({letter}).") == letter


@given(st.sampled_from([row for row in LABELLED if not row["opened"] and "think" not in row["format"]]))
def test_closed_reasoning_before_the_answer_changes_nothing(row: dict[str, object]) -> None:
    labels, options = tuple(row["labels"]), tuple(row["options"])  # type: ignore[arg-type]
    plain = extract(str(row["text"]), labels=labels, options=options)
    thought = extract(f"<think>The answer is (D).</think>\n{row['text']}", labels=labels, options=options)
    assert (plain.answer, plain.outcome) == (thought.answer, thought.outcome)


@given(st.sampled_from(LABELLED), st.text(alphabet=" \n\t", max_size=5), st.text(alphabet=" \n\t", max_size=5))
def test_white_space_around_a_reply_changes_nothing(row: dict[str, object], before: str, after: str) -> None:
    labels, options = tuple(row["labels"]), tuple(row["options"])  # type: ignore[arg-type]
    opened = bool(row["opened"])
    plain = extract(str(row["text"]), labels=labels, options=options, opened=opened)
    padded = extract(f"{before}{row['text']}{after}", labels=labels, options=options, opened=opened)
    assert (plain.answer, plain.outcome) == (padded.answer, padded.outcome)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [FOUR, WORDS], ids=["letters", "words"])
@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "A ",
        "answer is ",
        "answer is (",
        "<think>",
        "</think>",
        "*",
        "\n",
        "B\n",
        "no ",
        "is A is ",
        "Ａ",
        "\u200b",
        "{",
        "so ",
    ],
)
def test_ten_megabytes_are_quick(piece: str, labels: tuple[str, ...]) -> None:
    text = piece * (10_000_000 // len(piece))
    started = time.thread_time()
    extract(text, labels=labels, options=("Iron", "Aspirin", "Heparin", "Zinc")[: len(labels)])
    assert time.thread_time() - started < 5  # about 0.3 s; quadratic time would be hours
