"""Damaged YAML: gate files, recipes, eval configs, protocols, tasks, references."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import yaml

from fuzz.case import Case
from fuzz.category import Category
from fuzz.damage import damaged
from fuzz.oracles import is_number
from fuzz.play import Done

GATE = ("gate", "runs/candidate", "--gates", "gates.yaml", "--data", "data", "--baseline", "runs/base", "--json")
EVAL = ("eval", "m", "--replies", "replies.jsonl", "--data", "data", "--tasks", "medqa", "--quiet", "--json")
COMMANDS = {
    "gates": (("validate", "gates.yaml"), GATE, GATE),
    "recipe": (("validate", "recipe.yaml"), ("train", "recipe.yaml", "--dry-run", "--data", "data")),
    "config": (
        ("validate", "config.yaml"),
        (*EVAL, "--config", "config.yaml"),
        (*GATE, "--config", "config.yaml"),
    ),
    "protocol": (("validate", "protocol.yaml"), (*EVAL, "--protocol", "protocol.yaml")),
    "task": (("validate", "task.yaml"),),
    "references": (("report", "runs/candidate", "-o", "out", "--references", "references.yaml"),),
}


def draw_case(draw: random.Random, sound: Path) -> Case:
    kind = draw.choice(("gates", "gates", *COMMANDS))
    name = f"{kind}.yaml"
    change, done = damaged(sound / name, draw)
    return Case("yaml", draw.choice(COMMANDS[kind]), {name: change}, done)


class _Plain(yaml.SafeLoader):
    """With lm-eval's tag, which medbench reads as text in every file."""


_Plain.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def wrong(case: Case, folder: Path, done: Done) -> list[str]:
    """A gate file that is taken has rules that mean something."""
    if "gates.yaml" not in case.command or "gates.yaml" not in case.changes or done.status not in (0, 1, 3):
        return []
    content: Any = yaml.load((folder / "gates.yaml").read_bytes(), Loader=_Plain)
    faults = []
    if not is_number(content.get("alpha", 0.05), 0, 0.5):
        faults.append("alpha")
    for gate in content.get("gates", []):  # {} is an eval config
        bounds = [gate[key] for key in ("at_least", "at_most", "margin", "better_by") if gate.get(key) is not None]
        if len(bounds) != 1 or not is_number(bounds[0], 0) or math.isinf(bounds[0]):
            faults.append(f"bounds {str(bounds)[:60]}")
        elif gate.get("metric", "accuracy") in ("accuracy", "unparsed", "truncated", "errors") and bounds[0] > 1:
            faults.append(f"a share of {str(bounds[0])[:20]}")
    return [f"the gate file is taken, but {fault}" for fault in faults[:3]]


CATEGORY = Category(
    "yaml",
    (*(f"{kind}.yaml" for kind in COMMANDS), "runs/base", "runs/candidate", "data", "replies.jsonl"),
    draw_case,
    wrong,
    share=1.5,
    seconds=10.0,  # lm-eval's index of its own tasks, which is read for an unknown one, takes four
)
