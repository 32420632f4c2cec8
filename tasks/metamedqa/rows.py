"""MetaMedQA rows, in the schema of the hub's maximegmd/MetaMedQA.

medbench tasks metamedqa --data DIR
"""

from pydantic import BaseModel

from medbench.harness.benchmarks.rows import benchmark, cluster_id, content_id
from medbench.harness.contracts import LETTERS, Question
from medbench.harness.text import foreign

LABELS = tuple(LETTERS[:6])


class Row(BaseModel):
    question: str
    options: dict[str, str]
    answer_idx: str
    kind: str = ""
    """How the question was made; "Fictional" is about the organ that does not exist."""

    def canonical(self) -> Question:
        if tuple(sorted(self.options)) != LABELS:
            found = foreign(", ".join(self.options), 80)
            raise ValueError(f"options: keys must be {LABELS[0]} to {LABELS[-1]}, found {found or 'none'}")
        if self.answer_idx not in LABELS:
            raise ValueError(f"answer_idx: {foreign(self.answer_idx, 40)!r} is not one of {LABELS[0]} to {LABELS[-1]}")
        options = tuple(self.options[label] for label in LABELS)
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
