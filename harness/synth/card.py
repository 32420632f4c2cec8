"""The data card: how the rows came about, in Markdown.

The same counts give the same bytes; it names no time and no path of this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from medbench.harness.runs.synth_record import FILTER_WORDS, Card, Example, SynthRecord
from medbench.harness.synth.recipe import SynthRecipe
from medbench.harness.text import markdown_cell, percent, printable

CARD = "README.md"
LOW_YIELD = 0.05


def card_text(record: SynthRecord, recipe: SynthRecipe, card: Card) -> str:
    lines = [
        f"# {markdown_cell(record.name)}",
        "",
        "Training data written by a language model and filtered by `medbench synth`. No physician has read it.",
        "",
        *_summary(record, recipe, card),
        "",
        "## Filters",
        "",
        "In this order; a reply is counted where it was dropped first. `rejected.jsonl` has each with its reason.",
        "",
        *_table(("filter", "came in", "dropped", "reasons"), _filter_rows(card)),
        "",
        "## Kinds of questions",
        "",
        *_table(
            ("kind", "questions", "replies", "right", "accepted", "prompt (sha256)"),
            (
                (markdown_cell(one.kind), one.questions, one.replies, one.right, one.accepted, one.sha256[:12])
                for one in card.kinds
            ),
        ),
        "",
        "## Strategies",
        "",
        "`first` is the kind's own prompt; the others follow a wrong answer.",
        "",
        *_table(
            ("strategy", "replies", "right", "accepted"),
            ((one.strategy, one.replies, one.right, one.accepted) for one in card.strategies),
        ),
        "",
        *_files(card),
        *_examples("Accepted", [one for one in card.examples if one.filter is None]),
        *_examples("Rejected", [one for one in card.examples if one.filter is not None]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _summary(record: SynthRecord, recipe: SynthRecipe, card: Card) -> Iterator[str]:
    model = record.generator.model
    size = model.parameters
    sampling = recipe.sampling
    yield f"- **Yield**: {card.in_words}; {card.answered:,} of {card.questions:,} questions have a row."
    if card.replies and card.accepted < LOW_YIELD * card.replies:
        yield (
            "- **Little passes.** This generator cannot do much with these questions, and what passes may be luck. "
            "Read the rows before training on them, or use a stronger generator."
        )
    if card.first_right is not None:
        guessed = f"; guessing would be right in {percent(card.chance)} %" if card.chance else ""
        yield f"- **First replies**: {percent(card.first_right)} % have the right answer{guessed}."
    yield (
        f"- **Told the answer**: {card.told:,} replies, {card.told_accepted:,} of them accepted."
        if card.told
        else "- **Told the answer**: no reply."
    )
    yield (
        f"- **Generator**: {markdown_cell(model.name)}"
        + (f", {size:,} parameters" if size else "")
        + f", fingerprint {markdown_cell(model.fingerprint[:12])}, engine {markdown_cell(record.generator.engine)}."
    )
    yield (
        f"- **Sampling**: temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}, at "
        f"most {sampling.max_new_tokens:,} tokens, {sampling.attempts} attempts a "
        f"question, seed {sampling.seed}; {card.completion_tokens:,} tokens in all."
    )
    verify = recipe.verify
    yield (
        f"- **Wrong answers** were tried again up to {verify.rounds} times, by {', '.join(verify.strategies)}."
        if verify.rounds
        else "- **Wrong answers** were not tried again."
    )
    for source in recipe.sources:
        yield f"- **Source**: {markdown_cell(source.name)}, kind {markdown_cell(source.kind)}."
    if card.judge is not None:
        name, fingerprint = (str(card.judge[part]) for part in ("name", "fingerprint"))
        yield (
            f"- **Judge**: {markdown_cell(name)}, fingerprint {fingerprint[:12]}; "
            f"{card.judge['failed']:,} of {card.judge['steps']:,} steps without a verdict."
        )
    if recipe.filters.contamination is not None:
        yield f"- **Screened against** the test questions of {', '.join(map(markdown_cell, recipe.benchmarks))}."
    else:
        yield "- **Not screened** against benchmark questions."


def _filter_rows(card: Card) -> Iterator[tuple[object, ...]]:
    for one in card.filters:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(one.reasons.items(), key=lambda each: -each[1]))
        yield FILTER_WORDS.get(one.filter, one.filter), one.seen, one.dropped, reasons
    yield "accepted", card.accepted, "", ""


def _files(card: Card) -> Iterator[str]:
    yield "## Use"
    yield ""
    names = {name: n for name, n in card.files.items() if name.startswith("accepted/") and n}
    if not names:
        yield "Nothing passed, so there is nothing to train on."
        yield ""
        return
    yield "```yaml"
    yield "# in an sft stage; rows with options or a short ground truth also as `prompts` of a grpo stage"
    yield "data:"
    for name, n in names.items():
        yield f"  - {{path: {name}}}  # {n:,} rows"
    yield "```"
    yield ""


def _examples(title: str, examples: list[Example]) -> Iterator[str]:
    if not examples:
        return
    yield f"## {title}, as written"
    yield ""
    for one in examples:
        what = f", dropped by {one.filter}: {markdown_cell(one.reason)}" if one.filter else ""
        yield f"**{markdown_cell(one.kind)}**, reply {markdown_cell(one.key)}{what}"
        yield ""
        yield from _quoted(one.question)
        yield ""
        yield from _quoted(one.text)
        yield ""


def _quoted(text: str) -> Iterator[str]:
    """As a block of code that the text cannot end."""
    yield from (f"    {line}" for line in printable(text).splitlines())


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(f'{one:,}' if isinstance(one, int) else str(one) for one in row)} |"
