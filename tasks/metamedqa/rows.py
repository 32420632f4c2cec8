"""MetaMedQA rows, in the schema of the hub's maximegmd/MetaMedQA.

medbench tasks metamedqa --data DIR
"""

from pydantic import BaseModel

from medbench.harness.benchmarks.rows import benchmark, cluster_id, content_id, options_by_label
from medbench.harness.contracts import LETTERS, Question

LABELS = tuple(LETTERS[:6])


class Row(BaseModel):
    question: str
    options: dict[str, str]
    answer_idx: str
    kind: str = ""
    """How the question was made; "Fictional" is about the organ that does not exist."""

    def canonical(self) -> Question:
        options = options_by_label(self.options, LABELS, self.answer_idx, column="answer_idx")
        return Question(
            id=content_id(self.question, *options, self.answer_idx),  # the data set has no ids
            cluster=cluster_id(self.question, options),
            question=self.question,
            options=options,
            labels=LABELS,
            gold=self.answer_idx,
            category={"kind": self.kind} if self.kind else {},
        )


dataset = benchmark(Row, repeats=True)
