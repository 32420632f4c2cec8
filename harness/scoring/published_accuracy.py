"""The accuracy that a protocol's source would report for the same completions, where its arithmetic differs.

medbench counts every question asked, and a completion without an answer as wrong. Some published scripts do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from medbench.harness.contracts import Question, Sample
from medbench.harness.extraction.published import EXTRACTORS, huatuo_o1_output
from medbench.harness.scoring.bounds import Share


class Published(BaseModel):
    """An accuracy by the source's own arithmetic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: Share
    """0..1"""
    how: str
    """One line for people: how it differs from medbench's."""


def published(extraction: str, questions: Sequence[Question], samples: Iterable[Sample]) -> Published | None:
    """The source's accuracy on the scored samples, in one pass; None where it is medbench's or nothing was scored."""
    by_id = {question.id: question for question in questions}
    scored = ((sample, by_id[sample.id]) for sample in samples if sample.score is not None)
    if extraction == "mmlu-pro":
        return _mmlu_pro(scored)
    if extraction in ("huatuo-o1-first", "huatuo-o1-last"):
        return _huatuo_o1(scored)
    return None


def _mmlu_pro(scored: Iterable[tuple[Sample, Question]]) -> Published | None:
    """save_res of evaluate_from_local.py guesses where nothing was extracted: random.randint over the row's options."""
    n = guessed = 0
    right = 0.0
    for sample, question in scored:
        n += 1
        guessed += sample.extracted is None
        right += float(sample.score or 0) if sample.extracted is not None else 1 / len(question.options)
    if not n:
        return None
    return Published(
        accuracy=right / n,
        how=f"{guessed} of {n} replies without an answer count 1/options, the expected value of the script's guess",
    )


def _huatuo_o1(scored: Iterable[tuple[Sample, Question]]) -> Published | None:
    """score of scorer.py takes the better of first and last match; eval.py does not store empty replies."""
    n = empty = first = last = 0
    for sample, question in scored:
        if not huatuo_o1_output(sample.output):
            empty += 1
            continue
        n += 1
        first += _answer("huatuo-o1-first", sample, question) == sample.gold
        last += _answer("huatuo-o1-last", sample, question) == sample.gold
    if not n:
        return None
    left_out = f"{empty} empty replies left out" if empty else "no reply was empty"
    return Published(
        accuracy=max(first, last) / n,
        how=f"the better of first match ({first / n:.1%}) and last match ({last / n:.1%}); {left_out}",
    )


def _answer(reader: str, sample: Sample, question: Question) -> str | None:
    return EXTRACTORS[reader](sample.output, labels=question.labels, options=question.options).answer
