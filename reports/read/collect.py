"""Run and training folders -> what the pages show of them: the records that everything else in `reports` works on.

What cannot be read is listed with its reason and never stops a build. Runs inside a training's folder count only where
they are named themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from medbench.harness.benchmarks.rows import SAMPLE
from medbench.harness.contracts import MedbenchError
from medbench.harness.gates.verdict import LATEST, Verdict
from medbench.harness.runs.comparability import describe_repeats
from medbench.harness.runs.records import SCHEMA_VERSION, RunRecord
from medbench.harness.runs.run_folder import read_result, read_run
from medbench.harness.runs.sample_check import refuse_excess
from medbench.harness.scoring.summary import TaskResult
from medbench.reports.read.folders import (
    as_unicode,
    is_file_name,
    natural,
    read_checked,
    run_folders,
    times_of,
    unique_slugs,
    verdicts_of,
    without_path,
)
from medbench.reports.read.judged import Labels, ReadJudge, read_judges, views_of
from medbench.reports.read.pairs import choose_pairs, kind_of_record
from medbench.reports.read.records import Broken, Collection, RunView
from medbench.reports.read.sweeps import read_sweeps
from medbench.reports.read.synths import read_synths
from medbench.reports.read.trainings import read_trainings

LARGE = re.compile(rb"[:\[,]\s*-?\d[\d.]*[eE]\+?\d{3}")
"""Matches every JSON text with a number too large for one."""
R = TypeVar("R", RunRecord, TaskResult, Verdict)


def collect(paths: Sequence[Path]) -> Collection:
    """Each path is a run or training folder, or a folder of such. Raises MedbenchError for a path that is no folder."""
    read: list[_Read] = []
    broken: list[Broken] = []
    for folder, fault in run_folders(paths):
        try:
            if fault:
                raise MedbenchError(fault)
            read.append(_read(folder))
            broken += read[-1].broken
        except MedbenchError as error:
            broken.append(Broken(folder.name, without_path(str(error), folder)))
    # runs of the same name keep their order wherever their folders lie
    read.sort(key=lambda one: (natural(one.folder.name), one.contents))
    ids = unique_slugs(one.folder.name for one in read)
    labels = [
        Labels(id, judge.task, judge.judge, judge.own)
        for id, one in zip(ids, read, strict=True)
        for judge in one.judges
        if judge.own is not None
    ]
    runs = [one.view(id, labels) for id, one in zip(ids, read, strict=True)]
    runs.sort(key=lambda run: natural(run.id))
    trainings, faults = read_trainings(paths)
    synths, more = read_synths(paths)
    sweeps, wrong = read_sweeps(paths)
    faults += [*more, *wrong]
    broken += [Broken(name, reason) for name, reason in faults]
    # a folder's name may be no Unicode, which no page could hold
    broken = [Broken(as_unicode(one.name), as_unicode(one.reason)) for one in broken]
    broken.sort(key=lambda one: (natural(one.name), one.reason))
    pairs = tuple(choose_pairs(runs))
    return Collection(tuple(runs), tuple(broken), pairs, tuple(trainings), tuple(synths), tuple(sweeps))


def state_of(run: RunView) -> str:
    """What to know before the scores are read; "" for a complete run of all official questions, each asked once."""
    return ", ".join(_states(run))


def _states(run: RunView) -> Iterator[str]:
    record = run.record
    if record.status != "complete":
        yield record.status
    elif missing := [task for task in record.tasks if task not in run.results]:
        yield f"no result of {', '.join(missing)}"
    if record.limit is not None:
        yield f"first {record.limit} questions only"
    if record.partition != "all":
        yield f"{record.partition} half of the questions"
    if any(task.source == SAMPLE for task in record.tasks.values()):
        yield "built-in sample"
    elif not all(task.official for task in record.tasks.values()):
        yield "unofficial rows"
    if record.samples > 1 or record.shuffle_options:
        yield describe_repeats(record)


@dataclass(frozen=True, slots=True)
class _Read:
    """A run before it has an id."""

    folder: Path
    record: RunRecord
    results: dict[str, TaskResult]
    verdicts: tuple[Verdict, ...]
    stamp: str
    contents: str
    """Like `stamp`, without the times of files."""
    broken: list[Broken]
    judges: list[ReadJudge]

    def view(self, id: str, labels: Sequence[Labels]) -> RunView:
        """`labels`: of all runs that are read."""
        slugs = dict(zip(self.record.tasks, unique_slugs(self.record.tasks), strict=True))
        kind = kind_of_record(self.record)
        judged = views_of(self.folder, self.judges, labels)
        stamp = self.stamp
        if judged:
            known = [[task, one.fingerprint, repr(one)] for task, views in judged.items() for one in views]
            stamp = hashlib.sha256(json.dumps([stamp, known]).encode()).hexdigest()
        return RunView(id, self.folder, self.record, self.results, self.verdicts, stamp, slugs, kind, judged)


def _read(folder: Path) -> _Read:
    content = read_checked(folder, "run.json") or b""
    contents = hashlib.sha256(content)
    record = _parsed(content, RunRecord, lambda: read_run(folder), folder / "run.json")
    if not isinstance(record.protocol.get("name"), str):
        raise MedbenchError(f"{folder / 'run.json'}: protocol: has no name: not written by medbench, or damaged")
    results: dict[str, TaskResult] = {}
    verdicts: dict[str, Verdict] = {}
    broken: list[Broken] = []
    for task in record.tasks:
        name = f"results/{task}.json"
        if not is_file_name(task):
            broken.append(Broken(f"{folder.name}: task {task[:60]!r}", "no file name, so its results are not read"))
            continue
        try:
            content = read_checked(folder, name) or b""
            contents.update(content)
            if content:
                result = _parsed(content, TaskResult, partial(read_result, folder, task), folder / name)
                refuse_excess(folder, record, task, result.n)
                results[task] = result
        except MedbenchError as error:
            broken.append(Broken(f"{folder.name}: {name}", without_path(str(error), folder)))
    for name in (LATEST, *verdicts_of(folder)):
        try:
            content = read_checked(folder, name) or b""
            contents.update(content)
            if content:
                path = folder / name
                verdict = _parsed(content, Verdict, partial(_refuse_verdict, content, path), path)
                verdicts.setdefault(verdict.rules or name, verdict)  # the latest is there twice
        except MedbenchError as error:
            broken.append(Broken(f"{folder.name}: {name}", without_path(str(error), folder)))
    judges: list[ReadJudge] = []
    for task in filter(is_file_name, record.tasks):
        found, faults = read_judges(folder, task)
        judges += found
        broken += faults
    times = [times_of(f"{folder}/samples/{task}.jsonl") for task in record.tasks if is_file_name(task)]
    stamp = hashlib.sha256("\n".join([contents.hexdigest(), *times]).encode()).hexdigest()
    return _Read(folder, record, results, tuple(verdicts.values()), stamp, contents.hexdigest(), broken, judges)


def _parsed(content: bytes, model: type[R], read: Callable[[], R], path: Path) -> R:
    """What `content` holds; `read`, which is slower, says what is wrong with it if anything is.

    Raises MedbenchError also for a number that is none: a page that draws it would lie.
    """
    try:
        record = model.model_validate_json(content)
        if record.schema_version != SCHEMA_VERSION:
            record = read()
    except ValidationError:
        record = read()
    odd = b"NaN" in content or b"Infinity" in content or LARGE.search(content)
    if odd and not all(map(math.isfinite, _numbers(record.model_dump()))):
        raise MedbenchError(f"{path}: a value that is not a number")
    return record


def _refuse_verdict(content: bytes, path: Path) -> Verdict:
    try:
        version = json.loads(content)["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        version = None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise MedbenchError(f"{path}: schema version {version} is newer than {SCHEMA_VERSION}: upgrade medbench")
    raise MedbenchError(f"{path}: not a verdict written by medbench, or damaged")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _numbers(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
