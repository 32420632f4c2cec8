"""The trainer `noop`: publishes its start checkpoint unchanged, some times. A template for trainer plugins.

medbench.harness.training.trainer_plugins says what a trainer must have.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from medbench.harness.config import Record
from medbench.harness.contracts import Question
from medbench.harness.training.checkpoint_folder import append_metrics, publish, wait_until_judged
from medbench.harness.training.trainer_plugins import FailedAttempt


class Config(Record):
    """The `config:` of a noop stage."""

    checkpoints: int = Field(1, ge=1)


def prepare(config: Config, *, start: Path, folder: Path, benchmarks: Mapping[str, Sequence[Question]]) -> list[str]:
    return [f"publishes {start.name} {config.checkpoints} times; benchmarks: {', '.join(benchmarks)}"]


def train(config: Config, *, start: Path, folder: Path, seed: int) -> None:
    for step in range(1, config.checkpoints + 1):
        append_metrics(folder, step, {"loss": 0.0})
        publish(folder, step, lambda target: shutil.copytree(start, target, dirs_exist_ok=True))
        wait_until_judged(folder, step)


def adapt(config: Config, verdict: FailedAttempt) -> Config:
    return config.model_copy(update={"checkpoints": config.checkpoints + 1})
