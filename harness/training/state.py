"""The state of each stage according to the journal: its attempts, their checkpoints, the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from medbench.harness.gates.verdict import Verdict
from medbench.harness.training.journal import (
    AlarmRaised,
    AttemptEnded,
    AttemptStarted,
    Confirmed,
    Event,
    Gated,
    Measured,
    Probed,
    Promoted,
    StageStarted,
    TrainingEnded,
)
from medbench.harness.training.recipe import Stage

DIVERGED = ("not_finite", "exploding", "kl", "entropy")


@dataclass(slots=True)
class Attempt:
    """One attempt, as far as it is journalled."""

    started: AttemptStarted
    gated: list[Gated] = field(default_factory=list)
    alarms: list[AlarmRaised] = field(default_factory=list)
    confirmed: Confirmed | None = None
    ended: AttemptEnded | None = None

    @property
    def passed(self) -> Gated | None:
        """The checkpoint that passed on the gate questions; it is the attempt's last."""
        return self.gated[-1] if self.gated and self.gated[-1].verdict.overall == "pass" else None


@dataclass(slots=True)
class StageState:
    """One stage, as far as it is journalled."""

    started: StageStarted
    measured: dict[str, Measured] = field(default_factory=dict)
    probed: Probed | None = None
    attempts: list[Attempt] = field(default_factory=list)
    promoted: Promoted | None = None

    @property
    def open(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts and self.attempts[-1].ended is None else None

    @property
    def confirmations(self) -> int:
        return sum(attempt.confirmed is not None for attempt in self.attempts)


def stages_of(events: Sequence[Event]) -> list[StageState]:
    """The stages that have begun, in order."""
    stages: list[StageState] = []
    for event in events:
        if isinstance(event, StageStarted):
            stages.append(StageState(event))
        elif isinstance(event, Measured):
            stages[-1].measured[event.partition] = event
        elif isinstance(event, Probed):
            stages[-1].probed = event
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


def ended(events: Sequence[Event]) -> TrainingEnded | None:
    """The training's end, if that is its last event."""
    return events[-1] if events and isinstance(events[-1], TrainingEnded) else None


def worth_of(verdict: Verdict) -> float:
    """Ranks the checkpoints of one stage: the mean estimate over gates on accuracy (with a baseline: a difference), or
    without such gates the share of gates passed minus 1, in [-1, 0]."""
    accuracy = [gate.estimate for gate in verdict.gates if gate.metric == "accuracy" and gate.estimate is not None]
    if accuracy:
        return math.fsum(accuracy) / len(accuracy)
    return sum(gate.status == "pass" for gate in verdict.gates) / max(1, len(verdict.gates)) - 1


def best_of(gated: Sequence[Gated]) -> Gated | None:
    """The best, the later one if equal."""
    return max(gated, key=lambda one: (worth_of(one.verdict), one.step), default=None)


def best_checkpoint(stages: Sequence[StageState]) -> str | None:
    """The best checkpoint of the last stage, or the previous stage's result if it left none."""
    for stage in reversed(stages):
        if stage.promoted is not None:
            return stage.promoted.checkpoint
        best = best_of([gated for attempt in stage.attempts for gated in attempt.gated])
        if best is not None:
            return best.checkpoint
    return None


def is_improving(attempt: Attempt) -> bool:
    """Whether the last checkpoint was better than all before it; False for a single one."""
    worth = [worth_of(one.verdict) for one in attempt.gated]
    return len(worth) > 1 and worth[-1] > max(worth[:-1])


def regressed(verdict: Verdict, stage: Stage) -> str | None:
    """The rule of a no-regression gate (a margin to the stage's start) that it is shown to fail, or None. A margin to a
    baseline of the stage's own is none: a student begins worse than its teacher."""
    if stage.baseline is not None:
        return None
    for gate, result in zip(stage.gates.gates, verdict.gates, strict=False):
        if gate.margin is not None and result.status == "fail":
            return result.rule
    return None


def is_rambling(attempt: Attempt) -> bool:
    """Whether completion length ran away, or the last checkpoint failed a gate on truncated replies or on tokens."""
    if any(alarm.kind == "length" for alarm in attempt.alarms):
        return True
    last = attempt.gated[-1].verdict.gates if attempt.gated else []
    return any(gate.status == "fail" and gate.metric in ("truncated", "tokens_per_answer") for gate in last)


def is_diverged(attempt: Attempt) -> bool:
    return any(alarm.kind in DIVERGED and alarm.stop for alarm in attempt.alarms)
