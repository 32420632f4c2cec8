"""The noise floor: how many answers change when the same checkpoint is asked twice, in another batch order.

medbench gate CHECKPOINT --gates gates.yaml --aa 100
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from medbench.harness.contracts import Completion, Engine, Question, Task
from medbench.harness.evaluate import build_request, permuted
from medbench.harness.gate_file import GateFile
from medbench.harness.protocol import Protocol
from medbench.harness.scoring import score_completion


class Noise(BaseModel):
    """What two passes over the same questions of one task disagreed on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: int
    replies: int
    """Replies whose text differs."""
    answers: int
    """Extracted answers that differ."""
    scores: int
    """Questions right in one pass and wrong in the other."""

    @property
    def floor(self) -> float:
        """Share of questions whose score is noise."""
        return self.scores / self.asked if self.asked else 0.0


def measure(task: Task, protocol: Protocol, engine: Engine, *, questions: int, seed: int) -> Noise:
    """Ask the first `questions` of the fixed order, then the same ones backwards; nothing is stored."""
    by_id = {question.id: question for question in task.questions}
    order = permuted(by_id, seed=seed, task=task.name)[:questions]
    first = _answers(task, [by_id[id] for id in order], protocol, engine, seed)
    second = _answers(task, [by_id[id] for id in reversed(order)], protocol, engine, seed)
    both = [(first[id], second[id]) for id in order if first[id][2] is not None and second[id][2] is not None]
    return Noise(
        asked=len(both),
        replies=sum(a[0] != b[0] for a, b in both),
        answers=sum(a[1] != b[1] for a, b in both),
        scores=sum(a[2] != b[2] for a, b in both),
    )


def warnings_of(noise: dict[str, Noise], rules: GateFile) -> list[str]:
    """A line for each margin that is smaller than what the engine's own noise moves."""
    lines = []
    for gate in rules.gates:
        found = noise.get(gate.task)
        if found is None or not gate.paired:
            continue
        margin = gate.margin if gate.margin is not None else gate.better_by
        assert margin is not None
        if margin < found.floor:
            lines.append(
                f"{gate.rule}: the margin is smaller than the noise floor ({100 * found.floor:.1f} points of "
                f"{found.asked} questions change when asked again): widen it"
            )
    return lines


def _answers(
    task: Task, questions: Sequence[Question], protocol: Protocol, engine: Engine, seed: int
) -> dict[str, tuple[str, str | None, float | None]]:
    """question id -> (reply, answer, score)"""
    requests = {
        (r := build_request(task, question, protocol, engine, seed)).id: (question, r) for question in questions
    }
    found = {}
    completions: list[Completion] = list(engine.generate([request for _, request in requests.values()]))
    for completion in completions:
        question, request = requests[completion.id]
        sample = score_completion(task, question, request, completion)
        found[question.id] = (sample.output or str(sample.logprobs), sample.extracted, sample.score)
    return found
