"""A line of samples/<task>.jsonl: what it may hold, checked in one place for every reader.

msgspec checks types and bounds and decodes in one step of C: three million lines in half a minute, where checking each
with pydantic takes ten. Lines that are no strict JSON (NaN, half a surrogate pair) take the slow way round.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from medbench.harness.contracts import FinishReason, Note, Outcome, Sample
from medbench.harness.files import parse_json
from medbench.harness.runs.records import SCHEMA_VERSION
from medbench.harness.text import without_halves

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Score = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""NaN is neither, and is refused."""


class Line(msgspec.Struct, gc=False):
    """contracts.Sample as it stands in the file."""

    id: str
    cluster: str
    prompt: str
    output: str
    finish_reason: FinishReason
    extracted: str | None
    outcome: Outcome
    span: tuple[Count, Count] | None
    gold: str
    score: Score | None
    error: str | None
    prompt_tokens: Count
    completion_tokens: Count
    category: dict[str, str]
    schema_version: Annotated[int, msgspec.Meta(ge=1)]
    logprobs: dict[str, float] | None = None
    """-inf is a probability of 0; NaN, which some engines give, is an abstention (see scoring.calibration)."""
    repeat: Count = 0
    order: tuple[Count, ...] | None = None
    note: Note | None = None

    def sample(self) -> Sample:
        return Sample(
            id=self.id,
            cluster=self.cluster,
            prompt=self.prompt,
            output=self.output,
            finish_reason=self.finish_reason,
            extracted=self.extracted,
            outcome=self.outcome,
            span=self.span,
            gold=self.gold,
            score=self.score,
            error=self.error,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            category=self.category,
            logprobs=self.logprobs,
            repeat=self.repeat,
            order=self.order,
            note=self.note,
        )


class NewerSample(ValueError):
    """A line that a newer medbench has written: it is not damaged."""


DECIDING = tuple(f'"{name}":'.encode() for name in ("id", "extracted", "gold", "score", "outcome", "repeat", "order"))
LONG = 100_000
"""Bytes beside the texts of a line, beyond which looking for keys takes longer than parsing."""
_decode = msgspec.json.Decoder(Line).decode
_HALF = re.compile(rb"\\u[dD]")
"""Half a surrogate pair can only be written as an escape."""


def decode(raw: bytes) -> Line:
    """Raises ValueError, in a few words, for what is no sample."""
    try:
        raw.decode()  # msgspec does not look into fields that Line does not have
        line = _slowly(raw) if _may_repeat(raw) else _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        line = _slowly(raw)
    if line.schema_version > SCHEMA_VERSION:
        raise NewerSample(f"schema version {line.schema_version} is newer than {SCHEMA_VERSION}: upgrade medbench")
    if (line.score is None) != (line.outcome == "error"):
        raise ValueError("a failed request with a score, or an answer without one: not written by medbench, or damaged")
    return line


def _may_repeat(raw: bytes) -> bool:
    """Whether a key that decides may be given twice, of which msgspec takes the last; the texts are not searched."""
    before, behind = max(raw.find(b'"prompt":'), 0), max(raw.find(b'"finish_reason":'), 0)
    if before + len(raw) - behind > LONG:
        return True
    around = raw[:before] + raw[behind:]
    return any(around.count(key) > 1 for key in DECIDING)


def _slowly(raw: bytes) -> Line:
    try:
        content = parse_json(raw)
        return msgspec.convert(without_halves(content) if _HALF.search(raw) else content, Line)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a sample written by medbench, or damaged ({error})") from None
    except (ValueError, RecursionError):
        raise ValueError("not a sample written by medbench, or damaged") from None
