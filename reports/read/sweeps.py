"""Folders of sweeps -> what the pages know of them: sweep.json.

python -c "from medbench.reports.read.sweeps import *; print(read_sweeps([Path('runs')]))"
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError
from medbench.harness.sweeps.record import SWEEP, SweepRecord, parse_sweep
from medbench.reports.read.folders import natural, read_checked, sweep_folders, unique_slugs, without_path


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
    read: list[SweepView] = []
    faults: list[tuple[str, str]] = []
    for folder, fault in sweep_folders(paths):
        try:
            if fault:
                raise MedbenchError(fault)
            content = read_checked(folder, SWEEP) or b""
            record = parse_sweep(content, str(folder / SWEEP))
            _refuse_odd(record, folder)
            read.append(SweepView("", folder, record, hashlib.sha256(content).hexdigest()))
        except MedbenchError as error:
            faults.append((folder.name, without_path(str(error), folder)))
    read.sort(key=lambda one: (natural(one.folder.name), one.contents))
    ids = unique_slugs(one.folder.name for one in read)
    return [replace(one, id=id) for id, one in zip(ids, read, strict=True)], faults


def _refuse_odd(record: SweepRecord, folder: Path) -> None:
    """Raises MedbenchError for figures that a page cannot draw."""
    if not all(map(math.isfinite, _numbers(record.model_dump(exclude={"recipe"})))):
        raise MedbenchError(f"{folder / SWEEP}: a value that is not a number")
    for cell in record.cells:
        if cell.score is not None and not all(-1 <= end <= 2 for end in cell.score.interval):
            raise MedbenchError(f"{folder / SWEEP}: the interval of {cell.name[:60]} is none of a share")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _numbers(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
