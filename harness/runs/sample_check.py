"""What the samples of one task must say together: each answer once, to questions and repeats that the run has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from medbench.harness.contracts import LETTERS, MedbenchError, Sample, sample_key
from medbench.harness.protocols.protocol import FOREIGN
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.sample_line import Line, decode
from medbench.harness.scoring.score import is_right


class Asked(Protocol):
    """What a question's right answer is read from: a Line or a Sample."""

    @property
    def gold(self) -> str: ...
    @property
    def order(self) -> Sequence[int] | None: ...


def right_option(sample: Asked) -> str:
    """The right answer, by its place in the question's own order where the options were shuffled."""
    if sample.order is None:
        return sample.gold
    shown = LETTERS.find(sample.gold) if len(sample.gold) == 1 else -1
    return str(sample.order[shown]) if 0 <= shown < len(sample.order) else sample.gold


def refuse_other_answer(task: str, sample: Sample, right: str) -> None:
    """Raises MedbenchError where the sample was scored against another right answer than `right`, see right_option."""
    if (found := right_option(sample)) != right:
        raise MedbenchError(
            f"{task}: the right answer of question {sample.id[:60]!r} is {found[:60]!r} in one place "
            f"and {right[:60]!r} in the other: one of them is damaged, or made from other data: evaluate again"
        )


def refuse_excess(folder: Path, record: RunRecord, task: str, n: int) -> None:
    """Raises MedbenchError for a result over more samples than run.json allows."""
    most = record.tasks[task].n * record.repeats
    if n > most:
        raise MedbenchError(
            f"{folder}/results/{task}.json: n: {n} samples, but run.json has at most {most}: "
            f"one of the two files is damaged"
        )


class SeenLines:
    """The lines of one file so far."""

    def __init__(self, record: RunRecord | None, task: str) -> None:
        """Without a record, or for a task that it lacks, the lines are only compared with each other."""
        described = record.tasks.get(task) if record is not None else None
        self._most_questions = described.n if described is not None else None
        self._repeats = record.repeats if record is not None else None
        self._contents: dict[str, int] = {}
        self._right: dict[str, str] = {}
        self.contradicted: set[str] = set()
        """Keys (see contracts.Sample.key) that have different answers."""

    def add(self, raw: bytes, line: Asked, id: str, repeat: int) -> bool:
        """Whether the line is new. Raises ValueError for one that contradicts an earlier one or run.json.

        The same line again, byte for byte, says nothing new and counts once: two writers on a file system whose locks
        exclude nobody answer alike. Nobody can say which of two different answers counts, so these are refused.
        """
        key = sample_key(id, repeat)
        content = hash(raw)
        known = self._contents.get(key)
        if known == content:
            return False
        if known is not None:
            self.contradicted.add(key)
            raise ValueError(f"question {id[:60]!r} has two different answers: evaluate again under another --name")
        if self._repeats is not None and repeat >= self._repeats:
            raise ValueError(
                f"repeat {repeat} of question {id[:60]!r}, but run.json has {self._repeats} a question: "
                f"one of the two files is damaged"
            )
        right = right_option(line)
        if self._right.setdefault(id, right) != right:
            raise ValueError(f"question {id[:60]!r} has another right answer than before: the file is damaged")
        if self._most_questions is not None and len(self._right) > self._most_questions:
            raise ValueError(
                f"more questions are answered than the {self._most_questions} of run.json: "
                f"one of the two files is damaged"
            )
        self._contents[key] = content
        return True

    def refuse_missing(self, record: RunRecord) -> None:
        """Raises ValueError where a finished run has fewer answers than its run.json says."""
        if record.status == "running" or record.incomplete or self._most_questions is None:
            return
        asked = min(self._most_questions, record.limit or self._most_questions)
        if len(self._contents) < asked * record.repeats:
            raise ValueError(
                f" {len(self._contents)} answers, but run.json says that the run is finished and asked "
                f"{asked * record.repeats}: one of the two files is damaged: evaluate again with --resume"
            )


def refuse_unearned(line: Line, record: RunRecord | None) -> None:
    """Raises ValueError for a full score on a wrong answer. lm-eval's own tasks score as they like."""
    foreign = record is None or str(record.protocol.get("name", "")).startswith(FOREIGN)
    if not foreign and line.score == 1 and not is_right(line.extracted, line.gold):
        raise ValueError(
            f"question {line.id[:60]!r} scores 1 for {str(line.extracted)[:60]!r} where {line.gold[:60]!r} is right: "
            f"the file is damaged"
        )


def checked_lines(lines: Iterable[bytes], record: RunRecord | None, task: str) -> Iterator[Line]:
    """Each whole line once, without the torn last one of a running evaluation.

    Raises ValueError for a line that is no sample or contradicts the others, beginning with its number, and for a
    finished run that lacks answers, beginning with a space.
    """
    seen = SeenLines(record, task)
    for number, raw in enumerate(lines, 1):
        if not raw.endswith(b"\n"):
            return
        try:
            line = decode(raw)
            refuse_unearned(line, record)
            new = seen.add(raw, line, line.id, line.repeat)
        except ValueError as error:
            raise ValueError(f"{number}: {error}") from None
        if new:
            yield line
    if record is not None:
        seen.refuse_missing(record)
