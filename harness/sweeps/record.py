"""What is on disk of a sweep.

    runs/sweep-NAME/sweep.json        the recipe, every cell, what its training took, how the comparison stands
    runs/sweep-NAME/cells/CELL.yaml   the cell's recipe, which `medbench train` takes by itself
    runs/sweep-NAME/cells/CELL.log    what a cell printed that was trained beside others
    runs/sweep-NAME/train-CELL/       its training, as any other
    runs/sweep-NAME/runs/CELL/        its answers in the comparison

sweep.json is written again after each training and each round. All of it but its times follows from the other folders,
so a sweep that was killed goes on from those.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import write_atomically

SCHEMA_VERSION = 1
SWEEP = "sweep.json"

State = Literal["training", "comparing", "complete"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class CellTraining(_Part):
    """How a cell's training ended."""

    outcome: Literal["passed", "failed"]
    """By the gates of its stages."""
    reason: str
    checkpoint: str | None
    """Folder of what is compared, relative to the sweep's: promoted, or the best where no checkpoint passed."""
    fingerprint: str | None = None
    """sha256 over its weights, an adapter's merged."""
    seconds: float
    """Of training, over all attempts and stages, without judging."""
    trained_parameters: int | None = None
    """Of the last stage, as far as its trainer logs it; so is the next."""
    peak_memory_gib: float | None = None
    """Of tensors on a GPU, else of the training's process."""
    steps: int | None = None
    """Of the checkpoint."""
    confirmed: float | None = None
    """Accuracy of a promoted checkpoint on questions that neither the training nor the comparison looks at."""
    confirmed_interval: tuple[float, float] | None = None


class CellDrop(_Part):
    """Why a cell was dropped: see halving.Drop."""

    by: str
    after: int
    exact: bool
    log_e: float


class CellScore(_Part):
    """A cell's accuracy in the comparison."""

    asked: int = Field(ge=0)
    failed: int = Field(ge=0)
    """Questions with a failed request among these."""
    score: float | None = Field(ge=0, le=1)
    """Mean over the questions that got an answer."""
    interval: tuple[float, float]
    """95 %: where all were asked, of new questions; else of the mean over all, valid wherever it stopped."""
    of_new_questions: bool
    to_best: float | None = None
    """The best cell's score minus this one's on the questions that both answered; None for the best."""
    to_best_interval: tuple[float, float] | None = None
    """95 %, paired, for new questions; only where both were asked everything."""


class CellRecord(_Part):
    """One cell, as far as it is known."""

    name: str
    values: dict[str, str]
    """Axis -> value."""
    training: CellTraining | None = None
    score: CellScore | None = None
    dropped: CellDrop | None = None


class SweepRecord(_Part):
    """sweep.json"""

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    command: list[str]
    recipe: dict[str, Any]
    recipe_sha256: str
    packages: dict[str, str] = {}
    git_commit: str | None = None
    state: State = "training"
    seconds: float = 0.0
    """Of work, over all sessions."""
    task: str
    """By whose accuracy cells are compared."""
    alpha: float
    """Chance that the best cell is dropped."""
    alpha_each: float | None = None
    """Of the test of one cell against another: alpha over the number of cells in the comparison less 1."""
    questions: int | None = None
    """Those of the comparison: the half of the task that training looks at."""
    most: int | None = None
    """Of these, at most so many are asked."""
    order_seed: str | None = None
    rounds: list[tuple[int, int]] = []
    """(questions asked of each cell by its end, cells that are left then) of each round."""
    best: str | None = None
    """Of the cells that are left, the one with the highest score; None before the comparison."""
    cells: list[CellRecord]


def write_sweep(folder: Path, record: SweepRecord) -> None:
    """Raises Interrupted where it cannot be written."""
    text = json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=1)
    write_atomically(folder / SWEEP, text.encode("utf-8", "replace") + b"\n")


def read_sweep(folder: Path) -> SweepRecord:
    """Raises MedbenchError for a missing or damaged sweep.json, or one of a newer schema."""
    path = folder / SWEEP
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_sweep(content, str(path))


def parse_sweep(content: bytes, where: str) -> SweepRecord:
    """What `read_sweep` reads; `where` names the file in messages."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise MedbenchError(f"{where}: not JSON: the file is damaged") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise MedbenchError(f"{where}: schema version {version} is newer than {SCHEMA_VERSION}: upgrade medbench")
    try:
        return SweepRecord.model_validate(found)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise MedbenchError(f"{where}: {key}: {fault['msg'].lower()}: the file is damaged") from None
