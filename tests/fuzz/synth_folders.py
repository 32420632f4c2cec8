"""Damaged recipes, rows, replies and folders of `medbench synth`."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import yaml
from support.synth import recipe, write_one_wrong

from fuzz.case import Case
from fuzz.category import Category
from fuzz.damage import damaged
from fuzz.play import Done

FOLDER, RECIPE = "synth", "synth/recipe.yaml"
INPUTS = (RECIPE, f"{FOLDER}/rows.jsonl", f"{FOLDER}/replies.jsonl")
NEW = ("synth", RECIPE, "--out", f"{FOLDER}/new", "--quiet", "--json")
RESUMED = ("synth", RECIPE, "--out", f"{FOLDER}/runs/torn", "--resume", "--quiet", "--json")
SITE = ("report", f"{FOLDER}/runs", "-o", "out/site", "--json")


def build(folder: Path) -> None:
    """Four questions; the reply to one is wrong. In runs/, a folder that is complete and one cut off in its replies."""
    from medbench.harness.synth.synth import SynthOptions, synthesize

    at = folder / FOLDER
    at.mkdir()
    write_one_wrong(at)
    path = recipe(at)
    content = yaml.safe_load(path.read_text())
    content["generator"]["replies"] = f"{FOLDER}/replies.jsonl"
    content["sources"] = [{"path": f"{FOLDER}/rows.jsonl"}]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with contextlib.chdir(folder):
        for name in ("mine", "torn"):
            synthesize(SynthOptions(Path(RECIPE), Path(FOLDER) / "runs" / name), lambda _: None)
    _tear(at / "runs/torn")


def _tear(folder: Path) -> None:
    """As SIGKILL leaves it after two replies and a half."""
    candidates, record = folder / "candidates.jsonl", folder / "synth.json"
    lines = candidates.read_text().splitlines(keepends=True)
    candidates.write_text("".join(lines[:2]) + lines[2][:50])
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running", "card": None}, indent=1))


def draw_case(draw: random.Random, sound: Path) -> Case:
    command = draw.choice((NEW, NEW, RESUMED, SITE))
    written = "torn" if command == RESUMED else "mine"
    files = sorted(
        path for path in (sound / FOLDER / "runs" / written).rglob("*") if path.suffix in (".json", ".jsonl")
    )
    path = draw.choice([sound / name for name in INPUTS] if command == NEW else files)
    change, done = damaged(path, draw)
    return Case("synth", command, {str(path.relative_to(sound)): change}, done)


def wrong(case: Case, folder: Path, done: Done) -> list[str]:
    return []


CATEGORY = Category(
    "synth",
    (FOLDER,),
    draw_case,
    wrong,
    build=build,
    may_leave=r"^synth/runs/torn/(candidates\.jsonl|synth\.json)$",  # begun, before another row than then is found
)
