"""PubMedQA rows, in the schema of the hub's qiaojin/PubMedQA (pqa_labeled).

medbench tasks pubmedqa
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from medbench.harness.benchmarks.rows import benchmark, cluster_id
from medbench.harness.contracts import Question

LABELS = ("yes", "no", "maybe")


class Context(BaseModel):
    contexts: list[str] = Field(min_length=1)


class Row(BaseModel):
    pubid: int
    question: str
    context: Context
    final_decision: str

    def canonical(self) -> Question:
        if self.final_decision not in LABELS:
            raise ValueError(f"final_decision: {self.final_decision!r} is not yes, no or maybe")
        context = "\n".join(self.context.contexts)
        return Question(
            id=str(self.pubid),
            cluster=cluster_id(self.question, (context,)),
            question=self.question,
            options=LABELS,
            labels=LABELS,
            gold=self.final_decision,
            context=context,
            category={"split": "test" if self.pubid in official_test_ids() else "other"},
        )


@cache
def official_test_ids() -> frozenset[int]:
    """The 500 ids of the authors' test split (github.com/pubmedqa/pubmedqa, test_ground_truth.json)."""
    return frozenset(map(int, (Path(__file__).parent / "test_ids.txt").read_text().split()))


def _of_split(split: str, raw: Mapping[str, Any]) -> bool:
    return (raw["pubid"] in official_test_ids()) == (split == "test")


dataset = benchmark(Row, keep=_of_split)
all_dataset = benchmark(Row)
