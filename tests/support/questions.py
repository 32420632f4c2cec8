"""A toy task and its right replies."""

from __future__ import annotations

from typing import Any

from medbench.harness.contracts import Data, Question, Task
from medbench.harness.protocols.protocol import load_protocol

COT = load_protocol("cot-v2")


def a_task(n: int = 12, name: str = "toy") -> Task:
    """`n` questions whose answers are A and B in turn."""
    questions = tuple(
        Question(f"q{i}", f"q{i}", f"Which is {i}?", ("Iron", "Zinc"), ("A", "B"), "AB"[i % 2]) for i in range(n)
    )
    return Task(name, "1", "test", 0.5, questions, Data("local", "0" * 64, True))


def right(task: Task) -> dict[str, dict[str, Any]]:
    """Question id -> right reply, for FakeEngine."""
    return {question.id: {"output": f"The answer is ({question.gold})."} for question in task.questions}
