"""Interfaces of the training loop: a judge of checkpoints, and trainings as processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medbench.harness.contracts import Sample
from medbench.harness.gates.rules import GateFile
from medbench.harness.gates.verdict import Verdict
from medbench.harness.training.difficulty import Probe
from medbench.harness.training.recipe import Stage


@dataclass(frozen=True, slots=True)
class Ruling:
    """The result of judging one checkpoint."""

    verdict: Verdict | None
    run: Path | None
    seconds: float
    questions: int
    samples: Mapping[str, Sequence[Sample]]


class Judge(Protocol):
    """Evaluates checkpoints; keeps its engine from one to the next."""

    def judge(
        self, checkpoint: Path, rules: GateFile, *, name: str, seed: int, baseline: Path | None, alpha_fail: float
    ) -> Ruling:
        """Ask questions until the verdict is decided. `name` is the run folder's; answers that it has are reused.

        `rules.alpha` bounds the probability of a wrong pass, `alpha_fail` that of a wrong fail.
        """
        ...

    def measure(self, checkpoint: Path, rules: GateFile, *, name: str, seed: int) -> Ruling:
        """Ask every question if any gate is paired. The verdict covers only the gates that are not paired, if any."""
        ...

    def answer(self, checkpoint: Path, rules: GateFile, *, name: str, seed: int) -> Ruling:
        """Ask every question, for a baseline; no verdict."""
        ...

    def probe(self, checkpoint: Path, probe: Probe, *, name: str, seed: int) -> Sequence[Sample]:
        """Ask the probe's questions, all of them, and return the samples. `name` is the run folder's."""
        ...

    def promote(self, checkpoint: Path, target: Path) -> str:
        """Copy the checkpoint to `target` unless it is there, adapters merged. Returns its weights' fingerprint."""
        ...

    def full(self, checkpoint: Path) -> Path:
        """Folder of the full checkpoint: `checkpoint` itself, or an adapter's merged form."""
        ...

    def fingerprint(self, checkpoint: Path) -> str: ...

    def unchanged(self, checkpoint: Path, start: Path) -> bool:
        """Whether training has left every weight as it was in the full checkpoint `start`."""
        ...

    def samples(self, run: Path) -> Mapping[str, Sequence[Sample]]: ...

    def rest(self) -> None:
        """Release the device until the next question."""
        ...


class Process(Protocol):
    """A running training."""

    def poll(self) -> int | None: ...
    def stop(self) -> None: ...


class Launcher(Protocol):
    """Starts or resumes an attempt's training."""

    def __call__(self, stage: Stage, config: Mapping[str, Any], *, start: Path, folder: Path, seed: int) -> Process: ...
