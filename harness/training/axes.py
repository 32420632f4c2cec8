"""The `sweep:` section of a recipe: axes over its keys, and the cells that their values make.

    sweep:
      axes:
        stages.sft.config.training.learning_rate: [1.0e-4, 5.0e-4]
        stages.sft.config.adapter: {small: {kind: lora, rank: 4}, factors: {kind: ia3}}

An axis is a path of keys from the recipe's top, a stage by its name; its values are a list of numbers, texts or flags,
or a mapping of labels to values of any kind. A mapping as a value is merged into what the recipe has there, so that
one axis can change several keys at once. Every combination is a cell, called by its values, such as
learning_rate-0.0001_adapter-small.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from medbench.harness.config import Fault, Record
from medbench.harness.files import slug
from medbench.harness.text import did_you_mean, foreign

MOST_CELLS = 200
LONGEST_NAME = 120
"""Characters of a name of a recipe or a stage."""
COMMON = ("name", "sweep", "data", "benchmarks")
"""Keys at the top of a recipe that its cells have in common."""


def _axis(values: Any) -> Any:
    if not isinstance(values, list | dict):
        raise ValueError("an axis is a list of values, or a mapping of labels to values")
    if not values:
        raise ValueError("an axis without values has no cells: name some, or leave it out")
    for at, value in enumerate(values if isinstance(values, list) else ()):
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"value {at + 1} is no number, text or flag: give it a label, as in {{mine: ...}}")
    try:
        json.dumps(values)
    except TypeError as error:  # YAML has types that JSON lacks: date, set, bytes
        raise ValueError(f"{str(error)[0].lower()}{str(error)[1:]}: write it as text, in quotes") from None
    return values


class Sweep(Record):
    """What a recipe's cells are, and how they are judged."""

    axes: dict[str, Annotated[Any, AfterValidator(_axis)]] = Field(min_length=1)
    task: str | None = None
    """By whose accuracy cells are compared; None is that of the last stage's first gate on accuracy."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance that the best cell is dropped."""
    questions: int | None = Field(None, ge=1)
    """Most questions a cell is asked in the comparison; None is all of the half that the loop looks at."""
    parallel: int | None = Field(None, ge=1)
    """Cells trained at the same time; None is one for each GPU, or group of GPUs that a cell takes, and 1 on a CPU."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One value of each axis, and the recipe's content with them."""

    name: str
    values: dict[str, str]
    """Axis -> its value, as the name has it before it is made fit for a folder."""
    content: dict[str, Any]


def size_of(sweep: Sweep) -> int:
    """Number of cells."""
    return math.prod(map(len, sweep.axes.values()))


def combinations(sweep: Sweep, content: Mapping[str, Any]) -> tuple[list[Combination], list[Fault]]:
    """The cells of a recipe's `content`, or what is wrong with the axes; the contents are not validated."""
    faults = [Fault(("axes", path), why) for path in sweep.axes if (why := _no_axis(path, content))]
    if faults:
        return [], faults
    if (n := size_of(sweep)) > MOST_CELLS:
        product = " x ".join(str(len(values)) for values in sweep.axes.values())
        return [], [
            Fault(("axes",), f"{n:,} cells ({product}), and a sweep has at most {MOST_CELLS}: leave out values")
        ]
    short = {path: slug(name) for path, name in short_names(list(sweep.axes)).items()}
    found: list[Combination] = []
    for chosen in itertools.product(*(_labelled(values) for values in sweep.axes.values())):
        changed = copy.deepcopy(dict(content))
        for path, (_, value) in zip(sweep.axes, chosen, strict=True):
            _put(changed, path, value)
        labels = {path: label for path, (label, _) in zip(sweep.axes, chosen, strict=True)}
        name = "_".join(f"{short[path]}-{slug(label, LONGEST_NAME)}" for path, label in labels.items())
        changed["name"] = name
        found.append(Combination(name, labels, changed))
    wrong = _name_faults(found)
    return ([] if wrong else found), wrong


