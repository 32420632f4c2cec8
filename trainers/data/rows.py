"""The `data:` section of a recipe's sft stage: rows of known formats, from JSON lines or the Hub, checked one by one.

format              columns
structured_medical  case, reasoning, answer (TachyHealth/structured_medical: free text)
huatuo_o1           Question, Complex_CoT, Response (FreedomIntelligence/medical-o1-reasoning-SFT: free text),
                    or question, options, answer_idx, reasoning (its demo rows)
pubmedqa            question, context.contexts, long_answer, final_decision (qiaojin/PubMedQA)
multiple_choice     question, options (object or list), answer_idx or answer, optionally reasoning or explanation
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from medbench.harness.benchmarks.rows import cluster_id, content_id, read_jsonl
from medbench.harness.config import Record
from medbench.harness.contracts import LETTERS, MedbenchError, Question
from medbench.harness.files import expanded
from medbench.harness.hub.faults import explained
from medbench.harness.hub.repository import MAIN, Repository, dataset_rows
from medbench.harness.training.trainer_plugins import DATA_FOLDER
from medbench.trainers.data.overlap import TrainingText

Format = Literal["auto", "structured_medical", "huatuo_o1", "pubmedqa", "multiple_choice"]
DECISIONS = ("yes", "no", "maybe")
TAGS = ("<think>", "</think>")


class Source(Record):
    """One data set; give either `path` or `hub`."""

    path: str | None = None
    """A file of JSON lines; may begin with $MEDBENCH_DATA/ or ~/."""
    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    """org/name, with `subset` (the Hub's config name), `revision` and `split`."""
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    format: Format = "auto"
    """auto: the first format whose columns are all present."""
    limit: int | None = Field(None, ge=1)
    """Number of rows to read, from the first; None reads all."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path or hub")
        return self

    @property
    def name(self) -> str:
        return self.path or str(self.hub)


@dataclass(frozen=True, slots=True)
class Row:
    """One row to train on."""

    where: str
    """File and line, for messages."""
    question: Question
    """Has no labels if the answer is free text."""
    reasoning: str
    """Text for the <think> block; "" if the data set has none."""
    answer: str
    """Free text, used as it is; "" if the question has labels: then the protocol says how its gold is written."""

    def screened(self, number: int) -> TrainingText:
        """What the contamination screening reads; `number` counts the rows of all sources from 1."""
        asked = self.question
        parts = (asked.context, asked.question, *asked.options, self.reasoning, self.answer)
        return TrainingText(number, "\n".join(part for part in parts if part), asked.question)


def load_rows(sources: Sequence[Source]) -> list[Row]:
    """The rows of all sources, in order. Raises MedbenchError naming file and line of the first fault."""
    rows: list[Row] = []
    for source in sources:
        found = list(_rows_of(source))
        if not found:
            raise MedbenchError(f"{source.name}: no rows")
        rows.extend(found)
    return rows


def _rows_of(source: Source) -> Iterator[Row]:
    chosen = None if source.format == "auto" else ADAPTERS[source.format]
    for where, raw in islice(_raw_rows(source), source.limit):
        chosen = chosen or _fitting(where, raw)
        try:
            row = chosen(where, raw)
            row.screened(0).text.encode()
        except UnicodeEncodeError:
            raise MedbenchError(f"{where}: a lone surrogate (half a character) in the text: remove it") from None
        except ValueError as error:
            raise MedbenchError(f"{where}: {error}") from None
        yield row


def _raw_rows(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if source.path is not None:
        path = expand(source.path)
        for number, raw in read_jsonl(path):
            yield f"{path}:{number}", raw
        return
    repository = Repository("dataset", str(source.hub), source.revision or MAIN)
    try:
        rows = dataset_rows(repository, subset=source.subset, split=source.split)
    except Exception as error:  # the Hub client and the network can raise anything
        fault = explained(error, repository)
        fix = "correct hub, subset, revision or split, or download it and give its path"
        raise type(fault)(f"{fault}; or {fix}") from None
    for number, raw in enumerate(rows):
        yield f"{source.hub} row {number}", raw


def expand(path: str) -> Path:
    """A recipe's path with a leading $MEDBENCH_DATA or ~ expanded. Raises MedbenchError if the variable is not set."""
    first, _, rest = path.partition("/")
    if first not in (f"${DATA_FOLDER}", f"${{{DATA_FOLDER}}}"):
        return expanded(path)
    folder = os.environ.get(DATA_FOLDER)
    if not folder:
        raise MedbenchError(
            f"{path}: {DATA_FOLDER} is not set: export {DATA_FOLDER}=FOLDER, the folder of the data files"
        )
    return expanded(folder) / rest


def _fitting(where: str, raw: Mapping[str, Any]) -> Adapter:
    for name, columns in COLUMNS.items():
        if columns <= set(raw):
            return ADAPTERS[name]
    known = "; ".join(f"{name} ({', '.join(sorted(need))})" for name, need in COLUMNS.items())
    raise MedbenchError(f"{where}: the columns {_names(raw)} match no format; known: {known}")


def _structured_medical(where: str, raw: Mapping[str, Any]) -> Row:
    return _free_text(where, raw, "case", "reasoning", "answer")


def _huatuo_o1(where: str, raw: Mapping[str, Any]) -> Row:
    if "options" in raw:
        _text(raw, "reasoning")
        return _multiple_choice(where, raw)
    return _free_text(where, raw, "Question", "Complex_CoT", "Response")


def _free_text(where: str, raw: Mapping[str, Any], asked: str, reasoning: str, answer: str) -> Row:
    text, answer = _text(raw, asked), _text(raw, answer)
    if any(tag in answer for tag in TAGS):
        raise ValueError("the answer contains a <think> tag: remove the reasoning from it")
    question = Question(content_id(text), cluster_id(text, ()), text, (), (), answer)
    return Row(where, question, _thought(_text(raw, reasoning)), answer)


def _pubmedqa(where: str, raw: Mapping[str, Any]) -> Row:
    text, decision = _as_asked(raw), _text(raw, "final_decision")
    reasoning = _text(raw, "LONG_ANSWER" if "LONG_ANSWER" in raw else "long_answer")
    contexts = raw["context"].get("contexts") if isinstance(raw.get("context"), Mapping) else None
    if not isinstance(contexts, list) or not contexts or not all(isinstance(one, str) for one in contexts):
        raise ValueError(f"context.contexts: expected a list of texts{_there(raw)}")
    if decision not in DECISIONS:
        raise ValueError(f"final_decision: {decision!r} is not one of {', '.join(DECISIONS)}")
    context = "\n".join(contexts)  # as tasks/pubmedqa joins them
    question = Question(
        str(raw.get("pubid", content_id(text))),
        cluster_id(text, (context,)),
        text,
        DECISIONS,
        DECISIONS,
        decision,
        context,
    )
    return Row(where, question, _thought(reasoning), "")


def _multiple_choice(where: str, raw: Mapping[str, Any]) -> Row:
    text, options = _as_asked(raw), _options(raw)
    labels = tuple(LETTERS[: len(options)])
    column = next((name for name in ("reasoning", "explanation") if raw.get(name) is not None), None)
    question = Question(
        content_id(text, *options), cluster_id(text, options), text, options, labels, _gold(raw, options, labels)
    )
    return Row(where, question, _thought(_text(raw, column)) if column else "", "")


def _options(raw: Mapping[str, Any]) -> tuple[str, ...]:
    given = raw.get("options")
    if isinstance(given, Mapping):
        given = {label: text for label, text in given.items() if text is not None}  # the Hub pads with None
        if sorted(given) != list(LETTERS[: len(given)]):
            raise ValueError(f"options: keys must be A, B, ... in order, found {_names(given)}")
        given = [given[label] for label in sorted(given)]
    if not isinstance(given, list) or not all(isinstance(one, str) and one.strip() for one in given):
        raise ValueError(f"options: expected an object or a list of texts{_there(raw)}")
    if not 2 <= len(given) <= len(LETTERS):
        raise ValueError(f"options: expected 2 to {len(LETTERS)}, found {len(given)}")
    return tuple(given)


def _gold(raw: Mapping[str, Any], options: tuple[str, ...], labels: tuple[str, ...]) -> str:
    """The label given by answer_idx (or answer): a letter, an index from 0, or the option's text."""
    column = "answer_idx" if raw.get("answer_idx") is not None else "answer"
    given = raw.get(column)
    if given is None:
        raise ValueError(f"no column answer_idx or answer{_there(raw)}")
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(labels):
        return labels[given]
    if given in labels:
        return str(given)
    if options.count(given) == 1:
        return labels[options.index(given)]
    raise ValueError(f"{column}: {str(given)[:80]!r} is not one of the options {', '.join(labels)}")


def _thought(text: str) -> str:
    """The reasoning without the tags that some data sets put around it; any other tag would end it too early."""
    inner = text.strip()
    if inner.startswith(TAGS[0]) and inner.endswith(TAGS[1]):
        inner = inner[len(TAGS[0]) : -len(TAGS[1])].strip()
    if any(tag in inner for tag in TAGS):
        raise ValueError("a <think> tag inside the reasoning: remove it")
    if not inner:
        raise ValueError("the reasoning is empty")
    return inner


def _text(raw: Mapping[str, Any], column: str) -> str:
    if column not in raw:
        raise ValueError(f"no column {column}{_there(raw)}")
    text = raw[column]
    if not isinstance(text, str):
        raise ValueError(f"{column}: expected text, found {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{column} is empty")
    return text.strip()


def _as_asked(raw: Mapping[str, Any]) -> str:
    """The question exactly as the evaluation asks it, spaces included."""
    _text(raw, "question")
    return str(raw["question"])


def _there(raw: Mapping[str, Any]) -> str:
    return f" (there are: {_names(raw)})"


def _names(of: Mapping[str, Any]) -> str:
    return " ".join(", ".join(of).split())[:200] or "none"


Adapter = Callable[[str, Mapping[str, Any]], Row]
ADAPTERS: dict[str, Adapter] = {
    "structured_medical": _structured_medical,
    "huatuo_o1": _huatuo_o1,
    "pubmedqa": _pubmedqa,
    "multiple_choice": _multiple_choice,
}
COLUMNS: dict[str, set[str]] = {
    "structured_medical": {"case", "reasoning", "answer"},
    "huatuo_o1": {"Question", "Complex_CoT", "Response"},
    "pubmedqa": {"question", "context", "final_decision"},
    "multiple_choice": {"question", "options"},
}
"""Columns by which a format is recognised."""
