"""Made-up trainings for the tests of pages, written by the journal's own writer.

from support.made_trainings import a_training, two_stages
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medbench.harness.gates.verdict import CORRECTION, GateResult, Verdict
from medbench.harness.training.checkpoint_folder import append_metrics
from medbench.harness.training.journal import (
    AlarmRaised,
    AttemptEnded,
    AttemptStarted,
    Confirmed,
    Event,
    Gated,
    Journal,
    Measured,
    Promoted,
    StageStarted,
    Training,
    TrainingEnded,
    create_training,
)

FLOOR = "pubmedqa: accuracy at least 0.6"
MARGIN = "medqa: accuracy not worse than the baseline's by more than 0.02"
TOKENS = "pubmedqa: tokens_per_answer at most 400"


def a_gate(
    rule: str, status: str, estimate: float | None, half: float = 0.03, used: int = 180, **changes: Any
) -> GateResult:
    task, _, rest = rule.partition(": ")
    values: dict[str, Any] = {
        "rule": rule,
        "task": task,
        "metric": rest.partition(" ")[0],
        "status": status,
        "estimate": estimate,
        "interval": None if estimate is None else (estimate - half, estimate + half),
        "interval_level": None if estimate is None else 0.93,
        "interval_kind": None if estimate is None else "anytime",
        "threshold": {FLOOR: 0.6, MARGIN: -0.02, TOKENS: 400.0}.get(rule, 0.5),
        "used": used,
        "total": 500,
        "why": "made up",
    }
    return GateResult(**(values | changes))


def a_verdict(overall: str, *gates: GateResult, **changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "overall": overall,
        "why": f"made up: {overall}",
        "alpha": 0.05,
        "decide": "census",
        "partition": "gate",
        "correction": CORRECTION,
        "candidate": "step",
        "fingerprint": "f",
        "baseline": "start",
        "protocol": "cot-v2",
        "gates": list(gates),
    }
    return Verdict(**(values | changes))


def a_record(name: str = "mine", **changes: Any) -> Training:
    values: dict[str, Any] = {
        "name": name,
        "created": "2026-01-01T00:00:00+00:00",
        "command": ["/opt/bin/medbench", "train", "recipes/my recipe.yaml"],
        "recipe": {"name": name, "start": "smollm2-135m", "stages": [{"name": "sft", "trainer": "sft"}]},
        "recipe_sha256": "0" * 64,
        "start": "smollm2-135m",
        "fingerprint": "1" * 64,
        "packages": {"trl": "1.16.0", "peft": "0.18.0"},
        "git_commit": "abc1234",
    }
    return Training(**(values | changes))


def a_training(root: Path, folder_name: str = "train-mine", events: Sequence[Event] = (), **changes: Any) -> Path:
    """The folder of a training with these events; `changes` go into its record."""
    folder = root / folder_name
    create_training(folder, a_record(**({"name": folder_name.removeprefix("train-")} | changes)))
    with Journal(folder) as journal:
        for event in events:
            journal.append(event)
    return folder


def begun(stage: str = "sft", **changes: Any) -> list[Event]:
    """A stage and its first attempt."""
    return [
        StageStarted(stage=stage, start="/models/start", fingerprint="1" * 64, elapsed=1.0),
        AttemptStarted(
            stage=stage,
            attempt=1,
            seed=7,
            start="/models/start",
            config={"rate": 0.1},
            alpha=0.03,
            elapsed=2.0,
            **changes,
        ),
    ]


def gated(stage: str, attempt: int, step: int, verdict: Verdict, **changes: Any) -> Gated:
    values: dict[str, Any] = {
        "stage": stage,
        "attempt": attempt,
        "step": step,
        "checkpoint": f"1-{stage}/attempt-{attempt}/step-{step:06d}",
        "verdict": verdict,
        "alpha": 0.01,
        "run": f"runs/{stage}-a{attempt}-step-{step:06d}-gate",
        "seconds": 94.0,
        "questions": 430,
    }
    return Gated(**(values | changes))


def log(
    folder: Path, steps: int, *, seed: int = 0, grpo: bool = False, lost_from: int | None = None, every: int = 1
) -> None:
    """metrics.jsonl of an attempt that learns, or whose loss is NaN from step `lost_from`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for step in range(every, steps + 1, every):
        lost = lost_from is not None and step >= lost_from
        loss = 1.9 * math.exp(-step / 90) + 0.6 + draw.gauss(0, 0.06)
        rising = lost_from is not None and step > lost_from - 12
        metrics: dict[str, object] = {
            "loss": math.nan if lost else loss * (1 + 0.3 * (step - lost_from + 12) if rising and lost_from else 1),
            "grad_norm": (2.0 + draw.random()) * (9 if rising else 1),
            "learning_rate": 2e-5 * min(1, step / 20),
            "epoch": step / 100,
            "note": "text",
        }
        if grpo:
            metrics |= {
                "reward": 0.4 + 0.5 * (1 - math.exp(-step / 60)) + draw.gauss(0, 0.05),
                "rewards/correctness/mean": 0.3 + 0.25 * (1 - math.exp(-step / 70)) + draw.gauss(0, 0.05),
                "rewards/format/mean": 1 - 0.6 * math.exp(-step / 15),
                "rewards/length/mean": 0.5 + draw.gauss(0, 0.03),
                "completions/mean_length": 310 + 0.6 * step + draw.gauss(0, 12),
                "entropy": 0.9 * math.exp(-step / 160) + 0.1,
                "kl": 0.05 * (1 - math.exp(-step / 40)),
            }
        append_metrics(folder, step, metrics)


