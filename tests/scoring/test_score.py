"""Completions to samples, and samples to results."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.contracts import Completion, Data, Flags, MedbenchError, Question, Request, Sample, Task
from medbench.harness.scoring.score import lm_eval_results, score_completion, score_reply
from medbench.harness.scoring.summary import TaskResult, summarize
from medbench.harness.stats.intervals import wilson_interval

Clusters = list[tuple[int, float]]

LABELS = ("A", "B", "C", "D")
OPTIONS = ("aspirin", "heparin", "warfarin", "clopidogrel")
TASK = Task("toy", "3", "test", 0.25, (), Data("local", "s" * 64, official=True))


def sample(number: int, score: float | None = 1.0, **changes: Any) -> Sample:
    plain: dict[str, Any] = {
        "id": f"q{number}",
        "cluster": f"c{number}",
        "prompt": "Question?",
        "output": "The answer is (A).",
        "finish_reason": "stop",
        "extracted": "A",
        "outcome": "answered",
        "span": None,
        "gold": "A",
        "score": score,
        "error": None,
        "prompt_tokens": 5,
        "completion_tokens": 10,
        "category": {},
    }
    return Sample(**{**plain, **changes})


def failed(number: int, **changes: Any) -> Sample:
    fields = {"output": "", "finish_reason": "error", "extracted": None, "outcome": "error", "error": "timeout"}
    return sample(number, None, **{**fields, **changes})


def unread(number: int, outcome: str = "unparsed", **changes: Any) -> Sample:
    return sample(number, 0.0, extracted=None, outcome=outcome, **changes)


# summarize


def test_flagged_questions_are_left_out_of_the_second_accuracy() -> None:
    task = replace(TASK, flags=Flags(frozenset({"q0", "q1"}), "by whom"))
    samples = [sample(0, 0.0), sample(1, 0.0), sample(2), sample(3), sample(4, 0.0), failed(5)]
    result = summarize(task, "p", samples)
    assert (result.n, result.accuracy) == (6, 0.4)
    rest = result.unflagged
    assert rest is not None
    assert (rest.n, rest.left_out, rest.about) == (3, 2, "by whom")
    assert rest.accuracy == pytest.approx(2 / 3)
    assert rest.interval == wilson_interval(2, 3)
    assert summarize(TASK, "p", samples).unflagged is None
    assert summarize(task, "p", samples[:2]).unflagged is None, "nothing is left"
    assert TaskResult.model_validate_json(result.model_dump_json()) == result
    older = {key: value for key, value in json.loads(result.model_dump_json()).items() if key != "unflagged"}
    assert TaskResult.model_validate(older).unflagged is None


def test_a_failed_request_is_neither_right_nor_wrong() -> None:
    without = summarize(TASK, "p", [sample(0), sample(1, 0.0), sample(2)])
    found = summarize(TASK, "p", [sample(0), failed(3), sample(1, 0.0), failed(4), sample(2)])
    assert (found.n, found.n_error, found.outcomes) == (5, 2, {"answered": 3, "error": 2})
    assert found.accuracy == without.accuracy == pytest.approx(2 / 3)
    assert found.interval == without.interval
    assert found.interval_wilson == without.interval_wilson == pytest.approx(wilson_interval(2, 3))
    assert found.tokens_per_answer == without.tokens_per_answer == 10
    assert found.n_unparsed == 0


def test_a_reply_without_an_answer_is_wrong_and_counted() -> None:
    kinds = ("unparsed", "ambiguous", "truncated", "empty", "refused")
    samples = [sample(0), *(unread(number + 1, kind) for number, kind in enumerate(kinds)), failed(9)]
    found = summarize(TASK, "p", samples)
    assert (found.n, found.n_unparsed, found.n_error) == (7, 5, 1)
    assert found.accuracy == pytest.approx(1 / 6)
    assert found.outcomes == {"answered": 1, "error": 1, **dict.fromkeys(kinds, 1)}


def test_truncated_replies_are_counted_answered_or_not() -> None:
    samples = [sample(0, finish_reason="length"), unread(1, "truncated", finish_reason="length"), sample(2)]
    found = summarize(TASK, "p", samples)
    assert (found.n_truncated, found.n_unparsed) == (2, 1)


@given(
    samples=st.lists(
        st.builds(
            lambda number, outcome, right: (
                failed(number)
                if outcome == "error"
                else sample(number, float(right))
                if outcome == "answered"
                else unread(number, outcome)
            ),
            st.integers(0, 20),
            st.sampled_from(["answered", "unparsed", "ambiguous", "truncated", "empty", "refused", "error"]),
            st.booleans(),
        )
    )
)
def test_counts_add_up(samples: list[Sample]) -> None:
    found = summarize(TASK, "p", iter(samples))
    assert found.n == sum(found.outcomes.values()) == len(samples)
    assert found.n_unparsed + found.n_error + found.outcomes.get("answered", 0) == found.n
    scores = [one.score for one in samples if one.score is not None]
    assert (found.accuracy is None) == (found.interval is None) == (found.interval_wilson is None) == (not scores)
    assert found.accuracy is None or found.accuracy == pytest.approx(sum(scores) / len(scores))
    assert TaskResult.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("samples", [[], [failed(0), failed(1)]], ids=["none", "all failed"])
def test_without_scores_there_is_no_accuracy(samples: list[Sample]) -> None:
    found = summarize(TASK, "p", samples)
    assert (found.accuracy, found.interval, found.interval_wilson, found.tokens_per_answer) == (None,) * 4
    assert found.categories == {}
    assert found.n == found.n_error == len(samples)


def test_a_result_names_its_task_and_protocol() -> None:
    found = summarize(TASK, "cot-v2", [sample(0)])
    assert (found.task, found.version, found.split, found.protocol) == ("toy", "3", "test", "cot-v2")
    assert (found.source, found.official, found.chance) == ("local", True, 0.25)


def test_duplicates_widen_the_interval() -> None:
    twice = [sample(number, float(number % 2), cluster=f"c{number % 20}") for number in range(40)]
    found = summarize(TASK, "p", twice)
    assert found.interval == pytest.approx(wilson_interval(10, 20))
    assert found.interval_wilson == pytest.approx(wilson_interval(20, 40))


def test_categories() -> None:
    samples = [
        sample(0, 1.0, category={"step": "1", "src": "x"}),
        sample(1, 0.0, category={"step": "2", "src": "x"}),
        unread(2, category={"step": "2"}),
        failed(3, category={"step": "3", "src": "y"}),
        sample(4, 1.0),
    ]
    found = summarize(TASK, "p", samples).categories
    assert list(found) == ["src", "step"]
    assert {value: (one.n, one.accuracy) for value, one in found["step"].items()} == {"1": (1, 1.0), "2": (2, 0.0)}
    assert {value: (one.n, one.accuracy) for value, one in found["src"].items()} == {"x": (2, 0.5)}
    assert found["src"]["x"].interval == pytest.approx(wilson_interval(1, 2))


# one completion to one sample


QUESTION = Question("q", "c", "Which?", OPTIONS, LABELS, "B", category={"step": "1"})
REQUEST = Request("toy/q", (), "Which?", 64)


def scored(text: str = "", *, request: Request = REQUEST, **changes: Any) -> Sample:
    finish = changes.pop("finish_reason", "stop")
    return score_completion(TASK, QUESTION, request, Completion("toy/q", text, finish, 3, 4, **changes))


def test_a_completion_becomes_a_sample() -> None:
    found = scored("So. The answer is (B).")
    assert (found.id, found.cluster, found.prompt, found.gold) == ("q", "c", "Which?", "B")
    assert (found.extracted, found.outcome, found.score, found.error) == ("B", "answered", 1.0, None)
    assert found.span is not None
    assert found.output[slice(*found.span)] == "B"
    assert (found.prompt_tokens, found.completion_tokens, found.category) == (3, 4, {"step": "1"})
    assert scored("The answer is (C).").score == 0.0


def test_a_failed_completion_has_no_score_whatever_its_text() -> None:
    found = scored("The answer is (B).", finish_reason="error", error="connection lost")
    assert (found.extracted, found.outcome, found.score, found.error) == (None, "error", None, "connection lost")


def test_reasoning_that_never_closes_has_no_answer() -> None:
    assert scored("<think>The answer is (B).", finish_reason="length").outcome == "truncated"
    opened = Request("toy/q", (), "Which?<think>\n", 64)
    assert scored("The answer is (B).", request=opened).score == 0.0
    assert scored("Hm.</think>The answer is (B).", request=opened).score == 1.0


def test_the_most_likely_label_is_the_answer() -> None:
    found = scored(logprobs={" A": -3.0, " B": -1.0, " C": -2.0, " D": float("-inf")})
    assert (found.extracted, found.outcome, found.score) == ("B", "answered", 1.0)
    assert found.logprobs == {" A": -3.0, " B": -1.0, " C": -2.0, " D": float("-inf")}
    assert scored(logprobs={" A": -0.5, " B": -1.0}).score == 0.0


def test_text_after_a_stop_string_is_not_read() -> None:
    reply = "The answer is (B).\nQuestion: another?\nThe answer is (C)."
    assert score_reply(reply, LABELS, OPTIONS, "B", stop=("\nQuestion:",))[1] == 1.0
    answer, score = score_reply("Well.\nQuestion: x?\nThe answer is (B).", LABELS, OPTIONS, "B", stop=("\nQuestion:",))
    assert (answer.answer, score) == (None, 0.0)
    cut = score_reply("Well.\nQuestion: what", LABELS, OPTIONS, "B", finish_reason="length", stop=("\nQuestion:",))
    assert cut[0].outcome == "unparsed", "the reply had ended before the token limit cut the next question"


@given(
    reply=st.one_of(
        st.sampled_from(["The answer is (B).", "The answer is (A).", "B or C", "", "<think>The answer is (B)."]),
        st.text(),
    )
)
def test_lm_eval_gets_the_same_score(reply: str) -> None:
    doc = {"labels": list(LABELS), "options": list(OPTIONS), "gold": "B"}
    found = lm_eval_results(json.loads(json.dumps(doc)), [reply])
    answer, score = score_reply(reply, LABELS, OPTIONS, "B", stop=("\nQuestion:",))
    assert found == {"accuracy": score, "unparsed": float(answer.answer is None)}
    assert math.isfinite(sum(found.values()))


def test_lm_eval_results() -> None:
    doc = {"labels": ["yes", "no", "maybe"], "options": ["yes", "no", "maybe"], "gold": "maybe"}
    assert lm_eval_results(doc, ["The answer is (maybe)."]) == {"accuracy": 1.0, "unparsed": 0.0}
    assert lm_eval_results(doc, ["The answer is (no)."]) == {"accuracy": 0.0, "unparsed": 0.0}
    assert lm_eval_results(doc, ["lol"]) == {"accuracy": 0.0, "unparsed": 1.0}
    assert lm_eval_results(doc, ["Maybe.\nQuestion: Is it so?\nThe answer is (no)."])["accuracy"] == 1.0


class ForeignMetric:
    """One of lm-eval's own tasks, whose metric says `value`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, id: str, output: str, logprobs: object) -> tuple[str | None, float]:
        return output, self.value


@pytest.mark.parametrize("value", [5.0, -0.1, math.nan, math.inf])
def test_a_metric_that_is_no_share_is_refused_before_it_is_stored(value: float) -> None:
    question = Question("q1", "q1", "Which?", (), (), "iron")
    foreign: Any = ForeignMetric(value)
    task = Task("ppl", "1", "test", 0.0, (question,), Data("lm-eval", "0" * 64, False), foreign=foreign)
    request = Request("q1", (), "Which?", 8)
    with pytest.raises(MedbenchError, match=r"ppl: its metric is .* for question 'q1'"):
        score_completion(task, question, request, Completion("q1", "iron", "stop"))
