"""Watchdogs over a training attempt: each reads the metrics and reports when the attempt has gone wrong, and why.

    python -c "from medbench.harness.training.watchdogs import WatchdogConfig; print(WatchdogConfig())"

There are two inputs: what the trainer logs at a step (under TRL's names), and what a gated checkpoint scored on each
question. Each alarm is raised once; the loop acts on its `stop`. A metric that is not logged is not watched. The
thresholds are medbench's own; tests/training/test_watchdogs.py prints how often they raise a false alarm on healthy
runs.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from medbench.harness.config import Record
from medbench.harness.contracts import Sample
from medbench.harness.training.journal import Gated

Kind = Literal["not_finite", "exploding", "kl", "entropy", "length", "no_signal", "hacking", "recall"]


class WatchdogConfig(Record):
    """The `watchdogs:` section of a recipe. Windows are counted in logged steps."""

    window: int = Field(10, ge=2)
    """Steps over which a level is averaged before it is judged: single batches are noisy."""
    grad_norm_growth: float = Field(20, gt=1)
    """Multiple of the median over the last 50 steps; the limit is at least 1. Healthy gradient norms spike to 10 times
    the median and recover."""
    loss_growth: float = Field(3, gt=1)
    """Multiple of the median over the last 50 steps, plus 1 nat: a policy loss oscillates around 0, and a supervised
    loss stays below the logarithm of the vocabulary size, about 11."""
    kl_most: float = Field(1.0, gt=0)
    """Nats per token from the reference; useful policies stay within 0.1 or 0.2."""
    entropy_share: float = Field(0.1, gt=0, lt=1)
    """Share of the first window's entropy below which exploration has ended; a decline to a third is normal."""
    entropy_least: float = Field(0.02, ge=0)
    """Nats per token below which entropy has collapsed, whatever its initial value."""
    clipped_most: float = Field(0.5, gt=0, le=1)
    """Share of completions cut off by the token limit."""
    length_growth: float = Field(3.0, gt=1)
    """Multiple of the first window's mean length."""
    no_signal: float = Field(0.95, gt=0, le=1)
    """Share of groups whose rewards are all equal: without advantages there is no gradient."""
    no_signal_steps: int = Field(20, ge=2)
    settled: float = Field(0.9, ge=0, le=1)
    """Format reward from which reward and gate are compared: before that, reward rises through the format alone."""
    reward_rise: float = Field(0.1, gt=0)
    """Rise of the mean reward, over three windows, that should show in a gate's accuracy."""
    transfer: float = Field(0.25, ge=0, le=1)
    """Gain in gate accuracy per unit of reward; shown to be below it, the reward is being gamed."""
    z: float = Field(3.0, gt=0)
    """Standard errors of a paired difference that count as proof. Many checkpoints are compared on the same questions,
    so 2 would raise a false alarm in one run of six."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a watchdog reports; one line of the journal."""

    kind: Kind
    step: int
    reason: str
    stop: bool
    """True: the attempt cannot recover. False: flagged only, the gates decide."""


@dataclass(frozen=True, slots=True)
class GateReading:
    """The scores of a gated checkpoint."""

    step: int
    scores: Mapping[str, Mapping[str, float]]
    """Group -> question id -> score 0..1; groups are tasks ("medqa") and parts ("medqa/meta_info=step1")."""


EARLY = 3
"""Logged steps after which a training that learns nothing is told of; it may still begin to."""
RECALL_PAIRS = (("medqa/meta_info=step1", "medqa/meta_info=step2&3"), ("pubmedqa", "medqa"))
"""(recall, reasoning): long reasoning has been reported to improve the latter at the cost of the former (arXiv
2506.21594)."""


def gate_reading(step: int, samples: Mapping[str, Iterable[Sample]]) -> GateReading:
    """The reading from one checkpoint's samples (task -> samples); engine failures have no score and are left out."""
    scores: dict[str, dict[str, float]] = {}
    for task, found in samples.items():
        for sample in found:
            if sample.score is not None:
                for group in (task, *(f"{task}/{field}={value}" for field, value in sample.category.items())):
                    scores.setdefault(group, {})[sample.key] = sample.score
    return GateReading(step, scores)


