"""Gate results and verdicts, and where they are stored.

RUN/verdict.json                    the latest
RUN/verdicts/<gate file>-<key>.json the latest of each gate file and baseline: see `GateFile.key`
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from medbench.harness.evaluation.repeatability import Noise
from medbench.harness.files import remove_leftovers, replace_file, slug
from medbench.harness.gates.costs import Cost
from medbench.harness.gates.rules import Gate, GateFile, Kind, Unit
from medbench.harness.gates.wording import apart, between, confidence, number
from medbench.harness.scoring.bounds import Share

log = logging.getLogger("medbench")

Status = Literal["pass", "fail", "undecided", "not gateable"]
IntervalKind = Literal["anytime", "population"]
"""anytime: of the whole benchmark, valid whenever the gate stops; population: of new questions, for a single look."""
ABOUT: dict[IntervalKind, str] = {"anytime": "whole benchmark, anytime", "population": "new questions"}
LATEST = "verdict.json"
KEPT = "verdicts"
CORRECTION = "pass: each gate at alpha (all must pass: intersection-union test); fail: alpha / gates (Bonferroni)"


Interval = tuple[float, float, float]
"""(value, low, high), of a share."""


class JudgedBy(BaseModel):
    """Whose scores a judged gate rests on, and how far people agree with them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str
    fingerprint: str
    kappa: float | None = None
    """With its 95 % interval; None where no label is known."""
    kappa_low: float | None = None
    kappa_high: float | None = None
    labelled_steps: int = 0
    labels_of: str | None = None
    """The run whose steps were labelled, where it is not the judged one."""
    supported: Interval | None = None
    """Share of the judged steps, as the judge has it."""
    by_error_rates: Interval | None = None
    """The same corrected by the judge's errors, see docs/judges.md; None where the labels do not tell."""
    prediction_powered: Interval | None = None


class GateResult(BaseModel):
    """One gate's result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    task: str
    metric: str
    kind: Kind
    unit: Unit
    """Of `estimate`, `interval` and `threshold`."""
    status: Status
    estimate: float | None
    """The metric; for a paired gate the candidate's minus the baseline's. None if it was not measured."""
    interval: tuple[float, float] | None
    """None where there is no uncertainty (a census of all questions) or no estimate."""
    interval_level: Share | None = None
    """1 minus the chance that `interval` misses: 1 - alpha of the pass side - alpha of the fail side.

    None where there is no interval, or no answer yet that it could be made from, or in older files.
    """
    interval_kind: IntervalKind | None = None
    """What `interval` is about; None as for its level."""
    observed: float | None = None
    """The same as `estimate`, on the questions answered so far; `estimate` is about all of them."""
    sampling_noise: float | None = None
    """Standard deviation of `estimate` between runs of the same checkpoints with other sampling seeds; None where it is
    not known, as with one sample per question."""
    new_questions: tuple[float, float] | None = None
    """Beside a census of all questions: the 95 % interval of new questions of the same kind."""
    threshold: float
    """Compared with `estimate`."""
    used: int
    """Questions asked so far."""
    total: int
    """Questions of the gate."""
    log_e_pass: float | None = None
    """Log e-value against "it truly fails"; passes at log(1/alpha)."""
    log_e_fail: float | None = None
    p_value: float | None = None
    """Of "it truly fails", one-sided; only for decide: population."""
    controls: dict[str, float] = {}
    """Stored run used as a control variate -> its share in the prediction."""
    saved: int = 0
    """Questions saved by the control variates, estimated (see sequential.Evidence)."""
    judged: JudgedBy | None = None
    """Of a gate on a judge's scores."""
    why: str

    @property
    def interval_about(self) -> str:
        """Level and kind of `interval` in words: "90 %, new questions"; "" where there is none or it is not known."""
        if self.interval is None or self.interval_level is None or self.interval_kind is None:
            return ""
        return f"{confidence(1 - self.interval_level)}, {ABOUT[self.interval_kind]}"

    @model_validator(mode="before")
    @classmethod
    def _of_older_files(cls, content: Any) -> Any:
        """Older verdicts have no `kind` and `unit`, which the wording of their rule tells.

        A census over all questions had an interval of width zero, which said nothing.
        """
        if not isinstance(content, dict) or "kind" in content or "unit" in content:
            return content
        told = _kind_and_unit(str(content.get("rule")), str(content.get("metric")))
        interval = content.get("interval")
        empty = isinstance(interval, list | tuple) and len(set(map(str, interval))) == 1
        return {**content, **told, "interval": None if empty else interval}


