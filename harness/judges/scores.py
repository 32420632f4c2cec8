"""What a judge's verdicts say of replies: shares of steps, and three scores per reply.

The three are named after those of ChestX-Reasoner (arXiv 2504.20930), where a language model pulls findings out of
reply and reference; here the sentences of the reply are judged against a source text, and the definitions are ours:

    factuality     supported / (supported + contradicted) steps: of what the source speaks about, the share that it
                   supports. 0 for a reply with neither, as there an empty prediction adds 0
    effectiveness  steps that are supported and said for the first time / all judged steps. Theirs counts every backed
                   step; a reply that repeats one true sentence would be wholly effective
    completeness   of the source's distinct key words (numbers, and words of at least four letters, that the question
                   does not have), the share that occurs in supported steps. Theirs counts findings. A whole abstract is
                   never needed for an answer, so it is for comparing replies: it stays far below 1

Steps on which the judge failed are left out; a reply of which every step failed has no scores. A reply without steps
scores 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from medbench.harness.judges.contracts import VERDICTS, Verdict
from medbench.harness.judges.judge_run import JudgedReply, JudgedTask
from medbench.harness.stats.intervals import clustered_interval, clustered_mean_interval

MOST_FAILED = 0.02
"""Share of steps without a verdict above which a task counts as not judged."""
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]{4,}")


@dataclass(frozen=True, slots=True)
class Figure:
    """A share or mean, 0..1, with its 95 % interval, clustered by question."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ReplyScores:
    """See the module."""

    factuality: float
    effectiveness: float
    completeness: float


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Of all replies of one task."""

    task: str
    replies: int
    without_steps: int
    steps: int
    failed: int
    """Steps without a verdict, which are in no share."""
    unanswered: int
    without_source: int
    shares: dict[str, Figure]
    """Verdict -> its share of the judged steps; empty without any."""
    scores: dict[str, Figure]
    """Name of a field of ReplyScores -> its mean over replies; empty without any."""
    faults: dict[str, int]
    """Why steps have no verdict -> how many, the most frequent first."""

    @property
    def lacks_verdicts(self) -> bool:
        return self.failed > MOST_FAILED * self.steps

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def scores_of(judged: JudgedReply) -> ReplyScores | None:
    """None where every step of the reply failed."""
    reply = judged.reply
    pairs = [(step, verdict) for step, verdict in zip(reply.steps, judged.verdicts, strict=True) if verdict]
    if reply.steps and not pairs:
        return None
    supported = [step for step, verdict in pairs if verdict == "supported"]
    spoken = len(supported) + sum(verdict == "contradicted" for _, verdict in pairs)
    keys = _key_words(reply.source, reply.question)
    said = {word for step in supported for word in _words(step)}
    return ReplyScores(
        factuality=len(supported) / spoken if spoken else 0.0,
        effectiveness=len({step.lower() for step in supported}) / len(pairs) if pairs else 0.0,
        completeness=len(keys & said) / len(keys) if keys else 0.0,
    )


class Row(NamedTuple):
    """What the scores of a task are made from: one reply."""

    cluster: str
    verdicts: Sequence[Verdict | None]
    scores: ReplyScores | None


def task_scores(judged: JudgedTask) -> TaskScores:
    rows = [Row(one.reply.cluster, one.verdicts, scores_of(one)) for one in judged.replies]
    return scores_of_rows(judged.task, rows, judged.unanswered, judged.without_source, judged.faults)


def scores_of_rows(
    task: str, rows: Sequence[Row], unanswered: int, without_source: int, faults: Iterable[str]
) -> TaskScores:
    clusters: dict[str, list[Row]] = {}
    for row in rows:
        clusters.setdefault(row.cluster, []).append(row)
    verdicts = [
        [verdict for row in group for verdict in row.verdicts if verdict is not None] for group in clusters.values()
    ]
    verdicts = [group for group in verdicts if group]
    scored = [[row.scores for row in group if row.scores is not None] for group in clusters.values()]
    scored = [group for group in scored if group]
    why = Counter(faults)
    return TaskScores(
        task=task,
        replies=len(rows),
        without_steps=sum(not row.verdicts for row in rows),
        steps=sum(len(row.verdicts) for row in rows),
        failed=why.total(),
        unanswered=unanswered,
        without_source=without_source,
        shares={verdict: _share(verdicts, verdict) for verdict in VERDICTS} if verdicts else {},
        scores={name: _mean(scored, name) for name in ReplyScores.__slots__} if scored else {},
        faults=dict(why.most_common()),
    )


def _share(clusters: Sequence[Sequence[str]], verdict: str) -> Figure:
    counts = [(len(group), float(sum(one == verdict for one in group))) for group in clusters]
    value = sum(count for _, count in counts) / sum(size for size, _ in counts)
    return Figure(value, *clustered_interval(counts))


def _mean(clusters: Sequence[Sequence[ReplyScores]], name: str) -> Figure:
    values = [[float(getattr(scores, name)) for scores in group] for group in clusters]
    return Figure(sum(map(sum, values)) / sum(map(len, values)), *clustered_mean_interval(values))


def _words(text: str) -> Iterable[str]:
    return _WORD.findall(text.lower())


@lru_cache(maxsize=64)  # replies to the same question come one after another
def _key_words(source: str, question: str) -> frozenset[str]:
    return frozenset(_words(source)) - frozenset(_words(question))
