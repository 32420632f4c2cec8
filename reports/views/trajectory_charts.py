"""What the browser draws on a training's page: one script of data a page.

    python -c "from medbench.reports.views.trajectory_charts import script; print(script([]))"

x counts the steps of a stage, attempts one after another. assets/trajectory.js draws it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from medbench.reports.views.formats import visible
from medbench.reports.views.trajectory import AttemptBlock, Row, StageBlock

DIGITS = 6


def script(stages: Sequence[StageBlock]) -> bytes:
    """medbenchTraining([...]), a stage each."""
    text = json.dumps(list(map(_stage, stages)), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"medbenchTraining({text});\n".encode("ascii")


def _stage(stage: StageBlock) -> dict[str, Any]:
    offsets = {one.number: one.offset for one in stage.attempts}
    promoted = stage.promoted
    return {
        "length": stage.length,
        "attempts": [[one.number, one.offset, one.offset + one.length, one.outcome] for one in stage.attempts],
        "promoted": offsets.get(promoted[0], 0) + promoted[1] if promoted else None,
        "alarms": [[offsets[alarm.attempt] + alarm.step, alarm.stop] for alarm in alarms(stage)],
        "gates": [
            {
                "unit": column.unit,
                "threshold": _rounded(_scaled(column.threshold, column.unit)),
                "points": list(_points(stage.rows, place, column.unit, offsets)),
            }
            for place, column in enumerate(stage.columns)
        ],
        "metrics": [
            {"name": visible(words), **_metric(name, stage.attempts)} for name, words in metrics(stage.attempts)
        ],
    }


def alarms(stage: StageBlock) -> list[Any]:
    """In the order of their numbers on the page."""
    return [alarm for attempt in stage.attempts for alarm in attempt.alarms]


def metrics(attempts: Sequence[AttemptBlock]) -> list[tuple[str, str]]:
    """(name, words) of what any attempt logged, in the order of metrics.WORDS."""
    found: dict[str, str] = {}
    for attempt in sorted(attempts, key=lambda one: -len(one.series)):
        found |= {series.name: series.words for series in attempt.series if series.name not in found}
    return list(found.items())


def _points(rows: Sequence[Row], place: int, unit: str, offsets: dict[int, int]) -> Iterator[list[Any]]:
    """[x, estimate, low, high, status, attempt, step]; the baseline's difference to itself is nought."""
    for row in rows:
        line = row.gates[place]
        x = offsets.get(row.attempt or 0, 0) + row.step
        if line is None or line.result.estimate is None:
            if row.is_baseline and unit == "points" and line is None:
                yield [x, 0, None, None, "", None, 0]
            continue
        result = line.result
        low, high = result.interval or (None, None)
        figures = [_rounded(_scaled(value, unit)) for value in (result.estimate, low, high)]
        yield [x, *figures, result.status if row.attempt is not None else "", row.attempt, row.step]


def _metric(name: str, attempts: Sequence[AttemptBlock]) -> dict[str, Any]:
    """Columns x, mean, low, high; a gap of null between attempts. Without low and high where nothing was thinned."""
    columns: list[list[float | None]] = [[], [], [], []]
    thinned = False
    for attempt in attempts:
        for series in attempt.series:
            if series.name != name or not series.points:
                continue
            if columns[0]:
                for column, gap in zip(columns, (attempt.offset, None, None, None), strict=True):
                    column.append(gap)
            thinned = thinned or series.bucket > 1
            for point in series.points:
                figures = (attempt.offset + point.step, point.mean, point.low, point.high)
                for column, value in zip(columns, figures, strict=True):
                    column.append(_rounded(value))
    return {"data": columns if thinned else columns[:2]}


def _scaled(value: float | None, unit: str) -> float | None:
    return value if value is None or not unit else 100 * value


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}") if abs(value) < 1e6 or value != int(value) else value
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded
