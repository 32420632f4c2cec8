"""A judge as a filter: its verdicts on the steps of replies, kept so that no step is asked twice.

Replies come in blocks, always the same ones in the same order; a block's verdicts are kept under its number, and read
back in that order. So the file may be of any length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import LineLog, slug
from medbench.harness.judges.contracts import Item, Judge, Ruling, item_id
from medbench.harness.judges.steps import sentences
from medbench.harness.synth.candidates import cut_torn_line
from medbench.harness.synth.filters import Dropped
from medbench.harness.synth.questions import Asked, text_to_judge_by
from medbench.harness.synth.recipe import Filters, JudgeFilter
from medbench.harness.text import foreign

BLOCK = 256
"""Replies that are judged in one go."""


class _Line(msgspec.Struct, frozen=True):
    block: int
    item: str
    verdict: str | None
    fault: str | None


class JudgeOfReplies:
    """A judge with its file of verdicts. Use as a context manager; the judge is the caller's to close."""

    def __init__(self, folder: Path, judge: Judge, filters: Filters) -> None:
        """Another judge, or other filters before it, has another file: its blocks are others."""
        assert filters.judge is not None
        self._judge, self._settings = judge, filters.judge
        before = filters.model_dump(mode="json", include={"form", "least_steps", "least_words", "repetition", "answer"})
        content = json.dumps([judge.fingerprint, before, filters.judge.against, BLOCK], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        path = folder / f"verdicts-{slug(judge.name)}-{digest}.jsonl"
        cut_torn_line(path)
        self._stored = _lines(path) if path.exists() else iter(())
        self._next: _Line | None = next(self._stored, None)
        self._log = LineLog(path)
        self._block = 0
        self.steps = self.failed = 0
        """Steps that were judged, and those of them without a verdict."""

    def shares(self, replies: Sequence[tuple[Asked, str]]) -> list[Dropped | dict[str, int]]:
        """For each (question, reasoning) of the next block, why it is dropped or how many steps got which verdict.

        Raises MedbenchError for a question without a text to judge by, and where no step of a block gets a verdict.
        """
        items = [
            [Item(item_id(step, text), step, text) for step in sentences(reasoning)]
            for asked, reasoning in replies
            for text in (text_to_judge_by(asked, self._settings.against),)
        ]
        rulings = self._rulings({item.id: item for each in items for item in each})
        self._block += 1
        return [self._ruled([rulings.get(item.id) for item in each]) for each in items]

    def _rulings(self, items: dict[str, Item]) -> dict[str, Ruling]:
        found = {line.item: Ruling(line.item, line.verdict, line.fault) for line in self._of_block()}  # type: ignore[arg-type]
        wanted = [item for id, item in items.items() if id not in found]
        for ruling in self._judge.judge(wanted) if wanted else ():
            if ruling.id not in items:
                raise MedbenchError(
                    f"judge {self._judge.name} rules on {foreign(ruling.id, 60)!r}, which was not asked: fix it"
                )
            line = _Line(self._block, ruling.id, ruling.verdict, ruling.fault)
            if ruling.verdict is not None:
                self._log.append(msgspec.json.encode(line) + b"\n")
            found[ruling.id] = ruling
        judged = [found.get(id) for id in items]
        if items and not any(one is not None and one.verdict for one in judged):
            first = next((one.fault for one in judged if one is not None and one.fault), "no verdict")
            raise MedbenchError(f"judge {self._judge.name}: no step got a verdict, first: {foreign(first)}")
        return found

    def _of_block(self) -> Iterator[_Line]:
        while self._next is not None and self._next.block == self._block:
            yield self._next
            self._next = next(self._stored, None)

    def _ruled(self, rulings: Sequence[Ruling | None]) -> Dropped | dict[str, int]:
        verdicts = [one.verdict if one is not None else None for one in rulings]
        self.steps += len(verdicts)
        self.failed += verdicts.count(None)
        return ruled(verdicts, self._settings)

    def __enter__(self) -> JudgeOfReplies:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()


def ruled(verdicts: Sequence[str | None], settings: JudgeFilter) -> Dropped | dict[str, int]:
    """Why a reply with these verdicts is dropped, or how many of each there are. A failed step is no verdict."""
    counts = {name: verdicts.count(name) for name in ("supported", "contradicted", "not covered")}
    failed = verdicts.count(None)
    told = ", ".join(f"{n} {name}" for name, n in counts.items())
    if not verdicts or failed == len(verdicts):
        return Dropped("judge", "no step has a verdict")
    decided = counts["supported"] + counts["contradicted"]
    if not decided:
        return Dropped("judge", "no step is supported", told)
    if counts["supported"] < settings.factuality * decided:
        return Dropped("judge", "steps are contradicted", told)
    return {**counts, **({"failed": failed} if failed else {})}


def _lines(path: Path) -> Iterator[_Line]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield msgspec.json.decode(line, type=_Line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise MedbenchError(
                    f"{path}:{number}: damaged: remove the file, and its steps are asked again"
                ) from None
