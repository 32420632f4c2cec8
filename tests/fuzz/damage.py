"""A damaged copy of one file of the sound folder, by what kind of file it is."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import yaml

from fuzz.case import Change, written
from fuzz.mutators import damaged_bytes, damaged_json, damaged_lines, damaged_yaml

Mutator = Callable[[bytes, random.Random], tuple[bytes, str]]


def damaged(path: Path, draw: random.Random) -> tuple[Change, str]:
    """The change, and what was done."""
    if draw.random() < 0.04:
        return _no_file(path, draw)
    content, done = path.read_bytes(), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content, one = _once(content, path.suffix, draw)
        done.append(one)
    return written(content), f"{path.name}: {'; '.join(done)}"


def _once(content: bytes, suffix: str, draw: random.Random) -> tuple[bytes, str]:
    if draw.random() < 0.75 and suffix in BY_SUFFIX:
        try:
            return BY_SUFFIX[suffix](content, draw)
        except (ValueError, RecursionError, IndexError, yaml.YAMLError):
            pass  # it is too damaged already to have structure
    return damaged_bytes(content, draw)


def _json(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    text, done = damaged_json(json.loads(content), draw, indent=1)
    return text.encode("utf-8", "surrogatepass"), done


def _yaml(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    if len(content) > 20_000 or b"&b0" in content or b"&m0" in content:
        raise ValueError("a bomb already: it would go off here")
    text, done = damaged_yaml(yaml.load(content.decode(), Loader=_Loader), draw)
    return text.encode("utf-8", "surrogatepass"), done


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's `!function a.b` as text."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))

BY_SUFFIX: dict[str, Mutator] = {".json": _json, ".jsonl": damaged_lines, ".yaml": _yaml}


def _no_file(path: Path, draw: random.Random) -> tuple[Change, str]:
    kinds: list[tuple[Change, str]] = [
        ({"absent": True}, "missing"),
        ({"folder": True}, "a folder"),
        ({"link": path.name}, "a link to itself"),
        ({"link": "nowhere/at/all"}, "a dangling link"),
        ({"link": "/"}, "a link to a folder"),
    ]
    if os.geteuid() != 0:
        kinds.append(({"mode": 0}, "unreadable"))
    change, done = draw.choice(kinds)
    return change, f"{path.name}: {done}"
