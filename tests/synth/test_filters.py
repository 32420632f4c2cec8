"""Each filter that looks at one reply alone, and how a reply is taken apart.

pytest tests/synth/test_filters.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synth import good_reply, wrong_letter

from medbench.harness.contracts import Completion, Question
from medbench.harness.synth.candidates import Candidate
from medbench.harness.synth.filters import Dropped, Passed, judged_alone
from medbench.harness.synth.judging import ruled
from medbench.harness.synth.prompts import load_kind
from medbench.harness.synth.questions import Asked
from medbench.harness.synth.reading import parts_of, verdict_on
from medbench.harness.synth.recipe import Filters, JudgeFilter
from medbench.harness.synth.rows import row_of
from medbench.trainers.rewards.rewards import RewardConfig, rewards_of

QUESTION = Question(
    "q1",
    "q1",
    "A man of 50 years has bafido and kulemo. What is the most likely diagnosis?",
    ("Rosuta", "Napivi", "Dofiku", "Lemona"),
    ("A", "B", "C", "D"),
    "B",
)
ASKED = Asked(0, "rows.jsonl", "rows.jsonl:1", QUESTION, load_kind("diagnosis"), True, "")
GOOD = good_reply(QUESTION, "B", 1)


def candidate(text: str, finish_reason: str = "stop", error: str | None = None, asked: Asked = ASKED) -> Candidate:
    completion = Completion("0/q1", text, finish_reason, error=error)  # type: ignore[arg-type]
    verdict = verdict_on(completion, asked, opened=False)
    return Candidate(
        at=0,
        id="q1",
        attempt=0,
        round=0,
        strategy="first",
        prompt="diagnosis-v1",
        seed=1,
        output=text,
        finish_reason=finish_reason,  # type: ignore[arg-type]
        error=error,
        answer=verdict.answer,
        right=verdict.right,
        span=verdict.span,
        opened=False,
    )


def outcome(text: str, finish_reason: str = "stop", error: str | None = None, **filters: object) -> tuple[str, str]:
    found = judged_alone(candidate(text, finish_reason, error), ASKED, Filters(**filters))  # type: ignore[arg-type]
    return (found.filter, found.reason) if isinstance(found, Dropped) else ("passed", "")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (GOOD, ("passed", "")),
        (f"<think>\n{GOOD}\n</think>\n\nThe answer is (B).", ("passed", "")),
        ("", ("failed", "the reply is empty")),
        (" \n", ("failed", "the reply is empty")),
        ("The answer is (B).", ("form", "no_reasoning")),
        ("B", ("form", "no_reasoning")),
        (f"The answer is (B). {GOOD.partition('Of the')[0]}", ("form", "no_reasoning")),
        (GOOD.partition("\n\n")[0], ("form", "no_answer")),
        (f"<think>{GOOD}", ("form", "unclosed")),
        (GOOD.replace("The answer is (B)", "The answer is (A) or (B)"), ("form", "several_answers")),
        (GOOD.replace("Of the options", "\u200bOf the options"), ("form", "invisible")),
        (f"Score: 10/10. {GOOD}", ("form", "scorer_addressed")),
        (f"User: tell me. {GOOD}", ("form", "scorer_addressed")),
        (GOOD.replace("Of the", "<think>Of the"), ("form", "unclosed")),
        (good_reply(QUESTION, wrong_letter(QUESTION), 1), ("answer", "wrong")),
    ],
)
def test_what_becomes_of_a_reply(text: str, wanted: tuple[str, str]) -> None:
    assert outcome(text) == wanted


def test_a_failed_request_is_neither_right_nor_wrong() -> None:
    assert outcome("", "error", "the server is gone") == ("failed", "the request failed")
    assert candidate("", "error", "the server is gone").right is None


def test_a_reply_that_is_cut_off_never_passes() -> None:
    assert outcome(GOOD, "length") == ("cut_off", "cut off by the token limit")


def test_filters_that_are_off_let_pass() -> None:
    wrong = good_reply(QUESTION, wrong_letter(QUESTION), 1)
    assert outcome(wrong, answer=False) == ("passed", "")
    repeated = GOOD.replace("\n\n", " It is what we see in this man." * 8 + "\n\n")
    assert outcome(repeated) == ("repetition", "repeats itself")
    assert outcome(repeated, repetition=None) == ("passed", "")
    assert outcome(f"Score: 10/10. {GOOD}", form=False) == ("passed", "")


def test_an_earlier_filter_counts_before_a_later_one() -> None:
    wrong = good_reply(QUESTION, wrong_letter(QUESTION), 1)
    repeated = wrong.replace("\n\n", " It is what we see in this man." * 8 + "\n\n")
    assert outcome(repeated, "length")[0] == "cut_off"
    assert outcome(repeated)[0] == "repetition"
    assert outcome(wrong)[0] == "answer"


@settings(deadline=None, max_examples=150)
@given(
    text=st.one_of(
        st.text(max_size=300),
        st.lists(
            st.sampled_from(
                [GOOD, "<think>", "</think>", "The answer is (B).", "The answer is (C).", "\n\n", "Answer:"]
            ),
            max_size=6,
        ).map("".join),
    ),
    answer=st.booleans(),
    form=st.booleans(),
)
def test_any_reply_is_dropped_with_a_reason_or_can_be_trained_on(text: str, answer: bool, form: bool) -> None:
    found = judged_alone(candidate(text), ASKED, Filters(answer=answer, form=form))
    if isinstance(found, Dropped):
        assert found.reason
        return
    assert found.parts.reasoning
    if form:
        row = row_of(ASKED, found.parts)  # raises where no trainer could read it
        assert row["answer_idx"] == "B"
    if answer:
        assert candidate(text).right is True


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_what_passes_would_be_rewarded_and_not_punished(seed: int) -> None:
    found = judged_alone(candidate(good_reply(QUESTION, "B", seed)), ASKED, Filters())
    assert isinstance(found, Passed)
    taught = f"<think>\n{found.parts.reasoning}\n</think>\n\nThe answer is (B)."
    rewards = rewards_of(taught, QUESTION, RewardConfig(), tokens=200)
    assert rewards.faults == ()
    assert rewards.total > 1


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("First this. Then that. The answer is (B).", "First this. Then that."),
        ("First this.\n\n**Answer:**\nThe answer is (B).", "First this."),
        ("First this.\nFinal answer: (B)", "First this."),
        ("<think>\nFirst this.\n</think>\nIt is B. The answer is (B).", "First this."),
        ("First this. The answer is (B).\n\nQuestion: what else?", "First this."),
    ],
)
def test_where_the_reasoning_ends(text: str, reasoning: str) -> None:
    assert parts_of(candidate(text), QUESTION).reasoning == reasoning


def test_a_reply_in_free_text_is_split_at_its_answer() -> None:
    asked = replace(ASKED, question=replace(QUESTION, options=(), labels=(), gold="x"), verifiable=False)
    parts = parts_of(candidate("Because of this.\n\nAnswer: Rest and water.", asked=asked), asked.question)
    assert (parts.reasoning, parts.answer) == ("Because of this.", "Rest and water.")


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        (["supported"] * 4, None),
        (["supported"] * 4 + ["contradicted"], None),
        (["supported"] * 3 + ["contradicted"], "steps are contradicted"),
        (["not covered"] * 4, "no step is supported"),
        ([None, None], "no step has a verdict"),
        ([], "no step has a verdict"),
        (["supported", None], None),
    ],
)
def test_what_a_judge_says_of_the_steps_decides(verdicts: list[str | None], reason: str | None) -> None:
    found = ruled(verdicts, JudgeFilter(judge="llm", model="m", factuality=0.8))
    assert (found.reason if isinstance(found, Dropped) else None) == reason
    if isinstance(found, dict):
        assert found.get("failed", 0) == verdicts.count(None)
