"""Damaged files of stored replies."""

from __future__ import annotations

import random
from pathlib import Path

from fuzz.case import Case
from fuzz.category import Category
from fuzz.damage import damaged
from fuzz.oracles import TwiceError, lines_of, strict_json
from fuzz.play import Done
from fuzz.sound import N

FILE = "replies.jsonl"
GIVEN = ("--data", "data", "--json")
EVAL = ("eval", "m", "--replies", FILE, "--tasks", "medqa", "--name", "new", "--quiet", *GIVEN)
SCORE = ("score", FILE, "--task", "medqa", "--name", "new", *GIVEN)
COMMANDS = (
    EVAL,
    SCORE,
    (*SCORE, "--incomplete"),
    ("score", FILE, "--task", "medqa", "--protocol", "all", *GIVEN),
    ("gate", "m", "--gates", "floor.yaml", "--replies", FILE, "--quiet", *GIVEN),
)


def draw_case(draw: random.Random, sound: Path) -> Case:
    change, done = damaged(sound / FILE, draw)
    return Case("replies", draw.choice(COMMANDS), {FILE: change}, done)


def wrong(case: Case, folder: Path, done: Done) -> list[str]:
    """Every question is scored once, on the reply that the file holds for it."""
    if done.status not in (0, 1):
        return []
    try:
        done.json  # noqa: B018
        given = _given(folder / FILE)
    except ValueError as error:
        return [f"taken, but {str(error)[:80]}"]
    runs = [path.parent for path in folder.glob("runs/*/run.json")]
    if not runs or case.command[0] == "gate":
        return []
    samples = lines_of(runs[0] / "samples/medqa.jsonl")
    faults = []
    if case.command in (EVAL, SCORE) and len(samples) != N:
        faults.append(f"{len(samples)} answers to {N} questions")
    for sample in samples:
        kept = sample["output"].encode("utf-8", "replace")
        expected = {str(output).encode("utf-8", "replace") for output in given.get(sample["id"], ())}
        if sample["error"] is None and expected != {kept}:
            faults.append(f"{sample['id']}: another reply than the file's")
    return faults[:3]


def _given(path: Path) -> dict[str, set[str]]:
    """Id -> its replies. Raises ValueError where a key has two values."""
    found: dict[str, set[str]] = {}
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), 1):
        try:
            row = strict_json(line)
            found.setdefault(str(row["id"]), set()).add(row["output"])
        except TwiceError as error:
            raise ValueError(f"line {number}: {error}") from None
        except (ValueError, TypeError, KeyError):
            continue  # not a reply
    return found


CATEGORY = Category("replies", (FILE, "data", "floor.yaml"), draw_case, wrong, share=1.5)
