"""A finished run, as evaluations return it and as it is read back from disk.

>>> run = load_run("runs/base")
>>> run.results["medqa"].accuracy, next(run.samples("medqa")).output
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import read_run, read_samples, results_of
from medbench.harness.runs.sample_check import refuse_excess
from medbench.harness.scoring.summary import TaskResult
from medbench.harness.text import did_you_mean, percent


@dataclass(frozen=True, slots=True, repr=False)
class StoredRun:
    """A sealed run: its record and results in memory, its samples on disk."""

    folder: Path
    record: RunRecord
    """run.json; `status` is "failed" where a task has no score because every request failed."""
    results: dict[str, TaskResult]
    """By task name."""

    def samples(self, task: str) -> Iterator[Sample]:
        """The task's samples in the order in which they finished. Raises MedbenchError for a task not in the run."""
        if task not in self.record.tasks:
            raise MedbenchError(f"{self.folder}: no task {task!r}; {did_you_mean(task, list(self.record.tasks))}")
        return read_samples(self.folder, task)

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.folder),
            **self.record.model_dump(mode="json", include={"run_id", "status", "model", "limit", "totals", "notes"}),
            "protocol": self.record.protocol["name"],
            "results": {name: result.model_dump(mode="json") for name, result in self.results.items()},
        }

    def __repr__(self) -> str:
        """One line for the run and one per task."""
        record = self.record
        head = f"StoredRun({str(self.folder)!r}: {record.model.name}, {record.protocol['name']}, {record.status})"
        return "\n".join([head, *(f"  {_line(result)}" for result in self.results.values())])


def load_run(folder: str | Path) -> StoredRun:
    """The run in `folder`. Raises MedbenchError where there is none, or it is unfinished, damaged or too new."""
    folder = Path(folder)
    record = read_run(folder)
    if record.status == "running":
        raise MedbenchError(f"{folder}: the run is not finished: continue it with --resume")
    results = results_of(folder, record.tasks)
    for task, result in results.items():
        refuse_excess(folder, record, task, result.n)
    return StoredRun(folder, record, results)


def _line(result: TaskResult) -> str:
    if result.accuracy is None or result.interval is None:
        return f"{result.task}: not scored, {result.n_error} of {result.n} requests failed"
    low, high = result.interval
    return f"{result.task}: {percent(result.accuracy)} % [{percent(low)}, {percent(high)}], n={result.n}"
