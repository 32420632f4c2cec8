"""Damaged benchmark files of the three tasks."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuzz.case import Case
from fuzz.category import Category
from fuzz.damage import damaged
from fuzz.oracles import strict_json
from fuzz.play import Done

FILES = {
    "medqa": ("data/medqa/test.jsonl",),
    "pubmedqa": ("data/pubmedqa/test.jsonl",),
    "mmlu_pro_medical": ("data/mmlu_pro_medical/health.jsonl", "data/mmlu_pro_medical/biology.jsonl"),
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def draw_case(draw: random.Random, sound: Path) -> Case:
    task = draw.choice(tuple(FILES))
    name = draw.choice(FILES[task])
    change, done = damaged(sound / name, draw)
    commands = [("tasks", task, "--data", "data", "--json")]
    if task == "medqa":
        commands += [
            ("eval", "m", "--replies", "replies.jsonl", "--tasks", task, "--data", "data", "--quiet", "--json"),
            ("gate", "m", "--replies", "replies.jsonl", "--gates", "floor.yaml", "--data", "data", "--quiet", "--json"),
        ]
    return Case("data", draw.choice(commands), {name: change}, done)


def wrong(case: Case, folder: Path, done: Done) -> list[str]:
    """Every row is a question, and its gold answer is what the row says."""
    if done.status not in (0, 1):
        return []
    task = next(task for task in FILES if any(name in case.changes for name in FILES[task]))
    rows: list[Any] = []
    for name in FILES[task]:
        for number, line in enumerate((folder / name).read_bytes().split(b"\n"), 1):
            if line.strip():
                try:
                    rows.append(strict_json(line))
                except ValueError as error:
                    return [f"taken, but {Path(name).name}:{number}: {str(error)[:80]}"]
    faults = [f"row {at + 1}: {fault}" for at, row in enumerate(rows) if (fault := _fault(task, row))]
    if case.command[0] == "tasks" and done.json["questions"] != len(rows):
        faults.append(f"{done.json['questions']} questions from {len(rows)} rows")
    return [f"taken, but {fault}" for fault in faults[:3]]


def _fault(task: str, row: Mapping[str, Any]) -> str | None:
    if task == "pubmedqa":
        return None if row["final_decision"] in ("yes", "no", "maybe") else "no such decision"
    if task == "medqa":
        options, gold = row["options"], row["answer_idx"]
        if gold not in options:
            return "the gold answer is no option"
        text = row.get("answer")
        same = text is None or str(text).split() == options[gold].split()  # white space says nothing
        return None if same else "answer contradicts answer_idx"
    if row["answer"] not in LETTERS[: len(row["options"])] or LETTERS.index(row["answer"]) != int(row["answer_index"]):
        return "answer contradicts answer_index"
    return None


CATEGORY = Category("data", ("data", "replies.jsonl", "floor.yaml"), draw_case, wrong, share=1.5)
