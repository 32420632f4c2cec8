"""One sweep -> its page, and its row on the first page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from medbench.harness.sweeps.record import CellRecord, SweepRecord
from medbench.harness.training.axes import short_names
from medbench.reports.read.folders import as_unicode
from medbench.reports.read.sweeps import SweepView
from medbench.reports.views import sweep_charts
from medbench.reports.views.axis import Axis, axis_around_zero, axis_over
from medbench.reports.views.formats import duration, interval, number, percent
from medbench.reports.views.leaderboard import label_of
from medbench.reports.views.run import command_of
from medbench.reports.views.sweep_charts import Chart, Given
from medbench.reports.views.trajectory_page import MOST_RECIPE

FRACTION = "fraction"
"""An axis whose path ends so, and whose values are numbers from 0 to 1, is the data fraction."""


@dataclass(frozen=True, slots=True)
class Row:
    """One cell."""

    cell: CellRecord
    values: tuple[str, ...]
    """One an axis."""
    best: bool
    page: str
    """Id of its training's page, "" where that is not on the site."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the comparison."""

    number: int
    questions: int
    left: int
    dropped: tuple[CellRecord, ...]


@dataclass(frozen=True, slots=True)
class SweepPage:
    """All that templates/sweep.html.j2 needs."""

    sweep: SweepView
    task: str
    summary: tuple[str, ...]
    axes: tuple[str, ...]
    """Short names of the columns."""
    rows: tuple[Row, ...]
    axis: Axis
    """Of the scores."""
    behind: Axis
    """Of the differences to the best."""
    charts: tuple[Chart, ...]
    legend: tuple[tuple[str, str], ...]
    """(colour, series); empty for a single one."""
    rounds: tuple[Round, ...]
    recipe: str
    facts: tuple[tuple[str, str], ...]
    command: str


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One sweep on the first page."""

    id: str
    name: str
    state: str
    axes: str
    cells: int
    trained: int
    left: str
    best: str
    score: str
    time: str


def index_row(sweep: SweepView) -> IndexRow:
    record = sweep.record
    best = _best(record)
    entered = [cell for cell in record.cells if cell.score is not None]
    return IndexRow(
        id=sweep.id,
        name=record.name,
        state=record.state,
        axes=", ".join(_short(record).values()),
        cells=len(record.cells),
        trained=sum(cell.training is not None for cell in record.cells),
        left=number(sum(cell.dropped is None for cell in entered)) if entered else "–",
        best=best.name if best else "",
        score=_score(best) if best else "",
        time=duration(record.seconds),
    )


def view_of(sweep: SweepView, trainings: Mapping[str, str]) -> SweepPage:
    """`trainings`: cell -> id of its training's page, for those on the site."""
    record = sweep.record
    short = _short(record)
    series = _series(record)
    names = list(dict.fromkeys(series.values()))
    rows = [
        Row(
            cell=cell,
            values=tuple(cell.values.get(path, "–") for path in short),
            best=cell.name == record.best,
            page=trainings.get(cell.name, ""),
        )
        for cell in sorted(record.cells, key=_by_fate)
    ]
    scores = [cell.score for cell in record.cells if cell.score is not None]
    return SweepPage(
        sweep=sweep,
        task=label_of(record.task),
        summary=tuple(_summary(record)),
        axes=tuple(short.values()),
        rows=tuple(rows),
        axis=axis_over(one.interval for one in scores),
        behind=axis_around_zero(one.to_best_interval for one in scores if one.to_best_interval is not None),
        charts=tuple(_charts(record, series, names)),
        legend=tuple((sweep_charts.colour_of(at), name) for at, name in enumerate(names)) if len(names) > 1 else (),
        rounds=tuple(_rounds(record)),
        recipe=_recipe(record),
        facts=tuple(_facts(record)),
        command=command_of(record),
    )


def _short(record: SweepRecord) -> dict[str, str]:
    """Axis -> its name in a heading."""
    paths = dict.fromkeys(path for cell in record.cells for path in cell.values)
    return {path: name.replace("_", " ") for path, name in short_names(list(paths)).items()}


def _fraction_axis(record: SweepRecord) -> str | None:
    """The path of the data fraction; None where no axis is one."""
    for path in record.cells[0].values if record.cells else ():
        values = [_as_number(cell.values.get(path, "")) for cell in record.cells]
        if path.endswith(FRACTION) and all(value is not None and 0 < value <= 1 for value in values):
            return path
    return None


def _series(record: SweepRecord) -> dict[str, str]:
    """Cell -> what it shares with those that differ from it in the data fraction alone."""
    fraction = _fraction_axis(record)
    return {
        cell.name: ", ".join(value for path, value in cell.values.items() if path != fraction) or record.name
        for cell in record.cells
    }