def _no_axis(path: str, content: Mapping[str, Any]) -> str:
    """Why the path leads to no key of a cell; "" where it does, as far as that is known without its trainer."""
    first, *more = path.split(".")
    if first in COMMON:
        return f"cells have {first} in common: leave it out"
    if first not in content:
        return f"unknown key; {did_you_mean(first, [key for key in content if key not in COMMON])}"
    stages = [str(stage["name"]) for stage in content["stages"]]
    if first == "stages":
        if not more or more[0] not in stages:
            return f"unknown stage; {did_you_mean(more[0] if more else '', stages)}"
        if more[0] == stages[-1] and more[1:2] == ["gates"]:
            return "cells are judged together, by the last stage's gates: leave it out"
        if more[1:2] == ["name"]:
            return "cells have the names of stages in common: leave it out"
    try:
        _put(copy.deepcopy(dict(content)), path, None)
    except LookupError as error:
        return str(error.args[0])
    return ""


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    """Set what is at `path`; a mapping is merged into one that is there. Raises LookupError where there is no place."""
    *parents, last = path.split(".")
    node: Any = content
    for at, part in enumerate(parents):
        if isinstance(node, list):
            node = node[_index(node, part)]
            continue
        if not isinstance(node, dict):
            raise LookupError(f"{'.'.join(parents[:at])} is a value and has no key {foreign(part, 40)}")
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
    key: Any = _index(node, last) if isinstance(node, list) else last
    if not isinstance(node, list | dict):
        raise LookupError(f"{'.'.join(parents)} is a value and has no key {foreign(last, 40)}")
    before = node.get(key) if isinstance(node, dict) else node[key]
    if isinstance(before, dict) and isinstance(value, dict):
        node[key] = _merged(before, value)
    else:
        node[key] = copy.deepcopy(value)


def _index(items: Sequence[Any], part: str) -> int:
    """Of the item with that name, or with that number counted from 0."""
    names = [str(item["name"]) if isinstance(item, dict) and "name" in item else None for item in items]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    raise LookupError(f"no item {foreign(part, 40)} in a list of {len(items)}; items count from 0")


def _merged(before: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(before)
    for key, inner in value.items():
        under = found.get(key)
        if isinstance(under, dict) and isinstance(inner, dict):
            found[key] = _merged(under, inner)
        else:
            found[key] = copy.deepcopy(inner)
    return found


def _labelled(values: list[Any] | dict[Any, Any]) -> list[tuple[str, Any]]:
    if isinstance(values, dict):
        return [(_text(label), value) for label, value in values.items()]
    return [(_text(value), value) for value in values]


def _text(value: Any) -> str:
    """As YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Axis -> the fewest of its last keys that no other axis ends in."""
    found = {}
    for path in paths:
        parts = path.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        found[path] = next((end for end in ends if sum(f".{one}".endswith(f".{end}") for one in paths) == 1), path)
    return found


def _name_faults(found: Sequence[Combination]) -> list[Fault]:
    twice = [name for name, times in Counter(one.name.casefold() for one in found).items() if times > 1]
    if twice:
        first, second = [one.values for one in found if one.name.casefold() == twice[0]][:2]
        differing = " and ".join(f"{one}" for one in (_said(first), _said(second)))
        return [Fault(("axes",), f"two cells would be called {twice[0]}, {differing}: give the values other labels")]
    long = next((one.name for one in found if len(one.name) > LONGEST_NAME), None)
    if long is not None:
        return [
            Fault(
                ("axes",),
                f"the name {long[:40]}... has {len(long)} characters, more than {LONGEST_NAME}: "
                f"give the values shorter labels",
            )
        ]
    return []


def _said(values: Mapping[str, str]) -> str:
    return f"({', '.join(foreign(value, 30) for value in values.values())})"
