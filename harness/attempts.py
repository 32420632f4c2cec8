"""What a training does next, told from its journal alone: pure, so that a loop that was killed goes on where it was.

    python -c "from medbench.harness.attempts import spent_alpha; print([spent_alpha(0.05, k) for k in (1, 2, 3)])"

Each stage: its start is asked; an attempt trains and every checkpoint is judged on the `gate` questions; one that
passes is judged once more on the `report` questions, which nothing has looked at; confirmed, it is promoted and the
next stage starts from it. Attempts that fail are followed by others while the budget lasts.

Retrying until something passes inflates wrong passes, so what may be spent shrinks: attempt k has 6 alpha / (pi^2 k^2)
of the stage's alpha, its j-th checkpoint 6 / (pi^2 j^2) of that, and confirmations are counted through in the same way:
the sums over all attempts and checkpoints stay below alpha, however long the loop runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from medbench.harness.gates.verdict import Verdict
from medbench.harness.journal import (
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
from medbench.harness.recipe import Budget, Recipe, Stage

Partition = Literal["gate", "report"]


@dataclass(frozen=True, slots=True)
class BeginStage:
    index: int


@dataclass(frozen=True, slots=True)
class Measure:
    """Ask the stage's start."""

    index: int
    partition: Partition


@dataclass(frozen=True, slots=True)
class BeginAttempt:
    index: int
    attempt: int
    start: str | None
    """The checkpoint to go on from, relative to the training's folder; None is the stage's start."""


@dataclass(frozen=True, slots=True)
class Train:
    """Go on with the open attempt until a checkpoint passes or the attempt ends."""

    index: int


@dataclass(frozen=True, slots=True)
class Confirm:
    index: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """End the open attempt: its checkpoint passed on the gate questions alone."""

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


@dataclass(slots=True)
class Attempt:
    """One attempt as far as it is journalled."""

    started: AttemptStarted
    gated: list[Gated] = field(default_factory=list)
    alarms: list[AlarmRaised] = field(default_factory=list)
    confirmed: Confirmed | None = None
    ended: AttemptEnded | None = None

    @property
    def passed(self) -> Gated | None:
        """The checkpoint that passed on the gate questions: the attempt's last."""
        return self.gated[-1] if self.gated and self.gated[-1].verdict.overall == "pass" else None


