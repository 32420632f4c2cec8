"""One row: {"id": "1", "question": "...", "options": ["red", "blue"], "answer": "A"}."""

from pydantic import BaseModel

from medbench.harness.benchmarks.rows import benchmark, cluster_id
from medbench.harness.contracts import Question


class Row(BaseModel):
    id: str
    question: str
    options: list[str]
    answer: str

    def canonical(self) -> Question:
        options = tuple(self.options)
        labels = ("A", "B")
        return Question(self.id, cluster_id(self.question, options), self.question, options, labels, self.answer)


dataset = benchmark(Row)
