"""What verdicts say of replies: each score on replies small enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from medbench.harness.judges.contracts import Verdict
from medbench.harness.judges.judge_run import JudgedReply, JudgedTask, Reply
from medbench.harness.judges.scores import ReplyScores, scores_of, task_scores

YES: Verdict = "supported"
NO: Verdict = "contradicted"
OPEN: Verdict = "not covered"
SOURCE = "Metformin lowered glucose by 12 points."


def judged(*steps: tuple[str, Verdict | None], id: str = "q") -> JudgedReply:
    reply = Reply(id, id, 0, "Does metformin help?", SOURCE, tuple(step for step, _ in steps))
    return JudgedReply(reply, tuple(verdict for _, verdict in steps))


def task_of(*replies: JudgedReply) -> JudgedTask:
    faults = tuple("broken" for one in replies for verdict in one.verdicts if verdict is None)
    return JudgedTask("toy", Path("f"), replies, unanswered=0, without_source=0, asked=0, faults=faults)


def scores(*steps: tuple[str, Verdict | None]) -> ReplyScores:
    found = scores_of(judged(*steps))
    assert found is not None
    return found


def test_factuality_is_the_supported_share_of_what_the_source_speaks_about() -> None:
    assert scores(("a", YES), ("b", NO), ("c", OPEN), ("d", OPEN)).factuality == 0.5
    assert scores(("c", OPEN)).factuality == 0


def test_effectiveness_counts_a_supported_step_once_however_often_it_is_said() -> None:
    assert scores(("It fell.", YES), ("it fell.", YES), ("It fell.", YES), ("b", OPEN)).effectiveness == 0.25


def test_completeness_is_the_share_of_the_sources_key_words_in_supported_steps() -> None:
    # lowered, glucose, 12, points; metformin is in the question
    assert scores(("Glucose fell by 12.", YES), ("Points were lowered.", NO)).completeness == 0.5
    assert scores((SOURCE, YES)) == ReplyScores(1.0, 1.0, 1.0)


def test_failed_steps_are_in_no_score_and_a_reply_of_failed_steps_has_none() -> None:
    assert scores(("a", YES), ("b", None)) == scores(("a", YES))
    assert scores_of(judged(("a", None), ("b", None))) is None


def test_a_reply_without_steps_scores_nothing() -> None:
    assert scores() == ReplyScores(0.0, 0.0, 0.0)


def test_the_scores_of_a_task_count_everything_once() -> None:
    found = task_scores(task_of(judged(("a", YES), ("b", NO)), judged(("a", None), id="r"), judged(id="s")))
    assert (found.replies, found.steps, found.failed, found.without_steps) == (3, 3, 1, 1)
    assert {verdict: share.value for verdict, share in found.shares.items()} == {YES: 0.5, NO: 0.5, OPEN: 0.0}
    assert found.scores["factuality"].value == 0.25  # of the two replies that have scores
    assert found.faults == {"broken": 1}
    assert found.lacks_verdicts


def test_replies_to_one_question_are_no_independent_evidence() -> None:
    apart = task_scores(task_of(*(judged(("a", YES if at % 2 else NO), id=f"q{at}") for at in range(40))))
    alike = task_scores(
        task_of(*(judged(("a", YES if at % 2 else NO), id=f"q{at}") for at in range(10) for _ in range(4)))
    )
    for kind in ("shares", "scores"):
        one, other = next(iter(getattr(apart, kind).values())), next(iter(getattr(alike, kind).values()))
        assert one.value == other.value == 0.5
        assert other.high - other.low > 1.5 * (one.high - one.low)


def test_nothing_judged_has_no_shares() -> None:
    found = task_scores(task_of(judged()))
    assert found.shares == {}
    assert found.scores["factuality"].value == 0
    assert not found.lacks_verdicts


@pytest.mark.parametrize("failed", [2, 3])
def test_more_than_two_percent_failed_is_too_many(failed: int) -> None:
    replies = [judged(("a", YES), id=f"q{at}") for at in range(100 - failed)]
    replies += [judged(("b", None), id=f"f{at}") for at in range(failed)]
    assert task_scores(task_of(*replies)).lacks_verdicts is (failed > 2)
