"""One folder of `medbench synth` -> its page, and its row on the first page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from medbench.harness.runs.synth_record import FILTER_WORDS, Card, Example, SynthRecord
from medbench.harness.text import percent
from medbench.reports.read.folders import as_unicode
from medbench.reports.read.synths import SynthView
from medbench.reports.views.trajectory_page import MOST_RECIPE


@dataclass(frozen=True, slots=True)
class SynthPage:
    """All that templates/synth.html.j2 needs."""

    synth: SynthView
    card: Card | None
    filters: tuple[tuple[str, int, int, str], ...]
    """(filter in words, replies that came in, dropped, reasons)."""
    accepted: tuple[Example, ...]
    rejected: tuple[Example, ...]
    facts: tuple[tuple[str, str], ...]
    recipe: str
    """As YAML."""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One folder on the first page."""

    id: str
    name: str
    state: str
    generator: str
    questions: int
    replies: int
    accepted: int
    share: str
    """Of accepted replies in percent, with its interval; "" where there are none."""
    told: int


def index_row(synth: SynthView) -> IndexRow:
    record, card = synth.record, synth.record.card
    return IndexRow(
        id=synth.id,
        name=record.name,
        state=record.status,
        generator=record.generator.model.name,
        questions=card.questions if card else 0,
        replies=card.replies if card else 0,
        accepted=card.accepted if card else 0,
        share=_share(card) if card else "",
        told=card.told_accepted if card else 0,
    )


def view_of(synth: SynthView) -> SynthPage:
    record, card = synth.record, synth.record.card
    examples = card.examples if card else []
    recipe = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True)
    return SynthPage(
        synth=synth,
        card=card,
        filters=tuple(_filters(card)) if card else (),
        accepted=tuple(one for one in examples if one.filter is None),
        rejected=tuple(one for one in examples if one.filter is not None),
        facts=tuple(_facts(record)),
        recipe=as_unicode(recipe[:MOST_RECIPE]),
    )


def _filters(card: Card) -> Iterator[tuple[str, int, int, str]]:
    for one in card.filters:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(one.reasons.items(), key=lambda each: -each[1]))
        yield FILTER_WORDS.get(one.filter, one.filter), one.seen, one.dropped, reasons


def _share(card: Card) -> str:
    if not card.replies:
        return ""
    return f"{percent(card.accepted / card.replies)} ({percent(card.low)} to {percent(card.high)})"


def _facts(record: SynthRecord) -> Iterator[tuple[str, str]]:
    generator = record.generator
    yield "Generator", generator.model.name
    yield "Fingerprint", generator.model.fingerprint
    yield "Engine", generator.engine
    if record.card is not None:
        yield "Tokens written", f"{record.card.completion_tokens:,}"
        if record.card.first_right is not None:
            yield "First replies that are right", f"{percent(record.card.first_right)} %"
        if record.card.chance:
            yield "Right by guessing", f"{percent(record.card.chance)} %"
        yield "Told the answer", f"{record.card.told:,} replies, {record.card.told_accepted:,} accepted"
        for name, n in record.card.files.items():
            yield name, f"{n:,} rows"
    yield "Begun", record.created
    if record.git_commit:
        yield "Commit", record.git_commit
    yield "Command", record.command
