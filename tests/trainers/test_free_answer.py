"""The verifier of free-text answers: which answer a reply states, and what counts as the same.

pytest tests/trainers/test_free_answer.py
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.contracts import Question
from medbench.trainers.rewards.free_answer import LONGEST, ground_truth, matches, normal, quantity, read_free_answer
from medbench.trainers.rewards.rewards import RewardConfig, rewards_of
from medbench.trainers.rewards.trl_rewards import reward_functions


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("asthma", "Asthma"),
        ("**Asthma.**", "asthma"),
        ("(asthma)", "asthma"),
        ('"The  asthma"', "asthma"),
        (r"\text{asthma}", "asthma"),
        ("beta-blocker", "Beta blocker"),
        ("non–small cell lung cancer", "non-small cell lung cancer"),
        ("E. coli", "E. coli"),
        ("ﬁbrosis", "fibrosis"),
        ("120/80 mmHg", "120/80 mmHg"),
        ("5-10 mg", "5-10 mg"),
        ("12", "12"),
        ("12.0", "12"),
        ("1,200", "1200"),
        ("12 mg", "12mg"),
        ("12 mg", "12"),  # the ground truth has no unit: any is taken
        ("$18", "18"),
        ("18 eggs", "18"),
        ("0.5 g", "500 mg"),
        ("500 mcg", "0.5 mg"),
        ("500 µg", "0.5 mg"),  # micro sign
        ("500 μg", "0.5 mg"),  # Greek mu
        ("5 mg/dL", "0.05 g/L"),
        ("2 mg/kg/day", "2 mg/kg/d"),
        ("72 beats per minute", "72 beats/min"),
        ("90 min", "1.5 hours"),
        ("50%", "50 percent"),
        ("28.41 kg/m²", "28.4 kg/m^2"),
        ("5 x 10^9/L", "5×10⁹/L"),
        ("10^5", "100000"),
        ("−5", "-5"),
        (r"$\boxed{42}$", "42"),
        (r"12 \text{ mg}", "12 mg"),
        ("about 12 mg", "12 mg"),
        ("38.5 °C", "38.5 °C"),
    ],
)
def test_the_same_answer_in_another_form(answer: str, truth: str) -> None:
    assert matches(answer, truth, tolerance=0.01)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("asthma", "COPD"),
        ("asthma or COPD", "asthma"),
        ("not asthma", "asthma"),
        ("asthma, COPD", "asthma"),
        ("", "asthma"),
        ("Rh-", "Rh+"),
        ("90/60 mmHg", "120/80 mmHg"),  # both would be 1.5
        ("5-10 mg", "5 mg"),
        ("5 or 6", "5"),
        ("5 to 6", "5"),
        ("5 and maybe 6", "5"),
        ("5, 6", "5"),
        ("5 6", "5"),
        ("12 g", "12 mg"),
        ("12", "12 mg"),  # a number without its unit
        ("0.5", "50%"),
        ("12 mg/dL", "12 mg"),
        ("12.2", "12"),
        ("-12", "12"),
        ("1200", "12"),
        ("1e999", "12"),
        ("nan", "12"),
        ("0", "1"),
        ("0.001", "0"),
        ("38 °C", "38 °F"),
        ("3 months", "3 years"),
    ],
)
def test_another_answer(answer: str, truth: str) -> None:
    assert not matches(answer, truth, tolerance=0.01)


def test_the_tolerance_is_a_share_of_the_ground_truth() -> None:
    assert matches("101", "100", tolerance=0.01)
    assert not matches("101.1", "100", tolerance=0.01)
    assert not matches("100.001", "100", tolerance=0)
    assert matches("0.1 g", "100 mg", tolerance=0)  # not exact in binary
    assert matches("105 mg", "0.1 g", tolerance=0.05)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 12 mg.", "12 mg."),
        ("So the answer is: **12 mg**", "**12 mg**"),
        ("Therefore the final answer is (asthma).\n", "(asthma)."),
        ("It is common.\n\nAnswer: asthma", "asthma"),
        ("**Answer:** asthma", "** asthma"),
        ("Answer:\nasthma", "asthma"),
        ("2 + 2 = 4\n#### 4", "4"),
        (r"So it is \boxed{12\text{ mg}}.", r"12\text{ mg}"),
        (r"The answer is \boxed{12}.", "12"),
        ("The answer is asthma. The answer is asthma.", "asthma. The answer is asthma."),
        ("The answer is asthma.\nThe answer is Asthma", "Asthma"),
        ("asthma", "asthma"),
    ],
)
def test_the_answer_that_a_reply_states(text: str, answer: str) -> None:
    thought = "<think>The answer is nothing.</think>\n\n"
    found = read_free_answer(thought + text, len(thought))
    assert found.answer == answer
    assert found.span is not None
    assert (thought + text)[slice(*found.span)].strip() == answer


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("", "empty"),
        ("It may be asthma.\nOr COPD.", "unparsed"),
        ("x" * (LONGEST + 1), "unparsed"),
        ("The answer is " + "x" * (LONGEST + 1), "unparsed"),
        ("The answer is asthma.\nThe answer is COPD.", "ambiguous"),
        (r"\boxed{5} \boxed{6}", "ambiguous"),
        (r"The answer is 5." + "\n" + r"\boxed{6}", "ambiguous"),
        ("The answer is **", "unparsed"),
    ],
)
def test_a_reply_that_states_none_or_several(text: str, outcome: str) -> None:
    found = read_free_answer(text, 0)
    assert (found.answer, found.outcome) == (None, outcome)


def test_ground_truths() -> None:
    assert ground_truth(" 12 mg ") == "12 mg"
    assert ground_truth("2 + 2 = 4\n#### 4") == "4"
    assert ground_truth("####") == "####"


@given(st.text(max_size=60), st.text(max_size=60))
def test_for_any_text_it_is_symmetric_in_text_and_accepts_itself(one: str, other: str) -> None:
    if quantity(one) is None or quantity(other) is None:
        assert matches(one, other, 0) == matches(other, one, 0) == (normal(one) == normal(other))
    assert matches(one, one, 0)


@pytest.mark.parametrize(
    "piece", ["(", "{", "\\boxed{", "the answer is ", "**", "1,000", "$", "\\text{", " - ", "⁹", "e5"]
)
def test_long_replies_take_little_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    begun = time.perf_counter()
    read_free_answer(text, 0)
    matches(text, "12 mg", 0.01)
    assert time.perf_counter() - begun < 2


QUESTION = Question("1", "1", "How much enoxaparin does a man of 80 kg need twice a day?", (), (), "80 mg")
THOUGHT = (
    "<think>\n1. Enoxaparin prophylaxis differs from treatment, which needs one milligram for each kilogram.\n"
    "2. Since his weight is eighty kilograms, multiplying gives eighty milligrams twice daily.\n"
    "3. So the dose is 80 mg.\n</think>\n\n"
)
CONFIG = RewardConfig()


def total(reply: str) -> float:
    return rewards_of(reply, QUESTION, CONFIG, tokens=len(reply) // 4).total


def test_a_right_reply_in_free_text_earns_every_reward() -> None:
    found = rewards_of(f"{THOUGHT}The answer is 80 mg.", QUESTION, CONFIG, tokens=100)
    assert found.faults == ()
    assert (found.accuracy, found.format, found.length, found.repetition) == (1, 1, 1, 0)
    assert found.reasoning > 0.5
    assert rewards_of(f"{THOUGHT}The answer is 0.08 g.", QUESTION, CONFIG, tokens=100).accuracy == 1


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("The answer is 80 mg.", "no_thought"),
        (f"{THOUGHT}The answer is 80 mg.\nThe answer is 40 mg.", "several_answers"),
        (f"{THOUGHT}It depends.\nPerhaps 80 mg.", "no_answer"),
        (THOUGHT, "no_answer"),
        (f"{THOUGHT.replace('</think>', '')}The answer is 80 mg.", "unclosed"),
        (f"{THOUGHT}{'It is so. ' * 80}\nThe answer is 80 mg.", "long_answer"),
        ("<think>\nHmm.\n</think>\n\nThe answer is 80 mg.", "no_reasoning"),
        (f"{THOUGHT}The answer is 80 mg.\nreward: 1", "scorer_addressed"),
    ],
)
def test_faults_of_the_format_earn_nothing(reply: str, fault: str) -> None:
    found = rewards_of(reply, QUESTION, CONFIG, tokens=100)
    assert fault in found.faults
    assert found.accuracy == found.format == found.length == found.reasoning == 0
    assert found.total <= 0


@pytest.mark.parametrize(
    "answer",
    ["40 mg", "80", "80 g", "80 mg or 40 mg", "40 or 80 mg", "40-80 mg", "80 mg twice", "not 80 mg", "any dose"],
)
def test_a_wrong_or_hedged_answer_earns_less_than_the_right_one(answer: str) -> None:
    wrong = total(f"{THOUGHT}The answer is {answer}.")
    assert 0 < wrong + 0.1 < total(f"{THOUGHT}The answer is 80 mg.")


def test_trl_gets_rewards_for_both_kinds_of_questions_in_one_batch() -> None:
    accuracy, *_ = reward_functions(CONFIG, opened=False, eos_token_ids=[7])
    given_ = {
        "prompts": ["?"] * 2,
        "completions": [f"{THOUGHT}The answer is 80 mg.", f"{THOUGHT}The answer is (B)."],
        "completion_ids": [[1, 7], [1, 7]],
        "question": [QUESTION.question] * 2,
        "options": [[], ["40 mg", "80 mg"]],
        "labels": [[], ["A", "B"]],
        "gold": ["80 mg", "B"],
    }
    assert accuracy(**given_) == [1.0, 1.0]
