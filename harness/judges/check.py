"""How far a judge agrees with people, and what its shares are worth.

    medbench judge check runs/base labels.jsonl

Shares are shown raw and corrected for the judge's errors in two ways: by its error rates on the labels (Rogan-Gladen;
right where it errs elsewhere as on the labelled steps) and prediction-powered (right where the labelled questions are a
random part of the judged ones). See stats.corrected_share.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import replace_file
from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.judges.corrections import corrected_share
from medbench.harness.judges.judgements import FOLDER, Judgement, read_judgements
from medbench.harness.judges.labels import Known, read_labels
from medbench.harness.judges.steps import steps_of
from medbench.harness.runs.records import SCHEMA_VERSION
from medbench.harness.runs.run_folder import read_json
from medbench.harness.runs.stored_run import load_run
from medbench.harness.stats.agreement import Agreement, Estimate, agreement_of
from medbench.harness.stats.corrected_share import Share
from medbench.harness.stats.intervals import clustered_interval

LENGTHS = 3
"""Parts of equal size, by length, in which the agreement is shown."""


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """The options of `medbench judge check`."""

    run: Path
    """A run folder, or a file of its judgements."""
    labels: Path
    judge: str | None = None
    task: str | None = None
    fingerprint: str | None = None
    """Its first digits, where the file has verdicts of several."""


@dataclass(frozen=True, slots=True)
class LabelCheck:
    """One of the verdicts against the two others."""

    labelled: int
    """Steps to which people gave it."""
    sensitivity: Estimate | None
    specificity: Estimate | None
    raw: Share
    """Its share of all judged steps."""
    by_error_rates: Share
    prediction_powered: Share
    """Unknown too where every judged question has labels."""


@dataclass(frozen=True, slots=True)
class LengthCheck:
    """Agreement on steps of about one length."""

    shortest: int
    """Characters."""
    longest: int
    steps: int
    share: Estimate


@dataclass(frozen=True, slots=True)
class OrderCheck:
    """Labelled steps judged again, with the sentences of the source the other way round."""

    steps: int
    changed: Estimate
    """Share of the verdicts that are others then, by question."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What `medbench judge check` found."""

    task: str
    judge: str
    fingerprint: str
    judged: int
    """Steps of the run with a verdict."""
    without_verdict: int
    """Labelled steps without one, which are left out."""
    agreement: Agreement
    labels: dict[str, LabelCheck]
    lengths: tuple[LengthCheck, ...]
    order: OrderCheck | None = None
    """Of labels that were judged by themselves."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class KnownAgreement(BaseModel):
    """<task>.<judge>.agreement.json beside the judgements: what the last check found, for later tables."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    judge: str
    """The judge's fingerprint."""
    steps: int
    questions: int
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    labels: list[list[str]] = []
    """[cluster, person's label, verdict] of each labelled step, from which shares are corrected; see agreement."""

    @field_validator("labels")
    @classmethod
    def _of_verdicts(cls, labels: list[list[str]]) -> list[list[str]]:
        if not all(len(one) == 3 and {*one[1:]} <= {*VERDICTS} for one in labels):
            raise ValueError("each must be [cluster, label, verdict]")
        return labels


@dataclass(frozen=True, slots=True)
class Step:
    """A judged step."""

    id: str
    """Of the question."""
    cluster: str
    step: str
    verdict: str | None


def check_judge(options: CheckOptions) -> Checked:
    """Raises MedbenchError for a faulty request and where no labelled step has a verdict."""
    path, task, judge = _file(options)
    folder = path.parent.parent
    lines = _of_one_judge(path, read_judgements(path), options.fingerprint)
    steps: dict[str, dict[int, list[str]]] = {}
    verdicts = {(line.id, line.step): line.verdict for line in lines}
    found: list[Step] = []
    for sample in load_run(folder).samples(task):
        if sample.error is None:
            own = steps.setdefault(sample.id, {})[sample.repeat] = steps_of(sample)
            found += [Step(sample.id, sample.cluster, step, verdicts.get((sample.id, step))) for step in own]
    known = Known(steps, {line.item: (line.id, line.step) for line in lines})
    labels = {(one.id, one.step): one.label for one in read_labels(options.labels, known)}
    judged = [one for one in found if one.verdict is not None]
    once = list({(one.id, one.step): one for one in judged}.values())
    both = [one for one in once if (one.id, one.step) in labels]
    if not both:
        raise MedbenchError(f"{options.labels}: no labelled step has a verdict in {path}: judge them first")
    labelled = [(one, labels[one.id, one.step]) for one in both]
    checked = compared(task, judge, lines[0].judge, judged, labelled, without_verdict=len(labels) - len(both))
    _keep(path, checked, [(one.cluster, label, str(one.verdict)) for one, label in labelled])
    return checked


