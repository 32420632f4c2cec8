"""Scores that others have published: shown apart from measured ones, never ranked among them.

    python -c "from medbench.reports.read.references import read_references; print(read_references()[0])"

references.yaml beside this file is the list that ships; a file of the user's has the same form and adds to it.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from medbench.harness.config import Record, read_yaml

BUILT_IN = Path(str(files("medbench.reports") / "references.yaml"))

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Line = Annotated[str, Field(min_length=1, max_length=500)]


class Reference(Record):
    """One model as one source reports it."""

    model: Line
    parameters: Annotated[str, Field(max_length=20)] = ""
    """As the source has it: "32B"."""
    scores: dict[str, Percent] = Field(min_length=1)
    """Task -> accuracy in percent, with the digits of the source."""
    protocol: Line
    """How it was asked and scored, as far as the source says."""
    source: Line
    url: Line
    """Where it can be looked up."""

    @field_validator("url")
    @classmethod
    def _is_web_address(cls, url: str) -> str:
        if not url.startswith("https://") or any(character.isspace() for character in url):
            raise ValueError("write a full address that starts with https://")
        return url


class References(Record):
    """A file of them."""

    references: list[Reference]


def read_references(path: Path | None = None) -> list[Reference]:
    """What ships, then what `path` adds; an entry of the same model and source replaces the one that ships.

    Raises MedbenchError, naming all faults of the file.
    """
    known = {(one.model, one.source): one for one in read_yaml(BUILT_IN, References).references}
    if path is not None:
        known |= {(one.model, one.source): one for one in read_yaml(path, References).references}
    return list(known.values())
