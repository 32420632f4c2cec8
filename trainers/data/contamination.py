"""Contamination: training rows that overlap a benchmark question are listed and dropped before training.

overlap.py defines what counts as an overlap, and lists what is known to be missed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.files import write_atomically
from medbench.trainers.data.overlap import Overlap, OverlapConfig, TrainingText, find_overlaps

CONTAMINATION = "contamination.json"
"""In a stage's folder: what `screen` found, written before the first attempt and read by each."""


class ContaminationConfig(OverlapConfig):
    """The `contamination:` section of a recipe."""

    most: float = Field(0.1, ge=0, le=1)
    """Share of the rows above which training is refused: the data set was probably made from the benchmark."""


@dataclass(frozen=True, slots=True)
class Screening:
    """The result of screening a data set."""

    n_rows: int
    overlaps: tuple[Overlap, ...]

    @property
    def dropped(self) -> frozenset[int]:
        """Numbers, from 1, of the rows that must not be trained on."""
        return frozenset(overlap.row for overlap in self.overlaps)


def screen(
    rows: Iterable[TrainingText],
    benchmarks: Mapping[str, Sequence[Question]],
    config: ContaminationConfig,
    report: Path,
    source: str,
) -> Screening:
    """Find the overlaps of the data set `source` and write them to `report`.

    Raises MedbenchError if more than `config.most` of the rows overlap, or if there are no rows.
    """
    counted = _Counted(rows)
    overlaps = tuple(find_overlaps(counted, benchmarks, config))
    found = Screening(counted.n, overlaps)
    if not found.n_rows:
        raise MedbenchError(f"{source}: no rows to train on")
    write_atomically(report, _report(found, benchmarks, config, source))
    share = len(found.dropped) / found.n_rows
    if share > config.most:
        raise MedbenchError(
            f"{source}: {len(found.dropped)} of {found.n_rows} rows ({share:.1%}) overlap benchmark questions, more "
            f"than the {config.most:.1%} allowed: see {report}, and use another data set or raise contamination.most"
        )
    return found


def dropped_rows(report: Path, rows: int) -> frozenset[int]:
    """Numbers of the rows to drop, from the report of a screening; empty if there is no report.

    Raises MedbenchError if `rows`, the current number of rows, differs from that at the screening.
    """
    if not report.exists():
        return frozenset()
    content = json.loads(report.read_text(encoding="utf-8"))
    if content["rows"] != rows:
        raise MedbenchError(
            f"{report}: it covers {content['rows']} rows, the data now has {rows}: restore the data, or start a new "
            f"training"
        )
    return frozenset(overlap["row"] for overlap in content["overlaps"])


class _Counted:
    """Rows that are counted as they are read."""

    def __init__(self, rows: Iterable[TrainingText]) -> None:
        self._rows = rows
        self.n = 0

    def __iter__(self) -> Iterator[TrainingText]:
        for row in self._rows:
            self.n += 1
            yield row


def _report(
    found: Screening, benchmarks: Mapping[str, Sequence[Question]], config: ContaminationConfig, source: str
) -> bytes:
    content = {
        "schema_version": 1,
        "source": source,
        "rows": found.n_rows,
        "dropped": len(found.dropped),
        "share": len(found.dropped) / found.n_rows,
        "config": config.model_dump(),
        "questions": {task: len(questions) for task, questions in benchmarks.items()},
        "by_task": dict(sorted(Counter(overlap.task for overlap in found.overlaps).items())),
        "by_kind": dict(sorted(Counter(overlap.kind for overlap in found.overlaps).items())),
        "overlaps": [asdict(overlap) for overlap in found.overlaps],
    }
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")
