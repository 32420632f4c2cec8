"""MedMCQA rows, in the schema of the hub's openlifescienceai/medmcqa.

medbench tasks medmcqa_val
"""

from pydantic import BaseModel

from medbench.harness.benchmarks.rows import benchmark, cluster_id
from medbench.harness.contracts import LETTERS, Question


class Row(BaseModel):
    id: str
    question: str
    opa: str
    opb: str
    opc: str
    opd: str
    cop: int
    """The right option, 0 to 3; the authors' own files count from 1."""
    subject_name: str | None = None

    def canonical(self) -> Question:
        options = (self.opa, self.opb, self.opc, self.opd)
        if self.cop == -1:
            raise ValueError("cop: -1: the test split has no answers: use the validation split")
        if not 0 <= self.cop < len(options):
            raise ValueError(f"cop: {self.cop} is not 0 to 3: subtract 1 where the file counts options from 1")
        return Question(
            id=self.id,
            cluster=cluster_id(self.question, options),
            question=self.question,
            options=options,
            labels=tuple(LETTERS[: len(options)]),
            gold=LETTERS[self.cop],
            category={"subject_name": self.subject_name} if self.subject_name else {},
        )


dataset = benchmark(Row)
