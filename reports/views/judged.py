"""What a judge says of one task's replies -> what the run's page shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medbench.harness.judges.corrections import CorrectedShare
from medbench.harness.judges.scores import Figure
from medbench.harness.stats.corrected_share import Share
from medbench.reports.read.records import JudgedView
from medbench.reports.views.axis import Axis, axis_over
from medbench.reports.views.formats import interval, number, percent
from medbench.reports.views.leaderboard import Score

MEANINGS = {
    "factuality": "of the steps that the source speaks about, the share that it supports; a mean over replies",
    "effectiveness": "of all steps, the share that is supported and said for the first time",
    "completeness": "of the source's key words, the share in supported steps; far below 100 for good replies, too",
}
MOST_FAULTS = 3


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """The share of one verdict."""

    name: str
    share: Score
    """As the judge has it."""
    by_error_rates: str
    prediction_powered: str


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """One of the scores of a reply."""

    name: str
    meaning: str
    score: Score


@dataclass(frozen=True, slots=True)
class JudgedBlock:
    """One judge of one task."""

    judge: str
    fingerprint: str
    agreement: str
    """In words; "" where it is not known."""
    verdicts: tuple[VerdictLine, ...]
    corrected: bool
    """Whether any share could be corrected."""
    scores: tuple[ScoreLine, ...]
    axis: Axis
    notes: tuple[str, ...]
    lacks_verdicts: bool


def judged_block(view: JudgedView) -> JudgedBlock:
    scores = view.scores
    verdicts = tuple(_verdict_line(name, figure, view.corrected.get(name)) for name, figure in scores.shares.items())
    lines = tuple(ScoreLine(name, MEANINGS[name], _score(figure)) for name, figure in scores.scores.items())
    drawn = [one.share.interval for one in verdicts] + [one.score.interval for one in lines]
    return JudgedBlock(
        judge=view.judge,
        fingerprint=view.fingerprint,
        agreement=view.calibration.in_words if view.calibration is not None else "",
        verdicts=verdicts,
        corrected=any(one.by_error_rates or one.prediction_powered for one in verdicts),
        scores=lines,
        axis=axis_over(drawn),
        notes=tuple(_notes(view)),
        lacks_verdicts=scores.lacks_verdicts,
    )


def _verdict_line(name: str, figure: Figure, corrected: CorrectedShare | None) -> VerdictLine:
    if corrected is None:
        return VerdictLine(name, _score(figure), "", "")
    return VerdictLine(name, _score(figure), _share(corrected.by_error_rates), _share(corrected.prediction_powered))


def _score(figure: Figure) -> Score:
    return Score(figure.value, (figure.low, figure.high))


def _share(share: Share) -> str:
    """ "" where the labels do not tell."""
    return f"{percent(share.value)} ({interval((share.low, share.high))})" if share.value is not None else ""


def _notes(view: JudgedView) -> Iterator[str]:
    scores = view.scores
    yield f"{number(scores.steps)} steps of {number(scores.replies)} replies"
    counts = {
        "replies have no steps before their answer": scores.without_steps,
        "replies are to questions without a source and are left out": scores.without_source,
        "requests failed and have no reply": scores.unanswered,
        "steps have no verdict and are in no share": scores.failed,
    }
    for what, count in counts.items():
        if count:
            yield f"{number(count)} {what}"
    for fault, count in list(scores.faults.items())[:MOST_FAULTS]:
        yield f"{number(count)} without a verdict: {fault}"
