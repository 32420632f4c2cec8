"""MedXpertQA rows, in the schema of the hub's TsinghuaC3I/MedXpertQA (Text).

medbench tasks medxpertqa
"""

from pydantic import BaseModel

from medbench.harness.benchmarks.rows import benchmark, cluster_id
from medbench.harness.contracts import LETTERS, Question
from medbench.harness.text import foreign

LABELS = tuple(LETTERS[:10])
LIST = "\nAnswer Choices: (A)"
"""Begins the list of the options that ends each question of the data set."""


class Row(BaseModel):
    id: str
    question: str
    options: dict[str, str]
    label: str
    medical_task: str = ""
    body_system: str = ""
    question_type: str = ""

    def canonical(self) -> Question:
        if tuple(sorted(self.options)) != LABELS:
            found = foreign(", ".join(self.options), 80)
            raise ValueError(f"options: keys must be {LABELS[0]} to {LABELS[-1]}, found {found or 'none'}")
        if self.label not in LABELS:
            raise ValueError(f"label: {foreign(self.label, 40)!r} is not one of {LABELS[0]} to {LABELS[-1]}")
        question = self.question.rpartition(LIST)[0] or self.question
        options = tuple(self.options[label] for label in LABELS)
        known = {name: getattr(self, name) for name in ("medical_task", "body_system", "question_type")}
        return Question(
            id=self.id,
            cluster=cluster_id(question, options),
            question=question,
            options=options,
            labels=LABELS,
            gold=self.label,
            category={name: value for name, value in known.items() if value},
        )


dataset = benchmark(Row)
