"""What the training loop needs of others: a judge of checkpoints, trainings as processes.

python -c "from medbench.harness.training.contracts import Judge, Launcher; print(Judge.__doc__)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medbench.harness.contracts import Sample
from medbench.harness.gates.rules import GateFile
from medbench.harness.gates.verdict import Verdict
from medbench.harness.training.recipe import Stage


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a judge found."""

    verdict: Verdict | None
    run: Path | None
    seconds: float
    questions: int
    samples: Mapping[str, Sequence[Sample]]


class Judge(Protocol):
    """Asks checkpoints; keeps its engine between them."""

    def judge(
        self, checkpoint: Path, rules: GateFile, *, name: str, seed: int, baseline: Path | None, alpha_fail: float
    ) -> Ruling:
        """As far as the verdict needs. `name` is the run folder's; what it holds already is not asked again.

        `rules.alpha` is what may be spent on a wrong pass, `alpha_fail` on a wrong fail.
        """
        ...

    def measure(self, checkpoint: Path, rules: GateFile, *, name: str, seed: int) -> Ruling:
        """Every question where a gate is paired, and the verdict by the gates that are not, if there are any."""
        ...

    def promote(self, checkpoint: Path, target: Path) -> str:
        """Leave the checkpoint in `target`, adapters merged, unless it is there already; its weights' fingerprint."""
        ...

    def full(self, checkpoint: Path) -> Path:
        """Folder of the full checkpoint behind `checkpoint`: itself, or an adapter's merged form."""
        ...

    def fingerprint(self, checkpoint: Path) -> str: ...

    def samples(self, run: Path) -> Mapping[str, Sequence[Sample]]: ...

    def rest(self) -> None:
        """Give the device back until the next question."""
        ...


class Process(Protocol):
    """A training under way."""

    def poll(self) -> int | None: ...
    def stop(self) -> None: ...


class Launcher(Protocol):
    """Starts an attempt's training, or goes on with it."""

    def __call__(self, stage: Stage, config: Mapping[str, Any], *, start: Path, folder: Path, seed: int) -> Process: ...
