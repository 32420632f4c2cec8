"""Results of a task's samples, in total and by category."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from medbench.harness.contracts import Flags, Note, Sample, Task
from medbench.harness.scoring.bounds import Amount, Count, Interval, Share
from medbench.harness.scoring.calibration import Calibration
from medbench.harness.scoring.option_order_bias import Shuffling
from medbench.harness.scoring.published_accuracy import Published
from medbench.harness.scoring.repeated_samples import Sampling
from medbench.harness.stats.intervals import clustered_interval, wilson_interval

NOTES: Mapping[Note, str] = {
    "went_on": "answer and go on with a question of their own; the first answer counts",
    "unmarked_thought": "look like thoughts whose marks are missing; their last paragraph is read",
    "cued": "had their thought cut off and were made to answer by the protocol's cue",
}
"""Each of contracts.Note in words, behind "7 of 200 replies"."""
MOST_ERRORS = 0.02
"""Share of failed requests above which a task counts as not evaluated."""


class CategoryResult(BaseModel):
    """Accuracy on the questions of one category value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: Count
    accuracy: Share
    interval: Interval


class Unflagged(BaseModel):
    """Accuracy without the questions that reviewers found faulty (see contracts.Flags)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: Count
    """Scored samples of the other questions."""
    left_out: Count
    """Scored samples of flagged questions."""
    accuracy: Share
    interval: Interval
    """95 %, clustered by duplicate question."""
    about: str


class TaskResult(BaseModel):
    """results/<task>.json: the results of one task's samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Annotated[int, Strict(), Field(ge=1)] = 1
    task: str
    version: str
    split: str
    source: str
    official: Annotated[bool, Strict()]
    protocol: str
    n: Count
    """Samples, errors included."""
    n_error: Count
    """Failed requests; no score includes them."""
    n_unparsed: Count
    """Completions without an answer, for any reason; counted as wrong."""
    n_truncated: Count
    """Completions cut off by the token limit, with or without an answer."""
    outcomes: dict[str, Count]
    """contracts.Outcome -> number of samples; sums to n."""
    accuracy: Share | None
    """Mean score, right / (n - n_error), 0..1; None where nothing was scored."""
    interval: Interval | None
    """95 %, clustered by duplicate question (see clustered_interval)."""
    interval_wilson: Interval | None
    """95 %, Wilson, as if all samples were independent."""
    chance: Share
    tokens_per_answer: Amount | None
    """Mean completion tokens per scored sample; None where they were not counted: stored replies, log-likelihoods."""
    categories: dict[str, dict[str, CategoryResult]]
    """field -> value -> result."""
    sampling: Sampling | None = None
    shuffling: Shuffling | None = None
    calibration: Calibration | None = None
    """For protocols with log-likelihoods; None for generated completions."""
    notes: dict[Note, Count] = Field(default_factory=dict)
    """How many completions have each of contracts.Note."""
    published: Published | None = None
    """The accuracy by the arithmetic of the protocol's source, where that differs from `accuracy` by construction."""
    unflagged: Unflagged | None = None
    """For tasks with flagged questions."""

    @property
    def lacks_answers(self) -> bool:
        """Whether so many requests failed that the accuracy is not that of the task."""
        return self.n_error > MOST_ERRORS * self.n

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if sum(self.outcomes.values()) != self.n:
            raise ValueError(f"the outcomes do not add up to n, {self.n}")
        if max(self.n_error, self.n_unparsed, self.n_truncated) > self.n:
            raise ValueError(f"a part is larger than n, {self.n}")
        if (self.accuracy is None) != (self.n_error == self.n):
            raise ValueError("an accuracy of nothing, or none of something")
        return self


def summarize(task: Task, protocol: str, samples: Iterable[Sample]) -> TaskResult:
    """The task's result, in one pass over its samples."""
    summary = Summary(task, protocol)
    for sample in samples:
        summary.add(sample)
    return summary.result()


class Summary:
    """Adds up a task's samples one by one; memory grows with clusters and categories, not with samples."""

    def __init__(self, task: Task, protocol: str) -> None:
        self._task, self._protocol = task, protocol
        self._outcomes: Counter[str] = Counter()
        self._scores = _Tally()
        self._categories: dict[str, dict[str, _Tally]] = defaultdict(lambda: defaultdict(_Tally))
        self._unflagged = _Tally()
        self._truncated = self._tokens = 0
        self._notes: Counter[Note] = Counter()

    def add(self, sample: Sample) -> None:
        self._outcomes[sample.outcome] += 1
        self._truncated += sample.finish_reason == "length"
        if sample.note is not None:
            self._notes[sample.note] += 1
        if sample.score is None:
            return
        self._tokens += sample.completion_tokens
        self._scores.add(sample.cluster, sample.score)
        if self._task.flags is not None and sample.id not in self._task.flags.ids:
            self._unflagged.add(sample.cluster, sample.score)
        for field, value in sample.category.items():
            self._categories[field][value].add(sample.cluster, sample.score)

    def result(self) -> TaskResult:
        task, outcomes, scores = self._task, self._outcomes, self._scores
        n = outcomes.total()
        return TaskResult(
            task=task.name,
            version=task.version,
            split=task.split,
            source=task.data.source,
            official=task.data.official,
            protocol=self._protocol,
            n=n,
            n_error=outcomes["error"],
            n_unparsed=n - outcomes["answered"] - outcomes["error"],
            n_truncated=self._truncated,
            outcomes=dict(sorted(outcomes.items())),
            notes=dict(sorted(self._notes.items())),
            accuracy=scores.mean,
            interval=scores.interval(),
            interval_wilson=wilson_interval(scores.total, scores.n) if scores.n else None,
            chance=task.chance,
            tokens_per_answer=self._tokens / scores.n if self._tokens else None,
            categories={
                field: {value: _category(tally) for value, tally in sorted(values.items())}
                for field, values in sorted(self._categories.items())
            },
            unflagged=_unflagged(self._unflagged, scores, task.flags),
        )


class _Tally:
    """Running sums of scores by cluster."""

    def __init__(self) -> None:
        self.n = 0
        self.total = 0.0
        self._clusters: dict[str, tuple[int, float]] = {}

    def add(self, cluster: str, score: float) -> None:
        self.n += 1
        self.total += score
        size, total = self._clusters.get(cluster, (0, 0.0))
        self._clusters[cluster] = (size + 1, total + score)

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    def interval(self) -> tuple[float, float] | None:
        return clustered_interval(list(self._clusters.values())) if self.n else None


def _unflagged(rest: _Tally, all_of_them: _Tally, flags: Flags | None) -> Unflagged | None:
    interval = rest.interval()
    if flags is None or rest.mean is None or interval is None:
        return None
    left_out = all_of_them.n - rest.n
    return Unflagged(n=rest.n, left_out=left_out, accuracy=rest.mean, interval=interval, about=flags.about)


def _category(tally: _Tally) -> CategoryResult:
    interval = tally.interval()
    assert tally.mean is not None
    assert interval is not None
    return CategoryResult(n=tally.n, accuracy=tally.mean, interval=interval)
