"""Lines of samples/<task>.jsonl, fast: three million in half a minute, where checking each with pydantic takes ten.

msgspec checks types and decodes in one step of C; what it refuses and the store accepts (NaN, half a surrogate pair)
takes the slow way round.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

import msgspec

from medbench.harness.runs.records import SCHEMA_VERSION

HEAD = 80

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Line(msgspec.Struct, gc=False):
    """contracts.Sample as it stands in the file."""

    id: str
    cluster: str
    prompt: str
    output: str
    finish_reason: Literal["stop", "length", "error"]
    extracted: str | None
    outcome: Literal["answered", "unparsed", "ambiguous", "truncated", "empty", "refused", "error"]
    span: tuple[Count, Count] | None
    gold: str
    score: Annotated[float, msgspec.Meta(ge=0, le=1)] | None
    error: str | None
    prompt_tokens: Count
    completion_tokens: Count
    category: dict[str, str]
    schema_version: int
    logprobs: dict[str, float] | None = None
    repeat: Count = 0
    order: tuple[Count, ...] | None = None


_NUMBERED = re.compile(r"(\D*)(\d{1,18})(\D*)", re.ASCII)
_decode = msgspec.json.Decoder(Line).decode


def decode(raw: bytes) -> Line:
    """Raises ValueError, in a few words, for what is no sample."""
    try:
        line = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        line = _slowly(raw)
    if line.schema_version > SCHEMA_VERSION:
        raise ValueError(f"schema version {line.schema_version} is newer than {SCHEMA_VERSION}: upgrade medbench")
    return line


def order_of(id: str) -> tuple[str, int, str]:
    """Sort key of questions: q9 before q10."""
    match = _NUMBERED.fullmatch(id)
    return (match[1], int(match[2]), match[3]) if match else (id, 0, "")


def _slowly(raw: bytes) -> Line:
    try:
        content = json.loads(raw, parse_constant=lambda _: None)
        return _decode(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError, msgspec.DecodeError):
        raise ValueError("not a sample written by medbench, or damaged") from None


def head_of(prompt: str, prefix: str) -> str:
    """First words of the question; `prefix` is what all prompts of the task begin with.

    What the last "Question:" of the prompt stands before, else what the prompts begin to differ in.
    """
    start = prompt.rfind("Question:")
    if start >= 0:
        start += len("Question:")
    else:
        line = prefix.rfind("\n") + 1
        start = line if len(prefix) - line < HEAD // 2 else len(prefix)
    words = prompt[start : start + HEAD + 20].strip()
    if not words.isprintable() or "  " in words:
        words = " ".join(words.split())
    return words if len(words) <= HEAD else words[: HEAD - 1].rstrip() + "…"
