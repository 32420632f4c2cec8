"""Gates on what a judge says of the reasoning: factuality, effectiveness and completeness of a finished run.

    - {task: pubmedqa, metric: factuality, judge: command, at_least: 0.6, least_kappa: 0.4}

The test is the metric's usual one, of each question's mean score. What it shows is about the judge's scores; so a judge
whose agreement with people is unknown, or not shown to be large enough, cannot gate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medbench.harness.contracts import Sample
from medbench.harness.gates.baseline import Reference
from medbench.harness.gates.gate_test import GateTest, Outlook
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.token_limits import Reply
from medbench.harness.gates.verdict import GateResult, Interval, JudgedBy, gate_result
from medbench.harness.judges.agreement import Calibration, calibration_of, corrections_of
from medbench.harness.judges.scored import SCORES, ScoredTask, judged_unlike, read_scored
from medbench.harness.judges.scores import TaskScores
from medbench.harness.stats.corrected_share import Share
from medbench.harness.text import percent

MOST_UNJUDGED = 0.05
"""With a larger share of replies that have no score, a gate is not gateable; fewer count as failed requests."""
FEWEST_LABELLED = 10
"""Questions with labels: the interval of kappa from fewer means little."""


@dataclass(frozen=True, slots=True)
class Judging:
    """What the judge of one gate says of a run and of its baseline."""

    fault: str | None
    """Why it cannot gate, and what to do."""
    by: JudgedBy | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    """Sample.key -> the gate's metric."""
    baseline: Mapping[str, float] = field(default_factory=dict)

    def of_baseline(self, reference: Reference | None, task: str) -> Reference | None:
        """The baseline with the judge's scores for those of its answers."""
        if reference is None:
            return None
        samples = {id: _scored(some, self.baseline) for id, some in reference.samples.get(task, {}).items()}
        return replace(reference, samples={task: samples})

    @property
    def in_words(self) -> str:
        by = self.by
        if by is None:
            return ""
        words = f"judged by {by.judge} {by.fingerprint[:12]}"
        if by.kappa is not None and by.kappa_low is not None and by.kappa_high is not None:
            where = f" of {by.labels_of}" if by.labels_of else ""
            words += f", kappa {by.kappa:.2f} ({by.kappa_low:.2f} to {by.kappa_high:.2f}) on labels{where}"
        if by.supported is not None:
            words += f"; supported {_share(by.supported)} of the steps"
        corrected = {"by error rates": by.by_error_rates, "prediction-powered": by.prediction_powered}
        known = [f"{_share(one)} {how}" for how, one in corrected.items() if one is not None]
        return f"{words}, corrected {', '.join(known)}" if known else words


@dataclass(slots=True)
class JudgedTest:
    """The gate's usual test, fed with a judge's scores instead of the answers' own."""

    gate: Gate
    judging: Judging
    total: int
    """Questions of the gate."""
    inner: GateTest | None
    """None where the judge cannot gate."""

    provisional = False

    @property
    def tasks(self) -> Collection[str]:
        return (self.gate.task,)

    @property
    def hopeless(self) -> bool:
        return self.inner is None or self.inner.hopeless

    def observe(self, task: str, samples: Sequence[Sample], seconds: float) -> None:
        if self.inner is not None and task == self.gate.task:
            self.inner.observe(task, _scored(samples, self.judging.scores), seconds)

    def observe_within(self, task: str, limit: int, replies: Sequence[Reply]) -> None:
        """A finished run has whole replies only."""

    def outlook(self, task: str) -> Outlook:
        return Outlook()

    def result(self) -> GateResult:
        if self.inner is None:
            counts = {"used": 0, "total": self.total}
            why = self.judging.fault
            none = {"status": "not gateable", "estimate": None, "interval": None}
            return gate_result(self.gate, **none, **counts, why=why, judged=self.judging.by)
        found = self.inner.result()
        why = f"{found.why}; {self.judging.in_words}"
        return found.model_copy(update={"why": why, "judged": self.judging.by})


def judgings_of(
    rules: GateFile,
    folder: Path,
    samples: Mapping[str, Mapping[str, Sequence[Sample]]],
    reference: Reference | None,
    baseline: Path | None,
) -> dict[int, Judging]:
    """Place of each gate on a judge's scores -> these scores. Raises MedbenchError for damaged files."""
    return {
        place: _judging(gate, folder, samples[gate.task], reference, baseline)
        for place, gate in enumerate(rules.gates)
        if gate.judge is not None
    }


