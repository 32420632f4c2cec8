"""People's labels of steps: JSON lines {"id", "step", "label"}.

`id` is the question's, `step` the step's number in the reply from 1 (with "repeat" where a question has several
replies), or its text, or the `item` of its line in the judgements; `label` is one of contracts.VERDICTS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from medbench.harness.benchmarks.rows import read_jsonl
from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.contracts import VERDICTS, Verdict
from medbench.harness.text import foreign

FORM = f'each line must be {{"id": question id, "step": number or text, "label": {" or ".join(VERDICTS)}}}'


@dataclass(frozen=True, slots=True)
class Labelled:
    """A step with a person's label."""

    id: str
    """Of the question."""
    step: str
    label: Verdict


@dataclass(frozen=True, slots=True)
class Known:
    """What a label may be about."""

    steps: Mapping[str, Mapping[int, Sequence[str]]]
    """Question id -> repeat -> the steps of that reply."""
    items: Mapping[str, tuple[str, str]]
    """Item of a judgement -> question id, step."""


def read_labels(path: Path, known: Known) -> list[Labelled]:
    """Each step once. Raises MedbenchError naming the line of a label that is faulty or about nothing here."""
    found: dict[tuple[str, str], Labelled] = {}
    for number, row in read_jsonl(path):
        try:
            one = _label(row, known)
        except ValueError as fault:
            raise MedbenchError(f"{path}:{number}: {fault}") from None
        if found.setdefault((one.id, one.step), one) != one:
            raise MedbenchError(f"{path}:{number}: this step has another label above: keep the one agreed on")
    if not found:
        raise MedbenchError(f"{path}: no labels: {FORM}")
    return list(found.values())


def _label(row: Mapping[str, Any], known: Known) -> Labelled:
    id, step, label, repeat = row.get("id"), row.get("step"), row.get("label"), row.get("repeat", 0)
    if not isinstance(id, str):
        raise ValueError(f"no id: {FORM}")
    if label not in VERDICTS:
        raise ValueError(f"the label {foreign(label, 40)!r} is none of {', '.join(VERDICTS)}")
    if id not in known.steps:
        raise ValueError(f"question {foreign(id, 60)!r} has no reply in the run: correct the id")
    if isinstance(step, str):
        return Labelled(id, _step_called(id, step, known), cast(Verdict, label))
    if type(step) is not int or type(repeat) is not int:  # true is an int for Python
        raise ValueError(f"no step: {FORM}")
    steps = known.steps[id].get(repeat)
    if steps is None:
        raise ValueError(f"question {foreign(id, 60)!r} has no reply {repeat}: correct the repeat")
    if not 1 <= step <= len(steps):
        raise ValueError(f"question {foreign(id, 60)!r} has steps 1 to {len(steps)}: correct the step {step}")
    return Labelled(id, steps[step - 1], cast(Verdict, label))


def _step_called(id: str, step: str, known: Known) -> str:
    if re.fullmatch(r"[0-9a-f]{32}", step) and known.items.get(step, ("",))[0] == id:
        return known.items[step][1]
    wanted = " ".join(step.split())
    if not any(wanted in steps for steps in _of(known, id)):
        raise ValueError(f"question {foreign(id, 60)!r} has no step {foreign(step, 60)!r}: copy it, or give its number")
    return wanted


def _of(known: Known, id: str) -> Iterator[Sequence[str]]:
    yield from known.steps[id].values()
