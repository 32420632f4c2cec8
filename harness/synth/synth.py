"""`medbench synth`: from a recipe to rows, their data card, and every reply that did not pass with the reason.

    medbench synth recipe.yaml --out synth/mine

What can be wrong with the recipe, its sources, benchmarks, generator or judge is reported before anything is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.contracts import Engine, MedbenchError, Question, Say
from medbench.harness.engines.plugins import check_choice
from medbench.harness.engines.pool import describe_engine, opened_engine
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.evaluation.plan import Model, find_model, utc_now
from medbench.harness.evaluation.requests import PlainText
from medbench.harness.files import locked, remove_leftovers, write_atomically
from medbench.harness.judges.contracts import Judge
from medbench.harness.judges.settings import start_from
from medbench.harness.runs import provenance
from medbench.harness.runs.synth_record import (
    SYNTH,
    Card,
    Generator,
    GeneratorModel,
    SynthRecord,
    read_synth,
    write_synth,
)
from medbench.harness.secrets import redacted, redacted_command
from medbench.harness.synth.candidates import Candidate, Journal, by_question, read_candidates
from medbench.harness.synth.card import CARD, card_text
from medbench.harness.synth.chains import is_complete
from medbench.harness.synth.filters import FILTERS
from medbench.harness.synth.generate import Generation
from medbench.harness.synth.prompts import FIRST, messages_of
from medbench.harness.synth.questions import Asked, questions_of, text_to_judge_by
from medbench.harness.synth.recipe import SynthRecipe, read_recipe
from medbench.harness.synth.select import REJECTED, Selection
from medbench.harness.text import escaped
from medbench.harness.training.prepare import data_folder_set

SOURCES_OF_CHANGE = ("generator", "data", "prompts", "sampling", "sources", "kinds", "verify")
"""Parts of the identity, with the names that a message gives them."""


@dataclass(frozen=True, slots=True)
class SynthOptions:
    """What `medbench synth` was asked."""

    recipe: Path
    out: Path | None = None
    """None only for a dry run."""
    resume: bool = False
    limit: int | None = None
    """Questions; a later run with more of them goes on from there."""
    data: str | None = None
    engine: Engine | None = None
    """An engine that the caller made, instead of the recipe's."""


@dataclass(frozen=True, slots=True)
class Synthesized:
    """What came of it."""

    folder: Path
    record: SynthRecord
    card: Card

    def as_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "card": self.card.model_dump(mode="json", exclude={"examples"})}

    def in_words(self) -> str:
        card = self.card
        lines = [f"{one.filter:16} {one.seen:>10,} {one.dropped:>10,}" for one in card.filters]
        files = [f"  {self.folder / name}: {n:,} rows" for name, n in card.files.items() if name != REJECTED]
        return "\n".join(
            [
                f"{'filter':16} {'came in':>10} {'dropped':>10}",
                *lines,
                card.in_words,
                *files,
                f"data card: {self.folder / CARD}",
                "",
            ]
        )


@dataclass(slots=True)
class _Prepared:
    """A recipe with everything it names found and checked."""

    recipe: SynthRecipe
    benchmarks: Mapping[str, Sequence[Question]]
    total: int
    """Questions to ask."""
    first: Asked
    parts: dict[str, str]
    """Part of the identity -> hash."""
    choice: EngineChoice
    kinds: Counter[str] = field(default_factory=Counter)


def synthesize(options: SynthOptions, say: Say) -> Synthesized:
    """Raises MedbenchError for a faulty request, and Interrupted where it can be resumed."""
    assert options.out is not None
    recipe = read_recipe(options.recipe)
    with _data(options):
        prepared = _prepare(recipe, options, say)
        model = find_model(prepared.choice, recipe.generator.model, say)
        prepared.parts["generator"] = _hash([model.record.fingerprint, model.record.tokenizer_sha256])
        with _opened_folder(options.out, options.resume), _judge_of(recipe, say) as judge:
            return _carried_out(prepared, model, options, judge, say)


