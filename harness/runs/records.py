"""The records of run.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelRecord(_Record):
    """The model that answered."""

    name: str
    kind: str
    path: str | None = None
    fingerprint: str
    """sha256 over the weights; for a served model, over server and model name; for replies, over the file."""
    tokenizer_sha256: str | None = None
    base: str | None = None
    merge_deviation: float | None = None
    """See contracts.Checkpoint."""
    parameters: int | None = None


class TaskRecord(_Record):
    """One task of the run, as it was asked."""

    version: str
    split: str
    source: str
    sha256: str
    official: bool
    n: int
    """Questions of the task in all."""
    examples: str | None = None
    """sha256 over the rows that worked examples are drawn from; None where none are shown."""


class Totals(_Record):
    """Sums over all sessions of the run."""

    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    peak_memory_gib: float | None = None
    """The most that this process held, where the model runs in it on a CPU; None where it is not known."""


class RunRecord(_Record):
    """run.json."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    status: Literal["running", "complete", "failed"]
    created: str
    """UTC, ISO 8601."""
    command: list[str]
    model: ModelRecord
    tasks: dict[str, TaskRecord]
    protocol: dict[str, Any]
    """The resolved protocol; "name" identifies it."""
    seed: int
    partition: Literal["all", "gate", "report"] = "all"
    """Which half of the questions (see data.partition_of)."""
    limit: int | None
    """Most questions a task, the first of the seeded order; None is all."""
    samples: int = 1
    """Replies asked for each question."""
    shuffle_options: int = 0
    """Orders of the options in which each question is asked; 0 is the question's own order alone."""
    incomplete: int = 0
    """Questions that lack replies because a file of stored ones does not hold them; such a run is not comparable."""
    engine: dict[str, Any]
    """name, who rendered the chat template, and settings."""
    packages: dict[str, str]
    git_commit: str | None
    notes: list[str] = []
    """What a reader should know: no chat template, unofficial rows, built-in sample, ..."""
    totals: Totals = Totals()
