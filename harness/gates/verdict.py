"""Gate results and verdicts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from medbench.harness.evaluation.repeatability import Noise
from medbench.harness.files import write_atomically
from medbench.harness.gates.rules import GateFile, Kind, Unit

Status = Literal["pass", "fail", "undecided", "not gateable"]
CORRECTION = "pass: each gate at alpha (all must pass: intersection-union test); fail: alpha / gates (Bonferroni)"


class GateResult(BaseModel):
    """What one gate found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    task: str
    metric: str
    kind: Kind
    unit: Unit
    """Of `estimate`, `interval` and `threshold`."""
    status: Status
    estimate: float | None
    """The metric; for a paired gate the candidate's minus the baseline's."""
    interval: tuple[float, float] | None
    threshold: float
    """What `estimate` is held against."""
    used: int
    """Questions answered."""
    total: int
    """Questions there are."""
    log_e_pass: float | None = None
    """Log e-value against "it truly fails"; passes at log(1/alpha)."""
    log_e_fail: float | None = None
    p_value: float | None = None
    """decide: population only; of "it truly fails", one-sided."""
    controls: dict[str, float] = {}
    """Stored run that sharpened the test -> its share in the forecast."""
    saved: int = 0
    """Questions that the controls spared, estimated (see sequential.Evidence)."""
    why: str

    @model_validator(mode="before")
    @classmethod
    def _of_older_files(cls, content: Any) -> Any:
        """Verdicts written before `kind` and `unit` were stored told them by the wording of their rule alone."""
        if isinstance(content, dict) and "kind" not in content and "unit" not in content:
            return {**content, **_told_by_rule(str(content.get("rule")), str(content.get("metric")))}
        return content


_OLDER_RULE = re.compile(r"(not worse than|better than) the baseline's by more than \S+$| (at most) \S+$")


def _told_by_rule(rule: str, metric: str) -> dict[str, str]:
    ending = _OLDER_RULE.search(rule)
    paired, ceiling = ending.groups() if ending else (None, None)
    kind = {"not worse than": "margin", "better than": "superiority"}.get(
        paired or "", "ceiling" if ceiling else "floor"
    )
    unit = {"seconds_per_question": "seconds", "tokens_per_answer": "tokens"}.get(metric)
    return {"kind": kind, "unit": unit or ("difference" if paired else "share")}


class Verdict(BaseModel):
    """verdict.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    overall: Status
    why: str
    alpha: float
    decide: str
    partition: str
    correction: str
    candidate: str
    fingerprint: str
    baseline: str | None
    protocol: str
    gates: list[GateResult]
    noise: dict[str, Noise] = {}
    """task -> what the same checkpoint asked twice disagreed on; empty unless --aa asked for it."""
    warnings: list[str] = []

    @property
    def status(self) -> Status:
        """`overall`, by the name that a gate's result has it under."""
        return self.overall


def overall_of(results: Sequence[GateResult]) -> tuple[Status, str]:
    """Not gateable outweighs all; any fail fails; all must pass."""
    for status in ("not gateable", "fail", "undecided"):
        found = [result for result in results if result.status == status]
        if found:
            return status, "; ".join(f"{result.rule}: {result.why}" for result in found)
    return "pass", f"all {len(results)} gates pass"


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate's verdict and where it was written."""

    verdict: Verdict
    folder: Path | None
    """The run folder; None for a checkpoint that could not be loaded."""
    seconds: float = 0.0
    """From the start of work on this candidate to its verdict."""

    def as_json(self) -> dict[str, Any]:
        folder = str(self.folder) if self.folder else None
        return {**self.verdict.model_dump(mode="json"), "run": folder, "seconds": round(self.seconds, 3)}


def invalid_checkpoint(name: str, rules: GateFile, why: str) -> Judged:
    """The failing verdict of a checkpoint that is itself broken."""
    result = GateResult(
        rule="invalid checkpoint",
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
    verdict = Verdict(
        overall="fail",
        why=f"invalid checkpoint: {why}",
        alpha=rules.alpha,
        decide=rules.decide,
        partition=rules.partition,
        correction=CORRECTION,
        candidate=name,
        fingerprint="",
        baseline=None,
        protocol="",
        gates=[result],
    )
    return Judged(verdict, None)


def written(verdict: Verdict, folder: Path) -> Judged:
    content = json.dumps(verdict.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(folder / "verdict.json", content.encode("utf-8", "replace") + b"\n")
    return Judged(verdict, folder)


def warnings_of(noise: dict[str, Noise], rules: GateFile) -> list[str]:
    """A line for each margin that is smaller than what the engine's own noise moves."""
    lines = []
    for gate in rules.gates:
        found = noise.get(gate.task)
        if found is None or not gate.paired:
            continue
        margin = gate.margin if gate.margin is not None else gate.better_by
        assert margin is not None
        if margin < found.floor:
            lines.append(
                f"{gate.rule}: the margin is smaller than the noise floor ({100 * found.floor:.1f} points of "
                f"{found.asked} questions change when asked again): widen it"
            )
    return lines
