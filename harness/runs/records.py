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
    """"full" or "adapter" (see contracts.Checkpoint), "served", "replies", or "engine"."""
    path: str | None = None
    fingerprint: str
    """sha256 over the weights; for a served model, over server and model name; for replies, over the file.

    For an engine without a checkpoint, over engine and model name, or the engine's own fingerprint.
    """
    tokenizer_sha256: str | None = None
    config_sha256: str | None = None
    """See contracts.Checkpoint; None in runs of medbench 0.1.0."""
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
    """Number of questions of the task."""
    examples: str | None = None
    """sha256 over the rows that few-shot examples are drawn from; None where none are shown."""


class Totals(_Record):
    """Sums over all sessions of the run."""

    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    peak_memory_gib: float | None = None
    """Peak memory of this process, where the model runs in it on a CPU; otherwise None."""


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
    """Which half of the questions (see benchmarks.partition)."""
    limit: int | None
    """Most questions per task, the first of the seeded order; None is all."""
    samples: int = 1
    """Completions per question."""
    shuffle_options: int = 0
    """Number of orders of the options in which each question is asked; 0 is only the question's own order."""
    incomplete: int = 0
    """Questions that lack replies in the file of stored replies; such a run cannot be compared or gated."""
    engine: dict[str, Any]
    """name, chat_template (see contracts.Engine) and settings."""
    packages: dict[str, str]
    git_commit: str | None
    notes: list[str] = []
    """Caveats for readers: no chat template, unofficial rows, built-in sample, ..."""
    totals: Totals = Totals()
