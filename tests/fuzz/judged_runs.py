"""Damaged judgements of a run: agreement with labels, gates on judged scores, pages."""

from __future__ import annotations

import random
from pathlib import Path

from support.judge_programs import Scripted, judged, labelled, pubmedqa_run

from fuzz.case import Case
from fuzz.category import Category
from fuzz.damage import damaged
from fuzz.play import Done

RUN, LABELS, GATES = "judged/runs/judged", "judged/runs/judged-labels.jsonl", "judged/gates.yaml"
RULES = "gates:\n  - {task: pubmedqa, metric: factuality, judge: scripted, at_least: 0.2, least_kappa: 0.3}\n"
COMMANDS = (
    ("judge", "check", RUN, LABELS, "--json"),
    ("gate", RUN, "--gates", GATES, "--data", "judged/data", "--json"),
    ("report", "judged/runs", "-o", "out/site", "--json"),
)


def build(folder: Path) -> None:
    (folder / "judged").mkdir()
    run = pubmedqa_run(folder / "judged", number=12)
    judged(run, Scripted())
    labelled(run, 12)
    (folder / GATES).write_text(RULES)


def draw_case(draw: random.Random, sound: Path) -> Case:
    command = draw.choice(COMMANDS)
    files = sorted((sound / RUN / "judgements").iterdir())
    if command[0] == "judge":
        files = [path for path in files if path.suffix == ".jsonl"] + [sound / LABELS]
    path = draw.choice(files)
    change, done = damaged(path, draw)
    return Case("judged", command, {str(path.relative_to(sound)): change}, done)


def wrong(case: Case, folder: Path, done: Done) -> list[str]:
    """What is shown is a share."""
    if case.command[0] != "gate" or done.status not in (0, 1):
        return []
    found = done.json["verdicts"][0]["gates"][0]["estimate"]
    return [] if found is not None and 0 <= found <= 1 else [f"factuality {found}"]


CATEGORY = Category("judged", ("judged",), draw_case, wrong, build=build)
