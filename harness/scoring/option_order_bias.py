"""The same questions with their options in several orders: do the answers follow the text or the letter?"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from medbench.harness.contracts import LETTERS, Sample
from medbench.harness.scoring.bounds import Count, Interval, Share
from medbench.harness.scoring.repeated_samples import answer_of, mean_over_questions

Measured = tuple[float, tuple[float, float]]


class Letter(BaseModel):
    """One letter. Position bias shows as `chosen` far from `gold`, and as accuracies that differ between letters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gold: Share
    """Share of the completions for which this letter was right."""
    chosen: Share
    """Share of the completions that chose it; sums to less than 1 where some have no answer."""
    accuracy: Share | None
    """Accuracy where this letter was right; None where it never was."""


class Shuffling(BaseModel):
    """Results over the questions asked in shuffled orders. No figure includes failed requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: Count
    """Questions with a score in some shuffled order."""
    orders: Count
    """Most scored orders of any question; the question's own order is one of them."""
    accuracy: Share
    """Mean over questions of the mean score of their orders, 0..1."""
    interval: Interval
    """95 %, clustered by duplicate question."""
    n_compared: Count
    """Questions answered in two or more orders; the fields below are None where there are none."""
    follows_letter: Share | None
    """Share of `n_compared` whose pairs of answers agree in the letter more often than in the text.

    Only two kinds of pairs count: same letter and different text, or same text and different letter. Questions with
    equal numbers of both are in neither share. A guesser is as often in one share as in the other.
    """
    follows_letter_interval: Interval | None
    """95 %, clustered, like the two intervals below."""
    follows_text: Share | None
    follows_text_interval: Interval | None
    consistent: Share | None
    """Share of `n_compared` answered with the same text in every order; an order without an answer is inconsistent."""
    consistent_interval: Interval | None
    letters: dict[str, Letter]
    """Each letter that was right or chosen, over all completions."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """The answer in one order."""

    letter: str | None
    """As shown."""
    text: str | None
    """As a letter of the question's own order."""
    gold: str
    score: float


def summarize_shuffling(samples: Iterable[Sample]) -> Shuffling | None:
    """One pass over a task's samples; None where none has an `order`.

    A sample without an `order` counts as the question's own order if the question has other orders too; questions that
    have none are left out.
    """
    questions: dict[str, Counter[_Reply]] = defaultdict(Counter)
    clusters: dict[str, str] = {}
    for sample in samples:
        if sample.score is None:
            continue
        questions[sample.id][_Reply(sample.extracted, _text(sample), sample.gold, sample.score)] += 1
        if sample.order is not None:
            clusters[sample.id] = sample.cluster
    if not clusters:
        return None
    asked = [(cluster, list(questions[id].elements())) for id, cluster in clusters.items()]
    orders = max(len(replies) for _, replies in asked)
    means = [(cluster, math.fsum(reply.score for reply in replies) / len(replies)) for cluster, replies in asked]
    accuracy, interval = mean_over_questions(means, orders)
    compared = [(cluster, replies) for cluster, replies in asked if sum(r.text is not None for r in replies) > 1]
    leaning = [(cluster, _leaning(replies)) for cluster, replies in compared]
    letter, letter_interval = _share([(cluster, lean > 0) for cluster, lean in leaning])
    text, text_interval = _share([(cluster, lean < 0) for cluster, lean in leaning])
    same = [(cluster, len({reply.text for reply in replies}) == 1) for cluster, replies in compared]
    consistent, consistent_interval = _share(same)
    return Shuffling(
        n=len(asked),
        orders=orders,
        accuracy=accuracy,
        interval=interval,
        n_compared=len(compared),
        follows_letter=letter,
        follows_letter_interval=letter_interval,
        follows_text=text,
        follows_text_interval=text_interval,
        consistent=consistent,
        consistent_interval=consistent_interval,
        letters=_letters([reply for _, replies in asked for reply in replies]),
    )


def _text(sample: Sample) -> str | None:
    """The answer as a letter of the question's own order; None for a letter beyond the options, which has no text."""
    answer = answer_of(sample)
    return answer if sample.order is None or answer in list(LETTERS[: len(sample.order)]) else None


def _leaning(replies: Sequence[_Reply]) -> int:
    """Pairs of answers equal only in the letter, minus pairs equal only in the text; two missing answers are equal."""
    pairs = itertools.combinations(replies, 2)
    return sum((one.letter == two.letter) - (one.text == two.text) for one, two in pairs)


def _share(questions: Sequence[tuple[str, bool]]) -> tuple[None, None] | Measured:
    if not questions:
        return None, None
    return mean_over_questions([(cluster, float(value)) for cluster, value in questions])


def _letters(replies: Sequence[_Reply]) -> dict[str, Letter]:
    gold = Counter(reply.gold for reply in replies)
    chosen = Counter(reply.letter for reply in replies if reply.letter is not None)
    scores: dict[str, list[float]] = defaultdict(list)
    for reply in replies:
        scores[reply.gold].append(reply.score)
    return {
        letter: Letter(
            gold=gold[letter] / len(replies),
            chosen=chosen[letter] / len(replies),
            accuracy=math.fsum(scores[letter]) / gold[letter] if gold[letter] else None,
        )
        for letter in sorted(gold.keys() | chosen.keys())
    }
