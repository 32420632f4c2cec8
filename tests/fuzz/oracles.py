"""What must not be believed, read from the files alone: none of medbench's own readers is used here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class TwiceError(ValueError):
    """A key of a JSON object is given twice, with different values."""


def strict_json(text: str | bytes) -> Any:
    """Raises ValueError where not JSON, or a key has two values."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and repr(found[key]) != repr(value):
            raise TwiceError(f"{key!r} is given twice")
        found[key] = value
    return found


def lines_of(path: Path) -> list[Any]:
    """Whole lines of JSON lines. Raises ValueError."""
    return [strict_json(line) for line in path.read_bytes().split(b"\n")[:-1]]


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_count(value: object, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def run_faults(folder: Path, task: str, gold: str) -> list[str]:
    """Why no figure about `task` of this run may be shown as true."""
    faults = []
    for pairs in (dict, _first):  # a key given twice may be read either way
        try:
            record = json.loads((folder / "run.json").read_bytes(), object_pairs_hook=pairs)
            whole = (folder / "samples" / f"{task}.jsonl").read_bytes().split(b"\n")[:-1]
            samples = [json.loads(line, object_pairs_hook=pairs) for line in whole]
        except (ValueError, OSError, RecursionError) as error:
            return [f"cannot be read: {str(error).replace(str(folder), '')[:80]}"]
        if not isinstance(record, dict) or not all(isinstance(sample, dict) for sample in samples):
            return ["not an object"]
        faults += [*_record_faults(record, task, samples), *_sample_faults(samples, gold)]
    return list(dict.fromkeys(faults))


def _first(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _record_faults(record: Mapping[str, Any], task: str, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    faults = []
    if not is_count(record.get("schema_version"), 1):
        faults.append("schema_version")
    tasks = record.get("tasks")
    described = tasks.get(task) if isinstance(tasks, dict) else None
    n = described.get("n") if isinstance(described, dict) else None
    if not is_count(n, 1):
        faults.append(f"n is {str(n)[:20]}")
    elif len({str(sample.get("id")) for sample in samples}) > n:
        faults.append(f"more answers than the {n} questions")
    if record.get("limit") is not None and not is_count(record["limit"], 1):
        faults.append("limit")
    if not is_count(record.get("samples", 1), 1):
        faults.append("samples")
    return faults


def _sample_faults(samples: Sequence[Mapping[str, Any]], gold: str) -> list[str]:
    faults = []
    first: dict[Any, Mapping[str, Any]] = {}
    for number, sample in enumerate(samples, 1):
        score = sample.get("score")
        if score is not None and not is_number(score, 0, 1):
            faults.append(f"line {number}: score {str(score)[:20]}")
        elif score == 1 and sample.get("extracted") != sample.get("gold"):
            faults.append(f"line {number}: score {score} contradicts answer and gold")
        if not all(is_count(sample.get(name)) for name in ("prompt_tokens", "completion_tokens")):
            faults.append(f"line {number}: tokens")
        key = (str(sample.get("id")), str(sample.get("repeat", 0)))
        if (other := first.setdefault(key, sample)) is not sample and _judged(other) != _judged(sample):
            faults.append(f"line {number}: contradicts an earlier line of the same question")
    return faults


def _judged(sample: Mapping[str, Any]) -> list[str]:
    return [repr(sample.get(name)) for name in ("score", "gold", "extracted", "output")]


def mean_score(folder: Path, task: str) -> float | None:
    lines = (folder / "samples" / f"{task}.jsonl").read_bytes().split(b"\n")[:-1]
    scores = {sample["id"]: sample["score"] for sample in map(json.loads, lines)}
    found = [score for score in scores.values() if score is not None]
    return math.fsum(found) / len(found) if found else None
