"""The baseline and the control variates of a gate, read from stored runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.gates.metric_values import value_of
from medbench.harness.runs.comparability import check_baseline
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import read_run, read_samples

MOST_CONTROLS = 8
"""Stored runs tried as controls, the newest first."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A stored run on all the questions: the baseline, or a control."""

    name: str
    samples: Mapping[str, Mapping[str, Sample]]
    """task -> question id -> sample."""

    def values(self, task: str, ids: Sequence[str], metric: str) -> dict[str, float] | None:
        """The metric for each id; None unless all are known."""
        found = {}
        for id in ids:
            sample = self.samples.get(task, {}).get(id)
            value = value_of(sample, metric) if sample is not None else None
            if value is None or math.isnan(value):
                return None
            found[id] = value
        return found


def read_reference(record: RunRecord, folder: Path, tasks: Sequence[str]) -> Reference:
    """All samples of `tasks` of a finished run."""
    shared = [task for task in tasks if task in record.tasks]
    return Reference(folder.name, {task: {s.id: s for s in read_samples(folder, task)} for task in shared})


def read_baseline(folder: Path | None, candidate: RunRecord, ids: Mapping[str, Collection[str]]) -> Reference | None:
    """Raises MedbenchError where it is not a run, or not one that can be compared with on `ids`, task by task."""
    if folder is None:
        return None
    record = read_run(folder)
    for task, wanted in ids.items():
        if task in record.tasks and record.tasks[task].sha256 != candidate.tasks[task].sha256:
            have = {sample.id for sample in read_samples(folder, task)}
            same = len(have.intersection(wanted))
            raise MedbenchError(f"baseline {record.run_id} has other questions of {task}: {same} of {len(wanted)} "
                                f"match; evaluate it on this data")  # fmt: skip
    check_baseline(candidate, record, list(ids))
    return read_reference(record, folder.resolve(), list(ids))


def read_controls(runs: Path, candidate: RunRecord, baseline: Path | None, tasks: Sequence[str]) -> list[Reference]:
    """Complete runs in `runs` that asked the same questions the same way; other models' are as good as one's own."""
    found: list[tuple[str, Path, RunRecord]] = []
    for folder in sorted(path.parent for path in runs.glob("*/run.json")):
        if baseline is not None and folder.name == baseline.resolve().name:  # itself, or a copy: names tell them apart
            continue
        try:
            record = read_run(folder)
            check_baseline(candidate, record, tasks)
        except MedbenchError:
            continue
        whole = record.status == "complete" and record.limit is None
        if whole and record.model.fingerprint != candidate.model.fingerprint:
            found.append((record.created, folder, record))
    references = []
    for _, folder, record in sorted(found, key=lambda one: one[0], reverse=True)[:MOST_CONTROLS]:
        with suppress(MedbenchError):  # a damaged run is no control, and no reason to stop
            references.append(read_reference(record, folder, tasks))
    return references
