"""The steps of a reply: what is judged, and what is not."""

from __future__ import annotations

import time

import pytest
from support.gate_runs import answer

from medbench.harness.judges.steps import sentences, steps_of


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (
            "It fell by 0.5 vs. placebo (p < 0.05). E. coli grew.",
            ["It fell by 0.5 vs. placebo (p < 0.05).", "E. coli grew."],
        ),
        ("E. coli grew.", ["E. coli grew."]),
        ("## Thinking\n\n**Findings**\nSo:\nIt fell.", ["It fell."]),
        ("- One falls.\n* Two rises.\n3) Three stays.\n(b) Four", ["One falls.", "Two rises.", "Three stays.", "Four"]),
        ("**Step 2:** The **dose** matters.\nStep 3: It falls.", ["The dose matters.", "It falls."]),
        ("The drug was\ngiven twice.\nIt helped.", ["The drug was given twice.", "It helped."]),
        ("---\n\n123.\n ... \n", []),
        ("half \ud83d a character.", ["half ? a character."]),
    ],
)
def test_text_is_split_into_sentences_and_list_items_without_their_marks(text: str, steps: list[str]) -> None:
    assert sentences(text) == steps


@pytest.mark.parametrize(
    "text", ["a" * 300_000, "a. " * 60_000, "**" * 100_000, "\n- " * 50_000, "(a) " * 50_000, "<think>" * 30_000]
)
def test_a_hostile_reply_is_split_in_bounded_time(text: str) -> None:
    begun = time.monotonic()
    sentences(text)
    steps_of(answer("q", output=f"<think>{text}"))
    assert time.monotonic() - begun < 5


def test_the_steps_are_those_of_the_thought_and_not_of_what_follows() -> None:
    sample = answer("q", output="<think>It falls. It is safe.</think>It works. The answer is (A).")
    assert steps_of(sample) == ["It falls.", "It is safe."]


def test_a_thought_that_the_template_opens_or_that_is_cut_off_counts() -> None:
    assert steps_of(answer("q", prompt="Q?<think>\n", output="It falls.</think>The answer is (A).")) == ["It falls."]
    assert steps_of(answer("q", output="<think>It falls. It is safe.")) == ["It falls.", "It is safe."]


def test_half_a_sentence_where_a_reply_was_cut_off_is_no_step() -> None:
    assert steps_of(answer("q", output="<think>It falls. It is")) == ["It falls."]
    assert steps_of(answer("q", output="It falls. It is", finish_reason="length")) == ["It falls."]
    assert steps_of(answer("q", output="It falls. It is safe")) == ["It falls.", "It is safe"]


@pytest.mark.parametrize(
    "said",
    [
        "The answer is yes.",
        "the answer is (B)",
        "Answer: C.",
        "So the final answer is: no.",
        "Therefore, the correct answer is option (A).",
        'The answer to this question is "maybe".',
    ],
)
def test_a_sentence_that_only_states_the_answer_is_no_step(said: str) -> None:
    assert steps_of(answer("q", output=f"<think>{said}\nIt falls.\n{said}</think>The answer is (A).")) == ["It falls."]
    because = f"{said.rstrip('.')} because it falls."
    assert steps_of(answer("q", output=f"<think>{because}</think>The answer is (A).")) == [because]


def test_without_a_thought_the_steps_are_the_sentences_before_the_one_with_the_answer() -> None:
    output = "It falls. It is safe. So the answer is (A). I am sure."
    at = output.index("(A)")
    assert steps_of(answer("q", output=output, span=(at, at + 3))) == ["It falls.", "It is safe."]


def test_a_reply_that_only_answers_has_no_steps() -> None:
    assert steps_of(answer("q", output="The answer is (A).", span=(15, 16))) == []


def test_a_failed_request_has_no_steps() -> None:
    assert steps_of(answer("q", None)) == []
