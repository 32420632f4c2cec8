"""Several sampled completions per question: accuracy with the right variance, majority vote, pass@k, agreement."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from medbench.harness.contracts import LETTERS, MedbenchError, Sample
from medbench.harness.scoring.bounds import Amount, Count, Interval, Share
from medbench.harness.stats.intervals import clustered_interval

_PLACES = {letter: place for place, letter in enumerate(LETTERS)}


class Sampling(BaseModel):
    """Results over questions with k sampled completions each. No figure includes failed requests (no score).

    Where some requests failed, a question's mean, vote and agreement are over the completions it has. pass@k needs k
    completions, so it is over the questions that have at least k.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: Count
    """Most completions of any question."""
    n: Count
    """Questions with at least one."""
    n_short: Count
    """Questions with fewer than k. Unless it is 0, the figures of `pass_at` are over different sets of questions."""
    accuracy: Share
    """Mean over questions of the mean score of their completions, 0..1."""
    interval: Interval
    """95 %, for new questions of the same kind and new completions; clustered by duplicate question."""
    between: Amount | None
    """Variance across questions of the expected score; None with one question, or where none has two completions.

    Unbiased, except that a negative estimate is given as 0. Miller 2024, "Adding Error Bars to Evals", section 3.1:
    the variance of the accuracy is (between + within / k) / n, so more completions per question only reduce `within`.
    """
    within: Amount | None
    """Variance of a completion's score about its question's expected score, mean over questions; unbiased."""
    maj_at_k: Share
    """Share of questions whose most frequent answer is right (Wang et al. 2022, "Self-Consistency").

    Completions without an answer have no vote, and a question without any vote is wrong. Ties count as broken at
    random, each answer equally likely, on average.
    """
    maj_interval: Interval
    """95 %, clustered by duplicate question."""
    pass_at: dict[int, Share]
    """k -> probability that at least one of k completions has full score, mean over questions; at 1, 2, 4, ..., `k`."""
    agreement: Share | None
    """Share of pairs of a question's completions with the same answer, mean over questions with two or more.

    A completion without an answer agrees with nothing. None where no question has two.
    """
    unanimous: Share | None
    """Share of those questions whose completions all give the same answer."""


@dataclass(frozen=True, slots=True)
class _Answers:
    """One question."""

    cluster: str
    n: int
    right: int
    mean: float
    variance: float | None
    """Of one completion, unbiased; None for a single completion."""
    vote: float
    agreement: float
    """Share of pairs with the same answer; 0 for a single completion."""


Replies = Counter[tuple[str | None, float]]
"""(answer, score) -> number of one question's completions, so that their order cannot matter."""


def summarize_sampling(samples: Iterable[Sample]) -> Sampling | None:
    """One pass over a task's samples in any order; None where none has a score.

    With shuffled options, a vote is for the option and not for the letter shown. Raises MedbenchError as `answer_of`.
    """
    replies: dict[str, Replies] = defaultdict(Counter)
    clusters: dict[str, str] = {}
    for sample in samples:
        if sample.score is not None:
            replies[sample.id][answer_of(sample), sample.score] += 1
            clusters[sample.id] = sample.cluster
    if not replies:
        return None
    questions = [_question(clusters[id], found) for id, found in replies.items()]
    k = max(question.n for question in questions)
    accuracy, interval = mean_over_questions([(one.cluster, one.mean) for one in questions], k)
    maj_at_k, maj_interval = mean_over_questions([(one.cluster, one.vote) for one in questions])
    between, within = _variances(questions)
    agreements = [one.agreement for one in questions if one.n > 1]
    return Sampling(
        k=k,
        n=len(questions),
        n_short=sum(one.n < k for one in questions),
        accuracy=accuracy,
        interval=interval,
        between=between,
        within=within,
        maj_at_k=maj_at_k,
        maj_interval=maj_interval,
        pass_at={draws: _pass_at(draws, questions) for draws in sorted({k, *(2**i for i in range(k.bit_length()))})},
        agreement=math.fsum(agreements) / len(agreements) if agreements else None,
        unanimous=agreements.count(1.0) / len(agreements) if agreements else None,
    )


