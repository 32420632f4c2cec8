"""A kind of input: how it is made, what it is run through, what is right."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.case import Case
from fuzz.play import NOTHING, SECONDS, Done


@dataclass(frozen=True, slots=True)
class Category:
    name: str
    needs: Sequence[str]
    """Files and folders of the sound folder that a case gets a copy of."""
    draw: Callable[[random.Random, Path], Case]
    """A case, given the sound folder, which must not be changed."""
    wrong: Callable[[Case, Path, Done], list[str]]
    """What was accepted but is wrong, given the folder after the command."""
    functions: Mapping[str, Callable[[Path], int]] = field(default_factory=dict)
    """Commands of the category's own; each takes the folder and returns an exit status."""
    build: Callable[[Path], None] | None = None
    """Adds to the sound folder what only this category needs."""
    share: float = 1.0
    """Of the time of `make fuzz`."""
    seconds: float = SECONDS
    """CPU time allowed."""
    may_leave: str = NOTHING
    """See play."""
