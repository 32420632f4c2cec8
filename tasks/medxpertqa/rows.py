"""MedXpertQA rows, in the schema of the hub's TsinghuaC3I/MedXpertQA (Text).

medbench tasks medxpertqa
"""

from pydantic import BaseModel

from medbench.harness.benchmarks.rows import benchmark, cluster_id, options_by_label
from medbench.harness.contracts import LETTERS, Question

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
        options = options_by_label(self.options, LABELS, self.label, column="label")
        question = self.question.rpartition(LIST)[0] or self.question
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
