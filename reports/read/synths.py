"""Folders of `medbench synth` -> what the pages know of them: synth.json, with the counts of the data card.

python -c "from medbench.reports.read.synths import *; print(read_synths([Path('runs')]))"
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medbench.harness.runs.synth_record import SYNTH, SynthRecord, parse_synth
from medbench.reports.read.folders import read_checked, read_views, synth_folders


@dataclass(frozen=True, slots=True)
class SynthView:
    """One readable folder."""

    id: str
    """As RunView.id."""
    folder: Path
    record: SynthRecord
    contents: str
    """Hash of synth.json."""


def read_synths(paths: Sequence[Path]) -> tuple[list[SynthView], list[tuple[str, str]]]:
    """(folders by id, (name, reason) of what cannot be shown). Raises MedbenchError for a path that is no folder."""
    return read_views(synth_folders(paths), _read, lambda one, id: replace(one, id=id))


def _read(folder: Path) -> SynthView:
    content = read_checked(folder, SYNTH) or b""
    record = parse_synth(content, str(folder / SYNTH))
    return SynthView("", folder, record, hashlib.sha256(content).hexdigest())
