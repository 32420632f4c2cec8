"""The gate half and the report half of a task, which follow from a question's cluster alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Literal

from medbench.harness.contracts import Task


def partition_of(cluster: str) -> Literal["gate", "report"]:
    """The half that a question belongs to; duplicates are in the same half.

    Training loops judge checkpoints on `gate` and confirm them on `report`.
    """
    return "gate" if hashlib.sha256(f"partition\0{cluster}".encode()).digest()[0] % 2 else "report"


def keep_partition(task: Task, partition: str) -> Task:
    """`task` with the questions of one partition; all of them for "all"."""
    if partition == "all":
        return task
    return replace(task, questions=tuple(q for q in task.questions if partition_of(q.cluster) == partition))
