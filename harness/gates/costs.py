"""What a candidate costs beside its baseline: size, speed and memory, as far as the two runs tell.

    for row in rows_of(verdict.costs): print(*row)

Speeds are those of the runs: another load of the machine, or fewer questions at once, give others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import samples_path

CHUNK = 1 << 20


class Cost(BaseModel):
    """Of one run; None for what it did not measure, such as the time of stored replies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    weight_bytes: int | None = None
    quantization: str | None = None
    seconds_per_question: float | None = None
    tokens_per_second: float | None = None
    """Of prompts and replies."""
    tokens_per_answer: float | None = None
    peak_memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class CostRow:
    """One cost in words."""

    name: str
    baseline: str
    candidate: str
    change: str
    """In percent, with its sign."""


def cost_of_run(folder: Path, record: RunRecord) -> Cost:
    """The cost of the run in `folder`, finished or stopped by a gate."""
    return cost_of(record, sum(_lines(samples_path(folder, task)) for task in record.tasks))


def cost_of(record: RunRecord, answers: int) -> Cost:
    """`answers`: how many the record's totals are about."""
    model, totals = record.model, record.totals
    seconds = totals.seconds if record.engine.get("name") != "fake" else 0.0
    tokens = totals.prompt_tokens + totals.completion_tokens
    return Cost(
        run=record.run_id,
        weight_bytes=model.weight_bytes,
        quantization=model.quantization,
        seconds_per_question=seconds / answers if seconds and answers else None,
        tokens_per_second=tokens / seconds if seconds and tokens else None,
        tokens_per_answer=totals.completion_tokens / answers if totals.completion_tokens and answers else None,
        peak_memory_gib=totals.peak_memory_gib,
    )


def rows_of(costs: Sequence[Cost]) -> list[CostRow]:
    """What both the baseline and the candidate (in that order) have; empty without a baseline."""
    if len(costs) != 2:
        return []
    before, after = costs
    wanted: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
        ("weights, MiB", before.weight_bytes, after.weight_bytes, lambda one: f"{one / 2**20:,.1f}"),
        ("seconds a question", before.seconds_per_question, after.seconds_per_question, _figures),
        ("tokens a second", before.tokens_per_second, after.tokens_per_second, _figures),
        ("tokens an answer", before.tokens_per_answer, after.tokens_per_answer, _figures),
        ("peak memory, GiB", before.peak_memory_gib, after.peak_memory_gib, _figures),
    ]
    return [
        CostRow(name, shown(a), shown(b), f"{100 * (b - a) / a:+.0f} %")
        for name, a, b, shown in wanted
        if a is not None and b is not None and a > 0
    ]


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(CHUNK), b""))
    except OSError:
        return 0
