"""MedQA rows, in the schema of the hub's GBaker/MedQA-USMLE-4-options.

medbench tasks medqa
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, field_validator

from medbench.harness.benchmarks.rows import benchmark, cluster_id, content_id
from medbench.harness.contracts import LETTERS, Question
from medbench.harness.text import foreign


class Row(BaseModel):
    question: str
    options: dict[str, str]
    answer_idx: str
    answer: str | None = None
    """The text of the right option, which some copies of the data set leave out."""
    meta_info: str = ""

    @field_validator("options", mode="before")
    @classmethod
    def _by_letter(cls, given: Any) -> Any:
        """The list of {"key": "A", "value": "Aspirin"} of some copies of the data set, as a dict."""
        pairs = given if isinstance(given, list) else []
        if pairs and all(isinstance(one, Mapping) and isinstance(one.get("key"), str) for one in pairs):
            return {one["key"]: one.get("value") for one in pairs}
        return given

    def canonical(self) -> Question:
        labels = tuple(sorted(self.options))
        if labels != tuple(LETTERS[: len(labels)]) or len(labels) < 2:
            raise ValueError(f"options: keys must be A, B, ... in order, found {', '.join(labels) or 'none'}")
        if self.answer_idx not in labels:
            raise ValueError(f"answer_idx: {self.answer_idx!r} is not one of the options {', '.join(labels)}")
        text = self.options[self.answer_idx]
        if self.answer is not None and self.answer.split() != text.split():
            found, said = foreign(self.answer, 80), foreign(text, 80)
            raise ValueError(f"answer: {found!r} is not the text of option {self.answer_idx}, {said!r}: correct one")
        options = tuple(self.options[label] for label in labels)
        return Question(
            id=content_id(self.question, *options),  # the data set has no ids
            cluster=cluster_id(self.question, options),
            question=self.question,
            options=options,
            labels=labels,
            gold=self.answer_idx,
            category={"meta_info": self.meta_info} if self.meta_info else {},
        )


class FiveOptions(Row):
    """A row of the original data set; the well-known one with four options is made from it."""

    def canonical(self) -> Question:
        if len(self.options) != 5:
            raise ValueError(f"options: {len(self.options)} where there must be 5; four are those of the task medqa")
        return super().canonical()


dataset = benchmark(Row)
five_options_dataset = benchmark(FiveOptions)