def _charts(record: SweepRecord, series: Mapping[str, str], names: list[str]) -> Iterator[Chart]:
    fraction = _fraction_axis(record)
    took = {cell.name: cell.training for cell in record.cells if cell.training is not None}
    drawn: list[tuple[str, str, str, dict[str, float | None]]] = [
        (
            "trained parameters",
            "trained parameters",
            "parameters",
            {key: one.trained_parameters for key, one in took.items()},
        ),
        ("peak memory", "GiB", "number", {key: one.peak_memory_gib for key, one in took.items()}),
        ("time of training", "minutes", "number", {key: one.seconds / 60 for key, one in took.items()}),
    ]
    if fraction is not None:
        shares = {cell.name: _as_number(cell.values[fraction]) for cell in record.cells}
        drawn.insert(0, ("share of the training data", "share of the training data", "share", shares))
    for what, below, unit, places in drawn:
        given = [
            Given(
                cell=cell.name,
                series=names.index(series[cell.name]),
                x=float(x),
                score=cell.score.score,
                interval=cell.score.interval,
                dropped=cell.dropped is not None,
            )
            for cell in record.cells
            if (x := places.get(cell.name)) is not None and cell.score is not None and cell.score.score is not None
        ]
        found = sweep_charts.chart(f"Score by {what}", below, given, unit, joined=unit == "share")
        if found is not None:
            yield found


def _by_fate(cell: CellRecord) -> tuple[bool, bool, float, str]:
    """Those left first, then those dropped, then what was not compared; each by score."""
    score = cell.score.score if cell.score is not None else None
    return cell.score is None, cell.dropped is not None, -(score if score is not None else -1.0), cell.name


def _summary(record: SweepRecord) -> Iterator[str]:
    trained = [cell for cell in record.cells if cell.training is not None]
    entered = [cell for cell in record.cells if cell.score is not None]
    yield (
        f"{number(len(record.cells))} cells, {number(len(trained))} trained"
        f"{'' if record.state == 'complete' else ' so far'}, in {duration(record.seconds)}."
    )
    if record.alpha_each is not None and record.questions is not None:
        yield (
            f"{number(len(entered))} were compared on {number(record.questions)} questions of {label_of(record.task)}, "
            f"all in one order. A cell is dropped when it is shown to be worse than another one; the best is dropped "
            f"with probability at most {record.alpha:g}, for which each test of one cell against another "
            f"is at level {record.alpha_each:.2g}."
        )
    best = _best(record)
    if best is not None and best.score is not None:
        left = [cell for cell in entered if cell.dropped is None]
        also = (
            f" {number(len(left) - 1)} more {'is' if len(left) == 2 else 'are'} not shown to be worse."
            if len(left) > 1
            else " All others are shown to be worse."
            if len(entered) > 1
            else ""
        )
        yield f"The best is {best.name}, with {_score(best)}.{also}"
        if best.training is not None and best.training.confirmed is not None:
            spread = best.training.confirmed_interval
            within = f" ({interval(spread)})" if spread else ""
            yield (
                f"It was chosen by these questions; on those that nothing has looked at before it has "
                f"{percent(best.training.confirmed).strip()} %{within}."
            )
        else:
            yield "It was chosen by these questions, so its score is likely a little too high."


def _score(cell: CellRecord) -> str:
    if cell.score is None or cell.score.score is None:
        return ""
    return f"{percent(cell.score.score).strip()} % ({interval(cell.score.interval)})"


def _best(record: SweepRecord) -> CellRecord | None:
    return next((cell for cell in record.cells if cell.name == record.best), None)


def _rounds(record: SweepRecord) -> Iterator[Round]:
    begin = 0
    for place, (questions, left) in enumerate(record.rounds, 1):
        gone = tuple(
            cell
            for cell in record.cells
            if cell.dropped is not None and cell.score is not None and begin < cell.score.asked <= questions
        )
        yield Round(place, questions, left, gone)
        begin = questions


def _recipe(record: SweepRecord) -> str:
    try:
        text = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True, width=100)
    except RecursionError:
        return "# nested too deeply to be shown: see sweep.json"
    return as_unicode(text[:MOST_RECIPE])


def _facts(record: SweepRecord) -> Iterator[tuple[str, str]]:
    yield "Name", record.name
    yield "Started", record.created
    yield "Recipe (sha256)", record.recipe_sha256
    if record.order_seed is not None:
        yield "Seed of the order", record.order_seed
    yield "Commit", record.git_commit or "unknown"


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
