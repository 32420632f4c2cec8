"""What the pages know of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medbench.harness.gates.verdict import Verdict
from medbench.harness.judges.agreement import Calibration
from medbench.harness.judges.corrections import CorrectedShare
from medbench.harness.judges.scores import TaskScores
from medbench.harness.runs.records import RunRecord
from medbench.harness.scoring.summary import TaskResult
from medbench.reports.read.folders import as_unicode
from medbench.reports.read.scores import Scores
from medbench.reports.read.sweeps import SweepView
from medbench.reports.read.synths import SynthView
from medbench.reports.read.trainings import TrainingView


@dataclass(frozen=True, slots=True)
class JudgedView:
    """What one judge says of one task's replies."""

    judge: str
    fingerprint: str
    scores: TaskScores
    calibration: Calibration | None
    """None where its agreement with people is not known, in this run or in another one of the collection."""
    corrected: Mapping[str, CorrectedShare]
    """Verdict -> its share corrected by people's labels; empty without."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One readable run."""

    id: str
    """The folder's name made safe for file names and URLs, and unique: letters, digits, ".", "_", "-", never "--"."""
    folder: Path
    record: RunRecord
    results: Mapping[str, TaskResult]
    """Tasks whose result file is there and sound, in the order of run.json."""
    verdicts: tuple[Verdict, ...]
    """One a gate file and baseline, the latest first."""
    stamp: str
    """Changes when anything that the pages show of the run may have changed; never printed into a page."""
    slugs: Mapping[str, str]
    """Task -> its folder under runs/<id>/data/, for every task of run.json."""
    kind: str
    """Equal for runs whose scores may stand in one table; see pairs.kind_of."""
    judged: Mapping[str, tuple[JudgedView, ...]] = field(default_factory=dict)
    """Task -> its judges, by name; see judged.read_judged."""
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Task -> score of each question, for paired comparison in bulk; site.build fills it in before it calls pages."""

    @property
    def verdict(self) -> Verdict | None:
        """The latest."""
        return self.verdicts[0] if self.verdicts else None

    @property
    def protocol(self) -> str:
        return as_unicode(str(self.record.protocol["name"]))


@dataclass(frozen=True, slots=True)
class Broken:
    """A run or training, or a file of one, that cannot be shown."""

    name: str
    """"<folder>", or "<folder>: <file>" where the rest is shown."""
    reason: str


@dataclass(frozen=True, slots=True)
class Collection:
    """All runs of a site."""

    runs: tuple[RunView, ...]
    """By id, in natural order."""
    broken: tuple[Broken, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    """Ids (A, B) of the pairs that have a page of their own, at pairs.page_name(A, B)."""
    trainings: tuple[TrainingView, ...] = ()
    """By id, in natural order."""
    synths: tuple[SynthView, ...] = ()
    """By id, in natural order."""
    sweeps: tuple[SweepView, ...] = ()
    """By id, in natural order."""
