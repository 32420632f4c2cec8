"""What is known of a judge's agreement with people when it has judged a run, and what that makes of its shares.

Labels are seldom of the very run that is looked at: people label the steps of one run, and the judge then judges every
later checkpoint. So where a run has no check of its own, those of the runs beside it count, for the same task and the
same fingerprint of the judge. That assumes that it errs on this model's replies as on those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.check import KnownAgreement, known_agreement
from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.judges.corrections import CorrectedShare, corrected_share
from medbench.harness.judges.judgements import judgements_path
from medbench.harness.judges.scored import ScoredTask


@dataclass(frozen=True, slots=True)
class Calibration:
    """A check of a judge by people's labels."""

    known: KnownAgreement
    run: str | None
    """The run whose steps were labelled; None for the one that is looked at."""

    @property
    def in_words(self) -> str:
        """ "kappa 0.55 (0.48 to 0.62) on 120 steps of 30 questions"."""
        known = self.known
        interval = f" ({known.kappa_low:.2f} to {known.kappa_high:.2f})" if known.kappa_low is not None else ""
        kappa = "not defined" if known.kappa is None else f"{known.kappa:.2f}{interval}"
        where = f" of run {self.run}" if self.run is not None else ""
        return f"kappa {kappa} on {known.steps} steps of {known.questions} questions{where}"


def calibration_of(folder: Path, task: str, judge: str, fingerprint: str) -> Calibration | None:
    """Of the judge of this fingerprint: the run's own check, else the best one of the runs beside it.

    Raises MedbenchError where the run's own file is damaged; damaged files of other runs are passed over.
    """
    own = known_agreement(judgements_path(folder, task, judge), fingerprint)
    if own is not None:
        return Calibration(own, None)
    return most_labelled(_beside(folder.resolve(), task, judge, fingerprint))


def most_labelled(found: Iterable[Calibration]) -> Calibration | None:
    """The one with the most labelled steps, whatever its kappa."""
    return min(found, key=lambda one: (-one.known.steps, one.run or ""), default=None)


def corrections_of(scored: ScoredTask, calibration: Calibration | None) -> dict[str, CorrectedShare]:
    """Verdict -> its corrected share of the judged steps; empty where no label is known."""
    if calibration is None or not calibration.known.labels:
        return {}
    judged: dict[str, list[str]] = {}
    for reply in scored.replies:
        words = [word for word in reply.words if word is not None]
        if words:
            judged.setdefault(reply.cluster, []).extend(words)
    labels = calibration.known.labels
    same = calibration.run is None
    return {verdict: corrected_share(verdict, judged, labels, same_replies=same) for verdict in VERDICTS}


def _beside(folder: Path, task: str, judge: str, fingerprint: str) -> Iterator[Calibration]:
    try:
        others = sorted(folder.parent.iterdir())
    except OSError:
        return
    for other in others:
        if other == folder:
            continue
        try:
            known = known_agreement(judgements_path(other, task, judge), fingerprint)
        except (MedbenchError, OSError):
            continue
        if known is not None:
            yield Calibration(known, other.name)
