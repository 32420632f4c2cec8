"""How long a gate's verdict will take, from what the engine has done so far in this session.

    clock = ExpectedTime(places=256, most_tokens=2048)
    clock.sent("medqa", "q7", now=0.0)
    clock.arrived("medqa", sample, now=2.5)
    clock.expected(gate, schedule.demands, schedule.answered, now=2.5)     # Expected(likely=40.0, most=120.0)

Time for questions that have not been sent = their number x mean time of an answer / answers under way at once while
every place is taken (Little's law). The mean is that of tokens per answer over tokens per second and reply, but needs
no tokens, which log-likelihoods do not have. When the last one is sent, the verdict still waits for the longest reply.

In the first seconds only short replies have ended, so their mean would be too low. The mean is therefore taken from
the Kaplan-Meier estimate of the share that is still running after so many seconds, in which a running reply counts as
longer than it is by now. While the oldest one runs, the estimate says nothing beyond its age: `likely` takes it to end
now, `most` to run to the limit in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from medbench.harness.contracts import Sample, sample_key
from medbench.harness.gates.live_gate import Demand, LiveGate
from medbench.harness.text import duration

ERRORS = 2.0
"""Standard errors that the most has in hand."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Seconds from now to the verdict."""

    likely: float | None
    """At the evidence's present pace; None before a task's first answers have been looked at, and where the rules ask
    everything."""
    most: float
    """For everything that is left to ask. No guarantee: later replies may be slower than those so far."""

    def __str__(self) -> str:
        most = duration(self.most, rounded=math.ceil)
        if self.likely is None or duration(self.likely) == most:
            return f"at most {most}"
        return f"about {duration(self.likely)}, at most {most}"


@dataclass(slots=True)
class ExpectedTime:
    """Follows the requests of a gate. No engine, no clock, no files: times are seconds from any one origin."""

    places: int | None
    """As for Schedule."""
    most_tokens: int
    """That a reply may have."""
    _running: dict[str, dict[str, float]] = field(default_factory=dict)
    """task -> key of the answer -> when its request was sent."""
    _took: dict[str, list[float]] = field(default_factory=dict)
    """task -> seconds that each finished reply took."""
    _tokens: int = 0
    """Generated, in the finished replies."""
    _full: float = 0.0
    """Time in which every place was taken."""
    _replies: float = 0.0
    """The number of replies under way, integrated over that time."""
    _last: float = 0.0
    """When something was last sent or arrived."""

    def sent(self, task: str, key: str, now: float) -> None:
        self._pass_to(now)
        self._running.setdefault(task, {})[key] = now

    def arrived(self, task: str, sample: Sample, now: float) -> None:
        self._pass_to(now)
        self._took.setdefault(task, []).append(now - self._running[task].pop(sample.key))
        self._tokens += sample.completion_tokens

    def expected(
        self, gate: LiveGate, demands: Sequence[Demand], answered: Mapping[str, Collection[str]], now: float
    ) -> Expected | None:
        """None before the first answer. `answered`: task -> keys, those of earlier sessions included."""
        if not demands or not self._took:
            return None
        oldest, longest = self._oldest(now), max(map(max, self._took.values()))
        seen = max(oldest, longest)
        allowed = max(seen, self._longest_allowed) if oldest >= longest else seen
        left = {
            one.task: [
                sample_key(id, repeat)
                for id in gate.orders[one.task][gate.position(one.task) :]
                for repeat in range(gate.samples)
            ]
            for one in demands
        }
        most = self._seconds(left, answered, now, allowed, self._unspent(gate, answered), ERRORS)
        most += self._seconds_in_queue(now, allowed)
        if gate.rules.asks_everything or not all(one.seen for one in demands):
            return Expected(None, most)
        fails = [one for one in demands if one.fails]
        needed = [min(fails, key=lambda one: one.more)] if fails else demands
        likely = {one.task: left[one.task][: gate.samples * math.ceil(one.more)] for one in needed}
        return Expected(min(most, self._seconds(likely, answered, now, seen)), most)

    def _seconds(
        self,
        keys: Mapping[str, Sequence[str]],
        answered: Mapping[str, Collection[str]],
        now: float,
        longest: float,
        unspent: float = math.inf,
        errors: float = 0.0,
    ) -> float:
        """Until these are answered, or `unspent` of those not sent, where no reply takes longer than `longest`.

        `errors`: standard errors by which the mean time of an answer may be too low.
        """
        unsent, work, youngest = 0, 0.0, -math.inf
        for task, some in keys.items():
            running = self._running.get(task, {})
            waiting = sum(key not in answered[task] and key not in running for key in some)
            unsent += waiting
            work += waiting * self._mean(task, now, longest, errors) if waiting else 0.0
            youngest = max([youngest, *(running[key] for key in some if key in running)])
        if not unsent:
            return max(0.0, longest - (now - youngest))
        # places are never all taken where there are more of them than questions
        at_once = self._replies / self._full if self._full else 1.0
        return min(1.0, unspent / unsent) * work / at_once + longest

    def _seconds_in_queue(self, now: float, longest: float) -> float:
        """Until every request that has been sent has a place."""
        queued = self._under_way - self.places if self.places is not None else 0
        tasks = [task for task, running in self._running.items() if running]
        if queued <= 0:
            return 0.0
        return queued / (self.places or 1) * max(self._mean(task, now, longest, ERRORS) for task in tasks)

    def _mean(self, task: str, now: float, longest: float, errors: float) -> float:
        """Seconds that an answer of the task takes; before its first one, an answer of any task.

        The standard deviation is taken to be as large as the mean; of real replies it is smaller.
        """
        tasks = [task] if task in self._took else list(self._took)
        ended = [seconds for name in tasks for seconds in self._took[name]]
        ages = [now - at for name in tasks for at in self._running.get(name, {}).values()]
        return min(longest, area_under_survival(ended, ages, longest) * (1 + errors / math.sqrt(len(ended))))

    def _unspent(self, gate: LiveGate, answered: Mapping[str, Collection[str]]) -> float:
        """How many more requests the rules' budget allows."""
        if gate.rules.budget is None:
            return math.inf
        return max(0, gate.rules.budget * gate.samples - sum(map(len, answered.values())) - self._under_way)

    def _oldest(self, now: float) -> float:
        """Age of the reply that has been running for longest."""
        return max((now - at for running in self._running.values() for at in running.values()), default=0.0)

    @property
    def _longest_allowed(self) -> float:
        """Seconds that a reply with the most tokens takes; 0 where tokens are not counted."""
        seconds = sum(map(sum, self._took.values()))
        return self.most_tokens * seconds / self._tokens if self._tokens else 0.0

    @property
    def _under_way(self) -> int:
        return sum(map(len, self._running.values()))

    def _pass_to(self, now: float) -> None:
        under_way = self._under_way
        if under_way and under_way >= (self.places or 1):
            self._full += now - self._last
            self._replies += under_way * (now - self._last)
        self._last = now


def area_under_survival(ended: Sequence[float], ages: Sequence[float], longest: float) -> float:
    """Mean of durations of which some have `ended` and others have reached these `ages`, none exceeding `longest`.

    The product-limit estimate of Kaplan and Meier (1958), integrated from 0 to `longest`.
    """
    events = sorted([(seconds, 0) for seconds in ended] + [(age, 1) for age in ages])  # an end before an equal age
    area, share, at = 0.0, 1.0, 0.0
    for number, (seconds, runs_on) in enumerate(events):
        area += share * (seconds - at)
        at = seconds
        if not runs_on:
            share *= 1 - 1 / (len(events) - number)
    return area + share * (longest - at)