def answer_of(sample: Sample) -> str | None:
    """The answer as a letter of the question's own order, whichever order was shown.

    Raises MedbenchError where answer and order of a stored sample contradict each other.
    """
    if sample.extracted is None or sample.order is None:
        return sample.extracted
    place = _PLACES.get(sample.extracted)
    if place is None or not sample.order or sorted(sample.order) != list(range(min(len(sample.order), len(LETTERS)))):
        raise MedbenchError(
            f"sample {sample.key}: the answer {sample.extracted[:20]!r} does not fit the order of options "
            f"{list(sample.order[:26])}: delete the run folder and evaluate again"
        )
    if place >= len(sample.order):
        return sample.extracted  # beyond the options, as some published extractors return: wrong in any order
    return LETTERS[sample.order[place]]


def majority(votes: Mapping[str, int]) -> tuple[str, ...]:
    """The answers with the most votes: several in a tie, none without votes."""
    most = max(votes.values(), default=0)
    return tuple(sorted(answer for answer, count in votes.items() if count == most > 0))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased probability that at least one of k is right, given c right of n: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, arXiv 2107.03374, equation 1; as a sum of logarithms, so that nothing overflows and small
    probabilities stay precise. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right in {n}: needs 0 <= c <= n and 1 <= k <= n")
    if n - c < k:
        return 1.0
    return -math.expm1(math.fsum(math.log1p(-k / i) for i in range(n - c + 1, n + 1)))


def mean_over_questions(values: Sequence[tuple[str, float]], k: int = 1) -> tuple[float, tuple[float, float]]:
    """(mean, 95 % interval) of one (cluster, value 0..1) per question, each the mean of up to `k` completions.

    Wilson's interval with the effective number of independent completions by the clustered variance of the means:
    at most k per question, where questions do not differ; one per question, where all completions of each are equal.
    """
    members: dict[str, list[float]] = defaultdict(list)
    for cluster, value in values:
        members[cluster].append(value)
    mean = math.fsum(value for _, value in values) / len(values)
    return mean, clustered_interval(sorted((k * len(some), k * math.fsum(some)) for some in members.values()))


def _question(cluster: str, replies: Replies) -> _Answers:
    n = replies.total()
    mean = _mean(replies)
    squares = math.fsum(count * (score - mean) ** 2 for (_, score), count in replies.items())
    votes: dict[str, Replies] = defaultdict(Counter)
    for (answer, score), count in replies.items():
        if answer is not None:
            votes[answer][answer, score] = count
    winners = majority({answer: found.total() for answer, found in votes.items()})
    return _Answers(
        cluster=cluster,
        n=n,
        right=sum(count for (_, score), count in replies.items() if score >= 1),
        mean=mean,
        variance=squares / (n - 1) if n > 1 else None,
        vote=math.fsum(_mean(votes[answer]) for answer in winners) / len(winners) if winners else 0.0,
        agreement=sum(math.comb(found.total(), 2) for found in votes.values()) / max(1, math.comb(n, 2)),
    )


def _mean(replies: Replies) -> float:
    return math.fsum(score * count for (_, score), count in replies.items()) / replies.total()


def _variances(questions: Sequence[_Answers]) -> tuple[float | None, float | None]:
    """(between, within)"""
    spread = [one.variance for one in questions if one.variance is not None]
    if not spread or len(questions) < 2:
        return None, math.fsum(spread) / len(spread) if spread else None
    within = math.fsum(spread) / len(spread)
    mean = math.fsum(one.mean for one in questions) / len(questions)
    of_means = math.fsum((one.mean - mean) ** 2 for one in questions) / (len(questions) - 1)
    # a single completion does not show its question's noise, which is assumed to equal the others'
    noise = math.fsum((within if one.variance is None else one.variance) / one.n for one in questions)
    return max(0.0, of_means - noise / len(questions)), within


def _pass_at(draws: int, questions: Sequence[_Answers]) -> float:
    enough = Counter((one.n, one.right) for one in questions if one.n >= draws)
    return math.fsum(count * pass_at_k(n, c, draws) for (n, c), count in enough.items()) / enough.total()
