"""Rows of MMLU's medical subjects, in the schema of the hub's cais/mmlu (all).

medbench tasks mmlu_medical
"""

from pydantic import BaseModel, Field

from medbench.harness.benchmarks.rows import benchmark, cluster_id, content_id
from medbench.harness.contracts import LETTERS, Question
from medbench.harness.text import foreign

SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)


class Row(BaseModel):
    question: str
    subject: str
    choices: list[str] = Field(min_length=4, max_length=4)
    answer: int = Field(ge=0, le=3)

    def canonical(self) -> Question:
        if self.subject not in SUBJECTS:
            raise ValueError(f"subject: {foreign(self.subject, 40)!r} is not one of {', '.join(SUBJECTS)}: remove it")
        gold = LETTERS[self.answer]
        return Question(
            id=content_id(self.subject, self.question, *self.choices, gold),  # the data set has no ids
            cluster=cluster_id(self.question, self.choices),
            question=self.question,
            options=tuple(self.choices),
            labels=tuple(LETTERS[: len(self.choices)]),
            gold=gold,
            category={"subject": self.subject},
        )


dataset = benchmark(Row, keep=lambda _, raw: raw["subject"] in SUBJECTS, repeats=True)
