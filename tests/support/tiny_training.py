"""What a whole `medbench train` needs on a CPU: made-up questions with something to learn, a tiny model, a recipe.

    from support.tiny_training import build, command; recipe = build(tmp_path); command("train", recipe, cwd=tmp_path)

An abstract says how patients were after a drug: "better" or "faster" means yes, "worse" or "slower" no, half of each.
The tiny model first learns the format of a reply, always with the same answer (about 50 %), and then to read the word.
An attempt is long enough for the first and too short for the second: ten seeds had 0 to 2 % at step 16, 50 to 63 % at
step 32, and 91 to 100 % after another 32 steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from medbench.harness.checkpoints.fingerprint import fingerprint
from medbench.harness.checkpoints.weights import weight_files
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.run_folder import read_samples
from medbench.harness.training.checkpoint_folder import METRICS, checkpoints, read_metrics
from medbench.harness.training.journal import Confirmed, Gated, Measured, read_events
from medbench.harness.training.state import stages_of
from medbench.trainers.data.rows import Source, load_rows
from support.tiny import build_tiny_model

SYLLABLES = ("ba", "do", "fi", "ku", "le", "mo", "na", "pi", "ro", "su", "ta", "vi")
WORDS = {"yes": ("better", "faster"), "no": ("worse", "slower")}
CONCLUSIONS = {"yes": "Pain, fever and bleeding soon went down.", "no": "Pain, fever and bleeding soon went up."}
NAME = "tiny"
TASK = "pubmedqa"
MARK = "TINY_TRAINING"
"""Marks the training in the environment of all its processes."""

RECIPE: dict[str, Any] = {
    "name": NAME,
    "start": "model",
    "seed": 0,
    "budget": {"attempts": 5},
    "engine": {"dtype": "float32", "kv_cache_gib": 1},
    "benchmarks": [TASK],
    "stages": [
        {
            "name": "sft",
            "trainer": "sft",
            "config": {
                "data": [{"path": "$MEDBENCH_DATA/pubmedqa/train.jsonl"}],
                # the rate grows all the time, so that the first checkpoint has learnt a quarter as much as the last
                "training": {
                    "steps": 32,
                    "batch_size": 16,
                    "learning_rate": 2e-3,
                    "warmup_steps": 32,
                    "save_every": 16,
                    "scheduler": "constant_with_warmup",
                },
                "lora": {"rank": 16, "alpha": 32.0, "use_dora": True, "use_rslora": True},
            },
            "gates": {
                "max_new_tokens": 40,
                "gates": [
                    {"task": TASK, "at_least": 0.75},
                    {"task": TASK, "metric": "unparsed", "at_most": 0.2},
                ],
            },
        },
        {
            "name": "grpo",
            "trainer": "grpo",
            "config": {
                "prompts": [{"path": "$MEDBENCH_DATA/pubmedqa/train.jsonl"}],
                "training": {"steps": 4, "batch_size": 16, "learning_rate": 1e-4, "save_every": 4},
                "lora": {"rank": 8, "alpha": 8.0, "use_dora": True, "use_rslora": True},
                # warm, so that the completions of a group differ
                "rollout": {"completions": 4, "max_completion_tokens": 40, "temperature": 1.15},
                "rewards": {"short": 24, "long": 40, "least_steps": 1},
            },
            "gates": {
                "max_new_tokens": 40,
                "gates": [
                    {"task": TASK, "margin": 0.1},
                    {"task": TASK, "metric": "truncated", "at_most": 0.2},
                ],
            },
        },
    ],
}


def write_questions(path: Path, n: int, *, first: int, seed: int) -> list[dict[str, Any]]:
    """`n` rows with PubMedQA's columns and ids from `first`, each with different names."""
    draw = random.Random(seed)
    rows = []
    for at in range(n):
        decision = ("yes", "no")[at % 2]
        word = WORDS[decision][at // 2 % 2]
        drug, place = (_name(draw, length) for length in (4, 3))
        sentence = f"In {place}, {draw.randint(20, 90)} patients were {word} after they took {drug}."
        rows.append(
            {
                "pubid": first + at,
                "question": f"Does {drug} ease pain?",
                "context": {"contexts": [sentence]},
                "long_answer": CONCLUSIONS[decision],
                "final_decision": decision,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _name(draw: random.Random, syllables: int) -> str:
    return "".join(draw.choice(SYLLABLES) for _ in range(syllables))


def build(folder: Path) -> Path:
    """Write data, model and recipe to `folder`. Returns the recipe's path."""
    data = folder / "data" / TASK
    write_questions(data / "test.jsonl", 120, first=1, seed=1)
    write_questions(data / "train.jsonl", 400, first=1001, seed=2)
    protocol = load_protocol("cot-v2")
    rows = load_rows([Source(path=str(data / "train.jsonl"))])
    texts = [f"{protocol.text(row.question)}\n{row.reasoning}\n{protocol.reply(row.question)}" for row in rows]
    build_tiny_model(folder / "model", vocab_from=[*texts, "system user assistant"])
    return write_recipe(folder, RECIPE)


def write_recipe(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write `content` as a recipe in `folder`, with an absolute path of its start."""
    start = content.get("start")
    found = {**content, "start": str(folder / "model")} if start == "model" else content
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(found), sort_keys=False))
    return path


def environment(**more: str) -> dict[str, str]:
    """One thread: for a model of half a million parameters two are slower, and much slower under load."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def arguments(*given: str | Path) -> list[str]:
    """The command line of `medbench GIVEN`."""
    return [sys.executable, "-m", "medbench.harness.cli", *map(str, given)]


def command(*given: str | Path, cwd: Path, timeout: float = 500, **env: str) -> subprocess.CompletedProcess[str]:
    """`medbench GIVEN`, as a user starts it in `cwd`."""
    return subprocess.run(
        arguments(*given), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout
    )


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill -9 of the whole command."""

    seconds: float
    """Since the session's start."""
    under_way: str


def start(recipe: Path, runs: Path) -> subprocess.Popen[bytes]:
    """`medbench train --resume`, which starts or resumes a training."""
    runs.mkdir(parents=True, exist_ok=True)
    given = arguments("train", recipe, "--runs", runs, "--data", recipe.parent / "data", "--resume", "--quiet")
    with (runs / "log.txt").open("ab") as log:
        return subprocess.Popen(
            given, cwd=runs, env=environment(**{MARK: str(runs)}), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def kill_when(process: subprocess.Popen[bytes], runs: Path, moment: Callable[[float], bool]) -> Kill | None:
    """SIGKILL to the command alone when `moment(seconds since its start)` holds, and wait until its children are gone.

    None if it ended first. Raises AssertionError if any of them is left after 15 seconds.
    """
    began = time.monotonic()
    while not moment(time.monotonic() - began):
        if process.poll() is not None:
            return None
        time.sleep(0.01)
    seen = Kill(time.monotonic() - began, under_way(runs / f"train-{NAME}"))
    process.kill()
    process.wait()
    until = time.monotonic() + 15
    while left := left_behind(runs):
        assert time.monotonic() < until, f"left behind by a kill {seen}: {left}"
        time.sleep(0.05)
    return seen


def left_behind(runs: Path) -> list[str]:
    """Command lines of all running processes that descend from a training in `runs`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(runs) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def under_way(folder: Path) -> str:
    """What a training is doing, judging by its files."""
    events = list(read_events(folder))
    stages = stages_of(events)
    attempt = stages[-1].open if stages else None
    if attempt is None:
        return f"after {events[-1].event}" if events else "starting"
    number, stage = attempt.started.attempt, attempt.started.stage
    where = f"{stage}, attempt {number}"
    if attempt.passed is not None:
        return f"{where}: confirming step {attempt.passed.step}"
    inside = folder / f"{len(stages)}-{stage}" / f"attempt-{number}"
    judged = {one.step for one in attempt.gated}
    waiting = [one.step for one in checkpoints(inside) if one.step not in judged]
    if waiting:
        return f"{where}: gating step {waiting[0]}"
    steps = [line["step"] for line in read_metrics(inside)]
    return f"{where}: training, after step {steps[-1] if steps else 0}"


def differences(torn: Path, whole: Path) -> list[str]:
    """What a killed training has different from an uninterrupted one, or twice. `torn` and `whole`: their --runs.

    Except for times and paths, journals must be equal, and so must all logged steps and the promoted weights.
    """
    mine, its = (runs / f"train-{NAME}" for runs in (torn, whole))
    events, expected = _told(mine, torn), _told(its, whole)
    found = [
        f"event {at}, {other['event']}: {name} is {str(one.get(name))[:200]}, not {str(other[name])[:200]}"
        for at, (one, other) in enumerate(zip(events, expected, strict=False))
        for name in other
        if one.get(name) != other[name]
    ]
    if len(events) != len(expected):
        found.append(f"{len(events)} events, not {len(expected)}")
    found += [f"twice: {line}" for line, n in Counter(map(json.dumps, events)).items() if n > 1]
    runs = [event.run for event in read_events(mine) if isinstance(event, Gated | Confirmed | Measured)]
    found += [f"{run}: two events refer to it" for run, n in Counter(runs).items() if n > 1]
    there = sorted(f"runs/{path.name}" for path in (mine / "runs").iterdir())
    if there != sorted(map(str, runs)):
        found.append(f"run folders {there}, events refer to {sorted(map(str, runs))}")
    for run in there:
        asked = [sample.id for sample in read_samples(mine / run, TASK)]
        if len(asked) != len(set(asked)):
            found.append(f"{run}: {len(asked) - len(set(asked))} questions asked twice")
    for metrics in sorted(its.glob(f"*/*/{METRICS}")):
        attempt = metrics.parent.relative_to(its)
        if _logged(mine / attempt) != _logged(its / attempt):
            found.append(f"{attempt}: different metrics")
    for promoted in sorted(path.relative_to(its) for path in its.glob("*/promoted")):
        if fingerprint(weight_files(mine / promoted)) != fingerprint(weight_files(its / promoted)):
            found.append(f"{promoted}: different weights")
    return found


def _told(folder: Path, runs: Path) -> list[dict[str, Any]]:
    told = []
    for event in read_events(folder):
        times: Any = {"elapsed": True, "seconds": True, "training_seconds": True, "verdict": {"costs"}}
        text = event.model_dump_json(exclude=times)
        told.append(json.loads(text.replace(str(runs), "RUNS")))
    return told


def _logged(attempt: Path) -> list[dict[str, object]]:
    def told(name: str) -> bool:
        return "time" not in name and "memory" not in name

    return [{name: value for name, value in line.items() if told(name)} for line in read_metrics(attempt)]