def plan(options: SynthOptions, say: Say) -> list[str]:
    """What would be asked and kept, in lines, with the first prompt; nothing is asked or written."""
    recipe = read_recipe(options.recipe)
    with _data(options):
        prepared = _prepare(recipe, options, say)
        choice = prepared.choice
        check_choice(choice)
        asked = prepared.first
        messages = messages_of(
            asked.kind, asked.question, strategy=FIRST, verifiable=asked.verifiable, system=asked.system
        )
        first = prepared.total * recipe.sampling.attempts
        most = first * (1 + recipe.verify.rounds + recipe.verify.told_answer)
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in sorted(prepared.kinds.items()))
        return [
            f"{recipe.name}: {prepared.total:,} questions ({kinds})",
            f"generator: {recipe.generator.model} by {choice.name}; {first:,} replies to {most:,}, each of at most "
            f"{recipe.sampling.max_new_tokens:,} tokens",
            f"filters: {', '.join(_filters_of(recipe))}",
            *([f"screened against: {', '.join(prepared.benchmarks)}"] if prepared.benchmarks else []),
            "the first prompt, before the model's chat template:",
            *(escaped(line) for line in PlainText().render(messages, None).split("\n")),
        ]


def _filters_of(recipe: SynthRecipe) -> list[str]:
    filters = recipe.filters
    off = {
        "form": not filters.form,
        "repetition": filters.repetition is None,
        "answer": not filters.answer,
        "judge": filters.judge is None,
        "pass_rate": filters.pass_rate is None,
        "near_duplicate": filters.near_duplicates is None,
        "contamination": filters.contamination is None,
    }
    return [name for name in FILTERS if not off.get(name)]


def _prepare(recipe: SynthRecipe, options: SynthOptions, say: Say) -> _Prepared:
    """Read every row once."""
    benchmarks: dict[str, Sequence[Question]] = {}
    if recipe.filters.contamination is not None:
        loader = TaskLoader(options.data or os.environ.get("MEDBENCH_DATA"), say)
        benchmarks = {name: loader.load(name).questions for name in dict.fromkeys(recipe.benchmarks)}
    choice = EngineChoice(instance=options.engine) if options.engine is not None else recipe.generator.choice
    digest = hashlib.sha256()
    prompts: set[str] = set()
    kinds: Counter[str] = Counter()
    first, total = None, 0
    for asked in questions_of(recipe):
        content = [asked.question.id, asked.question.gold, asked.kind.name]
        digest.update("\0".join(content).encode("utf-8", "replace") + b"\n")
        prompts.add(f"{asked.kind.name} {asked.kind.sha256}")
        if recipe.filters.judge is not None:
            text_to_judge_by(asked, recipe.filters.judge.against)
        first = first or asked
        if options.limit is None or total < options.limit:
            total += 1
            kinds[asked.kind.name] += 1
    assert first is not None
    parts = {name: _hash(value) for name, value in recipe.asked().items()}
    parts |= {"data": digest.hexdigest(), "prompts": _hash(sorted(prompts))}
    return _Prepared(recipe, benchmarks, total, first, parts, choice, kinds)


def _carried_out(
    prepared: _Prepared, model: Model, options: SynthOptions, judge: Judge | None, say: Say
) -> Synthesized:
    assert options.out is not None
    recipe, folder = prepared.recipe, options.out
    record = _begun(prepared, model, options)
    stored = _stored(folder, recipe)
    write_synth(folder, record)  # not before all that is there has been read: a damaged folder stays as it is
    record = _generated(prepared, model, options, record, stored, say)
    say("every question is answered; filtering")
    selection = Selection(recipe, folder, model.record.fingerprint, prepared.benchmarks, judge)
    card = selection.run(questions_of(recipe, prepared.total)).card()
    write_atomically(folder / CARD, card_text(record, recipe, card).encode("utf-8", "replace"))
    record = record.model_copy(update={"status": "complete", "card": card, "limit": options.limit})
    write_synth(folder, record)
    return Synthesized(folder, record, card)


