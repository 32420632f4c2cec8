"""What a training does next, from its journal alone.

pytest tests/training/test_next_action.py
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.loops import recipe_of

from medbench.harness.gates.verdict import GateResult, Verdict
from medbench.harness.stats.spending import spent_alpha
from medbench.harness.training.journal import (
    AlarmRaised,
    AttemptEnded,
    AttemptStarted,
    Confirmed,
    Event,
    Gated,
    Measured,
    Promoted,
    StageStarted,
    TrainingEnded,
)
from medbench.harness.training.next_action import (
    BeginAttempt,
    BeginStage,
    Confirm,
    End,
    Measure,
    Promote,
    Refuse,
    Train,
    next_action,
    seed_of,
)
from medbench.harness.training.state import Attempt, is_diverged, is_rambling, regressed, stages_of, worth_of

FLOOR = {"task": "medqa", "at_least": 0.6}
NO_WORSE = {"task": "medqa", "margin": 0.02}


def verdict(overall: str, estimate: float | None = 0.5, metric: str = "accuracy") -> Verdict:
    gate = GateResult(
        rule="medqa",
        task="medqa",
        metric=metric,
        status=overall,
        estimate=estimate,
        interval=None,
        threshold=0.6,
        used=10,
        total=100,
        why="because",
    )
    return Verdict(
        overall=overall,
        why="because",
        alpha=0.05,
        decide="census",
        partition="gate",
        correction="",
        candidate="c",
        fingerprint="f",
        baseline=None,
        protocol="cot-v2",
        gates=[gate],
    )


def begun(stage: str = "stage1") -> list[Event]:
    return [StageStarted(stage=stage, start="/start", fingerprint="f")]


def measured(partition: str = "gate", stage: str = "stage1", **changes: Any) -> Measured:
    return Measured(stage=stage, partition=partition, verdict=None, run="runs/s", whole=True, questions=10, **changes)


def started(attempt: int = 1) -> AttemptStarted:
    return AttemptStarted(stage="stage1", attempt=attempt, seed=1, start="/start", config={}, alpha=0.01)


def gated(
    overall: str,
    step: int = 10,
    attempt: int = 1,
    estimate: float | None = 0.5,
    metric: str = "accuracy",
    questions: int = 10,
) -> Gated:
    return Gated(
        stage="stage1",
        attempt=attempt,
        step=step,
        checkpoint=f"a{attempt}/step-{step:06d}",
        verdict=verdict(overall, estimate, metric),
        alpha=0.01,
        run="runs/r",
        seconds=1.0,
        questions=questions,
    )


def confirmed(overall: str) -> Confirmed:
    return Confirmed(
        stage="stage1",
        attempt=1,
        step=10,
        verdict=verdict(overall),
        alpha=0.01,
        run="runs/r",
        seconds=1.0,
        questions=10,
    )


def over(attempt: int = 1, outcome: str = "failed", step: int | None = 10, **changes: Any) -> AttemptEnded:
    return AttemptEnded(stage="stage1", attempt=attempt, outcome=outcome, reason="why", step=step, **changes)


@given(st.floats(1e-4, 0.49), st.integers(1, 3000))
def test_for_any_number_of_tries_the_spent_alpha_stays_below_alpha(alpha: float, tries: int) -> None:
    shares = [spent_alpha(alpha, number) for number in range(1, tries + 1)]
    assert math.fsum(shares) < alpha
    assert all(a > b for a, b in pairwise(shares))
    assert math.isclose(shares[0], alpha * 6 / math.pi**2)


@given(st.integers(0, 2**31 - 1), st.integers(1, 50))
def test_each_attempt_has_its_own_seed(seed: int, attempt: int) -> None:
    recipe = recipe_of([FLOOR], stages=2).model_copy(update={"seed": seed})
    seeds = {seed_of(recipe, stage, number) for stage in recipe.stages for number in (attempt, attempt + 1)}
    assert len(seeds) == 4
    assert all(0 <= one < 2**31 for one in seeds)


def test_a_stage_begins_by_measuring_its_start() -> None:
    recipe = recipe_of([FLOOR])
    assert next_action(recipe, []) == BeginStage(0)
    assert next_action(recipe, begun()) == Measure(0, "gate")
    assert next_action(recipe, [*begun(), measured()]) == BeginAttempt(0, 1, None)


def test_an_open_attempt_trains_until_a_checkpoint_passes() -> None:
    recipe = recipe_of([FLOOR])
    so_far = [*begun(), measured(), started()]
    assert next_action(recipe, so_far) == Train(0)
    assert next_action(recipe, [*so_far, gated("fail")]) == Train(0)
    assert next_action(recipe, [*so_far, gated("undecided")]) == Train(0)
    assert next_action(recipe, [*so_far, gated("pass")]) == Confirm(0)


def test_a_paired_gate_needs_the_starts_answers_on_the_report_half_before_confirming() -> None:
    recipe = recipe_of([FLOOR, NO_WORSE])
    so_far = [*begun(), measured(), started(), gated("pass")]
    assert next_action(recipe, so_far) == Measure(0, "report")
    assert next_action(recipe, [*so_far, measured("report")]) == Confirm(0)


def test_a_confirmed_checkpoint_is_promoted_and_any_other_refused() -> None:
    recipe = recipe_of([FLOOR], stages=2)
    so_far = [*begun(), measured(), started(), gated("pass")]
    for overall in ("fail", "undecided", "not gateable"):
        assert next_action(recipe, [*so_far, confirmed(overall)]) == Refuse(0)
    done = [*so_far, confirmed("pass")]
    assert next_action(recipe, done) == Promote(0)
    done.append(over(outcome="passed"))
    assert next_action(recipe, done) == Promote(0)  # killed between the two
    done.append(Promoted(stage="stage1", attempt=1, step=10, checkpoint="1-stage1/promoted", fingerprint="f"))
    assert next_action(recipe, done) == BeginStage(1)


def test_the_end_names_the_best_checkpoint_of_all_attempts() -> None:
    recipe = recipe_of([FLOOR], attempts=2)
    events = [
        *begun(),
        measured(),
        started(),
        gated("fail", 10, estimate=0.5),
        over(),
        started(2),
        gated("fail", 10, 2, estimate=0.4),
        over(2),
    ]
    end = next_action(recipe, events)
    assert isinstance(end, End)
    assert (end.outcome, end.checkpoint) == ("failed", "a1/step-000010")
    assert end.reason == "stage stage1: 2 attempts failed; the last: why"


def test_a_journalled_end_does_not_stop_a_larger_budget() -> None:
    events = [
        *begun(),
        measured(),
        started(),
        gated("fail"),
        over(),
        TrainingEnded(outcome="failed", reason="stage stage1: 1 attempts failed", checkpoint=None),
    ]
    assert isinstance(next_action(recipe_of([FLOOR], attempts=1), events), End)
    assert next_action(recipe_of([FLOOR], attempts=2), events) == BeginAttempt(0, 2, None)


def test_questions_and_hours_end_the_loop_between_attempts() -> None:
    events = [*begun(), measured(), started(), gated("fail", questions=95), over(elapsed=7300.0)]
    assert "questions are spent" in next_action(recipe_of([FLOOR], questions=105), events).reason  # type: ignore[union-attr]
    assert "hours are spent" in next_action(recipe_of([FLOOR], hours=2.0), events).reason  # type: ignore[union-attr]
    assert isinstance(next_action(recipe_of([FLOOR], questions=106, hours=3.0), events), BeginAttempt)


def test_an_improving_attempt_is_continued_from_its_best_checkpoint() -> None:
    recipe = recipe_of([FLOOR])
    events = [*begun(), measured(), started(), gated("fail", 10, estimate=0.3), gated("fail", 20, estimate=0.5)]
    ending = over(step=20, improving=True)
    assert next_action(recipe, [*events, ending]) == BeginAttempt(0, 2, "a1/step-000020")
    flat = over(step=20, improving=False)
    assert next_action(recipe, [*events, flat]) == BeginAttempt(0, 2, None)


def test_worth_is_the_mean_accuracy_or_the_share_of_gates_passed() -> None:
    assert worth_of(verdict("fail", 0.4)) == 0.4
    assert worth_of(verdict("pass", 0.1, "truncated")) > worth_of(verdict("fail", 0.1, "truncated"))
    assert worth_of(verdict("pass", 0.1, "truncated")) <= 0  # below any accuracy


def attempt_of(*events: Event) -> Attempt:
    return stages_of([*begun(), measured(), started(), *events])[0].attempts[0]


def test_rambling_and_divergence_follow_from_alarms_and_gates() -> None:
    def alarm(kind: str, stop: bool = True) -> AlarmRaised:
        return AlarmRaised(stage="stage1", attempt=1, step=1, kind=kind, reason="r", stop=stop)

    assert is_diverged(attempt_of(alarm("exploding")))
    assert not is_diverged(attempt_of(alarm("exploding", stop=False)))
    assert not is_diverged(attempt_of(alarm("recall")))
    assert is_rambling(attempt_of(alarm("length", stop=False)))
    assert is_rambling(attempt_of(gated("fail", metric="truncated")))
    assert not is_rambling(attempt_of(gated("fail", metric="accuracy")))


def test_a_regression_is_a_margin_that_is_shown_to_fail() -> None:
    stage = recipe_of([NO_WORSE]).stages[0]
    assert regressed(verdict("fail"), stage) == "medqa"
    assert regressed(verdict("undecided"), stage) is None
    assert regressed(verdict("fail"), recipe_of([FLOOR]).stages[0]) is None
