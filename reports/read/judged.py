"""What judges say of a run's replies, from the files beside its samples.

A judge is known by its labelled steps wherever in the collection they are: the run's own check comes first, then the
one of another run with the most labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.agreement import Calibration, corrections_of, most_labelled
from medbench.harness.judges.check import KnownAgreement
from medbench.harness.judges.compare import judges_of
from medbench.harness.judges.judgements import FOLDER
from medbench.harness.judges.scored import ENDING, ScoredTask, parse_scored
from medbench.harness.judges.scores import TaskScores
from medbench.reports.read.folders import read_checked, without_path
from medbench.reports.read.records import Broken, JudgedView

MOST_JUDGES = 4
"""Of one task; more would only make pages and the viewer's data larger."""
MOST_BYTES = 2**28
"""Of a file of scores: about 300 bytes a reply."""


@dataclass(frozen=True, slots=True)
class ReadJudge:
    """What is in a run's folder of one task and judge."""

    task: str
    judge: str
    fingerprint: str
    scores: TaskScores
    own: KnownAgreement | None


@dataclass(frozen=True, slots=True)
class Labels:
    """A check by people's labels, and where it was found."""

    run: str
    task: str
    judge: str
    known: KnownAgreement


def read_judges(folder: Path, task: str) -> tuple[list[ReadJudge], list[Broken]]:
    """The first MOST_JUDGES by name, and what cannot be read."""
    found: list[ReadJudge] = []
    broken: list[Broken] = []
    for judge in judges_of(folder, task)[:MOST_JUDGES]:
        try:
            scored = scored_of(folder, task, judge)
            if scored is not None:
                found.append(ReadJudge(task, judge, scored.fingerprint, scored.summary(), None))
        except MedbenchError as error:
            broken.append(Broken(f"{folder.name}: {FOLDER}", without_path(str(error), folder)))
            continue
        try:
            known = _agreement(folder, task, judge)
            if found and known is not None and known.judge == found[-1].fingerprint:
                found[-1] = ReadJudge(task, judge, known.judge, found[-1].scores, known)
        except MedbenchError as error:
            broken.append(Broken(f"{folder.name}: {FOLDER}", without_path(str(error), folder)))
    return found, broken


def views_of(folder: Path, judges: Sequence[ReadJudge], labels: Sequence[Labels]) -> dict[str, tuple[JudgedView, ...]]:
    """Task -> views; `labels` of all runs of the collection."""
    found: dict[str, tuple[JudgedView, ...]] = {}
    for one in judges:
        calibration = Calibration(one.own, None) if one.own is not None else most_labelled(_elsewhere(one, labels))
        corrected = {}
        if calibration is not None:
            scored = scored_of(folder, one.task, one.judge)
            corrected = corrections_of(scored, calibration) if scored is not None else {}
        view = JudgedView(one.judge, one.fingerprint, one.scores, calibration, corrected)
        found[one.task] = (*found.get(one.task, ()), view)
    return found


def scored_of(folder: Path, task: str, judge: str) -> ScoredTask | None:
    """Raises MedbenchError for a damaged file, or one that leads out of the folder."""
    name = f"{FOLDER}/{task}.{judge}{ENDING}"
    content = read_checked(folder, name, MOST_BYTES)
    return parse_scored(content, folder / name, task, judge) if content is not None else None


def _agreement(folder: Path, task: str, judge: str) -> KnownAgreement | None:
    name = f"{FOLDER}/{task}.{judge}.agreement.json"
    content = read_checked(folder, name)
    if content is None:
        return None
    try:
        return KnownAgreement.model_validate_json(content)
    except ValidationError:
        raise MedbenchError(f"{folder / name}: not written by medbench, or damaged: check the judge again") from None


def _elsewhere(one: ReadJudge, labels: Sequence[Labels]) -> Iterator[Calibration]:
    for other in labels:
        if (other.task, other.judge, other.known.judge) == (one.task, one.judge, one.fingerprint):
            yield Calibration(other.known, other.run)