def two_stages(root: Path, name: str = "train-smollm2") -> Path:
    """Two stages, four attempts: one diverged, one not confirmed, one promoted; then one promoted."""
    from dataclasses import dataclass

    @dataclass
    class Clock:
        now: float = 0.0

        def at(self, seconds: float) -> float:
            self.now += seconds
            return self.now

    clock = Clock()
    first = {"training": {"learning_rate": 2e-5, "steps": 120}, "lora": {"rank": 16}}
    second = {"training": {"learning_rate": 1e-5, "steps": 120}, "lora": {"rank": 16}}
    controls = {"controls": {"base-1b": 0.6}, "saved": 41}

    def judged(
        overall: str,
        score: float,
        status: str,
        difference: float,
        other: str,
        tokens: float = 310,
        used: int = 180,
        half: float = 0.045,
        **changes: Any,
    ) -> Verdict:
        return a_verdict(
            overall,
            a_gate(FLOOR, status, score, half, used, **controls),
            a_gate(MARGIN, other, difference, half * 0.8, used + 70, total=636),
            a_gate(TOKENS, "pass", tokens, 14, used),
            **changes,
        )

    def attempt(stage: str, number: int, config: Mapping[str, Any], start: str = "") -> AttemptStarted:
        return AttemptStarted(
            stage=stage,
            attempt=number,
            seed=1000 + 17 * number,
            config=dict(config),
            start=start or f"/data/{stage}/start",
            alpha=0.05 * 6 / (math.pi * number) ** 2,
            elapsed=clock.at(3),
        )

    def ended(stage: str, number: int, outcome: str, reason: str, step: int, **changes: Any) -> AttemptEnded:
        return AttemptEnded(
            stage=stage, attempt=number, outcome=outcome, reason=reason, step=step, elapsed=clock.at(4), **changes
        )

    base = a_verdict("fail", a_gate(FLOOR, "fail", 0.412, 0.04, 150), a_gate(TOKENS, "pass", 268, 12, 150))
    events: list[Event] = [
        StageStarted(
            stage="sft",
            start="/data/sft/start",
            fingerprint="1" * 64,
            elapsed=clock.at(2),
            prepared=["11,269 rows, 214 left out as overlapping a benchmark", "peak memory about 2.1 GiB"],
        ),
        Measured(
            stage="sft",
            partition="gate",
            verdict=base,
            run="runs/sft-start-gate",
            whole=True,
            questions=1136,
            elapsed=clock.at(300),
        ),
        attempt("sft", 1, first),
        gated("sft", 1, 40, judged("fail", 0.47, "fail", -0.01, "undecided"), elapsed=clock.at(400)),
        AlarmRaised(
            stage="sft",
            attempt=1,
            step=71,
            kind="exploding",
            stop=False,
            reason="grad_norm 24.1 at step 71, above 22.6 in 3 of 5 steps: diverging",
            elapsed=clock.at(200),
        ),
        AlarmRaised(
            stage="sft",
            attempt=1,
            step=78,
            kind="not_finite",
            stop=True,
            reason="loss is nan at step 78: the weights are lost",
            elapsed=clock.at(20),
        ),
        ended(
            "sft",
            1,
            "failed",
            "watchdog not_finite: loss is nan at step 78: the weights are lost",
            40,
            diverged=True,
            training_seconds=620.0,
        ),
        attempt("sft", 2, second),
        gated("sft", 2, 40, judged("fail", 0.49, "fail", 0.004, "undecided", used=140), elapsed=clock.at(400)),
        gated("sft", 2, 80, judged("undecided", 0.585, "undecided", 0.012, "pass", used=480), elapsed=clock.at(400)),
        gated("sft", 2, 120, judged("pass", 0.662, "pass", 0.02, "pass", used=210), elapsed=clock.at(400)),
        Measured(
            stage="sft",
            partition="report",
            verdict=a_verdict("fail", a_gate(FLOOR, "fail", 0.405, 0.05, 140)),
            run="runs/sft-start-report",
            whole=True,
            questions=1130,
            elapsed=clock.at(300),
        ),
        Confirmed(
            stage="sft",
            attempt=2,
            step=120,
            alpha=0.03,
            run="runs/sft-a2-step-000120-report",
            seconds=160.0,
            verdict=judged("undecided", 0.611, "undecided", 0.004, "pass", used=500, half=0.02, partition="report"),
            questions=1100,
            elapsed=clock.at(170),
        ),
        ended(
            "sft",
            2,
            "failed",
            "passed while training, not confirmed: pubmedqa accuracy 61.1 % on all 500 questions:"
            " not yet shown to be at least 60.0 %",
            120,
            improving=True,
            training_seconds=1100.0,
        ),
        attempt("sft", 3, second, "1-sft/attempt-2/step-000120"),
        gated("sft", 3, 40, judged("fail", 0.655, "pass", -0.061, "fail", used=160), elapsed=clock.at(400)),
        gated("sft", 3, 80, judged("pass", 0.694, "pass", 0.031, "pass", used=130), elapsed=clock.at(400)),
        Confirmed(
            stage="sft",
            attempt=3,
            step=80,
            alpha=0.01,
            run="runs/sft-a3-step-000080-report",
            seconds=120.0,
            verdict=judged("pass", 0.687, "pass", 0.024, "pass", used=220, partition="report"),
            questions=520,
            elapsed=clock.at(130),
        ),
        ended("sft", 3, "passed", "step 80 passed and was confirmed", 80, training_seconds=690.0),
        Promoted(
            stage="sft", attempt=3, step=80, checkpoint="1-sft/promoted", fingerprint="3" * 64, elapsed=clock.at(9)
        ),
        StageStarted(stage="grpo", start="/data/grpo/start", fingerprint="3" * 64, elapsed=clock.at(2)),
        Measured(
            stage="grpo",
            partition="gate",
            run="runs/grpo-start-gate",
            whole=True,
            questions=1136,
            verdict=a_verdict("pass", a_gate(FLOOR, "pass", 0.69, 0.03, 150), a_gate(TOKENS, "pass", 300, 12)),
            elapsed=clock.at(310),
        ),
        attempt("grpo", 1, {"rewards": {"length": 0.2}}),
        gated("grpo", 1, 50, judged("undecided", 0.70, "pass", 0.01, "undecided", 330), elapsed=clock.at(900)),
        AlarmRaised(
            stage="grpo",
            attempt=1,
            step=83,
            kind="length",
            stop=False,
            reason="completions of 930 tokens, 310 at first: running away",
            elapsed=clock.at(200),
        ),
        gated("grpo", 1, 100, judged("pass", 0.731, "pass", 0.034, "pass", 352), elapsed=clock.at(900)),
        Confirmed(
            stage="grpo",
            attempt=1,
            step=100,
            alpha=0.03,
            run="runs/grpo-a1-step-000100-report",
            seconds=150.0,
            verdict=judged("pass", 0.726, "pass", 0.029, "pass", 350, partition="report"),
            questions=610,
            elapsed=clock.at(150),
        ),
        ended("grpo", 1, "passed", "step 100 passed and was confirmed", 100, training_seconds=1650.0),
        Promoted(
            stage="grpo", attempt=1, step=100, checkpoint="2-grpo/promoted", fingerprint="4" * 64, elapsed=clock.at(9)
        ),
        TrainingEnded(
            outcome="passed",
            reason="every stage's gates are passed and confirmed",
            checkpoint="2-grpo/promoted",
            elapsed=clock.at(1),
        ),
    ]
    recipe = {
        "name": "smollm2",
        "start": "smollm2-135m",
        "seed": 7,
        "budget": {"attempts": 3, "hours": 2.0},
        "stages": [
            {
                "name": "sft",
                "trainer": "sft",
                "config": first,
                "gates": {
                    "alpha": 0.05,
                    "gates": [
                        {"task": "pubmedqa", "metric": "accuracy", "at_least": 0.6},
                        {"task": "medqa", "metric": "accuracy", "margin": 0.02},
                    ],
                },
            },
            {"name": "grpo", "trainer": "grpo", "config": {"rewards": {"length": 0.2}}},
        ],
    }
    folder = a_training(root, name, events, recipe=recipe)
    log(folder / "1-sft" / "attempt-1", 79, seed=1, lost_from=78)
    log(folder / "1-sft" / "attempt-2", 120, seed=2)
    log(folder / "1-sft" / "attempt-3", 80, seed=3)
    log(folder / "2-grpo" / "attempt-1", 100, seed=4, grpo=True)
    return folder
