"""Several sampled replies a question: accuracy with the right variance, majority vote, pass@k, agreement.

python -c "from medbench.harness.scoring.repeated_samples import pass_at_k; print(pass_at_k(n=10, c=3, k=5))"
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from medbench.harness.contracts import LETTERS, MedbenchError, Sample
from medbench.harness.stats.intervals import clustered_interval

_PLACES = {letter: place for place, letter in enumerate(LETTERS)}


class Sampling(BaseModel):
    """What k sampled replies a question add up to. Replies that the engine failed on (no score) are in no figure.

    Where the engine failed on some, a question counts with the replies it has: its mean, its vote and its agreement
    are over those. pass@k cannot be had from fewer than k, so each k takes the questions that have as many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int
    """Replies a question, the most that any has."""
    n: int
    """Questions with at least one."""
    n_short: int
    """Questions with fewer than k. Unless 0, the figures of `pass_at` do not all rest on the same questions."""
    accuracy: float
    """Mean over questions of the mean score of their replies, 0..1."""
    interval: tuple[float, float]
    """95 %, for new questions of the kind and new replies to them; clustered by duplicate question."""
    between: float | None
    """Variance across questions of the expected score; None with one question, or where none has two replies.

    Unbiased, but that an estimate below 0 is given as 0. Miller 2024, "Adding Error Bars to Evals", section 3.1: the
    variance of the accuracy is (between + within / k) / n, so more replies can only take `within` away.
    """
    within: float | None
    """Variance of a reply's score about its own question's expected score, mean over questions; unbiased."""
    maj_at_k: float
    """Share of questions whose most frequent answer is right (Wang et al. 2022, "Self-Consistency").

    Replies without an answer have no vote, and a question without any vote is wrong. Tied answers share the question:
    the value is what breaking ties at random, each answer equally likely, gives on average.
    """
    maj_interval: tuple[float, float]
    """95 %, clustered by duplicate question."""
    pass_at: dict[int, float]
    """k -> chance that at least one of k replies is wholly right, mean over questions; at 1, 2, 4, ... and `k`."""
    agreement: float | None
    """Share of pairs of a question's replies that give the same answer, mean over questions with two or more.

    A reply without an answer agrees with nothing. None where no question has two.
    """
    unanimous: float | None
    """Share of those questions whose replies all give one and the same answer."""


@dataclass(frozen=True, slots=True)
class _Answers:
    """One question."""

    cluster: str
    n: int
    right: int
    mean: float
    variance: float | None
    """Of one reply, unbiased; None of a single reply."""
    vote: float
    agreement: float
    """Share of pairs alike; 0 of a single reply."""


Replies = Counter[tuple[str | None, float]]
"""(answer, score) -> how many of one question's replies, so that their order cannot matter."""


def summarize_sampling(samples: Iterable[Sample]) -> Sampling | None:
    """One pass over a task's samples in any order; None without any score.

    Shuffled options are put back first: a vote is for an option, not for the letter that it stood behind.
    Raises MedbenchError as `answer_of` does.
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
    """The answer as a letter of the question's own order, whatever order its options were shown in.

    Raises MedbenchError where answer and order of a stored sample do not fit each other.
    """
    if sample.extracted is None or sample.order is None:
        return sample.extracted
    place = _PLACES.get(sample.extracted)
    if place is None or not sample.order or sorted(sample.order) != list(range(min(len(sample.order), len(LETTERS)))):
        raise MedbenchError(
            f"sample {sample.key}: the answer {sample.extracted[:20]!r} fits no order of options "
            f"{list(sample.order[:26])}; delete the run folder and evaluate again"
        )
    if place >= len(sample.order):
        return sample.extracted  # beyond the options, as some published readers give: as wrong in any order
    return LETTERS[sample.order[place]]


def majority(votes: Mapping[str, int]) -> tuple[str, ...]:
    """The answers with the most votes: several on a tie, none where nobody voted."""
    most = max(votes.values(), default=0)
    return tuple(sorted(answer for answer, count in votes.items() if count == most > 0))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that at least one of k replies is right, when c of n were: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, arXiv 2107.03374, equation 1; as a sum of logarithms, so that nothing overflows and small
    chances keep their digits. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right in {n}: needs 0 <= c <= n and 1 <= k <= n")
    if n - c < k:
        return 1.0
    return -math.expm1(math.fsum(math.log1p(-k / i) for i in range(n - c + 1, n + 1)))


def mean_over_questions(values: Sequence[tuple[str, float]], k: int = 1) -> tuple[float, tuple[float, float]]:
    """(mean, 95 % interval) of one (cluster, value 0..1) a question, each the mean of up to `k` replies.

    Wilson's interval at the number of independent replies that the clustered variance of the means is worth: at most
    k a question, where questions do not differ, and one a question, where all replies to each are alike.
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
    # a single reply says nothing of its question's noise, which is taken to be the others'
    noise = math.fsum((within if one.variance is None else one.variance) / one.n for one in questions)
    return max(0.0, of_means - noise / len(questions)), within


def _pass_at(draws: int, questions: Sequence[_Answers]) -> float:
    enough = Counter((one.n, one.right) for one in questions if one.n >= draws)
    return math.fsum(count * pass_at_k(n, c, draws) for (n, c), count in enough.items()) / enough.total()
