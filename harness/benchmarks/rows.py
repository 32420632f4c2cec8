"""Rows of a benchmark from a local folder, the Hub or the built-in sample, checked and in canonical form.

A task's YAML has `custom_dataset: !function rows.dataset`, which `benchmark()` makes, so that the lm_eval command and
medbench read the same rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.files import expanded, parse_json
from medbench.harness.hub.repository import MAIN, Repository, dataset_rows
from medbench.harness.text import foreign

SAMPLE = "sample"
HUB = "hub"
ROWS = "rows"
"""The table of a task's rows of all splits (see `benchmark`)."""
EXAMPLE_SPLITS = ("train", "validation", "test")
"""Few-shot examples are drawn from the first of these splits that has rows."""


class Row(Protocol):
    """A pydantic record with the columns of the Hub data set, which can be turned into a Question."""

    def canonical(self) -> Question:
        """Raises ValueError with one line, e.g. for a gold answer that is not an option."""
        ...


def benchmark(
    row: type[BaseModel], keep: Callable[[str, Mapping[str, Any]], bool] | None = None, repeats: bool = False
) -> Callable[..., Any]:
    """The `custom_dataset` function of a task whose rows have the schema `row`.

    `keep(split, raw_row)` selects a split's rows where the Hub data set has fewer splits than the benchmark. `repeats`
    is for data sets without ids that have the same row more than once: the second gets the id of the first and "-2".
    Without it, an id that occurs twice is a fault.
    Besides the splits it returns ROWS, one table of them all: lm-eval leaves a question out of its own few-shot
    examples only if both come from a split of the same name, and only this function knows which splits there are.
    """

    def dataset(**metadata: Any) -> Any:
        import datasets

        source = metadata.get("data") or os.environ.get("MEDBENCH_DATA") or HUB
        docs = [
            {**_as_doc(question), "split": split}
            for split in metadata["files"]
            if split == "test" or source != SAMPLE
            for question in _questions(split, source, row, keep, repeats, metadata)
        ]
        rows = datasets.Dataset.from_list(docs)
        splits = {split: _of_split(rows, split) for split in dict.fromkeys(doc["split"] for doc in docs)}
        return datasets.DatasetDict({**splits, ROWS: rows})

    return dataset


def asked_rows(rows: Any) -> Any:
    """`process_docs` of medbench's lm-eval YAML: the questions to evaluate."""
    return _of_split(rows, "test")


def example_rows(rows: Any) -> list[ExampleRow]:
    """`fewshot_config.process_docs` of medbench's lm-eval YAML: the rows that few-shot examples are drawn from."""
    return [ExampleRow(doc) for doc in _of_split(rows, example_split(rows["split"][:]))]


def example_split(there: Iterable[str]) -> str:
    """The split that few-shot examples come from, among those present."""
    return min(set(there) & set(EXAMPLE_SPLITS), key=EXAMPLE_SPLITS.index)


class ExampleRow(dict[str, Any]):
    """A row that equals every row of its cluster: lm-eval's samplers leave out rows equal to the question."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self["cluster"] == other["cluster"]

    def __ne__(self, other: object) -> bool:  # dict defines its own, so Python does not derive it from __eq__
        return not self == other

    __hash__ = None


def question_of(doc: Mapping[str, Any]) -> Question:
    """The Question in a data set row made by `benchmark`."""
    return Question(
        id=doc["id"],
        cluster=doc["cluster"],
        question=doc["question"],
        options=tuple(doc["options"]),
        labels=tuple(doc["labels"]),
        gold=doc["gold"],
        context=doc["context"],
        category=json.loads(doc["category"]),
    )


def rows_sha256(questions: Iterable[Question]) -> str:
    """Content hash over ids, questions, contexts, options and gold answers, independent of order."""
    lines = sorted(json.dumps([q.id, q.question, q.context, q.options, q.gold]) for q in questions)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def options_by_label(
    options: Mapping[str, str], labels: tuple[str, ...], answer: str, *, column: str
) -> tuple[str, ...]:
    """The options in the order of `labels`. Raises ValueError for others than these, and for an `answer`, which stands
    in `column`, that is none of them."""
    if tuple(sorted(options)) != labels:
        found = foreign(", ".join(options), 80)
        raise ValueError(f"options: keys must be {labels[0]} to {labels[-1]}, found {found or 'none'}")
    if answer not in labels:
        raise ValueError(f"{column}: {foreign(answer, 40)!r} is not one of {labels[0]} to {labels[-1]}")
    return tuple(options[label] for label in labels)


def content_id(*parts: str) -> str:
    """A short id for a row that has none: the first 12 hex digits of a sha256."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:12]


