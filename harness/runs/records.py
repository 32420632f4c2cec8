"""The records of run.json."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medbench.harness.contracts import MOST_NEW_TOKENS

SCHEMA_VERSION = 1
MOST_QUESTIONS = 1_000_000
"""Of a task. A gate holds an order of all of them; a larger number was not written by medbench."""

Count = Annotated[int, Field(ge=0, le=2**53)]


class _Record(BaseModel):
    """Strict: JSON's true is no 1, and "1" neither."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), strict=True, allow_inf_nan=False)


class AdapterRecord(_Record):
    """One adapter of a run whose tasks are asked of adapters of their own."""

    name: str
    path: str
    fingerprint: str
    """sha256 over base and adapter: that of a run of this adapter alone."""
    tokenizer_sha256: str
    rank: Count
    """The largest of its factors; 0 for an adapter of another kind."""
    revision: str | None = None
    commit: str | None = None
    merge_deviation: float | None = None
    """See contracts.Checkpoint; None where it was served as it is."""


class ExpertsRecord(_Record):
    """Which adapter answered what; questions of no target were answered by the base."""

    base: str
    """Fingerprint of the base's weights."""
    served: Literal["lora", "merged"]
    """All beside the base in one vLLM engine, or one merged checkpoint after the other."""
    adapters: dict[str, AdapterRecord]
    """Target -> its adapter; a target is a task or "task/field=value", see runs.experts."""


class ModelRecord(_Record):
    """The model that answered."""

    name: str
    kind: str
    """"full" or "adapter" (see contracts.Checkpoint), "experts", "served", "replies", or "engine"."""
    path: str | None = None
    fingerprint: str
    """sha256 over the weights; for a served model, over server and model name; for replies, over the file.

    For experts, over the fingerprints of the base and, by target, of the adapters. For an engine without a checkpoint,
    over engine and model name, or the engine's own fingerprint.
    """
    tokenizer_sha256: str | None = None
    config_sha256: str | None = None
    """See contracts.Checkpoint; None in runs of medbench 0.1.0."""
    revision: str | None = None
    commit: str | None = None
    base: str | None = None
    base_commit: str | None = None
    """Of models and bases from the Hub, see contracts.Checkpoint; None in runs of medbench 0.1.0."""
    merge_deviation: float | None = None
    """See contracts.Checkpoint."""
    parameters: Count | None = None
    weight_bytes: Count | None = None
    quantization: str | None = None
    """See contracts.Checkpoint; None in runs of medbench 0.1.0."""
    experts: ExpertsRecord | None = None
    """Set where tasks were asked of adapters of their own."""


class TaskRecord(_Record):
    """One task of the run, as it was asked."""

    version: str
    split: str
    source: str
    sha256: str
    official: bool
    n: Annotated[int, Field(ge=0, le=MOST_QUESTIONS)]
    """Number of questions of the task."""
    examples: str | None = None
    """sha256 over the rows that few-shot examples are drawn from; None where none are shown."""
    commit: str | None = None
    """See contracts.Data; None in runs of medbench 0.1.0."""


class Totals(_Record):
    """Sums over all sessions of the run."""

    seconds: Annotated[float, Field(ge=0)] = 0.0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    peak_memory_gib: float | None = None
    """Peak memory of this process, where the model runs in it on a CPU; otherwise None."""


class _Decoding(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] = 1
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class _Asked(BaseModel):
    """What readers of run.json use of a resolved protocol; other versions of medbench may have more keys."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    about: str = ""
    method: str = ""
    shots: Annotated[int, Field(ge=0)] = 0
    decoding: _Decoding = _Decoding()


class _Engine(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: str = ""
    settings: dict[str, Any] = {}


class RunRecord(_Record):
    """run.json."""

    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
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
    """Of sampling, of shuffled options, and of the order of which `limit` takes the first."""
    order_seed: str | None = None
    """Of the order in which a gate looks at the questions (see evaluation.question_order).

    None in runs of medbench 0.1.0, whose gates used `seed`.
    """
    partition: Literal["all", "gate", "report"] = "all"
    """Which half of the questions (see benchmarks.partition)."""
    limit: Annotated[int, Field(ge=1)] | None
    """Most questions per task, the first of the seeded order; None is all."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Completions per question."""
    shuffle_options: Annotated[int, Field(ge=0)] = 0
    """Number of orders of the options in which each question is asked; 0 is only the question's own order."""
    incomplete: Count = 0
    """Questions that lack replies in the file of stored replies; such a run cannot be compared or gated."""
    engine: dict[str, Any]
    """name, chat_template (see contracts.Engine) and settings."""
    packages: dict[str, str]
    git_commit: str | None
    notes: list[str] = []
    """Caveats for readers: no chat template, unofficial rows, built-in sample, ..."""
    totals: Totals = Totals()

    @property
    def order(self) -> str | int:
        """The seed of the order in which a gate looks at the questions."""
        return self.seed if self.order_seed is None else self.order_seed

    @property
    def not_applied(self) -> tuple[str, ...]:
        """Names of settings of the requests that the engine could not apply; `notes` say what was done instead."""
        found = self.engine.get("settings", {}).get("not_applied")
        return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()

    @property
    def repeats(self) -> int:
        """How often each question is asked."""
        return max(self.samples, self.shuffle_options)

    @field_validator("protocol")
    @classmethod
    def _readable_protocol(cls, content: dict[str, Any]) -> dict[str, Any]:
        _refuse_unreadable(content, _Asked)
        return content

    @field_validator("engine")
    @classmethod
    def _readable_engine(cls, content: dict[str, Any]) -> dict[str, Any]:
        _refuse_unreadable(content, _Engine)
        return content


def _refuse_unreadable(content: dict[str, Any], model: type[BaseModel]) -> None:
    """As a ValueError of one line: pydantic's own has several."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}") from None
