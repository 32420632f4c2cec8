"""PubMedQA's abstracts with their conclusions, which the local judge is trained and tested on.

    abstracts_of("data", "train")

The folder holds the files of the task pubmedqa, pubmedqa/train.jsonl and pubmedqa/test.jsonl; "hub" reads the Hub's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medbench.harness.benchmarks.rows import HUB, SAMPLE, read_jsonl
from medbench.harness.contracts import MedbenchError
from medbench.harness.files import expanded
from medbench.harness.hub.repository import Repository, dataset_rows
from medbench.harness.judges.steps import sentences
from medbench.tasks.pubmedqa.rows import official_test_ids

Split = Literal["train", "test"]
DATASET = "qiaojin/PubMedQA"


@dataclass(frozen=True, slots=True)
class Abstract:
    """A question that a paper's title asks, its abstract, and what that concludes."""

    id: str
    question: str
    text: str
    """As a task gives it: a line per section, without the conclusion."""
    sections: tuple[tuple[str, ...], ...]
    """Sentences of each."""
    conclusion: tuple[str, ...]
    decision: str
    """yes, no or maybe: what people read in it."""

    def without(self, left_out: frozenset[str]) -> str:
        """The text, but for these sentences."""
        lines = (" ".join(sentence for sentence in section if sentence not in left_out) for section in self.sections)
        return "\n".join(filter(None, lines))

    def sentences(self) -> Iterator[str]:
        for section in self.sections:
            yield from section


class _Contexts(BaseModel):
    contexts: list[str] = Field(min_length=1)


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)

    pubid: int
    question: str = Field(min_length=1)
    context: _Contexts
    long_answer: str
    final_decision: Literal["yes", "no", "maybe"]

    def abstract(self) -> Abstract:
        return Abstract(
            id=str(self.pubid),
            question=" ".join(self.question.split()),
            text="\n".join(self.context.contexts),
            sections=tuple(tuple(sentences(text)) for text in self.context.contexts),
            conclusion=tuple(sentences(self.long_answer)),
            decision=self.final_decision,
        )


def abstracts_of(data: str, split: Split) -> list[Abstract]:
    """In order of id. Raises MedbenchError naming file and line of a row that is faulty or that occurs twice."""
    if data == SAMPLE:
        raise MedbenchError("the built-in sample has a few abstracts only: name a folder with --data, or hub")
    found: dict[str, Abstract] = {}
    for where, raw in _hub_rows(split) if data == HUB else _file_rows(data, split):
        try:
            abstract = _Row.model_validate(raw).abstract()
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            key = ".".join(map(str, fault["loc"]))
            raise MedbenchError(f"{where}: {key}: {fault['msg'].lower()}") from None
        if abstract.id in found:
            raise MedbenchError(f"{where}: duplicate id {abstract.id}; remove one")
        found[abstract.id] = abstract
    if not found:
        raise MedbenchError(f"{data}: no abstracts in its split {split}")
    return [found[id] for id in sorted(found, key=int)]


def sha256_of(abstracts: Iterable[Abstract]) -> str:
    """Of ids and contents, independent of order."""
    lines = sorted(json.dumps(asdict(one), sort_keys=True) for one in abstracts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _file_rows(data: str, split: Split) -> Iterator[tuple[str, Mapping[str, Any]]]:
    folder = expanded(data)
    if not folder.is_dir():
        raise MedbenchError(f"data folder {folder} does not exist: correct --data or MEDBENCH_DATA")
    path = folder / "pubmedqa" / f"{split}.jsonl"
    for number, raw in read_jsonl(path):
        yield f"{path}:{number}", raw


def _hub_rows(split: Split) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = dataset_rows(Repository("dataset", DATASET), subset="pqa_labeled", split="train")
    for number, raw in enumerate(rows):
        if (raw["pubid"] in official_test_ids()) == (split == "test"):
            yield f"{DATASET} row {number}", raw
