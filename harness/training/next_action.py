"""What a training does next, decided from its journal alone: a pure function, so a killed loop resumes where it was.

In each stage its start is evaluated, then an attempt trains and every checkpoint is judged on the `gate` questions. A
checkpoint that passes is judged once more, on the `report` questions, which nothing has seen yet. If that confirms it,
it is promoted and the next stage starts from it. A failed attempt is followed by another while the budget lasts.

Retrying until something passes inflates the rate of wrong passes, so each try gets a smaller share of alpha: attempt k
gets 6 / (pi^2 k^2) of the stage's alpha, its j-th checkpoint 6 / (pi^2 j^2) of that, and the stage's n-th confirmation
6 / (pi^2 n^2) of the stage's alpha. The sums over all attempts and checkpoints stay below alpha, however long the loop
runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medbench.harness.training.journal import (
    Event,
    Gated,
    Measured,
)
from medbench.harness.training.recipe import Budget, Recipe, Stage
from medbench.harness.training.state import StageState, best_checkpoint, stages_of

Partition = Literal["gate", "report"]


@dataclass(frozen=True, slots=True)
class BeginStage:
    index: int


@dataclass(frozen=True, slots=True)
class Measure:
    """Evaluate the stage's start."""

    index: int
    partition: Partition


@dataclass(frozen=True, slots=True)
class BeginAttempt:
    index: int
    attempt: int
    start: str | None
    """The checkpoint to continue from, relative to the training's folder; None is the stage's start."""


@dataclass(frozen=True, slots=True)
class Train:
    """Continue the open attempt until a checkpoint passes or the attempt ends."""

    index: int


@dataclass(frozen=True, slots=True)
class Confirm:
    index: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """End the open attempt: its checkpoint passed on the gate questions only."""

    index: int


@dataclass(frozen=True, slots=True)
class Promote:
    index: int


@dataclass(frozen=True, slots=True)
class End:
    outcome: Literal["passed", "failed"]
    reason: str
    checkpoint: str | None


Action = BeginStage | Measure | BeginAttempt | Train | Confirm | Refuse | Promote | End


def seed_of(recipe: Recipe, stage: Stage, attempt: int) -> int:
    """Seed of an attempt's training and of the order of its checkpoints' questions.

    New for each attempt, because what an attempt starts from was chosen after seeing the previous order's results.
    """
    digest = hashlib.sha256(f"{recipe.seed}\0{stage.name}\0{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def next_action(recipe: Recipe, events: Sequence[Event]) -> Action:
    """What to do now. An End in the journal is ignored: with a larger budget the loop continues."""
    stages = stages_of(events)
    if not stages:
        return BeginStage(0)
    index, stage = len(stages) - 1, stages[-1]
    if stage.promoted is not None:
        if index + 1 < len(recipe.stages):
            return BeginStage(index + 1)
        return End("passed", "every stage's gates are passed and confirmed", stage.promoted.checkpoint)
    paired = any(gate.paired for gate in recipe.stages[index].gates.gates)
    if stage.attempts and (last := stage.attempts[-1].ended) is not None and last.outcome == "passed":
        return Promote(index)  # killed between the end of the attempt and the promotion
    attempt = stage.open
    if attempt is not None and attempt.confirmed is not None:
        return Promote(index) if attempt.confirmed.verdict.overall == "pass" else Refuse(index)
    if attempt is not None and attempt.passed is not None:
        return Measure(index, "report") if paired and "report" not in stage.measured else Confirm(index)
    if "gate" not in stage.measured:
        return Measure(index, "gate")
    if attempt is not None:
        return Train(index)  # which ends the attempt if the budget is spent
    spent = spent_budget(recipe.budget, events, events[-1].elapsed)
    if spent is None and len(stage.attempts) >= recipe.budget.attempts:
        spent = f"{len(stage.attempts)} attempts failed"
    if spent is not None:
        failed = stage.attempts[-1].ended if stage.attempts else None
        why = f"; the last: {failed.reason}" if failed is not None else ""
        return End("failed", f"stage {stage.started.stage}: {spent}{why}", best_checkpoint(stages))
    return BeginAttempt(index, len(stage.attempts) + 1, _to_continue_from(stage))


def _to_continue_from(stage: StageState) -> str | None:
    """The last attempt's best checkpoint, if the attempt was still improving."""
    last = stage.attempts[-1] if stage.attempts else None
    if last is None or last.ended is None or not last.ended.improving:
        return None
    return next((one.checkpoint for one in last.gated if one.step == last.ended.step), None)


def spent_budget(budget: Budget, events: Sequence[Event], elapsed: float) -> str | None:
    """Which part of the budget is used up after `elapsed` seconds of work; None if none is."""
    if budget.hours is not None and elapsed >= budget.hours * 3600:
        return f"the {budget.hours:g} hours are spent"
    if budget.questions is not None and questions_left(budget, events) <= 0:
        return f"the {budget.questions} questions are spent"
    return None


def questions_left(budget: Budget, events: Sequence[Event]) -> float:
    """Confirmations do not count: every checkpoint that passes gets one."""
    if budget.questions is None:
        return math.inf
    asked = sum(event.questions for event in events if isinstance(event, Gated | Measured))
    return budget.questions - asked
