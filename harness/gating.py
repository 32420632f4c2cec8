"""`medbench gate`: candidates in, verdicts out. Finished runs are judged at once; checkpoints share one warm engine.

medbench gate checkpoints/step-800 checkpoints/step-1600 --gates gates.yaml --baseline runs/base
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints import refuse_nan
from medbench.harness.compare import TaskComparison, compare_task, refuse_incomplete
from medbench.harness.contracts import Checkpoint, Data, Engine, MedbenchError, Question, Sample, Task
from medbench.harness.data import keep_partition
from medbench.harness.evaluate import permuted
from medbench.harness.gate_file import GateFile, read_gate_file, refuse_unknown_tasks
from medbench.harness.gate_output import junit, markdown
from medbench.harness.gates import CORRECTION, GateResult, Verdict
from medbench.harness.live_gate import (
    LiveGate,
    Reference,
    check_baseline,
    read_reference,
    refuse_repeats,
    run_gate,
    verdict_of,
)
from medbench.harness.noise import measure
from medbench.harness.progress import progress_for
from medbench.harness.protocol import DEFAULT, FOREIGN, Protocol, load_protocol
from medbench.harness.session import (
    EvalOptions,
    describe_engine,
    example_notes,
    model_record,
    new_record,
    start_engine,
)
from medbench.harness.store import (
    ModelRecord,
    RunRecord,
    create_run,
    read_run,
    read_samples,
    reopen_run,
    samples_path,
    write_atomically,
)
from medbench.harness.warm import WarmEngine

Say = Callable[[str], None]
EVAL_ONLY = (
    "tasks", "protocol", "partition", "limit", "max_new_tokens", "thinking", "temperature", "shots", "samples",
    "shuffle_options", "name",
)  # fmt: skip
"""Options of eval that a gate takes from its file."""
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


def exit_status(judged: Sequence[Judged]) -> int:
    """1 when any failed, else 3 when any is undecided or not gateable, else 0."""
    found = {one.verdict.overall for one in judged}
    return 1 if "fail" in found else 0 if found <= {"pass"} else 3


def write_outputs(
    judged: Sequence[Judged], baseline: Path | None, junit_file: Path | None, summary: Path | None
) -> None:
    """JUnit and Markdown files, and the step summary of a GitHub workflow where one runs."""
    if junit_file is not None:
        _write(junit_file, junit([one.verdict for one in judged], [one.seconds for one in judged]))
    step = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary is None and not step:
        return
    text = "\n".join(markdown(one.verdict, _comparisons(one, baseline)) for one in judged)
    if summary is not None:
        _write(summary, text.encode("utf-8", "replace"))
    if step:
        try:
            with Path(step).open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError as error:
            raise MedbenchError(f"GITHUB_STEP_SUMMARY {step}: cannot be written ({error.strerror})") from None


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedbenchError(f"{path.parent}: cannot be made ({error.strerror})") from None
    write_atomically(path, content)


def _comparisons(one: Judged, baseline: Path | None) -> list[TaskComparison]:
    if baseline is None or one.folder is None:
        return []
    found = []
    for task in dict.fromkeys(gate.task for gate in one.verdict.gates):
        if samples_path(one.folder, task).exists():  # not for the mean, nor for a task that was not asked
            with suppress(MedbenchError):  # no question that both answered
                found.append(compare_task(task, read_samples(baseline, task), read_samples(one.folder, task)))
    return found


def gate_finished_run(folder: Path, rules: GateFile, baseline: Path | None) -> Judged:
    """Judge what a sealed run holds; starts in well under a second, imports no task and no engine."""
    record = read_run(folder)
    if record.status == "running":
        raise MedbenchError(f"{folder} is not finished ({record.status}): go on with medbench eval --resume")
    refuse_repeats(record)
    refuse_incomplete(record)
    missing = [task for task in rules.tasks if task not in record.tasks]
    if missing:
        raise MedbenchError(f"{folder} has no {', '.join(missing)}, which the gate file names")
    if record.partition != rules.partition:
        raise MedbenchError(f"{folder} holds partition {record.partition}, the gate file asks for {rules.partition}")
    if rules.protocol is not None or rules.max_new_tokens is not None:
        asked = _protocol(rules, None)
        if record.protocol != asked.model_dump(mode="json"):
            raise MedbenchError(f"{folder} was asked under {record.protocol['name']}, not under the gate file's "
                                f"{asked.name}: evaluate it again, or correct the gate file")  # fmt: skip
    samples = {name: {s.id: s for s in read_samples(folder, name)} for name in rules.tasks}
    _refuse_unmeasured(rules, record, samples)
    reference = read_baseline(baseline, record, samples)
    tasks = [_task_of(name, record, samples[name], reference) for name in rules.tasks]
    orders = {task.name: _order_of(task.name, record, samples[task.name], task) for task in tasks}
    fractional = record.protocol["name"].startswith(FOREIGN)
    gate = LiveGate(
        rules, tasks, record.seed, reference, unit=_most_tokens(record), orders=orders, fractional=fractional
    )
    for name in rules.tasks:
        gate.observe(name, [samples[name][id] for id in orders[name] if id in samples[name]])
    gate.seconds = record.totals.seconds
    return _written(verdict_of(gate, gate.results(), record), folder)


def _refuse_unmeasured(rules: GateFile, record: RunRecord, samples: Mapping[str, Mapping[str, Sample]]) -> None:
    """Raises MedbenchError for a gate on the tokens or seconds of replies that came without either."""
    answered = [sample for some in samples.values() for sample in some.values() if sample.score is not None]
    measured = {
        "tokens_per_answer": not answered or any(sample.completion_tokens for sample in answered),
        "seconds_per_question": record.totals.seconds > 0,
    }
    for gate in rules.gates:
        if not measured.get(gate.metric, True):
            raise MedbenchError(f"gate '{gate.rule}': {record.run_id} has no count of that, its replies were stored: "
                                f"leave the gate out, or generate with medbench eval")  # fmt: skip


def gate_candidates(
    candidates: Sequence[str],
    gates: Path,
    baseline: Path | None,
    given: Mapping[str, Any],
    tasks_folder: Path,
    say: Say,
) -> list[Judged]:
    """A verdict for each candidate, in turn; `given` are the command line's options.

    Raises MedbenchError for a fault of the user's.
    """
    if all((Path(name) / "run.json").exists() for name in candidates):
        rules = read_gate_file(gates)
        return [gate_finished_run(Path(name), rules, baseline) for name in candidates]
    with Gatekeeper(gates, baseline, given, tasks_folder, say) as keeper:
        return [keeper.judge(name) for name in candidates]


class Gatekeeper:
    """Tasks, gate file and one engine, kept for many checkpoints. Use as a context manager."""

    def __init__(
        self, gates: Path, baseline: Path | None, given: Mapping[str, Any], tasks_folder: Path, say: Say
    ) -> None:
        from medbench.harness.session import options_of
        from medbench.harness.task_loader import TaskLoader

        self._options = options_of({**dict.fromkeys(EVAL_ONLY), "model": "", "resume": True, **given})
        self._rules, self._baseline, self._say = read_gate_file(gates), baseline, say
        self._aa: int = given.get("aa") or 0
        loader = TaskLoader(tasks_folder, self._options.data, say)
        refuse_unknown_tasks(self._rules, gates, list(loader.cards))
        self._tasks = [keep_partition(loader.load(name), self._rules.partition) for name in self._rules.tasks]
        self._protocol = _protocol(self._rules, baseline)
        self._warm: WarmEngine | None = None
        self._plain: Engine | None = None

    def judge(self, name: str) -> Judged:
        """Evaluate `name` as far as the verdict needs, and judge; `medbench eval --resume` can finish the run.

        A checkpoint folder that is itself broken fails; raises MedbenchError for any other fault.
        """
        started = time.monotonic()
        if (Path(name) / "run.json").exists():
            return gate_finished_run(Path(name), self._rules, self._baseline)
        options = replace(
            self._options, model=name, tasks=tuple(self._rules.tasks), partition=self._rules.partition, limit=None
        )
        try:
            model = model_record(options, self._say)
            if model.path is not None:
                refuse_nan(Path(model.path))
        except MedbenchError as error:
            if options.engine in ("vllm", "hf") and Path(name).is_dir():
                return invalid_checkpoint(name, self._rules, str(error))
            raise
        wanted = new_record(options, model, self._tasks, self._protocol, example_notes(self._tasks, self._protocol))
        refuse_repeats(wanted)
        ids = {task.name: [question.id for question in task.questions] for task in self._tasks}
        reference = read_baseline(self._baseline, wanted, ids)
        controls = read_controls(options.runs, wanted, self._baseline, self._rules.tasks)
        unit = float(self._protocol.decoding.max_new_tokens)
        gate = LiveGate(self._rules, self._tasks, wanted.seed, reference, controls, unit=unit)
        if model.merge_deviation is not None:
            self._say(f"{name}: the merge moved log-probabilities by at most {model.merge_deviation:.2g} nats")
        engine = self._serve(options, model)
        folder = options.runs / wanted.run_id
        described = wanted.model_copy(update={"engine": describe_engine(engine)})
        run = reopen_run(folder, wanted) if (folder / "run.json").exists() else create_run(options.runs, described)
        with run, progress_for(quiet=options.quiet) as progress:
            noise = {
                task.name: measure(task, self._protocol, engine, questions=self._aa, seed=wanted.seed)
                for task in (self._tasks if self._aa else ())
            }
            results = run_gate(gate, run, self._protocol, engine, progress)
            verdict = verdict_of(gate, results, run.record, noise)
            judged = _written(verdict, run.folder)
        return replace(judged, seconds=time.monotonic() - started)

    def _serve(self, options: EvalOptions, model: ModelRecord) -> Engine:
        """The engine, with `model` in it: vLLM stays warm and swaps, any other is started anew."""
        if options.engine != "vllm":
            if self._plain is not None:
                self._plain.close()
            self._plain = start_engine(options, model)
            return self._plain
        checkpoint = Checkpoint(**model.model_dump())
        if self._warm is None:
            self._warm = WarmEngine(checkpoint, options.engine_config, self._say)
        else:
            report = self._warm.swap(checkpoint)
            how = "engine started anew" if report.restarted else "swapped in"
            self._say(f"{model.name}: {how} in {report.seconds:.1f} s, the probe moved by {report.moved:.2g} nats")
        return self._warm.engine

    def __enter__(self) -> Gatekeeper:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in (self._warm, self._plain):
            if engine is not None:
                engine.close()


def _protocol(rules: GateFile, baseline: Path | None) -> Protocol:
    """The gate file's protocol, else the baseline's own, else the default."""
    if rules.protocol is None and rules.max_new_tokens is None and baseline is not None:
        return Protocol.model_validate(read_run(baseline).protocol)
    return load_protocol(rules.protocol or DEFAULT, max_new_tokens=rules.max_new_tokens)


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


def _task_of(name: str, record: RunRecord, samples: Mapping[str, Sample], baseline: Reference | None) -> Task:
    """As much of the task as its samples tell."""
    described = record.tasks[name]
    known = {**(baseline.samples.get(name, {}) if baseline else {}), **samples}
    questions = tuple(Question(s.id, s.cluster, "", (), (), s.gold, category=s.category) for s in known.values())
    data = Data(described.source, described.sha256, described.official)
    return Task(name, described.version, described.split, 0.0, questions, data)


def _order_of(name: str, record: RunRecord, samples: Mapping[str, Sample], task: Task) -> list[str]:
    """All ids, the answered ones first: a sealed run holds the first questions of the order, or all.

    Where nothing names the others they get stand-ins: only their number matters then.
    """
    total = record.tasks[name].n
    answered = permuted(samples, seed=record.seed, task=name)
    others = permuted((q.id for q in task.questions if q.id not in samples), seed=record.seed, task=name)
    unknown = [f"(not asked {number})" for number in range(total - len(answered) - len(others))]
    return [*answered, *others, *unknown]


def _most_tokens(record: RunRecord) -> float:
    return float(record.protocol.get("decoding", {}).get("max_new_tokens", 1))


def _written(verdict: Verdict, folder: Path) -> Judged:
    content = json.dumps(verdict.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(folder / "verdict.json", content.encode("utf-8", "replace") + b"\n")
    return Judged(verdict, folder)
