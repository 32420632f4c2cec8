"""Folders of `medbench synth` -> what the pages know of them: synth.json, with the counts of the data card.

python -c "from medbench.reports.read.synths import *; print(read_synths([Path('runs')]))"
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medbench.harness.contracts import MedbenchError
from medbench.harness.runs.synth_record import SYNTH, SynthRecord, parse_synth
from medbench.reports.read.folders import natural, read_checked, synth_folders, unique_slugs, without_path


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
    read: list[SynthView] = []
    faults: list[tuple[str, str]] = []
    for folder, fault in synth_folders(paths):
        try:
            if fault:
                raise MedbenchError(fault)
            content = read_checked(folder, SYNTH) or b""
            record = parse_synth(content, str(folder / SYNTH))
            read.append(SynthView("", folder, record, hashlib.sha256(content).hexdigest()))
        except MedbenchError as error:
            faults.append((folder.name, without_path(str(error), folder)))
    read.sort(key=lambda one: (natural(one.folder.name), one.contents))
    ids = unique_slugs(one.folder.name for one in read)
    return [replace(one, id=id) for id, one in zip(ids, read, strict=True)], faults
