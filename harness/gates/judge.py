"""One checkpoint asked as far as its verdict needs, in an engine that is kept for the next one.

    judged = judge_checkpoint(options, Asked(rules, tasks, protocol), EngineKeeper(print), print)

`medbench gate`, `medbench watch` and the training loop all judge here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.checkpoints.weights import refuse_nan
from medbench.harness.contracts import MedbenchError, Say, Task
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.evaluation.evaluate import example_notes, model_record, new_record, opened_run
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.progress import progress_for
from medbench.harness.evaluation.repeatability import measure
from medbench.harness.evaluation.runner import evaluate
from medbench.harness.files import write_atomically
from medbench.harness.gate_output import junit, markdown
from medbench.harness.gates.baseline import read_baseline, read_controls
from medbench.harness.gates.finished_run import gate_finished_run, protocol_of
from medbench.harness.gates.live_gate import LiveGate, run_gate, verdict_of
from medbench.harness.gates.rules import GateFile, read_gate_file, refuse_unknown_tasks
from medbench.harness.gates.verdict import Judged, invalid_checkpoint, written
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.comparability import refuse_repeats
from medbench.harness.runs.compare import TaskComparison, compare_task
from medbench.harness.runs.run_folder import read_run, read_samples, samples_path

EVAL_ONLY = (
    "tasks", "protocol", "partition", "limit", "max_new_tokens", "thinking", "temperature", "shots", "samples",
    "shuffle_options", "name",
)  # fmt: skip
"""Options of eval that a gate takes from its file."""


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
        from medbench.harness.benchmarks.catalog import TaskLoader
        from medbench.harness.evaluation.evaluate import options_of

        self._options = options_of({**dict.fromkeys(EVAL_ONLY), "model": "", "resume": True, **given})
        self._rules, self._baseline, self._say = read_gate_file(gates), baseline, say
        self._aa: int = given.get("aa") or 0
        loader = TaskLoader(tasks_folder, self._options.data, say)
        refuse_unknown_tasks(self._rules, gates, list(loader.cards))
        self._tasks = [keep_partition(loader.load(name), self._rules.partition) for name in self._rules.tasks]
        self._protocol = protocol_of(self._rules, baseline)
        self._keeper = EngineKeeper(say)

    def judge(self, name: str) -> Judged:
        """Evaluate `name` as far as the verdict needs, and judge; `medbench eval --resume` can finish the run.

        A checkpoint folder that is itself broken fails; raises MedbenchError for any other fault.
        """
        if (Path(name) / "run.json").exists():
            return gate_finished_run(Path(name), self._rules, self._baseline)
        options = replace(self._options, model=name, limit=None)
        asked = Asked(self._rules, self._tasks, self._protocol, self._baseline, self._aa)
        return judge_checkpoint(options, asked, self._keeper, self._say)

    def __enter__(self) -> Gatekeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.close()