def _judging(
    gate: Gate,
    folder: Path,
    samples: Mapping[str, Sequence[Sample]],
    reference: Reference | None,
    baseline: Path | None,
) -> Judging:
    assert gate.judge is not None
    scored = read_scored(folder, gate.task, gate.judge)
    if scored is None:
        return Judging(f"{gate.judge} has not judged it: medbench judge {folder} --judge {gate.judge}")
    calibration = calibration_of(folder, gate.task, gate.judge, scored.fingerprint)
    summary, scores = scored.summary(), _scores(scored, gate.metric)
    by = _judged_by(scored, summary, calibration)
    fault = (
        _fault_of_scores(gate, folder.name, scores, samples, summary)
        or _fault_of_agreement(gate, scored, calibration)
        or (_fault_of_baseline(gate, scored, reference, baseline) if gate.paired and baseline is not None else None)
    )
    if fault is not None or baseline is None:
        return Judging(fault, by, scores)
    other = read_scored(baseline, gate.task, gate.judge)  # of another judge or by other texts it says nothing here
    return Judging(None, by, scores, _scores(other, gate.metric) if other and not judged_unlike(scored, other) else {})


def _fault_of_scores(
    gate: Gate,
    name: str,
    scores: Mapping[str, float],
    samples: Mapping[str, Sequence[Sample]],
    summary: TaskScores,
) -> str | None:
    replies = [sample for some in samples.values() for sample in some if sample.error is None]
    unjudged = sum(sample.key not in scores for sample in replies)
    if summary.lacks_verdicts:
        return (
            f"{summary.failed} of {summary.steps} steps of {name} have no verdict: the same medbench judge command "
            f"asks them again"
        )
    if unjudged > MOST_UNJUDGED * len(replies):
        return (
            f"{unjudged} of {len(replies)} replies of {name} have no score by {gate.judge}: judge all of them, without "
            f"--limit and with a source for each question"
        )
    return None


def _fault_of_agreement(gate: Gate, scored: ScoredTask, calibration: Calibration | None) -> str | None:
    if calibration is None:
        return (
            f"how far {gate.judge} {scored.fingerprint[:12]} agrees with people is not known, neither from labels of "
            f"this run nor of those beside it: medbench judge check RUN LABELS"
        )
    known = calibration.known
    if known.questions < FEWEST_LABELLED:
        return (
            f"{gate.judge} was compared with labels of {known.questions} questions, a gate needs {FEWEST_LABELLED}: "
            f"label more, then medbench judge check RUN LABELS"
        )
    if known.kappa_low is None or known.kappa_low < gate.kappa_needed:
        return (
            f"the agreement of {gate.judge} with people is not shown to reach kappa {gate.kappa_needed:g}: "
            f"{calibration.in_words}: label more steps, use a better judge, or lower least_kappa"
        )
    return None


def _fault_of_baseline(gate: Gate, scored: ScoredTask, reference: Reference | None, baseline: Path) -> str | None:
    assert gate.judge is not None
    other = read_scored(baseline, gate.task, gate.judge)
    judge = f"medbench judge {baseline} --judge {gate.judge}"
    if other is None:
        return f"{gate.judge} has not judged the baseline: {judge}"
    if unlike := judged_unlike(scored, other):
        return f"the baseline was judged by {unlike}: judge both in the same way"
    scores = _scores(other, gate.metric)
    some = reference.samples.get(gate.task, {}) if reference is not None else {}
    unjudged = sum(sample.key not in scores for samples in some.values() for sample in samples)
    return f"{unjudged} replies of the baseline have no score by {gate.judge}: {judge}" if unjudged else None


def _scores(scored: ScoredTask, metric: str) -> dict[str, float]:
    place = SCORES.index(metric)
    return {reply.key: reply.scores[place] for reply in scored.replies if reply.scores is not None}


def _scored(samples: Sequence[Sample], scores: Mapping[str, float]) -> list[Sample]:
    """With the judge's score instead of the answer's; a reply without one counts as a failed request."""
    return [
        replace(sample, score=scores[sample.key])
        if sample.key in scores and sample.error is None
        else replace(sample, score=None, outcome="error")
        for sample in samples
    ]


def _judged_by(scored: ScoredTask, summary: TaskScores, calibration: Calibration | None) -> JudgedBy:
    raw = summary.shares.get("supported")
    corrected = corrections_of(scored, calibration).get("supported")
    known = calibration.known if calibration is not None else None
    return JudgedBy(
        judge=scored.judge,
        fingerprint=scored.fingerprint,
        kappa=known.kappa if known else None,
        kappa_low=known.kappa_low if known else None,
        kappa_high=known.kappa_high if known else None,
        labelled_steps=known.steps if known else 0,
        labels_of=calibration.run if calibration else None,
        supported=(raw.value, raw.low, raw.high) if raw else None,
        by_error_rates=_interval(corrected.by_error_rates) if corrected else None,
        prediction_powered=_interval(corrected.prediction_powered) if corrected else None,
    )


def _interval(share: Share) -> Interval | None:
    return None if share.value is None else (share.value, share.low, share.high)


def _share(share: Interval) -> str:
    value, low, high = map(percent, share)
    return f"{value} % ({low} to {high})"
