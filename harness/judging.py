"""One checkpoint asked as far as its verdict needs, in an engine that is kept for the next one.

    judged = judge_checkpoint(options, Asked(rules, tasks, protocol), EngineKeeper(print), print)

`medbench gate`, `medbench watch` and the training loop all judge here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.weights import refuse_nan
from medbench.harness.contracts import MedbenchError, Say, Task
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.evaluation.evaluate import example_notes, model_record, new_record, opened_run
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.progress import progress_for
from medbench.harness.evaluation.repeatability import measure
from medbench.harness.evaluation.runner import evaluate
from medbench.harness.files import write_atomically
from medbench.harness.gate_file import GateFile
from medbench.harness.gates import CORRECTION, GateResult, Verdict
from medbench.harness.live_gate import LiveGate, Reference, read_reference, run_gate, verdict_of
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.comparability import check_baseline, refuse_repeats
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import read_run, read_samples

MOST_CONTROLS = 8
"""Stored runs tried as controls, the newest first."""


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


@dataclass(frozen=True, slots=True)
class Asked:
    """What a checkpoint is asked, and by which rules it is judged."""

    rules: GateFile
    tasks: Sequence[Task]
    """The rules' tasks, with the questions of the rules' partition alone."""
    protocol: Protocol
    baseline: Path | None = None
    aa: int = 0
    """Questions a task that are asked twice, for the noise floor."""
    alpha_fail: float | None = None
    """Chance of a wrong fail, where that is not the rules' alpha."""


def judge_checkpoint(options: EvalOptions, asked: Asked, keeper: EngineKeeper, say: Say) -> Judged:
    """Evaluate `options.model` as far as the verdict needs, and judge. What its run holds already is not asked again.

    A checkpoint folder that is itself broken fails; raises MedbenchError for any other fault.
    """
    started = time.monotonic()
    rules, tasks, protocol = asked.rules, asked.tasks, asked.protocol
    options = replace(options, tasks=tuple(rules.tasks), partition=rules.partition)
    try:
        model = model_record(options, say)
        if model.path is not None:
            refuse_nan(Path(model.path))
    except MedbenchError as error:
        if options.engine.name in ("vllm", "hf") and Path(options.model).is_dir():
            return invalid_checkpoint(options.model, rules, str(error))
        raise
    wanted = new_record(options, model, tasks, protocol, example_notes(tasks, protocol))
    refuse_repeats(wanted)
    ids = {task.name: [question.id for question in task.questions] for task in tasks}
    reference = read_baseline(asked.baseline, wanted, ids)
    controls = read_controls(options.runs, wanted, asked.baseline, rules.tasks)
    unit = float(protocol.decoding.max_new_tokens)
    gate = LiveGate(rules, tasks, wanted.seed, reference, controls, unit=unit, alpha_fail=asked.alpha_fail)
    if model.merge_deviation is not None:
        say(f"{options.model}: the merge moved log-probabilities by at most {model.merge_deviation:.2g} nats")
    with opened_run(options, model, wanted, keeper) as (run, engine), progress_for(quiet=options.quiet) as progress:
        noise = {
            task.name: measure(task, protocol, engine, questions=asked.aa, seed=wanted.seed)
            for task in (tasks if asked.aa else ())
        }
        results = run_gate(gate, run, protocol, engine, progress)
        judged = written(verdict_of(gate, results, run.record, noise), run.folder)
    return replace(judged, seconds=time.monotonic() - started)


def answer_whole(options: EvalOptions, asked: Asked, keeper: EngineKeeper, say: Say) -> Path:
    """Ask `options.model` every question, as a baseline must be; the run's folder."""
    options = replace(options, tasks=tuple(asked.rules.tasks), partition=asked.rules.partition)
    model = model_record(options, say)
    wanted = new_record(options, model, asked.tasks, asked.protocol, example_notes(asked.tasks, asked.protocol))
    folder = options.runs / wanted.run_id
    if (folder / "run.json").exists() and read_run(folder).status == "complete":
        return folder
    with opened_run(options, model, wanted, keeper) as (run, engine), progress_for(quiet=options.quiet) as progress:
        evaluate(run, asked.tasks, asked.protocol, engine, limit=None, progress=progress)
    return folder


def invalid_checkpoint(name: str, rules: GateFile, why: str) -> Judged:
    """The failing verdict of a checkpoint that is itself broken."""
    result = GateResult(
        rule="invalid checkpoint",
        task="-",
        metric="accuracy",
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


def read_baseline(folder: Path | None, candidate: RunRecord, ids: Mapping[str, Collection[str]]) -> Reference | None:
    """Raises MedbenchError where it is not a run, or not one that can be compared with on `ids`, task by task."""
    if folder is None:
        return None
    record = read_run(folder)
    for task, wanted in ids.items():
        if task in record.tasks and record.tasks[task].sha256 != candidate.tasks[task].sha256:
            have = {sample.id for sample in read_samples(folder, task)}
            same = len(have.intersection(wanted))
            raise MedbenchError(f"baseline {record.run_id} has other questions of {task}: {same} of {len(wanted)} "
                                f"match; evaluate it on this data")  # fmt: skip
    check_baseline(candidate, record, list(ids))
    return read_reference(record, folder.resolve(), list(ids))


def read_controls(runs: Path, candidate: RunRecord, baseline: Path | None, tasks: Sequence[str]) -> list[Reference]:
    """Complete runs in `runs` that asked the same questions the same way; other models' are as good as one's own."""
    found: list[tuple[str, Path, RunRecord]] = []
    for folder in sorted(path.parent for path in runs.glob("*/run.json")):
        if baseline is not None and folder.name == baseline.resolve().name:  # itself, or a copy: names tell them apart
            continue
        try:
            record = read_run(folder)
            check_baseline(candidate, record, tasks)
        except MedbenchError:
            continue
        whole = record.status == "complete" and record.limit is None
        if whole and record.model.fingerprint != candidate.model.fingerprint:
            found.append((record.created, folder, record))
    references = []
    for _, folder, record in sorted(found, key=lambda one: one[0], reverse=True)[:MOST_CONTROLS]:
        with suppress(MedbenchError):  # a damaged run is no control, and no reason to stop
            references.append(read_reference(record, folder, tasks))
    return references


def written(verdict: Verdict, folder: Path) -> Judged:
    content = json.dumps(verdict.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(folder / "verdict.json", content.encode("utf-8", "replace") + b"\n")
    return Judged(verdict, folder)
