"""How far a judge agrees with labels that need no run: JSON lines {"id", "step", "source", "label"}.

    medbench judge check labels.jsonl --judge NAME

Each step is judged by the source of its line, and once more with the source's sentences in reverse order: a judge that
reads what is said and not where it stands gives the same verdict. Verdicts are kept, in the folder `labels.judgements`
beside the file unless another is named, so that nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from medbench.harness.benchmarks.rows import read_jsonl
from medbench.harness.contracts import MedbenchError, Say
from medbench.harness.judges.asking import Asked, ask
from medbench.harness.judges.check import Checked, OrderCheck, Step, compared
from medbench.harness.judges.contracts import VERDICTS, Item, Judge, Verdict, item_id
from medbench.harness.judges.steps import sentences
from medbench.harness.stats.agreement import Estimate
from medbench.harness.stats.intervals import clustered_interval
from medbench.harness.text import foreign

FORM = f'each line must be {{"id": question id, "step": text, "source": text, "label": {" or ".join(VERDICTS)}}}'


@dataclass(frozen=True, slots=True)
class LabelledItem:
    """A line of the file."""

    id: str
    """Of the question; lines of one question are not independent of each other."""
    item: Item
    label: Verdict


def check_directly(labels: Path, out: Path | None, judge: Judge, say: Say) -> Checked:
    """`out`: the folder for verdicts. Raises MedbenchError for a faulty file, and where the judge gives no verdict."""
    lines = read_labelled(labels)
    reverse = {one.item.id: turned for one in lines if (turned := _reversed(one.item)) is not None}
    items = {one.item.id: (one.item, one.id) for one in lines}
    items |= {reverse[one.item.id].id: (reverse[one.item.id], one.id) for one in lines if one.item.id in reverse}
    path = (out or labels.with_name(f"{labels.stem}.judgements")) / f"{labels.stem}.{judge.name}.jsonl"
    asked = ask(judge, items, path, labels.name, say)
    steps = [(Step(one.id, one.id, one.item.step, _verdict(asked, one.item)), one.label) for one in lines]
    both = [(step, label) for step, label in steps if step.verdict is not None]
    if not both:
        raise MedbenchError(f"judge {judge.name}: no labelled step got a verdict: {asked.fault(lines[0].item.id)}")
    return compared(
        labels.name,
        judge.name,
        judge.fingerprint,
        [step for step, _ in both],
        both,
        without_verdict=len(steps) - len(both),
        order=_by_order(lines, reverse, asked),
    )


def read_labelled(path: Path) -> list[LabelledItem]:
    """Each step and source once. Raises MedbenchError naming the line of a label that is faulty."""
    found: dict[str, LabelledItem] = {}
    for number, row in read_jsonl(path):
        try:
            one = _labelled(row)
        except ValueError as fault:
            raise MedbenchError(f"{path}:{number}: {fault}") from None
        if found.setdefault(one.item.id, one) != one:
            raise MedbenchError(f"{path}:{number}: this step has another id or label above: keep the one agreed on")
    if not found:
        raise MedbenchError(f"{path}: no labels: {FORM}")
    return list(found.values())


def _labelled(row: Mapping[str, Any]) -> LabelledItem:
    id, label = row.get("id"), row.get("label")
    if not isinstance(id, str):
        raise ValueError(f"no id: {FORM}")
    for name in ("step", "source"):
        text = row.get(name)
        if not isinstance(text, str) or not text.strip():
            hint = ", or name the run before the file" if name == "source" else ""
            raise ValueError(f"no {name}: {FORM}{hint}")
    if label not in VERDICTS:
        raise ValueError(f"the label {foreign(label, 40)!r} is none of {', '.join(VERDICTS)}")
    step, source = row["step"], row["source"]
    return LabelledItem(id, Item(item_id(step, source), step, source), cast(Verdict, label))


def _reversed(item: Item) -> Item | None:
    """None for a source of one sentence."""
    found = sentences(item.source)
    source = " ".join(reversed(found))
    return Item(item_id(item.step, source), item.step, source) if len(found) > 1 else None


def _by_order(lines: Sequence[LabelledItem], reverse: Mapping[str, Item], asked: Asked) -> OrderCheck | None:
    clusters: dict[str, list[int]] = {}
    for one in lines:
        turned = reverse.get(one.item.id)
        said = (_verdict(asked, one.item), _verdict(asked, turned) if turned is not None else None)
        if None not in said:
            clusters.setdefault(one.id, []).append(int(said[0] != said[1]))
    counts = [(len(changed), float(sum(changed))) for changed in clusters.values()]
    steps = sum(size for size, _ in counts)
    if not steps:
        return None
    low, high = clustered_interval(counts)
    return OrderCheck(steps, Estimate(sum(ones for _, ones in counts) / steps, low, high))


def _verdict(asked: Asked, item: Item) -> Verdict | None:
    ruling = asked.rulings.get(item.id)
    return ruling.verdict if ruling is not None else None
