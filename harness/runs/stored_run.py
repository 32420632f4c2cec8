"""A run as a script sees it: its record, its results, and its samples one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import read_run, read_samples, results_of
from medbench.harness.scoring.summary import TaskResult
from medbench.harness.text import percent


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A finished run."""

    folder: Path
    record: RunRecord
    results: dict[str, TaskResult]
    """Task -> its scores."""

    def samples(self, task: str) -> Iterator[Sample]:
        """Every stored answer of a task, read from disk, in the order in which they finished."""
        return read_samples(self.folder, task)

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.folder),
            **self.record.model_dump(mode="json", include={"run_id", "status", "model", "limit", "totals", "notes"}),
            "protocol": self.record.protocol["name"],
            "results": {name: result.model_dump(mode="json") for name, result in self.results.items()},
        }

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {percent(result.accuracy)} %" for name, result in self.results.items())
        return f"StoredRun({str(self.folder)!r}: {self.record.model.name}, {scores})"


def load_run(folder: Path) -> StoredRun:
    """Raises MedbenchError where `folder` does not hold a finished run."""
    record = read_run(folder)
    if record.status != "complete":
        raise MedbenchError(f"{folder}: the run is not finished (status {record.status}): complete it with --resume")
    return StoredRun(folder, record, results_of(folder, record.tasks))
