"""Where a quantised checkpoint comes from: medbench_quantised.json in its folder."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

RECORD = "medbench_quantised.json"


class Parent(BaseModel):
    """The checkpoint that was quantised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    tokenizer_sha256: str
    commit: str | None
    weight_bytes: int


class Calibration(BaseModel):
    """What GPTQ was calibrated with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: list[str]
    rows: int
    max_length: int
    """In tokens; longer rows were cut off."""
    sha256: str
    """Over the texts, as the model saw them."""


class Quantised(BaseModel):
    """medbench_quantised.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    parent: Parent
    scheme: str
    method: Literal["round to nearest", "gptq"]
    group_size: int | None
    """Weights that share a scale; None for schemes without groups."""
    not_quantised: list[str]
    calibration: Calibration | None
    """None for rounding to nearest, which needs none."""
    fingerprint: str
    weight_bytes: int
    seconds: float
    created: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    """Of the packages that made it."""
