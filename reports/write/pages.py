"""Records in, HTML out: the kinds of page and the files that they load.

    python -c "from medbench.reports.write.pages import ASSETS; print(*ASSETS)"

reports.site calls most of these and writes what they return:

    index.html                    index_page(collection, references); `references`: a file of the user's, or None
    runs/<id>/index.html          run_page(collection, run): only the pairs of `collection` that the run is in are used
    runs/<id>/viewer.html         viewer_page(run)
    compare/<a>--<b>.html         compare_page(a, b, comparisons, flips, fault, judged)
    trainings/<id>/index.html     training_page(page), page from trajectory_page.view_of
    trainings/<id>/charts.js      trajectory_charts.script(page.stages)
    synths/<id>/index.html        synth_page(synth)
    sweeps/<id>/index.html        sweep_page(sweep, trainings)
    runs.js                       runs_script(collection) -> bytes: which runs the viewer can set beside its own; it
                                  changes when the list of runs does, not when a page does
    trained_judge_page            judge.html in a trained judge's folder
    judging_page, verdict_page    the pages of `medbench watch --serve`, which are never written
    assets/<name>                 ASSETS[name] -> bytes; a name may have a folder in it ("vendor/uplot.js")

Every expression of a template is escaped, and passes formats.finalize first, which spells out hidden characters.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medbench.harness.benchmarks.task_folders import core_tasks
from medbench.harness.gates.verdict import Verdict
from medbench.harness.judges.compare import JudgedComparison
from medbench.harness.judges.local.report import Report
from medbench.harness.runs.compare import MULTIPLICITY, TaskComparison
from medbench.harness.scoring.summary import NOTES
from medbench.reports.read.collect import state_of
from medbench.reports.read.flips import Flip
from medbench.reports.read.records import Collection, RunView
from medbench.reports.read.references import Reference
from medbench.reports.read.sweeps import SweepView
from medbench.reports.read.synths import SynthView
from medbench.reports.views import (
    compare,
    formats,
    leaderboard,
    sweep,
    sweep_charts,
    synth,
    trained_judge,
    trajectory_charts,
    trajectory_page,
)
from medbench.reports.views import run as run_view

FOLDER = Path(str(files("medbench.reports") / "assets"))

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy of every page: no inline script or style, nothing from elsewhere, no eval."""


class _Assets(Mapping[str, bytes]):
    """The files under assets/ by their path below it, read when asked for."""

    def __getitem__(self, name: str) -> bytes:
        if name not in set(self):
            raise KeyError(name)
        return (FOLDER / name).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()))

    def __len__(self) -> int:
        return sum(1 for _ in self)


ASSETS: Mapping[str, bytes] = _Assets()


def index_page(collection: Collection, references: Sequence[Reference] = ()) -> str:
    """The leaderboard. `references`: see references.read_references."""
    tables = leaderboard.tables_of(collection.runs)
    names = leaderboard.in_order({*core_tasks(), *(task for one in references for task in one.scores)})
    tasks = [(task, leaderboard.label_of(task)) for task in names]
    reported = sorted(references, key=lambda one: (-(one.scores.get("medqa") or 0.0), one.model))
    trainings = list(map(trajectory_page.index_row, collection.trainings))
    return _render(
        "index.html.j2",
        tables=tables,
        trainings=trainings,
        synths=list(map(synth.index_row, collection.synths)),
        sweeps=list(map(sweep.index_row, collection.sweeps)),
        broken=collection.broken,
        references=reported,
        tasks=tasks,
    )


def run_page(collection: Collection, run: RunView) -> str:
    """The page of one run."""
    return _render("run.html.j2", page=run_view.view_of(run, collection.pairs))


def viewer_page(run: RunView) -> str:
    """The page that shows every answer of one run; its data come from viewer_data's files."""
    tasks = [(run.slugs[task], leaderboard.label_of(task)) for task in run.record.tasks]
    return _render("viewer.html.j2", run=run, state=state_of(run), tasks=tasks)


def compare_page(
    a: RunView,
    b: RunView,
    comparisons: Sequence[TaskComparison],
    flips: Mapping[str, Sequence[Flip]] | None = None,
    fault: str = "",
    judged: Sequence[JudgedComparison] = (),
) -> str:
    """Run B against run A; `fault` says why there is no comparison."""
    return _render("compare.html.j2", page=compare.view_of(a, b, comparisons, flips or {}, fault, judged))


def training_page(page: trajectory_page.TrajectoryPage) -> str:
    """The page of one training; its charts are drawn from trajectory_charts.script."""
    return _render("training.html.j2", page=page)


def synth_page(one: SynthView) -> str:
    """The page of one folder of `medbench synth`."""
    return _render("synth.html.j2", page=synth.view_of(one))


def sweep_page(one: SweepView, trainings: Mapping[str, str]) -> str:
    """The page of one sweep. `trainings`: cell -> id of its training's page, for those on the site."""
    return _render("sweep.html.j2", page=sweep.view_of(one, trainings))


def judging_page(listed: Mapping[str, Any]) -> str:
    """The state of `medbench watch --serve`; `listed` is what it answers to GET /queue."""
    return _render("judging.html.j2", page=listed)


def verdict_page(item: Mapping[str, Any]) -> str:
    """One checkpoint of `medbench watch --serve`; `item` is what it answers to GET /verdicts/ID."""
    found = dict(item["verdict"] or {})
    run = found.pop("run", None)
    found.pop("seconds", None)
    block = run_view.verdict_block(Verdict.model_validate(found)) if found else None
    return _render("verdict.html.j2", item=item, block=block, run=run)


def trained_judge_page(report: Report) -> str:
    """The report of `medbench judge train`: one file that needs no other."""
    style = ASSETS["site.css"].decode()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _render(
        "trained_judge.html.j2",
        view=trained_judge.view_of(report),
        style=Markup(style),
        own_policy=POLICY.replace("style-src 'self'", f"style-src 'sha256-{digest}'"),
        side=trained_judge.SIDE,
        margin=trained_judge.MARGIN,
    )


def runs_script(collection: Collection) -> bytes:
    """medbenchRuns([[run id, model, kind, {task: its slug}], ...]), for the viewer.

    Runs of one kind answered the same questions under the same protocol.
    """
    kinds: dict[str, int] = {}
    rows = [
        [run.id, formats.visible(run.record.model.name), kinds.setdefault(run.kind, len(kinds)), run.slugs]
        for run in collection.runs
    ]
    text = json.dumps(rows, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"medbenchRuns({text});\n".encode("ascii")


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(policy=POLICY, **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("medbench.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=formats.finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in (
        "percent",
        "rate",
        "interval",
        "points",
        "points_interval",
        "number",
        "significant",
        "p_value",
        "parameters",
        "file_size",
        "url",
        "duration",
        "published",
        "logged",
    ):
        environment.filters[name] = getattr(formats, name)
    environment.filters["size_class"] = leaderboard.size_class
    environment.globals["notes"] = NOTES
    environment.globals["winner"] = compare.winner
    environment.globals["multiplicity"] = MULTIPLICITY
    environment.globals["label"] = trajectory_page.label
    environment.globals["gate_label"] = trajectory_page.gate_label
    environment.globals["alarms"] = trajectory_charts.alarms
    environment.globals["sweep_charts"] = sweep_charts
    environment.globals["metrics"] = trajectory_charts.metrics
    return environment
