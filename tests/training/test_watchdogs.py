"""Watchdogs: each fires on its fault, and stays silent on healthy, noisy runs.

pytest tests/training/test_watchdogs.py -s prints how many of 200 healthy runs raise an alarm, and how soon faults show.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.contracts import Sample
from medbench.harness.training.watchdogs import Alarm, GateReading, WatchdogConfig, Watchdogs, gate_reading

STEPS = 300
GATE_EVERY = 30
SEEDS = 200
RECALL, REASONING = "medqa/meta_info=step1", "medqa/meta_info=step2&3"
Change = Callable[[int, dict[str, float], dict[str, float]], None]


class Run:
    """A simulated GRPO attempt: metrics as TRL names them, and gates of 640 MedQA and 250 PubMedQA questions.

    A question is answered right if its difficulty, plus a little noise that is new at each checkpoint, is below the
    ability: about one in eight answers flips between two checkpoints of equal ability.
    """

    def __init__(self, seed: int, *, learns: float = 0.1, change: Change | None = None) -> None:
        self._draw = np.random.default_rng(seed)
        self._learns = learns
        self._change = change
        self._noise = 0.0
        self._difficulty = {
            group: {f"{group}{at}": float(self._draw.random()) for at in range(n)}
            for group, n in ((RECALL, 340), (REASONING, 300), ("pubmedqa", 250))
        }

    def metrics(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """(logged metrics, ability by group)."""
        draw, done = self._draw, step / STEPS
        self._noise = 0.7 * self._noise + float(draw.normal(0, 0.03))  # batches of one epoch part are alike
        form = 1 / (1 + math.exp(-(step - 30) / 8))  # the format is learnt first, and quickly
        ability = 0.45 + self._learns * done
        accuracy = min(1.0, max(0.0, form * ability + self._noise))
        logged = {
            "loss": float(draw.normal(0, 0.05)),
            "grad_norm": float(draw.lognormal(-1.5, 0.6)) * (8 if draw.random() < 0.01 else 1),
            "kl": abs(float(draw.normal(0.05 * done, 0.02))),
            "entropy": max(0.05, 0.6 * (1 - 0.6 * done) + float(draw.normal(0, 0.05))),
            "reward": accuracy + 0.3 * form + float(draw.normal(0, 0.02)),
            "rewards/accuracy/mean": accuracy,
            "rewards/format/mean": min(1.0, form + float(draw.normal(0, 0.02))),
            "frac_reward_zero_std": float(np.clip(draw.normal(0.4, 0.15), 0, 1)),
            "completions/mean_length": float(400 * (1 + 0.3 * done) * draw.lognormal(0, 0.1)),
            "completions/clipped_ratio": float(np.clip(draw.normal(0.05, 0.04), 0, 1)),
        }
        abilities = dict.fromkeys(self._difficulty, ability)
        if self._change is not None:
            self._change(step, logged, abilities)
        return logged, abilities

    def reading(self, step: int, abilities: dict[str, float]) -> GateReading:
        scores = {
            group: {id: float(hard + self._draw.normal(0, 0.06) < abilities[group]) for id, hard in questions.items()}
            for group, questions in self._difficulty.items()
        }
        return GateReading(step, {**scores, "medqa": {**scores[RECALL], **scores[REASONING]}})

    def alarms(self) -> list[Alarm]:
        dogs = Watchdogs()
        found: list[Alarm] = []
        for step in range(1, STEPS + 1):
            logged, abilities = self.metrics(step)
            found += dogs.step(step, logged)
            if step % GATE_EVERY == 0:
                found += dogs.gate(self.reading(step, abilities))
        return found


def after(begin: int, change: Callable[[float, dict[str, float], dict[str, float]], None]) -> Change:
    """From `begin` on, with the share of the rest of the run that is done."""

    def changed(step: int, logged: dict[str, float], abilities: dict[str, float]) -> None:
        if step >= begin:
            change((step - begin) / (STEPS - begin), logged, abilities)

    return changed


def setting(**values: Callable[[float], float] | float) -> Callable[[float, dict[str, float], dict[str, float]], None]:
    def change(done: float, logged: dict[str, float], abilities: dict[str, float]) -> None:
        for name, value in values.items():
            logged[name.replace("__", "/")] = value(done) if callable(value) else value

    return change


def gamed(gate: float) -> Callable[[float, dict[str, float], dict[str, float]], None]:
    """Reward goes up by 0.5 while ability changes by `gate`."""

    def change(done: float, logged: dict[str, float], abilities: dict[str, float]) -> None:
        logged["reward"] += 0.5 * done
        for group in abilities:
            abilities[group] = 0.47 + gate * done

    return change


def forgetting(done: float, logged: dict[str, float], abilities: dict[str, float]) -> None:
    abilities[RECALL] -= 0.25 * done
    abilities[REASONING] += 0.1 * done
    logged["reward"] -= 0.1 * done


FAULTS: dict[str, tuple[str, bool, Change]] = {
    "loss is NaN": ("not_finite", True, after(100, setting(loss=math.nan))),
    "gradient norm is infinite": ("not_finite", True, after(100, setting(grad_norm=math.inf))),
    "gradient norm explodes": ("exploding", True, after(100, setting(grad_norm=lambda done: 50 + 1000 * done))),
    "loss explodes": ("exploding", True, after(100, setting(loss=lambda done: 8 + done))),
    "KL runs away": ("kl", True, after(100, setting(kl=lambda done: 5 * done))),
    "entropy collapses": ("entropy", True, after(100, setting(entropy=lambda done: 0.3 * math.exp(-20 * done)))),
    "rambling to the limit": ("length", True, after(100, setting(completions__clipped_ratio=lambda done: done))),
    "completions grow": ("length", False, after(100, setting(completions__mean_length=lambda done: 500 + 2000 * done))),
    "all rewards equal": ("no_signal", True, after(100, setting(frac_reward_zero_std=0.98))),
    "reward up, gate down": ("hacking", True, after(100, gamed(-0.2))),
    "reward up, gate flat": ("hacking", False, after(100, gamed(0.0))),
    "recall lost": ("recall", False, after(100, forgetting)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_seen_in_each_of_twenty_runs(name: str) -> None:
    kind, stop, change = FAULTS[name]
    seen = []
    for seed in range(20):
        alarms = [alarm for alarm in Run(seed, change=change).alarms() if alarm.step >= 100]
        seen += [alarm.step for alarm in alarms if (alarm.kind, alarm.stop) == (kind, stop)][:1]
        assert {alarm.kind for alarm in alarms} <= {kind}
        assert all("\n" not in alarm.reason and len(alarm.reason) < 200 for alarm in alarms)
    print(f"{name}: seen in {len(seen)} of 20 runs, at step {sorted(seen)[len(seen) // 2] if seen else '-'} (from 100)")
    assert len(seen) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "learns", "most"),
    [
        ("that learn 10 points", 0.1, 0.02),
        ("that learn nothing", 0.0, 0.02),
        ("that lose 5 points with their reward", -0.05, 0.02),
    ],
)
def test_healthy_noisy_runs_raise_hardly_any_alarm(what: str, learns: float, most: float) -> None:
    alarmed: Counter[str] = Counter()
    runs = 0
    for seed in range(SEEDS):
        alarms = Run(1000 + seed, learns=learns).alarms()
        runs += bool(alarms)
        alarmed.update(alarm.kind for alarm in alarms)
    print(f"{SEEDS} healthy runs {what}: {runs} with a false alarm ({runs / SEEDS:.1%}) {dict(alarmed)}")
    assert runs <= most * SEEDS


def test_a_supervised_run_is_watched_by_its_loss_only() -> None:
    draw = np.random.default_rng(0)
    dogs = Watchdogs()
    quiet = [
        alarm
        for step in range(400)
        for alarm in dogs.step(
            step, {"loss": 0.9 + math.exp(-step / 50) + draw.normal(0, 0.1), "grad_norm": draw.lognormal()}
        )
    ]
    assert quiet == []
    diverging = [alarm for step in range(400, 420) for alarm in dogs.step(step, {"loss": 7.5, "grad_norm": 1.0})]
    assert [(alarm.kind, alarm.step) for alarm in diverging] == [("exploding", 402)]


def test_learning_the_format_is_not_a_hack() -> None:
    """Reward rises from 0 to 0.8 through the format alone, while the gate stays flat."""
    run = Run(0, learns=0.0)
    assert [alarm for alarm in run.alarms() if alarm.kind == "hacking"] == []


def test_an_alarm_is_raised_once() -> None:
    dogs = Watchdogs()
    alarms = [alarm for step in range(5) for alarm in dogs.step(step, {"loss": math.nan})]
    assert [(alarm.kind, alarm.step, alarm.stop) for alarm in alarms] == [("not_finite", 0, True)]
    assert "loss is nan at step 0" in alarms[0].reason


def test_metrics_that_are_missing_or_not_numbers_are_not_watched() -> None:
    dogs = Watchdogs()
    for step in range(60):
        assert dogs.step(step, {"epoch": 0.1, "loss": "1.5", "note": None}) == []
    assert dogs.gate(GateReading(60, {})) == []
    assert dogs.gate(GateReading(61, {"medqa": {"a": 1.0}})) == []


def test_checkpoints_with_few_questions_in_common_are_not_compared() -> None:
    dogs = Watchdogs(WatchdogConfig(window=2))
    for at, (score, reward) in enumerate(((1.0, 0.1), (0.0, 0.9))):
        for step in range(3):
            dogs.step(3 * at + step, {"reward": reward})
        assert dogs.gate(GateReading(at, {"medqa": {f"{at}{n}": score for n in range(500)}})) == []


METRICS = (
    "loss",
    "grad_norm",
    "kl",
    "entropy",
    "reward",
    "frac_reward_zero_std",
    "completions/mean_length",
    "completions/clipped_ratio",
    "rewards/format/mean",
)


@given(st.lists(st.dictionaries(st.sampled_from(METRICS), st.floats() | st.none() | st.text(max_size=3)), max_size=40))
def test_any_stream_is_read(stream: list[dict[str, Any]]) -> None:
    dogs = Watchdogs(WatchdogConfig(window=3, no_signal_steps=3))
    alarms = [alarm for step, metrics in enumerate(stream) for alarm in dogs.step(step, metrics)]
    assert len(alarms) == len({(alarm.kind, alarm.stop) for alarm in alarms})
    for alarm in alarms:
        assert 0 <= alarm.step < len(stream)


def test_a_training_without_a_signal_is_told_of_after_its_first_steps() -> None:
    dogs = Watchdogs()
    found = [dogs.step(step, {"frac_reward_zero_std": 1.0}) for step in range(1, 7)]
    assert [len(alarms) for alarms in found] == [0, 0, 1, 0, 0, 0]
    (alarm,) = found[2]
    assert (alarm.kind, alarm.step, alarm.stop) == ("no_signal", 3, False)
    assert alarm.reason.startswith("all rewards are equal in the groups of the first 3 steps")


def test_one_group_that_differs_in_the_first_steps_is_a_signal() -> None:
    dogs = Watchdogs()
    assert not [alarm for step, share in enumerate([1.0, 0.75, 1.0, 1.0], 1)
                for alarm in dogs.step(step, {"frac_reward_zero_std": share})]  # fmt: skip


def test_a_reading_groups_samples_by_task_and_category_and_leaves_failures_out() -> None:
    def sample(id: str, score: float | None, step: str) -> Sample:
        return Sample(id, id, "", "", "stop", None, "answered", None, "A", score, None, 0, 0, {"meta_info": step})

    samples = {"medqa": [sample("a", 1.0, "step1"), sample("b", 0.0, "step2&3"), sample("c", None, "step1")]}
    assert gate_reading(7, samples) == GateReading(
        7, {"medqa": {"a": 1.0, "b": 0.0}, RECALL: {"a": 1.0}, REASONING: {"b": 0.0}}
    )


def test_falling_entropy_in_supervised_training_is_not_a_collapse() -> None:
    """TRL's SFTTrainer logs it too, and learning to write a fixed form takes it from 6 nats to a hundredth."""

    def falling(**more: float) -> list[Alarm]:
        watch = Watchdogs(WatchdogConfig())
        steps = ({"loss": 1.0, "entropy": 6 * math.exp(-step / 5), **more} for step in range(60))
        return [alarm for step, metrics in enumerate(steps) for alarm in watch.step(step, metrics)]

    assert falling() == []
    assert [alarm.kind for alarm in falling(reward=0.5)] == ["entropy"]
