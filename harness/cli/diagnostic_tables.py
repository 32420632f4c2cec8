"""Tables of determinism, speed and protocol sensitivity for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from medbench.harness.benchmarks.rows import SAMPLE
from medbench.harness.cli.tables import rendered, shown
from medbench.harness.evaluation.determinism import Determinism, conclude
from medbench.harness.evaluation.protocol_sensitivity import Band, Row
from medbench.harness.gates.speed import REPLY_TOKENS, SHARES, Speed
from medbench.harness.protocols.protocol import DEFAULT
from medbench.harness.text import duration, percent


def determinism_report(found: Determinism) -> str:
    """The table as text for people; ends with a newline."""
    table = Table(show_edge=False)
    table.add_column("compared with all at once", no_wrap=True)
    for heading in (
        "questions",
        "replies differ",
        "answers differ",
        "scores differ",
        "first difference, tokens",
        "probe moves, nats",
    ):
        table.add_column(heading, justify="right")
    for one in found.differences:
        table.add_row(
            one.setting.name,
            *(str(count) for count in (one.noise.asked, one.noise.replies, one.noise.answers, one.noise.scores)),
            "-" if one.parted_after is None else f"{one.parted_after:.0f}",
            "-" if one.probe_nats is None else f"{one.probe_nats:.1e}",
        )
    settings = found.engine["settings"]
    about = [
        f"{found.model} · {found.engine['name']} on {settings.get('device')}, {settings.get('dtype')}",
        f"{found.task}{' (sample)' if found.source == SAMPLE else ''} · {found.protocol}, greedy",
        f"{found.asked} replies, {found.answered} with an answer",
    ]
    return rendered(*(shown(line) for line in about), Text(), table, Text(), shown(conclude(found)))


def speed_report(found: Speed) -> str:
    """The tables that `medbench doctor --speed` prints; ends with a newline."""
    paces = Table(show_edge=False)
    for heading in ("replies at once", "tokens/s", "tokens/s of each reply"):
        paces.add_column(heading, justify="right")
    for one in found.paces:
        each = one.tokens_per_second / one.at_once
        paces.add_row(str(one.at_once), f"{one.tokens_per_second:.0f}", f"{each:.1f}")
    costs = Table(show_edge=False)
    costs.add_column("task", no_wrap=True)
    for heading in ("questions", "whole run", *(f"{points} points off" for points in SHARES)):
        costs.add_column(heading, justify="right")
    for task, number in found.questions.items():
        times = (found.whole_run(task), *(found.verdict(task, points) for points in SHARES))
        costs.add_row(shown(task), str(number), *map(duration, times))
    settings = found.engine["settings"]
    about = [
        f"{found.model} · {found.engine['name']} on {settings.get('device')}, {settings.get('dtype')}",
        f"places: {found.places}, which a gate keeps taken"
        if found.places
        else "places: the engine does not say, so a gate sends blocks",
    ]
    basis = (
        f"Expected times, with replies of {REPLY_TOKENS} tokens: of a whole run, and of a gate's verdict where the "
        f"accuracy is so many points off a floor and no stored runs help (shares of the questions as in docs/gates.md)."
    )
    return rendered(*map(shown, about), Text(), paces, Text(), costs, Text(), shown(basis))


def band_table(band: Band) -> str:
    """The table that `medbench score --protocol all` prints."""
    table = Table(title=shown(f"{band.file} · {band.task}"), title_justify="left", show_edge=False)
    table.add_column("protocol", no_wrap=True)
    for heading in ("accuracy %", "95 % interval", "as published %", "unparsed %", "truncated %", f"to {DEFAULT}"):
        table.add_column(heading, justify="right")
    for row in band.rows:
        interval = f"{percent(row.interval[0])} - {percent(row.interval[1])}"
        points = f"{100 * row.difference:+.1f}" if row.protocol != DEFAULT else "-"
        table.add_row(
            shown(row.protocol),
            percent(row.accuracy),
            interval,
            percent(row.published),
            percent(row.unparsed),
            percent(row.truncated),
            points,
        )
    lines = [f"the same replies score {_between(band.rows)}"]
    others = [row.protocol for row in band.rows if row.protocol not in band.reading]
    if others:
        find = "find" if len(others) > 1 else "finds"
        rest = _between([row for row in band.rows if row.protocol in band.reading])
        lines.append(f"without {', '.join(others)}, which {find} an answer in less than half of them, {rest}")
    furthest = next((one for one in band.differing if {one.a, one.b} <= {*band.reading}), None)
    if furthest:
        among = "these protocols" if others else "the protocols"
        lines.append(
            f"{band.differing_reading} of {band.replies} replies are read differently by two or more of {among}; "
            f"{furthest.a} and {furthest.b} differ most, on {furthest.replies}"
        )
    if band.incomplete:
        lines.append(f"note: incomplete: {band.incomplete} of {band.questions} questions lack replies")
    return rendered(table, *map(shown, lines))


def _between(rows: Sequence[Row]) -> str:
    low, high = min(rows, key=lambda row: row.accuracy), max(rows, key=lambda row: row.accuracy)
    return (
        f"between {percent(low.accuracy)} % ({low.protocol}) and {percent(high.accuracy)} % ({high.protocol}): "
        f"a band of {100 * (high.accuracy - low.accuracy):.1f} points"
    )
