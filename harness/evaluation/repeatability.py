"""How many answers change when the same checkpoint is asked twice, in two orders of questions.

medbench gate CHECKPOINT --gates gates.yaml --aa 100
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from medbench.harness.contracts import Engine, Passed, Question, Sample, Task
from medbench.harness.evaluation.requests import build_request, permuted
from medbench.harness.evaluation.runner import completions
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.scoring.score import score_completion


class Noise(BaseModel):
    """Differences between two passes over the same questions of one task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: int
    replies: int
    """Completions whose text differs."""
    answers: int
    """Extracted answers that differ."""
    scores: int
    """Questions right in one pass and wrong in the other."""

    @property
    def flip_rate(self) -> float:
        """Share of questions whose score changed."""
        return self.scores / self.asked if self.asked else 0.0

    def of_difference(self, questions: int) -> float:
        """Standard deviation of the difference of two passes' mean scores over so many questions."""
        return math.sqrt(self.flip_rate / questions)


def measure(task: Task, protocol: Protocol, engine: Engine, *, questions: int, seed: int) -> Noise:
    """Ask the first `questions` of the fixed order, then the same ones in reverse; nothing is stored.

    A protocol that samples draws the second pass with other seeds.
    """
    by_id = {question.id: question for question in task.questions}
    order = permuted(by_id, seed=seed, task=task.name)[:questions]
    first = answers_to(task, [by_id[id] for id in order], protocol, engine, seed=seed)
    again = seed + 1 if protocol.is_sampled else seed
    second = answers_to(task, [by_id[id] for id in reversed(order)], protocol, engine, seed=again)
    return compare(first, second)


def answers_to(
    task: Task,
    questions: Sequence[Question],
    protocol: Protocol,
    engine: Engine,
    *,
    seed: int,
    at_once: int | None = None,
) -> dict[str, Sample]:
    """Question id -> its sample; the engine gets `at_once` questions at a time, None for all of them together."""
    found = {}
    step = at_once or max(len(questions), 1)
    for start in range(0, len(questions), step):
        requests = {
            (request := build_request(task, question, protocol, engine, seed)).id: (question, request)
            for question in questions[start : start + step]
        }
        for completion in completions((request for _, request in requests.values()), protocol, engine):
            assert not isinstance(completion, Passed), "no request has milestones"
            question, request = requests[completion.id]
            found[question.id] = score_completion(task, question, request, completion)
    return found


def compare(first: Mapping[str, Sample], second: Mapping[str, Sample]) -> Noise:
    """What changed between the passes; questions that failed in either are left out."""
    pairs = answered_pairs(first, second)
    return Noise(
        asked=len(pairs),
        replies=sum(reply_text(a) != reply_text(b) for a, b in pairs),
        answers=sum(a.extracted != b.extracted for a, b in pairs),
        scores=sum(a.score != b.score for a, b in pairs),
    )


def answered_pairs(first: Mapping[str, Sample], second: Mapping[str, Sample]) -> list[tuple[Sample, Sample]]:
    """The pairs of samples of the questions that failed in neither pass."""
    return [(first[id], second[id]) for id in first if first[id].score is not None and second[id].score is not None]


def reply_text(sample: Sample) -> str:
    """The completion's text; where nothing was generated, the log-likelihoods."""
    return sample.output or str(sample.logprobs)
