"""MedQA rows, in the schema of the hub's GBaker/MedQA-USMLE-4-options.

medbench tasks medqa
"""

from pydantic import BaseModel

from medbench.harness.benchmarks.rows import benchmark, cluster_id, content_id
from medbench.harness.contracts import LETTERS, Question


class Row(BaseModel):
    question: str
    options: dict[str, str]
    answer_idx: str
    meta_info: str = ""

    def canonical(self) -> Question:
        labels = tuple(sorted(self.options))
        if labels != tuple(LETTERS[: len(labels)]) or len(labels) < 2:
            raise ValueError(f"options: keys must be A, B, ... in order, found {', '.join(labels) or 'none'}")
        if self.answer_idx not in labels:
            raise ValueError(f"answer_idx: {self.answer_idx!r} is not one of the options {', '.join(labels)}")
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


dataset = benchmark(Row)
