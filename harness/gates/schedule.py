"""What to ask next while a gate is open, so that the engine is as full as the verdict needs and no fuller.

    schedule = Schedule(gate, stored, places=256)
    for item in schedule.to_send(): ...              # (task, id, repeat), or None: nothing for now
    schedule.passed("medqa", "q7", 256)              # it is still running, and longer than that
    schedule.arrived("medqa", sample, seconds=1.5)   # the gate sees what is next along the order

Requests are sent along each task's fixed order and may finish in any order; the gate sees an answer only after all
before it, in steps of STEP, and what is known of it within a limit of tokens only after the same is known of all before
it. So what is sent, how far ahead, and when it finishes never change a verdict: each gate's test is a function of the
answers along its task's order, and stops at the first step that decides it (see token_limits.py).

How far ahead: with continuous batching one step of the engine makes a token for each running reply, and takes only a
little longer for more of them, up to its number of places. So that many are always under way, and more where the
forecast of a gate's evidence says that it needs more. tests/bench/verdict_time.py shows that sending fewer, as the
forecast would have it, makes most verdicts later: the forecast comes only after the longest of the first replies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from medbench.harness.contracts import Sample, sample_key
from medbench.harness.gates.live_gate import FIRST_LOOK, Demand, LiveGate
from medbench.harness.gates.token_limits import Reply

AHEAD = 1.5
"""Answers sent ahead, as a multiple of those that the verdict likely needs."""
STEP = 8
"""Questions of one task whose answers its gates are given at a time, after the first FIRST_LOOK."""
BLOCK = 32
"""Requests at a time for an engine that does not say how many it works on at once."""


@dataclass(slots=True)
class Schedule:
    """The stream of a gate's questions. No engine, no clock, no files."""

    gate: LiveGate
    answered: dict[str, dict[str, Sample]]
    """task -> key (see contracts.Sample) -> answer, of earlier sessions and of this one."""
    places: int | None = None
    """How many requests the engine works on at once with profit; None where it does not say."""
    seconds: float = 0.0
    """Time that all answers so far took, those of earlier sessions included."""
    _sent: dict[str, int] = field(init=False)
    """task -> how many requests along its order have been sent or are answered, all samples of a question together."""
    _under_way: int = 0
    _passed: dict[tuple[str, str], int] = field(default_factory=dict)
    """(task, key) of a reply -> the most of the token limits that it was longer than while it ran."""
    _demands: list[Demand] = field(init=False)

    def __post_init__(self) -> None:
        self._sent = dict.fromkeys(self.gate.orders, 0)
        self._demands = self.gate.demands()
        self._give()

    @property
    def done(self) -> bool:
        """Whether the verdict is certain, or nothing is left to ask."""
        return not self._demands

    @property
    def demands(self) -> Sequence[Demand]:
        """Of the gate, as of the last step that it was given."""
        return self._demands

    def to_send(self) -> Iterator[tuple[str, str, int] | None]:
        """(task, id, repeat) of the next request, again and again; None where more would not help for now.

        Without `places` there is no None: it ends after a block, and is to be called again when all have arrived.
        """
        sent = 0
        while not self.done and (self.places is not None or sent < BLOCK):
            found = self._next()
            if found is None and self.places is None:
                return
            sent += 1
            yield found

    def arrived(self, task: str, sample: Sample, *, seconds: float) -> None:
        """Take an answer and give the gate all that are now next along the orders."""
        self.answered[task][sample.key] = sample
        self._under_way -= 1
        self.seconds = seconds
        self._give()

    def passed(self, task: str, key: str, tokens: int) -> None:
        """A running reply has become longer than so many tokens."""
        self._passed[task, key] = tokens
        self._give()

    def settle(self, seconds: float) -> None:
        """Tell the gates how long all answers took in the end, as the run's record says."""
        self.seconds = seconds
        self.gate.observe(next(iter(self.gate.orders)), [], seconds=self._seconds_for(self.gate.used))

    def _seconds_for(self, questions: int) -> float:
        """The part of the time so far that the answers to so many questions took."""
        return self.seconds / max(1, sum(map(len, self.answered.values()))) * questions * self.gate.samples

    def _next(self) -> tuple[str, str, int] | None:
        demands = sorted(self._demands, key=_urgency)
        for demand in demands:
            ahead = math.ceil(max(STEP, AHEAD * min(demand.more, len(self.gate.orders[demand.task]))))
            if (found := self._next_of(demand.task, self.gate.position(demand.task) + ahead)) is not None:
                return found
        if self._under_way < (self.places or BLOCK):
            for demand in demands:
                if (found := self._next_of(demand.task, len(self.gate.orders[demand.task]))) is not None:
                    return found
        return None

    def _next_of(self, task: str, wanted: int) -> tuple[str, str, int] | None:
        """The task's next request among its first `wanted` questions."""
        order, samples = self.gate.orders[task], self.gate.samples
        while self._sent[task] < min(wanted, len(order)) * samples and not self._is_spent(task):
            at, repeat = divmod(self._sent[task], samples)
            self._sent[task] += 1
            if sample_key(order[at], repeat) not in self.answered[task]:
                self._under_way += 1
                return task, order[at], repeat
        return None

    def _is_spent(self, task: str) -> bool:
        """Whether no further question may be begun, and all of the task's that were begun have been sent."""
        budget, samples = self.gate.rules.budget, self.gate.samples
        begun = sum(math.ceil(sent / samples) for sent in self._sent.values())
        return budget is not None and begun >= budget and self._sent[task] % samples == 0

    def _give(self) -> None:
        """Give the gate whole steps until it has no demand, or none that has arrived."""
        while any(self._give_step(demand.task, limit) for demand in self._demands for limit in self._limits):
            self._demands = self.gate.demands()

    @property
    def _limits(self) -> Sequence[int | None]:
        return (None, *self.gate.limits.tokens)

    def _give_step(self, task: str, limit: int | None) -> bool:
        """Give the gate the next step of a task's replies, whole or within `limit` tokens, if all of it is known."""
        position, answered, budget = self.gate.position(task, limit), self.answered[task], self.gate.rules.budget
        size = STEP if position else FIRST_LOOK
        if budget is not None:
            size = min(size, budget - sum(self.gate.position(name, limit) for name in self.gate.orders))
        ids = self.gate.orders[task][position : position + size]
        if not ids:
            return False
        replies = []
        for id, repeat in itertools.product(ids, range(self.gate.samples)):
            key = sample_key(id, repeat)
            sample = answered.get(key)
            if sample is None and (limit is None or self._passed.get((task, key), -1) < limit):
                return False
            replies.append(Reply(id, sample, repeat))
        if limit is not None:
            self.gate.observe_within(task, limit, replies)
        else:
            seconds = self._seconds_for(self.gate.used + len(ids))
            self.gate.observe(task, [one.sample for one in replies if one.sample is not None], seconds=seconds)
        return True


def _urgency(demand: Demand) -> tuple[int, float]:
    """A task not looked at yet first; then a likely fail, since one settles the verdict; then what takes longest."""
    if not demand.seen:
        return 0, 0.0
    return (1, demand.tokens) if demand.fails else (2, -demand.tokens)