def cluster_id(question: str, options: Iterable[str]) -> str:
    """Equal for questions that differ only in case, white space or the order of their options."""
    text, *choices = (" ".join(text.lower().split()) for text in (question, *options))
    return content_id(text, *sorted(choices))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line. Raises MedbenchError naming file and line."""
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        raise MedbenchError(f"{path}: no such file") from None
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                content = parse_json(line)
            except ValueError as fault:
                raise MedbenchError(f"{path}:{number}: {fault}") from None
            if not isinstance(content, dict):
                raise MedbenchError(f"{path}:{number}: expected a JSON object, found {type(content).__name__}")
            yield number, content


def _of_split(rows: Any, split: str) -> Any:
    # slicing reads the whole column at once; iterating over the column would read it row by row
    return rows.select([at for at, name in enumerate(rows["split"][:]) if name == split])


def _questions(
    split: str,
    source: str,
    row: type[BaseModel],
    keep: Callable[[str, Mapping[str, Any]], bool] | None,
    repeats: bool,
    metadata: Mapping[str, Any],
) -> list[Question]:
    if source == HUB:
        return _canonical(_hub_rows(split, keep, metadata), row, repeats)
    if source == SAMPLE:
        folder = Path(metadata["config_source"]).parent / SAMPLE
        names = [Path(name).name for name in metadata["files"][split]]
        there = [name for name in names if (folder / name).exists()]
        if split == "test" and not there:
            raise MedbenchError(
                f"{folder}: the task has no built-in sample: add {' or '.join(names)}, or name a folder with --data"
            )
        names = there
    else:
        folder = expanded(source)
        names = metadata["files"][split]
        if not folder.is_dir():
            raise MedbenchError(f"data folder {folder} does not exist: correct --data or MEDBENCH_DATA")
    if split != "test" and not all((folder / name).exists() for name in names):
        return []
    return _canonical(_file_rows(folder, names), row, repeats)


def _file_rows(folder: Path, names: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in names:
        path = folder / name
        if not path.exists():
            raise MedbenchError(f"{path}: no such file; the data folder must hold {', '.join(names)}")
        empty = True
        for number, raw in read_jsonl(path):
            empty = False
            yield f"{path}:{number}", raw
        if empty:
            raise MedbenchError(f"{path}: the file is empty")


def _hub_rows(
    split: str, keep: Callable[[str, Mapping[str, Any]], bool] | None, metadata: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    hub = metadata["hub"]
    if split not in hub["splits"]:
        return
    repository = Repository("dataset", hub["path"], hub.get("revision", MAIN))
    rows = dataset_rows(repository, subset=hub.get("name"), split=hub["splits"][split])
    for number, raw in enumerate(rows):
        if keep is None or keep(split, raw):
            yield f"{hub['path']} row {number}", raw


def _canonical(rows: Iterable[tuple[str, Mapping[str, Any]]], row: type[BaseModel], repeats: bool) -> list[Question]:
    questions: list[Question] = []
    times: Counter[str] = Counter()
    seen: dict[str, str] = {}
    for where, raw in rows:
        try:
            record: Any = row.model_validate(raw)
            question = record.canonical()
            # half of a surrogate pair ("\ud83d") is valid JSON but not UTF-8: arrow and every later file would fail
            json.dumps(_as_doc(question), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise MedbenchError(f"{where}: a lone surrogate (half a character) in the text; remove it") from None
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in fault["loc"])
            raise MedbenchError(f"{where}: {key}: {fault['msg'].lower()}") from None
        except ValueError as error:
            raise MedbenchError(f"{where}: {error}") from None
        if repeats:
            times[question.id] += 1
            if times[question.id] > 1:
                question = replace(question, id=f"{question.id}-{times[question.id]}")
        if question.id in seen:
            raise MedbenchError(f"{where}: duplicate id {question.id}, first seen at {seen[question.id]}; remove one")
        seen[question.id] = where
        questions.append(question)
    return questions


def _as_doc(question: Question) -> dict[str, Any]:
    # category as JSON text: arrow would pad rows with different keys with None
    return {**asdict(question), "category": json.dumps(dict(question.category))}