_OLDER_RULE = re.compile(r"(not worse than|better than) the baseline's by more than \S+$| (at most) \S+$")


def _kind_and_unit(rule: str, metric: str) -> dict[str, str]:
    ending = _OLDER_RULE.search(rule)
    paired, ceiling = ending.groups() if ending else (None, None)
    kind = {"not worse than": "margin", "better than": "superiority"}.get(
        paired or "", "ceiling" if ceiling else "floor"
    )
    unit = {"seconds_per_question": "seconds", "tokens_per_answer": "tokens"}.get(metric)
    return {"kind": kind, "unit": unit or ("difference" if paired else "share")}


def gate_result(gate: Gate, **found: Any) -> GateResult:
    """The result of `gate`; `found` are the fields that the gate does not determine."""
    described = {"rule": gate.rule, "task": gate.task, "metric": gate.metric, "kind": gate.kind, "unit": gate.unit}
    return GateResult(**described, threshold=gate.threshold, **found)


class Verdict(BaseModel):
    """verdict.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    overall: Status
    why: str
    alpha: float
    """Chance of a wrong pass: what the ledger leaves for this checkpoint."""
    decide: str
    partition: str
    correction: str
    candidate: str
    fingerprint: str
    baseline: str | None
    protocol: str
    gates: list[GateResult]
    number: int | None = None
    """How manieth checkpoint of its gate file this is, see gates.ledger; None where no ledger counts."""
    samples: int = 1
    """Of each question, whose mean is what is judged."""
    gate_file: str | None = None
    """Its name, without the folder; None for rules made in Python or part of a recipe, and in older verdicts."""
    rules: str | None = None
    """See `GateFile.key`; the ledger's lines have it too. None in older verdicts."""
    order_seed: str | None = None
    """Seed of the order in which the questions were looked at; None in verdicts of medbench 0.1.0."""
    noise: dict[str, Noise] = {}
    """task -> how far two passes of the same checkpoint disagree; empty without --aa."""
    warnings: list[str] = []
    costs: list[Cost] = []
    """Of the baseline and of the candidate; empty without a baseline."""

    @property
    def status(self) -> Status:
        """`overall`, by the name that a gate's result has it under."""
        return self.overall


def overall_of(results: Sequence[GateResult]) -> tuple[Status, str]:
    """(status, reason) of the verdict: the first of not gateable, fail and undecided that any gate has, else pass."""
    for status in ("not gateable", "fail", "undecided"):
        found = [result for result in results if result.status == status]
        if found:
            return status, "; ".join(f"{result.rule}: {result.why}" for result in found)
    return "pass", f"all {len(results)} gates pass" if len(results) > 1 else "the gate passes"


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate's verdict, and the run that it was written to."""

    verdict: Verdict
    folder: Path | None
    """The run folder; None for a checkpoint that could not be loaded."""
    file: Path | None = None
    """verdict.json; None where it was not written."""
    seconds: float = 0.0
    """From the start of work on this candidate to its verdict; 0 for a finished run."""

    def as_json(self) -> dict[str, Any]:
        """verdict.json with "run" and "seconds"."""
        folder = str(self.folder) if self.folder else None
        return {**self.verdict.model_dump(mode="json"), "run": folder, "seconds": round(self.seconds, 3)}


def invalid_checkpoint(name: str, rules: GateFile, why: str) -> Judged:
    """The verdict "fail" on a checkpoint whose files are broken."""
    return Judged(_without_questions(name, rules, "invalid checkpoint", why), None)


def unchanged_weights(name: str, rules: GateFile) -> Verdict:
    """The verdict "fail" on a training's checkpoint that is still its start, whatever that would score."""
    return _without_questions(name, rules, "weights unchanged", "every weight is that of the start: nothing was learnt")


