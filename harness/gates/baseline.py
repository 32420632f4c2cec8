"""The baseline and the control variates of a gate, read from stored runs."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medbench.harness.contracts import MedbenchError, Sample, Task
from medbench.harness.gates.costs import Cost, cost_of_run
from medbench.harness.gates.metric_values import value_of_question
from medbench.harness.runs.comparability import check_baseline
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import is_run, read_run, read_samples
from medbench.harness.runs.sample_check import refuse_other_answer

log = logging.getLogger("medbench")

MOST_CONTROLS = 8
"""Most stored runs used as control variates; the newest come first."""
STOPPED = "earlier checkpoints"
"""The name of the control that is made of runs which a gate stopped."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A stored run used as the baseline or as a control variate."""

    name: str
    samples: Mapping[str, Mapping[str, Sequence[Sample]]]
    """task -> question id -> its samples."""
    record: RunRecord | None = None
    """Its run.json, where the samples are read from a run folder."""
    partial: bool = False
    """Whether questions without an answer count as the mean of the others: only sound in a control variate, and where
    the candidate's order does not depend on which questions have answers."""

    def values(self, task: str, ids: Sequence[str], metric: str) -> dict[str, float] | None:
        """id -> the metric; None unless it is known for all `ids`, or for any where the reference is partial."""
        samples = self.samples.get(task, {})
        values = {id: value_of_question(samples[id], metric) for id in ids if id in samples}
        known = {id: value for id, value in values.items() if value is not None and not math.isnan(value)}
        if len(known) == len(ids):
            return known
        if not self.partial or not known:
            return None
        mean = sum(known.values()) / len(known)
        return {id: known.get(id, mean) for id in ids}


def by_question(samples: Iterable[Sample], per_question: int) -> dict[str, list[Sample]]:
    """Question id -> its samples, the first repeat first, for those questions that have all `per_question` of them."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.id].append(sample)
    return {id: sorted(some, key=lambda one: one.repeat) for id, some in found.items() if len(some) == per_question}


def read_reference(record: RunRecord, folder: Path, tasks: Sequence[str]) -> Reference:
    """A finished run's samples of those of `tasks` that it has."""
    shared = [task for task in tasks if task in record.tasks]
    samples = {task: by_question(read_samples(folder, task), record.samples) for task in shared}
    return Reference(folder.name, samples, record)


def read_baseline(folder: Path | None, candidate: RunRecord, ids: Mapping[str, Collection[str]]) -> Reference | None:
    """The baseline run; `ids` holds the candidate's question ids per task.

    Raises MedbenchError for a folder that is not a run, or a run that is not comparable with the candidate.
    """
    if folder is None:
        return None
    record = read_run(folder)
    for task, wanted in ids.items():
        if task in record.tasks and record.tasks[task].sha256 != candidate.tasks[task].sha256:
            have = {sample.id for sample in read_samples(folder, task)}
            same = len(have.intersection(wanted))
            raise MedbenchError(
                f"baseline {record.run_id} has other questions of {task}: {same} of {len(wanted)} match; "
                f"evaluate it on this data"
            )
    check_baseline(candidate, record, list(ids))
    return read_reference(record, folder.resolve(), list(ids))


def costs_beside(baseline: Path | None, reference: Reference | None, folder: Path, record: RunRecord) -> list[Cost]:
    """Of the baseline and of the run in `folder`; empty without a baseline."""
    if baseline is None or reference is None or reference.record is None:
        return []
    return [cost_of_run(baseline, reference.record), cost_of_run(folder, record)]


def weights_of(reference: Reference | None) -> str | None:
    """Fingerprint of the weights that a run folder's record names."""
    return reference.record.model.fingerprint if reference is not None and reference.record is not None else None


def refuse_other_answers(tasks: Iterable[Task], samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> None:
    """Raises MedbenchError where a stored sample was scored against another right answer than its question has."""
    for task in tasks:
        gold = {question.id: question.gold for question in task.questions}
        for id, some in samples.get(task.name, {}).items():
            for sample in some if id in gold else ():
                refuse_other_answer(task.name, sample, gold[id])


def read_controls(
    runs: Path, candidate: RunRecord, baseline: Path | None, tasks: Sequence[str], *, partial: bool = False
) -> list[Reference]:
    """Complete runs in `runs`, of any model, on the same questions under the same protocol, no newer than `candidate`.

    With `partial` also one reference made of the runs that stopped: the newest answer to each question. That needs a
    candidate whose order is independent of which questions these runs answered, as order_seed makes it.
    """
    found: list[tuple[str, Path, RunRecord]] = []
    stopped: list[tuple[str, Path, RunRecord]] = []
    own = baseline.resolve().name if baseline is not None else None
    for folder in sorted(filter(is_run, runs.iterdir())) if runs.is_dir() else []:
        if folder.name == own:  # the baseline or a copy; names must be unique
            continue
        try:
            record = read_run(folder)
        except MedbenchError as error:
            log.warning("left out as a control: %s", error)
            continue
        try:
            check_baseline(candidate, record, tasks)
        except MedbenchError:
            continue
        whole = record.status == "complete" and record.limit is None
        if record.created > candidate.created:
            continue  # trained after the candidate was asked, perhaps on what it got wrong along its order
        if record.model.fingerprint != candidate.model.fingerprint:
            (found if whole else stopped).append((record.created, folder, record))
    references = _newest(found, tasks)
    earlier = _newest(stopped, tasks) if partial else []
    if earlier:
        newest_last = reversed(earlier)
        answers: dict[str, dict[str, Sequence[Sample]]] = {task: {} for task in tasks}
        for one in newest_last:
            for task, samples in one.samples.items():
                answers[task].update(samples)
        references.append(Reference(STOPPED, answers, partial=True))
    return references


def _newest(runs: Sequence[tuple[str, Path, RunRecord]], tasks: Sequence[str]) -> list[Reference]:
    """The newest MOST_CONTROLS of (created, folder, run.json), newest first."""
    references = []
    for _, folder, record in sorted(runs, key=lambda one: one[0], reverse=True)[:MOST_CONTROLS]:
        try:
            references.append(read_reference(record, folder, tasks))
        except MedbenchError as error:
            log.warning("left out as a control: %s", error)
    return references