class Watchdogs:
    """All watchdogs of one attempt."""

    def __init__(self, config: WatchdogConfig | None = None) -> None:
        self._config = config or WatchdogConfig()
        self._kept = max(50, 3 * self._config.window, self._config.no_signal_steps)
        self._raised: set[tuple[Kind, bool]] = set()
        self._recent: dict[str, deque[float]] = {}
        self._first: dict[str, list[float]] = {}
        self._spikes: dict[str, deque[bool]] = {}
        self._gates: list[GateReading] = []
        self._settled: tuple[GateReading, float] | None = None
        """The first reading after the format was learnt, and the mean reward up to it."""

    def step(self, step: int, metrics: Mapping[str, object]) -> list[Alarm]:
        """New alarms after one logged step; values that are not numbers are ignored."""
        values = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        found = [*self._not_finite(step, values)]
        finite = {name: value for name, value in values.items() if _is_finite(value)}
        found += self._exploding(step, finite)
        for name, value in finite.items():
            self._recent.setdefault(name, deque(maxlen=self._kept)).append(value)
            if len(first := self._first.setdefault(name, [])) < self._config.window:
                first.append(value)
        found += [*self._levels(step), *self._length(step)]
        return self._once(found)

    def gate(self, reading: GateReading) -> list[Alarm]:
        """New alarms after one gated checkpoint; call it after the steps before it."""
        found = [*self._hacking(reading), *self._recall(reading)]
        self._gates.append(reading)
        return self._once(found)

    def judged(self, step: int, samples: Mapping[str, Iterable[Sample]]) -> list[Alarm]:
        """As `gate`, of a checkpoint's samples (task -> samples)."""
        return self.gate(gate_reading(step, samples))

    def _once(self, alarms: Iterable[Alarm]) -> list[Alarm]:
        new: list[Alarm] = []
        for alarm in alarms:
            if (alarm.kind, alarm.stop) not in self._raised:
                self._raised.add((alarm.kind, alarm.stop))
                new.append(alarm)
        return new

    def _mean(self, name: str, steps: int | None = None) -> float | None:
        """Over the last `steps` values (default: one window); None while there are fewer."""
        steps = steps or self._config.window
        values = list(self._recent.get(name, ()))[-steps:]
        return statistics.fmean(values) if len(values) == steps else None

    def _beginning(self, name: str) -> float | None:
        values = self._first.get(name, [])
        return statistics.fmean(values) if len(values) == self._config.window else None

    def _not_finite(self, step: int, values: Mapping[str, float]) -> Iterator[Alarm]:
        for name in ("loss", "grad_norm", "kl", "entropy", "reward"):
            if name in values and not _is_finite(values[name]):
                yield Alarm("not_finite", step, f"{name} is {values[name]} at step {step}: the weights are lost", True)

    def _exploding(self, step: int, values: Mapping[str, float]) -> Iterator[Alarm]:
        """Three of the last five steps far above the median: a single spike is normal, and clipped."""
        for name in ("loss", "grad_norm"):
            past = [abs(value) for value in self._recent.get(name, ())]
            if name not in values or len(past) < self._config.window:
                continue
            usual = statistics.median(past)
            limit = self._config.loss_growth * usual + 1
            if name == "grad_norm":
                limit = max(1.0, self._config.grad_norm_growth * usual)
            spikes = self._spikes.setdefault(name, deque(maxlen=5))
            spikes.append(abs(values[name]) > limit)
            if sum(spikes) >= 3:
                reason = f"{name} {values[name]:.3g} at step {step}, above {limit:.3g} in 3 of 5 steps: diverging"
                yield Alarm("exploding", step, reason, True)

    def _levels(self, step: int) -> Iterator[Alarm]:
        config = self._config
        kl = self._mean("kl")
        if kl is not None and kl > config.kl_most:
            reason = (
                f"KL {kl:.2f} nats per token over {config.window} steps, above {config.kl_most}: too far from the start"
            )
            yield Alarm("kl", step, reason, True)
        entropy, began = self._mean("entropy"), self._beginning("entropy")
        # training without a reward is supervised, and lowers entropy by design
        if entropy is not None and began is not None and "reward" in self._recent:
            least = max(config.entropy_least, config.entropy_share * began)
            if entropy < least and began > config.entropy_least:
                reason = (
                    f"entropy {entropy:.3f} over {config.window} steps, {began:.3f} at first: exploration has ended"
                )
                yield Alarm("entropy", step, reason, True)
        first = self._first.get("frac_reward_zero_std", [])
        if len(first) >= EARLY and min(first[:EARLY]) >= config.no_signal:
            reason = (
                f"all rewards are equal in the groups of the first {EARLY} steps: no reply earns more than another, so "
                f"nothing is learnt yet"
            )
            yield Alarm("no_signal", step, reason, False)
        equal = self._mean("frac_reward_zero_std", config.no_signal_steps)
        if equal is not None and equal >= config.no_signal:
            steps = config.no_signal_steps
            reason = f"all rewards are equal in {equal:.0%} of the groups over {steps} steps: nothing to learn from"
            yield Alarm("no_signal", step, reason, True)

    def _length(self, step: int) -> Iterator[Alarm]:
        config = self._config
        clipped, at_first = self._mean("completions/clipped_ratio"), self._beginning("completions/clipped_ratio")
        if clipped is not None and at_first is not None and clipped >= config.clipped_most > 2 * at_first:
            reason = (
                f"{clipped:.0%} of the completions are cut off by the token limit, {at_first:.0%} at first: rambling"
            )
            yield Alarm("length", step, reason, True)
        mean, began = self._mean("completions/mean_length"), self._beginning("completions/mean_length")
        if mean is not None and began and mean >= config.length_growth * began:
            reason = f"completions of {mean:.0f} tokens on average, {began:.0f} at first: length runs away"
            yield Alarm("length", step, reason, False)

    def _hacking(self, now: GateReading) -> Iterator[Alarm]:
        """Reward up since the format was learnt, while gate accuracy is shown to be flat or down."""
        config = self._config
        reward = self._mean("reward", 3 * config.window)
        form = self._mean("rewards/format/mean", 3 * config.window)
        if reward is None:
            return
        if self._settled is None:
            if form is None or form >= config.settled:
                self._settled = now, reward
            return
        then, rise = self._settled[0], reward - self._settled[1]
        for task in sorted(group for group in now.scores if "/" not in group and group in then.scores):
            gain, error = _paired(then.scores[task], now.scores[task])
            if error is None or rise < config.reward_rise:
                continue
            what = f"reward up by {rise:.2f} since step {then.step} while {task} changed by {gain:+.1%}"
            if gain + config.z * error < 0:
                yield Alarm("hacking", now.step, f"{what}: the reward is being gamed", True)
            elif gain + config.z * error < config.transfer * rise:
                yield Alarm("hacking", now.step, f"{what}: little of it shows in accuracy", False)

    def _recall(self, now: GateReading) -> Iterator[Alarm]:
        if not self._gates:
            return
        then = self._gates[0]
        for recall, reasoning in RECALL_PAIRS:
            if not all(group in reading.scores for group in (recall, reasoning) for reading in (then, now)):
                continue
            lost, error = _paired(then.scores[recall], now.scores[recall])
            gained, _ = _paired(then.scores[reasoning], now.scores[reasoning])
            if error is not None and lost + self._config.z * error < 0 < gained:
                reason = (
                    f"{recall} {lost:+.1%} since step {then.step} while {reasoning} {gained:+.1%}: recall is being lost"
                )
                yield Alarm("recall", now.step, reason, False)


