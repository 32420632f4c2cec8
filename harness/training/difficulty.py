"""How difficult the questions that a stage trains on are for its start.

A trainer that wants to know offers `probe` (see trainer_plugins). Before the stage's first attempt its start is asked
these questions by the engine of the gates, several times each, as a run of its own in the training's folder.

STAGE/difficulty.json   {"run": "sft-difficulty", "samples": 4, "right": {"<id of a question>": 0.75, ...}}
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medbench.harness.benchmarks.rows import rows_sha256
from medbench.harness.contracts import Data, MedbenchError, Question, Sample, Task
from medbench.harness.files import write_atomically
from medbench.harness.protocols.protocol import Protocol

DIFFICULTY = "difficulty.json"
TASK = "difficulty"
"""Name of the task in the run."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the start is asked."""

    questions: Sequence[Question]
    """With options; the ids are different."""
    protocol: Protocol
    """Samples: its temperature is above 0."""
    samples: int
    """Replies to each question."""

    def task(self) -> Task:
        questions = tuple(self.questions)
        chance = math.fsum(1 / len(one.labels) for one in questions) / len(questions)
        data = Data("training rows", rows_sha256(questions), official=False)
        return Task(TASK, "1", "train", chance, questions, data)


def write_shares(folder: Path, run: str, samples: Iterable[Sample]) -> Mapping[str, float]:
    """Question -> share of right replies, in [0, 1], from all samples of the run; kept in the stage's `folder`.

    Raises MedbenchError where the engine has failed on some: they are asked again when the training is resumed.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    failed = 0
    for one in samples:
        failed += one.score is None
        scores[one.id].append(one.score or 0.0)
    if failed:
        raise MedbenchError(
            f"difficulty: the engine failed on {failed} of {sum(map(len, scores.values()))} requests: run the same "
            f"command with --resume to ask these again"
        )
    right = {id: math.fsum(found) / len(found) for id, found in scores.items()}
    content = {"run": run, "samples": max(map(len, scores.values())), "right": right}
    write_atomically(folder / DIFFICULTY, json.dumps(content).encode())
    return right


def read_shares(folder: Path) -> dict[str, float]:
    """As returned by `write_shares`. Raises MedbenchError for a file that is missing or damaged."""
    path = folder / DIFFICULTY
    try:
        found = json.loads(path.read_bytes())["right"]
        return {str(id): float(share) for id, share in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise MedbenchError(
            f"{path}: no difficulties can be read from it: delete it, and resume the training to measure them again"
        ) from None


def in_words(shares: Mapping[str, float]) -> str:
    """One line about the shares of right replies."""
    never, always = (sum(share == bound for share in shares.values()) for bound in (0.0, 1.0))
    mean = math.fsum(shares.values()) / len(shares)
    return f"{len(shares)} questions, {mean:.1%} of the replies right; {never} never right, {always} always"
