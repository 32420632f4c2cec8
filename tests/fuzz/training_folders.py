"""Damaged folders of trainings: the pages that show them, and what resumes them."""

from __future__ import annotations

import random
from pathlib import Path

from fuzz.case import Case
from fuzz.category import Category
from fuzz.damage import damaged
from fuzz.play import Done

FOLDER = "training/train-mine"
SITE = ("report", "training", "-o", "out/site", "--json")
JOURNAL = ("journal",)


def draw_case(draw: random.Random, sound: Path) -> Case:
    files = sorted(path for path in (sound / FOLDER).rglob("*") if path.suffix in (".json", ".jsonl"))
    top = [path for path in files if path.parent == sound / FOLDER]
    changes, done = {}, []
    for _ in range(draw.choice((1, 1, 1, 2))):
        path = draw.choice([*files, *top * 8])
        changes[str(path.relative_to(sound))], what = damaged(path, draw)
        done.append(what)
    return Case("training", draw.choice((SITE, JOURNAL)), changes, "; ".join(done))


def read_journal(folder: Path) -> int:
    """What `medbench train --resume` does first."""
    from medbench.harness.training.checkpoint_folder import read_metrics
    from medbench.harness.training.journal import Journal, read_training
    from medbench.harness.training.state import best_checkpoint, ended, stages_of

    read_training(folder / FOLDER)
    with Journal(folder / FOLDER) as journal:
        stages = stages_of(journal.events)
        best_checkpoint(stages)
        ended(journal.events)
    for metrics in sorted((folder / FOLDER).glob("*/*/metrics.jsonl")):
        read_metrics(metrics.parent)
    return 0


def wrong(case: Case, folder: Path, done: Done) -> list[str]:
    return []


CATEGORY = Category("training", ("training",), draw_case, wrong, {"journal": read_journal})
