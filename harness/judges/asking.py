"""Asks a judge about steps and keeps each verdict as it comes: what has a verdict in the file is never asked again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medbench.harness.contracts import MedbenchError, Say
from medbench.harness.judges.contracts import Item, Judge, Ruling
from medbench.harness.judges.judgements import Judgement, JudgementLog
from medbench.harness.text import foreign

PLAIN_SECONDS = 10.0
"""Between lines of progress."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a judge said of items, now or earlier."""

    rulings: Mapping[str, Ruling]
    """By item; without those on which it said nothing."""
    number: int
    """Items asked in this session."""

    def fault(self, id: str) -> str | None:
        """Why the item has no verdict; None where it has one."""
        ruling = self.rulings.get(id)
        if ruling is None:
            return "no verdict"
        return None if ruling.verdict is not None else ruling.fault or "no verdict"


def ask(judge: Judge, items: Mapping[str, tuple[Item, str]], path: Path, title: str, say: Say) -> Asked:
    """`items`: id -> the item and its question's id; `path`: the file of verdicts; `title` begins lines of progress.

    Raises MedbenchError where the judge gives no verdict at all, or rules on what was not asked.
    """
    with JudgementLog(path) as log:
        known = {
            line.item: Ruling(line.item, line.verdict, line.fault)
            for line in log.before
            if line.judge == judge.fingerprint and line.verdict is not None
        }
        wanted = [item for item, _ in items.values() if item.id not in known]
        if wanted:
            say(f"{title}: {len(wanted)} of {len(items)} different steps to judge")
        said = time.monotonic()
        for number, ruling in enumerate(judge.judge(wanted) if wanted else (), 1):
            if time.monotonic() - said > PLAIN_SECONDS:
                said = time.monotonic()
                say(f"{title}: {number} of {len(wanted)} steps judged")
            if ruling.id not in items:
                raise MedbenchError(
                    f"judge {judge.name} rules on {foreign(ruling.id, 60)!r}, which was not asked: fix it"
                )
            item, question = items[ruling.id]
            log.append(Judgement(judge.fingerprint, item.id, question, item.step, ruling.verdict, ruling.fault))
            known[ruling.id] = ruling
    asked = Asked({id: known[id] for id in items if id in known}, len(wanted))
    faults = [fault for id in items if (fault := asked.fault(id)) is not None]
    if items and len(faults) == len(items):
        raise MedbenchError(f"judge {judge.name}: no step of {title} got a verdict, first: {faults[0]}")
    return asked