def _is_finite(value: float) -> bool:
    """Also False near the limit of float32 and beyond: bfloat16 training logs such numbers on its way to infinity."""
    return abs(value) < 1e38


def _paired(then: Mapping[str, float], now: Mapping[str, float]) -> tuple[float, float | None]:
    """(mean change, its standard error) over the questions answered in both; (0, None) for fewer than 30 of them.

    The error includes one made-up question that improved and one that got worse, so that it is not 0 without changes.
    """
    changes = [now[id] - then[id] for id in then.keys() & now.keys()]
    if len(changes) < 30:
        return 0.0, None
    return statistics.fmean(changes), statistics.stdev([*changes, 1.0, -1.0]) / math.sqrt(len(changes))


@dataclass(slots=True)
class AttemptWatch:
    """The watchdogs of one attempt, fed each logged step once and in order, also across a kill and a resume."""

    watch: Watchdogs
    fed: int = -1
    """The last step that they were fed."""

    def catch_up(
        self,
        metrics: Sequence[Mapping[str, object]],
        gated: Sequence[Gated],
        samples: Callable[[str], Mapping[str, Sequence[Sample]]],
    ) -> None:
        """Replay an earlier session; its alarms are in the journal already."""
        for one in gated:
            self.steps(metrics, until=one.step)
            if one.run is not None:
                self.judged(one.step, samples(one.run))

    def steps(self, metrics: Sequence[Mapping[str, object]], until: int | None) -> list[Alarm]:
        """Feed the steps after `fed`, up to `until`. Returns their alarms; stops at the first that ends the attempt."""
        found: list[Alarm] = []
        for line in metrics:
            step = int(str(line["step"]))
            if self.fed < step and (until is None or step <= until):
                self.fed = step
                found += self.watch.step(step, line)
                if any(alarm.stop for alarm in found):
                    break
        return found

    def judged(self, step: int, samples: Mapping[str, Sequence[Sample]]) -> Sequence[Alarm]:
        return self.watch.judged(step, samples)
