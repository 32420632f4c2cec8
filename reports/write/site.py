"""Runs in, SITE out: only what changed is written, and only into a folder that is ours.

    medbench report runs -o site

SITE/
  index.html                      pages.index_page(collection, references)
  runs.js                         pages.runs_script(collection)
  runs/<id>/index.html            pages.run_page(collection, run): `collection` holds this run alone and its pairs, for
                                  the page is not made again when another run changes
  runs/<id>/viewer.html           pages.viewer_page(run)
  runs/<id>/data/<task slug>/     see viewer_data; scores.json is scores.Scores
  compare/<a>--<b>.html           pages.compare_page(a, b, comparisons, flips, fault): see pairs.Compared
  trainings/<id>/index.html       pages.training_page(trajectory_page.view_of(training, runs))
  trainings/<id>/charts.js        trajectory_charts.script(stages)
  synths/<id>/index.html          pages.synth_page(synth)
  sweeps/<id>/index.html          pages.sweep_page(sweep, trainings): cell -> id of its training, where that is shown
  assets/<name>                   pages.ASSETS
  leaderboard.json .csv .md       exports.leaderboard
  badges/<id>--<gate>.svg         exports.badges
  .medbench-site.json             see output

The same runs give the same bytes, whatever was there before: nothing looks at a clock, at the order in which work
finished or at where the runs lie.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from medbench.harness.judges.scored import scored_path
from medbench.reports.read.flips import compared
from medbench.reports.read.folders import is_file_name, times_of
from medbench.reports.read.pairs import page_name
from medbench.reports.read.records import Collection, RunView
from medbench.reports.read.references import Reference, read_references
from medbench.reports.read.scores import Scores
from medbench.reports.views import trajectory_charts, trajectory_page
from medbench.reports.write import exports, pages
from medbench.reports.write.manifest import Manifest, Writer
from medbench.reports.write.viewer_data import write_task
from medbench.reports.write.workers import Workers

PACKAGE = Path(__file__).parent.parent
DATA_CODE = (
    "../harness/judges/scored.py",
    "../harness/runs/sample_check.py",
    "../harness/runs/sample_line.py",
    "read/folders.py",
    "read/judged.py",
    "read/lines.py",
    "read/ordered.py",
    "read/scores.py",
    "write/viewer_data.py",
    "write/viewer_index.py",
)
"""Modules that the viewer's data depend on: they are not rewritten when a template changes."""
MOST_ALONE = 32 * 2**20
"""Bytes of samples up to which starting other processes (about a second) costs more than it saves."""
MANY_PAGES = 100
MANY_PAIRS = 20


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did."""

    runs: int
    trainings: int
    synths: int
    sweeps: int
    broken: int
    written: int
    """Files."""
    skipped: int
    """Files that were up to date."""
    removed: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def build(collection: Collection, site: Path, *, references: Path | None = None) -> BuildReport:
    """Raises MedbenchError for a folder that holds other files, Interrupted when the disk is full."""
    started = time.perf_counter()
    known = read_references(references)
    with Manifest(site) as manifest, Workers() as workers:
        runs = _build_runs(collection, manifest, workers)
        scored = replace(collection, runs=runs)
        _build_pairs(scored, manifest, workers)
        _build_trainings(scored, manifest)
        _build_synths(scored, manifest)
        _build_sweeps(scored, manifest)
        _build_index(scored, manifest, known)
    seconds = round(time.perf_counter() - started, 3)
    return BuildReport(
        runs=len(runs),
        trainings=len(collection.trainings),
        synths=len(collection.synths),
        sweeps=len(collection.sweeps),
        broken=len(collection.broken),
        written=manifest.written,
        skipped=manifest.skipped,
        removed=manifest.removed,
        seconds=seconds,
    )


@dataclass(frozen=True, slots=True)
class _RunJob:
    site: Path
    run: RunView
    pairs: tuple[tuple[str, str], ...]
    stale: tuple[str, ...]
    """Tasks whose data must be written."""
    page: bool
    """Whether the pages must be."""


@dataclass(frozen=True, slots=True)
class _RunDone:
    data: dict[str, list[str]]
    """Task -> files written for it."""
    pages: list[str]
    """Files written; empty if they were up to date."""
    scores: dict[str, Scores]


@dataclass(frozen=True, slots=True)
class _PairJob:
    site: Path
    a: RunView
    b: RunView


def _build_runs(collection: Collection, manifest: Manifest, workers: Workers) -> tuple[RunView, ...]:
    """All data and pages of each run on its own; the runs with their scores."""
    jobs: list[_RunJob] = []
    stamps: dict[str, str] = {}
    pairs = {run.id: tuple(pair for pair in collection.pairs if run.id in pair) for run in collection.runs}
    data_code = code(*DATA_CODE)
    for run in collection.runs:
        for task in run.slugs:
            counts = run.record.tasks[task].n, run.record.repeats
            judges = _judges_times(run, task)
            stamps[_data(run, task)] = _hash(data_code, run.id, task, _times(run, task), counts, judges)
        stamps[f"run {run.id}"] = _hash(code(), run.id, run.stamp, pairs[run.id])
        stale = tuple(task for task in run.slugs if not manifest.fresh(_data(run, task), stamps[_data(run, task)]))
        page = not manifest.fresh(f"run {run.id}", stamps[f"run {run.id}"])
        jobs.append(_RunJob(manifest.site, run, pairs[run.id], stale, page))
    runs = []
    heavy = sum(_size(job.run, task) for job in jobs for task in job.stale) > MOST_ALONE
    many = sum(job.page for job in jobs) > MANY_PAGES
    for job, done in zip(jobs, workers.map(_run, jobs, heavy or many), strict=True):
        for task, files in done.data.items():
            manifest.record(_data(job.run, task), stamps[_data(job.run, task)], files)
        if job.page:
            manifest.record(f"run {job.run.id}", stamps[f"run {job.run.id}"], done.pages)
        runs.append(replace(job.run, scores=done.scores))
    return tuple(runs)


def _run(job: _RunJob) -> _RunDone:
    """Write what is stale of one run."""
    writer = Writer(job.site)
    run, data, scores = job.run, {}, {}
    for task, slug in run.slugs.items():
        folder = f"runs/{run.id}/data/{slug}"
        known = None if task in job.stale else _stored_scores(f"{job.site}/{folder}")
        if known is None:
            written = _Written(writer, folder)
            judges = tuple(one.judge for one in run.judged.get(task, ()))
            known = write_task(run.folder, task, run.id, slug, written.put, run.record, judges)
            written.put("scores.json", msgspec.json.encode(known))
            data[task] = written.names
        scores[task] = known
    pages_written = _Written(writer, "")
    if job.page:
        run = replace(run, scores=scores)
        alone = Collection((run,), (), job.pairs)
        pages_written.put(f"runs/{run.id}/index.html", _html(pages.run_page(alone, run)))
        pages_written.put(f"runs/{run.id}/viewer.html", _html(pages.viewer_page(run)))
        for name, badge in exports.badges(run).items():
            pages_written.put(name, badge)
    return _RunDone(data, pages_written.names, scores)


_decode_scores = msgspec.json.Decoder(Scores).decode


def _stored_scores(folder: str) -> Scores | None:
    try:
        with open(f"{folder}/scores.json", "rb") as file:  # noqa: PTH123 - see folders.times_of
            return _decode_scores(file.read())
    except (OSError, ValueError):
        return None


def _build_pairs(collection: Collection, manifest: Manifest, workers: Workers) -> None:
    runs = {run.id: run for run in collection.runs}
    jobs, stamps = [], []
    for a, b in collection.pairs:
        stamp = _hash(code(), a, runs[a].stamp, b, runs[b].stamp)
        if not manifest.fresh(f"pair {a} {b}", stamp):
            jobs.append(_PairJob(manifest.site, runs[a], runs[b]))
            stamps.append(stamp)
    done = workers.map(_pair, jobs, len(jobs) > MANY_PAIRS)
    for job, stamp, name in zip(jobs, stamps, done, strict=True):
        manifest.record(f"pair {job.a.id} {job.b.id}", stamp, [name])


def _pair(job: _PairJob) -> str:
    one = compared(job.a, job.b)
    name = page_name(job.a.id, job.b.id)
    page = pages.compare_page(job.a, job.b, one.comparisons, one.flips, one.fault, one.judged)
    Writer(job.site).put(name, _html(page))
    return name


def _build_trainings(collection: Collection, manifest: Manifest) -> None:
    runs = [(run.folder.resolve(), run.id) for run in collection.runs] if collection.trainings else []
    for training in collection.trainings:
        root = training.folder.resolve()
        own = {folder.relative_to(root).as_posix(): id for folder, id in runs if root in folder.parents}
        stamp = _hash(code(), training.id, training.stamp, own)
        if manifest.fresh(f"training {training.id}", stamp):
            continue
        page = trajectory_page.view_of(training, own)
        written = _Written(Writer(manifest.site), f"trainings/{training.id}")
        written.put("index.html", _html(pages.training_page(page)))
        written.put("charts.js", trajectory_charts.script(page.stages))
        manifest.record(f"training {training.id}", stamp, written.names)


def _build_synths(collection: Collection, manifest: Manifest) -> None:
    for synth in collection.synths:
        stamp = _hash(code(), synth.id, synth.contents)
        if manifest.fresh(f"synth {synth.id}", stamp):
            continue
        written = _Written(Writer(manifest.site), f"synths/{synth.id}")
        written.put("index.html", _html(pages.synth_page(synth)))
        manifest.record(f"synth {synth.id}", stamp, written.names)


def _build_sweeps(collection: Collection, manifest: Manifest) -> None:
    shown = [(training.folder.resolve(), training.id) for training in collection.trainings] if collection.sweeps else []
    for sweep in collection.sweeps:
        root = sweep.folder.resolve()
        own = {folder.name.removeprefix("train-"): id for folder, id in shown if folder.parent == root}
        stamp = _hash(code(), sweep.id, sweep.contents, own)
        if manifest.fresh(f"sweep {sweep.id}", stamp):
            continue
        written = _Written(Writer(manifest.site), f"sweeps/{sweep.id}")
        written.put("index.html", _html(pages.sweep_page(sweep, own)))
        manifest.record(f"sweep {sweep.id}", stamp, written.names)


def _build_index(collection: Collection, manifest: Manifest, references: Sequence[Reference]) -> None:
    """What shows all runs, and what belongs to none."""
    known = [(run.id, run.stamp) for run in collection.runs]
    broken = [(one.name, one.reason) for one in collection.broken]
    trainings = [(one.id, one.contents) for one in collection.trainings]
    synths = [(one.id, one.contents) for one in collection.synths]
    sweeps = [(one.id, one.contents) for one in collection.sweeps]
    reported = [one.model_dump(mode="json") for one in references]
    stamp = _hash(code(), known, broken, collection.pairs, trainings, synths, sweeps, reported)
    if not manifest.fresh("index", stamp):
        written = _Written(Writer(manifest.site), "")
        written.put("index.html", _html(pages.index_page(collection, references)))
        written.put("runs.js", pages.runs_script(collection))
        for name, content in exports.leaderboard(collection).items():
            written.put(name, content)
        manifest.record("index", stamp, written.names)
    if not manifest.fresh("assets", code()):
        written = _Written(Writer(manifest.site), "assets")
        for name, content in sorted(pages.ASSETS.items()):
            written.put(name, content)
        manifest.record("assets", code(), written.names)


class _Written:
    """Puts files into one folder of the site and remembers them."""

    def __init__(self, writer: Writer, folder: str) -> None:
        self.names: list[str] = []
        self._writer = writer
        self._folder = f"{folder}/" if folder else ""

    def put(self, name: str, content: bytes) -> None:
        self._writer.put(self._folder + name, content)
        self.names.append(self._folder + name)


@cache
def code(*modules: str) -> str:
    """Hash of these modules of reports; without any, of all that the pages are made by."""
    own = sorted(PACKAGE / name for name in modules) or sorted(
        path
        for folder in (PACKAGE, PACKAGE.parent / "harness")
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    )
    parts = (part for path in own for part in (path.name.encode(), path.read_bytes()))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _data(run: RunView, task: str) -> str:
    """Name of the unit of one task's data."""
    return f"data {run.id} {run.slugs[task]}"


def _times(run: RunView, task: str) -> str:
    return times_of(f"{run.folder}/samples/{task}.jsonl") if is_file_name(task) else ""


def _judges_times(run: RunView, task: str) -> list[str]:
    names = [one.judge for one in run.judged.get(task, ())]
    return [f"{name} {times_of(scored_path(run.folder, task, name))}" for name in names]


def _size(run: RunView, task: str) -> int:
    return int((_times(run, task) or "0").split()[0])


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _html(page: str) -> bytes:
    return page.encode("utf-8", "replace")