def _without_questions(name: str, rules: GateFile, rule: str, why: str) -> Verdict:
    result = GateResult(
        rule=rule,
        task="-",
        metric="accuracy",
        kind="floor",
        unit="share",
        status="fail",
        estimate=None,
        interval=None,
        threshold=0.0,
        used=0,
        total=0,
        why=why,
    )
    return Verdict(
        overall="fail",
        why=f"{rule}: {why}",
        alpha=rules.alpha,
        decide=rules.decide,
        partition=rules.partition,
        correction=CORRECTION,
        candidate=name,
        fingerprint="",
        baseline=None,
        protocol="",
        gates=[result],
        gate_file=rules.file_name,
    )


def written(verdict: Verdict, folder: Path, rules: GateFile, baseline: str | None) -> Judged:
    """Write the verdict by `rules` into the run folder, as the latest and as that of its gate file.

    `baseline` is the fingerprint of the baseline's weights. Where a file cannot be written the verdict stands, and a
    warning says so.
    """
    key = rules.key(baseline)
    verdict = verdict.model_copy(update={"gate_file": rules.file_name, "rules": key})
    kept, latest = folder / KEPT / f"{slug(Path(rules.file_name or 'gates').stem)}-{key[:12]}.json", folder / LATEST
    remove_leftovers(folder, kept.parent)
    content = json.dumps(verdict.model_dump(mode="json"), indent=1, ensure_ascii=False)
    faults = {path: fault for path in (latest, kept) if (fault := _fault_of_writing(path, content))}
    if faults:
        log.warning("the verdict stands, but is not stored: %s", next(iter(faults.values())))
    return Judged(verdict, folder, None if latest in faults else latest)


def _fault_of_writing(path: Path, content: str) -> str:
    """Write the file; what prevented it, else ""."""
    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, content.encode("utf-8", "replace") + b"\n")
    except OSError as error:
        return f"{path}: cannot be written ({error.strerror})"
    return ""


def beyond_the_census(results: Sequence[GateResult]) -> list[str]:
    """One line for each gate decided on all questions whose interval for new questions holds the threshold."""
    return [
        f"{one.rule}: new questions of this kind: {between(one.unit, one.new_questions)}, which includes the "
        f"threshold {number(one.unit, one.threshold)}; the verdict holds for this benchmark's questions only"
        for one in results
        if one.status in ("pass", "fail") and one.new_questions is not None
        if one.new_questions[0] <= one.threshold <= one.new_questions[1]
    ]


def within_sampling_noise(results: Sequence[GateResult]) -> list[str]:
    """One line for each decided gate that a run with another sampling seed could decide the other way."""
    return [
        f"{one.rule}: another run of the same checkpoint, sampled anew, differs by "
        f"{apart(one.unit, one.sampling_noise)} (standard deviation), and the threshold is "
        f"{apart(one.unit, one.estimate - one.threshold)} away: the verdict holds for these replies; "
        f"use more samples, or a threshold further away"
        for one in results
        if one.status in ("pass", "fail") and one.sampling_noise is not None and one.estimate is not None
        if abs(one.estimate - one.threshold) < 2 * one.sampling_noise
    ]


def warnings_of(
    noise: Mapping[str, Noise], rules: GateFile, results: Sequence[GateResult], samples: int = 1
) -> list[str]:
    """One line for each margin of accuracy that repeating a run may use up; `noise` is per task, of one sample."""
    lines = []
    for gate, result in zip(rules.gates, results, strict=True):
        found = noise.get(gate.task)
        if found is None or not gate.paired or gate.metric != "accuracy" or not result.total:
            continue
        margin = gate.margin if gate.margin is not None else gate.better_by
        assert margin is not None
        reach = 2 * found.of_difference(result.total * samples)
        if margin < reach:
            lines.append(
                f"{gate.rule}: of {found.asked} questions asked twice, {found.scores} changed from right to wrong or "
                f"back, so two runs of the same checkpoint can differ by {100 * reach:.1f} points on {result.total} "
                f"questions (two standard deviations): use a larger margin"
            )
    return lines
