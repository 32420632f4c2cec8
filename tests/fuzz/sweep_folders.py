"""Damaged folders of sweeps: the pages that show them, and what resumes them."""

from __future__ import annotations

import random
from pathlib import Path

from support.made_sweeps import a_sweep

from fuzz.case import Case
from fuzz.category import Category
from fuzz.damage import damaged
from fuzz.play import Done

FOLDER = "sweeps/sweep-methods"
FILE = f"{FOLDER}/sweep.json"
SITE = ("report", "sweeps", "-o", "out/site", "--json")
RECORD = ("record",)


def draw_case(draw: random.Random, sound: Path) -> Case:
    change, done = damaged(sound / FILE, draw)
    return Case("sweeps", draw.choice((SITE, RECORD)), {FILE: change}, done)


def read_record(folder: Path) -> int:
    """What `medbench train --resume` does first. Scores of a record that is taken are shares."""
    from medbench.harness.sweeps.record import read_sweep

    record = read_sweep(folder / FOLDER)
    for cell in record.cells:
        score = cell.score.score if cell.score is not None else None
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"a score of {score}")
    return 0


def wrong(case: Case, folder: Path, done: Done) -> list[str]:
    return []


CATEGORY = Category(
    "sweeps",
    ("sweeps",),
    draw_case,
    wrong,
    {"record": read_record},
    build=lambda folder: a_sweep(folder / FOLDER) and None,
)
