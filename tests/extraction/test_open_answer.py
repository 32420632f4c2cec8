"""The quantity that a reply gives as its answer."""

from __future__ import annotations

import time

import pytest

from medbench.harness.extraction.open_answer import extract


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("So we get 83.9.\n\nThe answer is (83.9).", "83.9"),
        ("The answer is (83.9 mL/min).", "83.9"),
        ("The answer is 24.1 mL/min/1.73 m2.", "24.1"),
        ("The answer is: **24.1 mL/min**.", "24.1"),
        ("**Answer:** 24.1", "24.1"),
        ("**Final Answer**\n\n**Answer**: $24.1$ mg/dL", "24.1"),
        ("Final answer:\n\n24.1 mg", "24.1"),
        (r"Hence $\boxed{24.1}$.", "24.1"),
        (r"Hence $\boxed{24.1\text{ mL/min}}$", "24.1"),
        (r"The answer is \(24.1\) kg.", "24.1"),
        ('{"step_by_step_thinking": "140 - 116 = 24", "answer": "24.1"}', "24.1"),
        ("<answer>24.1</answer>", "24.1"),
        ("The answer is approximately 24.1 kg.", "24.1"),
        ("The answer is approx. 24.1 kg.", "24.1"),
        ("The answer is a score of 3 points.", "3"),
        ("The answer is (Child-Pugh class B, 8 points).", "8"),
        ("The answer is (CHA2DS2-VASc score = 4).", "4"),
        ("The answer is 142 - (117 + 8.6) = 16.4 mEq/L.", "16.4"),
        ("The answer is 24.1 (since 140 - 116 = 24).", "24.1"),
        ("The answer to the question is 12.", "12"),
        ("The answer is (-7).", "-7"),
        ("The answer is 12.4 (rounded to 1 decimal).", "12.4"),
        ("The answer is (12/02/2000).", "12/02/2000"),
        ("The answer is December 2, 2000.", "12/02/2000"),
        ("The answer is (34 weeks, 3 days).", "34 weeks 3 days"),
        ("The answer is (34, 3).", "34 weeks 3 days"),
        (r"$\boxed{34 \text{ weeks } 3 \text{ days}}$", "34 weeks 3 days"),
        ("The answer is 34 weeks and 3 days.", "34 weeks 3 days"),
        ("The answer is (20).\nWait, the weight is 80 kg. The answer is (22).", "22"),
        ("The answer is (24.1). The answer is based on 5 values.", "24.1"),
        ("BMI = 70 / 1.8^2\nBMI = 21.6 kg/m^2", "21.6"),
        ("Let us add.\n**21.6 kg**", "21.6"),
        ("<think>The answer is (5).</think>The answer is (6).", "6"),
        ("The answer is (24.1).\n\nQuestion: another?\nThe answer is (7).", "24.1"),
    ],
)
def test_the_last_statement_counts(reply: str, answer: str) -> None:
    found = extract(reply)
    assert (found.answer, found.outcome) == (answer, "answered")
    assert found.span is not None
    start, end = found.span
    assert reply[start:end].strip()


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("It cannot be computed.", "unparsed"),
        ("The answer is not 24.", "unparsed"),
        ("The answer is based on 5 criteria.", "unparsed"),
        ("The answer is greater than 24.", "unparsed"),
        ("The answer is > 24.", "unparsed"),
        ("The answer is (X).", "unparsed"),
        ("The answer is (13/45/2000).", "unparsed"),
        ("The answer is 24 or 25.", "ambiguous"),
        ("The answer is 24-25 kg.", "ambiguous"),
        ("The answer is 24 mL/min to 25 mL/min.", "ambiguous"),
        ("1. Weigh the patient.\n2. Repeat the test.", "unparsed"),
        ("The weight is 80 kg and the patient left after 3 days of care.", "unparsed"),
        ("I'm sorry, but I cannot give medical advice.", "refused"),
        ("<think>The answer is (24.1).", "unparsed"),
    ],
)
def test_what_is_no_answer_says_why(reply: str, outcome: str) -> None:
    found = extract(reply)
    assert (found.answer, found.outcome) == (None, outcome)


def test_a_number_that_the_token_limit_may_have_cut_is_no_answer() -> None:
    assert extract("The answer is (12", finish_reason="length").outcome == "truncated"
    assert extract("The answer is 12.", finish_reason="length").outcome == "truncated"
    assert extract("The answer is (12.5) because", finish_reason="length").answer == "12.5"
    assert extract("The answer is (12").answer == "12"


def test_an_open_thought_has_no_answer() -> None:
    assert extract("The answer is (5).", opened=True).answer is None
    assert extract("The answer is (5).</think>The answer is (6).", opened=True).answer == "6"
    assert extract("<think>The answer is (5).", finish_reason="length").outcome == "truncated"


def test_a_reply_that_goes_on_with_a_question_is_noted() -> None:
    assert extract("The answer is (24.1).\n\nQuestion: another?\nThe answer is (7).").note == "went_on"


@pytest.mark.parametrize(
    "piece", ["The answer is ", "answer: (", "= ", "1,", r"\boxed{", "9", " weeks", "**", "\n", "answer to ", "12/"]
)
def test_reading_takes_linear_time(piece: str) -> None:
    started = time.process_time()
    extract(piece * 40_000)
    assert time.process_time() - started < 5
