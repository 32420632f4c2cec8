"""MMLU-Pro rows, in the schema of the hub's TIGER-Lab/MMLU-Pro; duplicates share a cluster.

medbench tasks mmlu_pro_medical
"""

from pydantic import BaseModel, Field

from medbench.harness.benchmarks.rows import benchmark, cluster_id
from medbench.harness.contracts import LETTERS, Question


class Row(BaseModel):
    question_id: int
    question: str
    options: list[str] = Field(min_length=2, max_length=len(LETTERS))
    answer: str
    answer_index: int
    category: str
    src: str = ""

    def canonical(self) -> Question:
        labels = tuple(LETTERS[: len(self.options)])
        if self.answer not in labels:
            raise ValueError(f"answer: {self.answer!r} is not one of the options {labels[0]} to {labels[-1]}")
        if labels.index(self.answer) != self.answer_index:
            raise ValueError(f"answer_index: {self.answer_index} is not the index of answer {self.answer!r}")
        return Question(
            id=str(self.question_id),
            cluster=cluster_id(self.question, self.options),
            question=self.question,
            options=tuple(self.options),
            labels=labels,
            gold=self.answer,
            category={"category": self.category, "src": self.src},
        )


dataset = benchmark(Row, keep=lambda _, raw: raw["category"] in ("health", "biology"))
health_dataset = benchmark(Row, keep=lambda _, raw: raw["category"] == "health")
