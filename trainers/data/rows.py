"""The `data:` section of a recipe's sft stage: rows of the forms in forms.py, from files or the Hub, each checked.

load_rows([Source(path="chats/*.parquet"), Source(path="exam.csv", columns={"question": "stem", "answer": "key"})])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from pydantic import Field, field_validator, model_validator

from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError
from medbench.harness.hub.faults import explained
from medbench.harness.hub.repository import MAIN, Repository, dataset_rows
from medbench.harness.text import did_you_mean, foreign
from medbench.trainers.data import columns, files
from medbench.trainers.data.columns import Raw
from medbench.trainers.data.conversations import Conversation
from medbench.trainers.data.forms import ADAPTERS, COLUMNS, OPTIONAL, OPTIONS_ELSEWHERE, Format
from medbench.trainers.data.questions import Row


class Source(Record):
    """One data set; give either `path` or `hub`."""

    path: str | None = None
    """A file (.jsonl, .json, .parquet, .csv, .tsv), a folder of them, or a glob; may begin with $MEDBENCH_DATA or ~."""
    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    """org/name, with `subset` (the Hub's config name), `revision` and `split`."""
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    format: Format = "auto"
    """auto: the first format whose columns are all present."""
    columns: dict[str, str | list[str]] = Field(default_factory=dict)
    """For other names: a format's column -> the data's, or a list of columns ({options: [A, B, C, D], answer: key})."""
    system: str | None = Field(None, pattern=r"\S")
    """System prompt of rows that have none. Rows with options are asked as the protocol says, and take none."""
    limit: int | None = Field(None, ge=1)
    """Number of rows to read, from the first; None reads all."""
    reasoning: bool = True
    """false leaves the rows' reasoning out, so that sft teaches the answer alone."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path or hub")
        return self

    @field_validator("columns")
    @classmethod
    def _ours_to_theirs(cls, given: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        known = sorted(OPTIONAL.union(*COLUMNS.values()))
        if unknown := [name for name in given if name not in known]:
            raise ValueError(
                f"{foreign(unknown[0], 80)!r} is not a column of any format; {did_you_mean(unknown[0], known)}; the "
                f"format's column comes first: {{question: their_name}}"
            )
        if empty := [name for name, theirs in given.items() if not theirs]:
            raise ValueError(f"{empty[0]}: name a column of the data, or leave it out")
        return given

    @property
    def name(self) -> str:
        return self.path or str(self.hub)


SOURCE = "source"
"""As `by` of load_rows: the data set's own name."""


def load_rows(sources: Sequence[Source], by: str | None = None) -> list[Row | Conversation]:
    """The rows of all sources, in order. Raises MedbenchError naming file and line of the first fault.

    by: a column of the rows, or SOURCE, that becomes their question's category.
    """
    rows: list[Row | Conversation] = []
    for source in sources:
        found = list(rows_in(source, by))
        if not found:
            raise MedbenchError(f"{source.name}: no rows")
        rows.extend(found)
    return rows


def rows_in(source: Source, by: str | None = None) -> Iterator[Row | Conversation]:
    """The same of one source, a row at a time, so that files of lines of any size can be read."""
    chosen: str | None = None if source.format == "auto" else source.format
    for where, given in islice(_raw_rows(source), source.limit):
        raw = given
        try:
            raw = columns.renamed(given, source.columns)
            chosen = chosen or _fitting(raw)
            row = ADAPTERS[chosen](where, raw)
            if source.system or "system" in source.columns:
                row = row.with_system((source.system or "").strip())
            if not source.reasoning:
                row = row.without_reasoning()
            if by is not None and isinstance(row, Row):
                value = source.name if by == SOURCE else columns.category(given, by)
                row = replace(row, question=replace(row.question, category={by: value}))
            row.screened(0).text.encode()
        except UnicodeEncodeError:
            raise MedbenchError(f"{where}: a lone surrogate (half a character) in the text: remove it") from None
        except ValueError as error:
            mixed = _mixed(raw, chosen) if source.format == "auto" else None
            raise MedbenchError(f"{where}: {mixed or error}") from None
        yield row


def _raw_rows(source: Source) -> files.Rows:
    if source.path is not None:
        yield from files.rows_of(source.path)
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


def _form_of(raw: Raw) -> str | None:
    return next((name for name, needed in COLUMNS.items() if needed <= set(raw)), None)


def _fitting(raw: Raw) -> str:
    found = _form_of(raw)
    if found is None:
        known = "; ".join(f"{name} ({', '.join(sorted(needed))})" for name, needed in COLUMNS.items())
        raise ValueError(
            f"the columns {columns.names(raw)} match no format; known: {known}; give others these names by `columns:`"
        )
    options = next((name for name in OPTIONS_ELSEWHERE if raw.get(name) is not None), None)
    if found == "question_answer" and options:
        raise ValueError(
            f"the column {options} seems to have options: name it, or all columns of options, by `columns: {{options: "
            f"...}}`, or set `format: question_answer` to leave it out"
        )
    return found


def _mixed(raw: Raw, chosen: str | None) -> str | None:
    """What is wrong if the row has another form than the first row; None if that is not it."""
    form = _form_of(raw)
    if chosen is None or form is None or COLUMNS[chosen] <= set(raw):
        return None
    return f"the row has the columns of {form}, the first row those of {chosen}: put each form in a file of its own"