def compared(
    task: str,
    judge: str,
    fingerprint: str,
    judged: Sequence[Step],
    labelled: Sequence[tuple[Step, str]],
    *,
    without_verdict: int,
    order: OrderCheck | None = None,
) -> Checked:
    """`judged`: all steps with a verdict, of which those in `labelled` have a label too."""
    pairs = [(one.cluster, label, str(one.verdict)) for one, label in labelled]
    return Checked(
        task=task,
        judge=judge,
        fingerprint=fingerprint,
        judged=len(judged),
        without_verdict=without_verdict,
        agreement=agreement_of(pairs),
        labels={verdict: _of_label(verdict, pairs, judged) for verdict in VERDICTS},
        lengths=_by_length([one for one, _ in labelled], pairs),
        order=order,
    )


def known_agreement(path: Path, fingerprint: str) -> KnownAgreement | None:
    """What a check has found of this judge on the judgements at `path`; None where it is uncalibrated."""
    file = _agreement_path(path)
    if not file.exists():
        return None
    found = read_json(file, KnownAgreement)
    return found if found.judge == fingerprint else None


def _file(options: CheckOptions) -> tuple[Path, str, str]:
    """(path, task, judge) of the only file of judgements that the options leave."""
    if options.run.is_file():
        task, _, judge = options.run.name.removesuffix(".jsonl").rpartition(".")
        if not task or options.run.suffix != ".jsonl" or options.run.absolute().parent.name != FOLDER:
            raise MedbenchError(f"{options.run}: no file of judgements: name a run, or RUN/{FOLDER}/TASK.JUDGE.jsonl")
        return options.run.absolute(), task, judge
    load_run(options.run)
    found = []
    for path in sorted((options.run / FOLDER).glob("*.jsonl")):
        task, _, judge = path.name.removesuffix(".jsonl").rpartition(".")
        if options.task in (None, task) and options.judge in (None, judge):
            found.append((path, task, judge))
    if not found:
        wanted = "".join(f" of {name}" for name in (options.judge, options.task) if name)
        raise MedbenchError(f"{options.run}: no judgements{wanted}: judge the run first, with medbench judge RUN")
    if len(found) > 1:
        names = ", ".join(path.name for path, _, _ in found[:8])
        raise MedbenchError(f"{options.run}: several judgements ({names}): choose with --task and --judge")
    return found[0]


def _of_one_judge(path: Path, lines: Sequence[Judgement], wanted: str | None) -> list[Judgement]:
    prints = sorted({line.judge for line in lines})
    chosen = [one for one in prints if wanted is None or one.startswith(wanted)]
    if len(chosen) != 1:
        known = ", ".join(one[:12] for one in prints[:8]) or "none"
        raise MedbenchError(f"{path}: fingerprints of judges: {known}: choose one with --fingerprint")
    return [line for line in lines if line.judge == chosen[0]]


def _of_label(verdict: str, pairs: Sequence[tuple[str, str, str]], judged: Sequence[Step]) -> LabelCheck:
    agreement = agreement_of(pairs, positive=verdict)
    clusters: dict[str, list[str]] = {}
    for one in judged:
        clusters.setdefault(one.cluster, []).append(str(one.verdict))
    total = [(len(said), float(said.count(verdict))) for said in clusters.values()]
    share = sum(ones for _, ones in total) / sum(size for size, _ in total)
    low, high = clustered_interval(total)
    corrected = corrected_share(verdict, clusters, pairs)
    return LabelCheck(
        labelled=sum(label == verdict for _, label, _ in pairs),
        sensitivity=agreement.sensitivity,
        specificity=agreement.specificity,
        raw=Share(share, low, high),
        by_error_rates=corrected.by_error_rates,
        prediction_powered=corrected.prediction_powered,
    )


def _by_length(steps: Sequence[Step], pairs: Sequence[tuple[str, str, str]]) -> tuple[LengthCheck, ...]:
    """Empty for too few steps to say anything of."""
    order = sorted(range(len(steps)), key=lambda at: (len(steps[at].step), at))
    if len(order) < 2 * LENGTHS:
        return ()
    cuts = [round(part * len(order) / LENGTHS) for part in range(LENGTHS + 1)]
    parts = [order[low:high] for low, high in pairwise(cuts)]
    return tuple(
        LengthCheck(
            shortest=len(steps[part[0]].step),
            longest=len(steps[part[-1]].step),
            steps=len(part),
            share=agreement_of([pairs[at] for at in part]).share,
        )
        for part in parts
    )


def _agreement_path(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.agreement.json")


def _keep(path: Path, checked: Checked, pairs: Sequence[tuple[str, str, str]]) -> None:
    kappa = checked.agreement.kappa
    known = KnownAgreement(
        judge=checked.fingerprint,
        steps=checked.agreement.items,
        questions=checked.agreement.clusters,
        kappa=kappa.value if kappa else None,
        kappa_low=kappa.low if kappa else None,
        kappa_high=kappa.high if kappa else None,
        labels=list(map(list, pairs)),
    )
    with suppress(OSError):  # a folder that may only be read: later tables say "uncalibrated"
        replace_file(_agreement_path(path), json.dumps(known.model_dump(), indent=1).encode() + b"\n")