@dataclass(slots=True)
class StageState:
    """One stage as far as it is journalled."""

    started: StageStarted
    measured: dict[str, Measured] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    promoted: Promoted | None = None

    @property
    def open(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts and self.attempts[-1].ended is None else None

    @property
    def confirmations(self) -> int:
        return sum(attempt.confirmed is not None for attempt in self.attempts)


def spent_alpha(alpha: float, number: int) -> float:
    """What the `number`-th try, from 1, may spend; the sum over all numbers is alpha."""
    return alpha * 6 / (math.pi * number) ** 2


def seed_of(recipe: Recipe, stage: Stage, attempt: int) -> int:
    """Of an attempt's training and of the order in which its checkpoints' questions are asked: a fresh one for each,
    since what an attempt starts from was chosen after looking at the order before."""
    digest = hashlib.sha256(f"{recipe.seed}\0{stage.name}\0{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def stages_of(events: Sequence[Event]) -> list[StageState]:
    """The stages that were begun."""
    stages: list[StageState] = []
    for event in events:
        if isinstance(event, StageStarted):
            stages.append(StageState(event))
        elif isinstance(event, Measured):
            stages[-1].measured[event.partition] = event
        elif isinstance(event, AttemptStarted):
            stages[-1].attempts.append(Attempt(event))
        elif isinstance(event, AlarmRaised):
            stages[-1].attempts[-1].alarms.append(event)
        elif isinstance(event, Gated):
            stages[-1].attempts[-1].gated.append(event)
        elif isinstance(event, Confirmed):
            stages[-1].attempts[-1].confirmed = event
        elif isinstance(event, AttemptEnded):
            stages[-1].attempts[-1].ended = event
        elif isinstance(event, Promoted):
            stages[-1].promoted = event
    return stages


def next_action(recipe: Recipe, events: Sequence[Event]) -> Action:
    """What to do now. An End that is journalled already does not count: a larger budget lets the loop go on."""
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
        return Promote(index)  # killed between the attempt's end and the promotion
    attempt = stage.open
    if attempt is not None and attempt.confirmed is not None:
        return Promote(index) if attempt.confirmed.verdict.overall == "pass" else Refuse(index)
    if attempt is not None and attempt.passed is not None:
        return Measure(index, "report") if paired and "report" not in stage.measured else Confirm(index)
    if "gate" not in stage.measured:
        return Measure(index, "gate")
    if attempt is not None:
        return Train(index)  # which ends the attempt where the budget is spent
    spent = spent_budget(recipe.budget, events, events[-1].elapsed)
    if spent is None and len(stage.attempts) >= recipe.budget.attempts:
        spent = f"{len(stage.attempts)} attempts failed"
    if spent is not None:
        failed = stage.attempts[-1].ended if stage.attempts else None
        why = f"; the last: {failed.reason}" if failed is not None else ""
        return End("failed", f"stage {stage.started.stage}: {spent}{why}", best_checkpoint(stages))
    return BeginAttempt(index, len(stage.attempts) + 1, _to_go_on_from(stage))


def _to_go_on_from(stage: StageState) -> str | None:
    """The last attempt's best checkpoint, where it was still improving."""
    last = stage.attempts[-1] if stage.attempts else None
    if last is None or last.ended is None or not last.ended.improving:
        return None
    return next((one.checkpoint for one in last.gated if one.step == last.ended.step), None)


def spent_budget(budget: Budget, events: Sequence[Event], elapsed: float) -> str | None:
    """Which part of the budget is used up after `elapsed` seconds of work; None while there is some of each."""
    if budget.hours is not None and elapsed >= budget.hours * 3600:
        return f"the {budget.hours:g} hours are spent"
    if budget.questions is not None and questions_left(budget, events) <= 0:
        return f"the {budget.questions} questions are spent"
    return None


def questions_left(budget: Budget, events: Sequence[Event]) -> float:
    """Confirmations do not count: a checkpoint that passed is always confirmed."""
    if budget.questions is None:
        return math.inf
    asked = sum(event.questions for event in events if isinstance(event, Gated | Measured))
    return budget.questions - asked


def ended(events: Sequence[Event]) -> TrainingEnded | None:
    """The training's end, when that is its last event."""
    return events[-1] if events and isinstance(events[-1], TrainingEnded) else None


def worth_of(verdict: Verdict) -> float:
    """By which checkpoints of one stage are compared: the mean estimate of its gates on accuracy, else gates passed."""
    accuracy = [gate.estimate for gate in verdict.gates if gate.metric == "accuracy" and gate.estimate is not None]
    if accuracy:
        return math.fsum(accuracy) / len(accuracy)
    return sum(gate.status == "pass" for gate in verdict.gates) / max(1, len(verdict.gates)) - 1


def best_of(gated: Sequence[Gated]) -> Gated | None:
    """The latest of the best."""
    return max(gated, key=lambda one: (worth_of(one.verdict), one.step), default=None)


def best_checkpoint(stages: Sequence[StageState]) -> str | None:
    """The best checkpoint of the last stage, else what the stage before was left with."""
    for stage in reversed(stages):
        if stage.promoted is not None:
            return stage.promoted.checkpoint
        best = best_of([gated for attempt in stage.attempts for gated in attempt.gated])
        if best is not None:
            return best.checkpoint
    return None


def is_improving(attempt: Attempt) -> bool:
    """Whether the last checkpoint was better than all before it, of two at least."""
    worth = [worth_of(one.verdict) for one in attempt.gated]
    return len(worth) > 1 and worth[-1] > max(worth[:-1])


def regressed(verdict: Verdict, stage: Stage) -> str | None:
    """The rule of a no-regression gate (a margin to the stage's start) that the checkpoint surely fails."""
    for gate, result in zip(stage.gates.gates, verdict.gates, strict=False):
        if gate.margin is not None and result.status == "fail":
            return result.rule
    return None


def is_rambling(attempt: Attempt) -> bool:
    """Whether length ran away, or the last checkpoint failed a gate on truncated replies or on tokens."""
    if any(alarm.kind == "length" for alarm in attempt.alarms):
        return True
    last = attempt.gated[-1].verdict.gates if attempt.gated else []
    return any(gate.status == "fail" and gate.metric in ("truncated", "tokens_per_answer") for gate in last)


DIVERGED = ("not_finite", "exploding", "kl", "entropy")


def is_diverged(attempt: Attempt) -> bool:
    return any(alarm.kind in DIVERGED and alarm.stop for alarm in attempt.alarms)