def _begun(prepared: _Prepared, model: Model, options: SynthOptions) -> SynthRecord:
    """The record to write: a new one, or that of an earlier session on the same questions. Raises MedbenchError for the
    folder of another recipe."""
    assert options.out is not None
    record = SynthRecord(
        name=prepared.recipe.name,
        status="running",
        created=utc_now().isoformat(timespec="seconds"),
        command=" ".join(redacted_command(sys.argv)),
        identity=_hash(prepared.parts),
        parts=prepared.parts,
        recipe=redacted(prepared.recipe.model_dump(mode="json")),
        generator=Generator(
            model=GeneratorModel(**model.record.model_dump(mode="json", exclude={"path"}, exclude_none=True)),
            engine=prepared.choice.name,
        ),
        limit=options.limit,
        packages=provenance.packages(),
        git_commit=provenance.git_commit(),
    )
    if (options.out / SYNTH).exists():
        before = read_synth(options.out)
        _refuse_another(options.out, before, record)
        update = {"status": "running", "recipe": record.recipe, "name": record.name, "card": None}
        record = before.model_copy(update=update)
    return record


def _refuse_another(folder: Path, before: SynthRecord, now: SynthRecord) -> None:
    if before.identity == now.identity:
        return
    changed = [name for name in SOURCES_OF_CHANGE if before.parts.get(name) != now.parts.get(name)]
    raise MedbenchError(
        f"{folder}: belongs to another recipe, {before.name[:80]!r} ({', '.join(changed) or 'something'} changed; only "
        f"filters, name and benchmarks may): name another --out"
    )


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the journal holds."""

    done: int
    """Questions complete, up to the first that is not."""
    known: dict[int, list[Candidate]]
    """Place -> replies, of questions behind it."""
    had_text: bool
    """Whether any reply has text."""


def _generated(
    prepared: _Prepared, model: Model, options: SynthOptions, record: SynthRecord, stored: _Stored, say: Say
) -> SynthRecord:
    """Ask what the journal does not hold. No engine starts where nothing is missing."""
    assert options.out is not None
    recipe, folder, done = prepared.recipe, options.out, stored.done
    if done >= prepared.total:
        return record
    if done or stored.known:
        say(f"{done} of {prepared.total} questions are answered already")
    with (
        Journal(folder) as journal,
        opened_engine(prepared.choice, recipe.generator.model, model.checkpoint) as engine,
    ):
        described = describe_engine(engine)
        generator = record.generator.model_copy(update={"settings": described["settings"]})
        record = record.model_copy(update={"generator": generator})
        write_synth(folder, record)
        generation = Generation(
            recipe, engine, journal, stored.known, had_text=stored.had_text, say=say, total=prepared.total, done=done
        )
        session = generation.run(islice(questions_of(recipe, prepared.total), done, None))
        say(f"{session.replies} replies, {session.right} of them right, {session.failed} failed")
    return record


def _stored(folder: Path, recipe: SynthRecipe) -> _Stored:
    """Raises MedbenchError for a damaged journal."""
    done, known, had_text = 0, {}, False
    for at, candidates, is_done in by_question(read_candidates(folder), lambda found: is_complete(found, recipe)):
        had_text = had_text or any(one.output.strip() for one in candidates)
        if is_done and at == done:
            done += 1
        else:
            known[at] = candidates
    return _Stored(done, known, had_text)


@contextmanager
def _opened_folder(folder: Path, resume: bool) -> Iterator[None]:
    """The folder, locked. Raises MedbenchError for one that is of something else, or begun without `resume`."""
    if (folder / SYNTH).exists():
        if not resume:
            raise MedbenchError(f"{folder}: exists already: add --resume to go on with it, or name another --out")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MedbenchError(f"{folder}: exists and is not a folder of medbench synth: name a new one by --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedbenchError(f"{folder}: cannot be created ({error.strerror}): name another --out") from None
    lock = locked(folder, "wait for it, or name another --out")
    try:
        remove_leftovers(folder)
        yield
    finally:
        lock.release()


@contextmanager
def _judge_of(recipe: SynthRecipe, say: Say) -> Iterator[Judge | None]:
    if recipe.filters.judge is None:
        yield None
        return
    judge = start_from(recipe.filters.judge, "filters.judge", say)
    try:
        yield judge
    finally:
        judge.close()


@contextmanager
def _data(options: SynthOptions) -> Iterator[None]:
    folder = Path(options.data).resolve() if options.data is not None and Path(options.data).is_dir() else None
    with data_folder_set(folder):
        yield


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "replace")).hexdigest()
