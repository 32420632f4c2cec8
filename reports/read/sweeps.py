"""Folders of sweeps -> what the pages know of them: sweep.json.

python -c "from medbench.reports.read.sweeps import *; print(read_sweeps([Path('runs')]))"
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medbench.harness.contracts import MedbenchError
from medbench.harness.sweeps.record import SWEEP, SweepRecord, parse_sweep
from medbench.reports.read.folders import read_checked, read_views, sweep_folders
from medbench.reports.read.trainings import numbers_in


@dataclass(frozen=True, slots=True)
class SweepView:
    """One readable folder."""

    id: str
    """As RunView.id."""
    folder: Path
    record: SweepRecord
    contents: str
    """Hash of sweep.json."""


def read_sweeps(paths: Sequence[Path]) -> tuple[list[SweepView], list[tuple[str, str]]]:
    """(folders by id, (name, reason) of what cannot be shown). Raises MedbenchError for a path that is no folder."""
    return read_views(sweep_folders(paths), _read, lambda one, id: replace(one, id=id))


def _read(folder: Path) -> SweepView:
    content = read_checked(folder, SWEEP) or b""
    record = parse_sweep(content, str(folder / SWEEP))
    _refuse_odd(record, folder)
    return SweepView("", folder, record, hashlib.sha256(content).hexdigest())


def _refuse_odd(record: SweepRecord, folder: Path) -> None:
    """Raises MedbenchError for figures that a page cannot draw."""
    if not all(map(math.isfinite, numbers_in(record.model_dump(exclude={"recipe"})))):
        raise MedbenchError(f"{folder / SWEEP}: a value that is not a number")
    for cell in record.cells:
        if cell.score is not None and not all(-1 <= end <= 2 for end in cell.score.interval):
            raise MedbenchError(f"{folder / SWEEP}: the interval of {cell.name[:60]} is none of a share")
