"""MedCalc-Bench rows, in the schema of the hub's nsk7153/MedCalc-Bench-Verified.

medbench tasks medcalc_verified
"""

from typing import Literal

from pydantic import BaseModel, Field

from medbench.harness.benchmarks.rows import benchmark, cluster_id
from medbench.harness.contracts import Question
from medbench.harness.extraction.quantity import with_limits, written
from medbench.harness.text import foreign

Cell = str | int | float
"""A column with numbers and dates has other types in other copies."""


class Row(BaseModel):
    row: int = Field(alias="Row Number")
    category: str = Field("", alias="Category")
    kind: Literal["decimal", "integer", "date"] = Field(alias="Output Type")
    note: str = Field(alias="Patient Note")
    question: str = Field(alias="Question")
    answer: Cell = Field(alias="Ground Truth Answer")
    low: Cell = Field(alias="Lower Limit")
    high: Cell = Field(alias="Upper Limit")

    def canonical(self) -> Question:
        return Question(
            id=str(self.row),
            cluster=cluster_id(self.question, (self.note,)),
            question=self.question,
            options=(),
            labels=(),
            gold=self._gold(),
            context=self.note,
            category={"category": self.category} if self.category else {},
        )

    def _gold(self) -> str:
        if self.kind != "date":
            return with_limits(self.answer, self.low, self.high)
        gold = written(self.answer)
        if gold is None or not ("/" in gold or "weeks" in gold):
            raise ValueError(f"Ground Truth Answer: {foreign(self.answer, 40)!r} is no date and no weeks and days")
        return gold


dataset = benchmark(Row)
