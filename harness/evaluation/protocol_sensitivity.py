"""The same replies scored by every protocol's extractor: how far a published score depends on answer extraction alone.

medbench score replies.jsonl --task mmlu_pro_health --protocol all
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.contracts import MedbenchError, Say, Task
from medbench.harness.engines.stored_replies import Replies, refuse_unreadable
from medbench.harness.evaluation.score_replies import ScoreOptions, Scorer, count_lacking, replies_to
from medbench.harness.protocols.protocol import DEFAULT, FOREIGN, Protocol, built_in_names, load_protocol
from medbench.harness.scoring.published_accuracy import published
from medbench.harness.scoring.summary import Summary


@dataclass(frozen=True, slots=True)
class Row:
    """All replies scored under one protocol; shares are 0..1."""

    protocol: str
    accuracy: float
    interval: tuple[float, float]
    """95 %, clustered by duplicate question."""
    published: float | None
    """The accuracy by the source's own arithmetic, where that differs by construction."""
    unparsed: float
    truncated: float
    difference: float
    """Accuracy minus that under the default protocol."""


@dataclass(frozen=True, slots=True)
class Differing:
    """How many replies give different answers under two protocols, or an answer under only one of them."""

    a: str
    b: str
    replies: int


@dataclass(frozen=True, slots=True)
class Band:
    """How far the score of one file of replies depends on the extractor."""

    file: str
    sha256: str
    task: str
    questions: int
    replies: int
    incomplete: int
    """Questions that lack replies."""
    rows: tuple[Row, ...]
    reading: tuple[str, ...]
    """Protocols that suit the replies: they extract an answer from at least half of them. All, where none does."""
    differing: tuple[Differing, ...]
    """For each pair of protocols, the most different first."""
    differing_reading: int
    """Replies whose answer is not the same under all of `reading`."""

    def as_json(self) -> dict[str, Any]:
        suitable = [row for row in self.rows if row.protocol in self.reading]
        return {**asdict(self), "band": extent(self.rows), "band_reading": extent(suitable)}


def extent(rows: Sequence[Row]) -> tuple[float, float]:
    """The lowest and the highest accuracy."""
    return min(row.accuracy for row in rows), max(row.accuracy for row in rows)


def band_of(options: ScoreOptions, say: Say) -> Band:
    """Raises MedbenchError as score_file does; nothing is written."""
    if options.name is not None:
        raise MedbenchError("--name: --protocol all writes no run folder: leave it out, or choose one protocol")
    refuse_unreadable(options.file)
    task = TaskLoader(options.data, say).load(options.task)
    if task.foreign is not None:
        raise MedbenchError(f"--protocol all: {task.name} is lm-eval's own and scored as its YAML says: leave it out")
    if not all(question.labels for question in task.questions):
        raise MedbenchError(
            f"--protocol all: {task.name} has no options, which all but one protocol need: leave it out"
        )
    return band_over(task, replies_to(task, options.file), incomplete=options.incomplete)


def band_over(task: Task, replies: Replies, *, incomplete: bool = False) -> Band:
    """The band of checked replies to one of medbench's tasks."""
    lacking = count_lacking(replies, task, allowed=incomplete)
    protocols = generating_protocols()
    scorers = [Scorer(task, protocol) for protocol in protocols]
    summaries = [Summary(task, protocol.name) for protocol in protocols]
    patterns: Counter[tuple[int, ...]] = Counter()
    for reply in replies.read():
        samples = [scorer.sample(reply) for scorer in scorers]
        for summary, sample in zip(summaries, samples, strict=True):
            summary.add(sample)
        answers = [sample.extracted for sample in samples]
        patterns[tuple(map(answers.index, answers))] += 1  # which protocols agree
    rows: list[Row] = []
    for protocol, scorer, summary in zip(protocols, scorers, summaries, strict=True):
        result = summary.result()
        assert result.accuracy is not None  # there is at least one reply, and a stored reply cannot fail
        assert result.interval is not None
        as_published = published(protocol.extraction, task.questions, map(scorer.sample, replies.read()))
        rows.append(
            Row(
                protocol=protocol.name,
                accuracy=result.accuracy,
                interval=result.interval,
                published=as_published.accuracy if as_published else None,
                unparsed=result.n_unparsed / result.n,
                truncated=result.n_truncated / result.n,
                difference=result.accuracy - (rows[0].accuracy if rows else result.accuracy),
            )
        )
    reading = [at for at, row in enumerate(rows) if row.unparsed <= 0.5] or list(range(len(rows)))
    differing = [
        Differing(protocols[a].name, protocols[b].name, _disagreeing(patterns, (a, b)))
        for a, b in combinations(range(len(protocols)), 2)
    ]
    return Band(
        file=str(replies.path).encode("utf-8", "replace").decode(),
        sha256=replies.sha256,
        task=task.name,
        questions=len(task.questions),
        replies=replies.n,
        incomplete=lacking,
        rows=tuple(rows),
        reading=tuple(protocols[at].name for at in reading),
        differing=tuple(sorted(differing, key=lambda one: -one.replies)),
        differing_reading=_disagreeing(patterns, reading),
    )


def _disagreeing(patterns: Counter[tuple[int, ...]], places: Sequence[int]) -> int:
    """Replies whose answer is not the same under all protocols at `places`."""
    return sum(count for pattern, count in patterns.items() if len({pattern[at] for at in places}) > 1)


def generating_protocols() -> list[Protocol]:
    """The built-in protocols that score generated replies to questions with options, the default first."""
    names = [DEFAULT, *(name for name in built_in_names() if name not in (DEFAULT, FOREIGN))]
    return [
        protocol for protocol in map(load_protocol, names) if protocol.method == "generate" and not protocol.is_open
    ]
