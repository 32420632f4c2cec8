"""One checkpoint asked as far as its verdict needs, in an engine that is kept for the next one.

    judged = judge_checkpoint(options, Asked(rules, tasks, protocol), EngineKeeper(print), print)

`medbench gate`, `medbench watch` and the training loop all judge here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.checkpoints.weights import refuse_nan
from medbench.harness.contracts import MedbenchError, Say, Task
from medbench.harness.engines.plugins import takes_checkpoint
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.evaluation.evaluate import answer_all
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.plan import example_notes, find_model, open_evaluation, plan_evaluation
from medbench.harness.evaluation.progress import progress_for
from medbench.harness.evaluation.repeatability import measure
from medbench.harness.gates.baseline import read_baseline, read_controls
from medbench.harness.gates.finished_run import gate_finished_run, protocol_of
from medbench.harness.gates.live_gate import LiveGate, run_gate, verdict_of
from medbench.harness.gates.rules import GateFile, refuse_unknown_tasks
from medbench.harness.gates.verdict import Judged, invalid_checkpoint, written
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.comparability import refuse_repeats


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
    options = replace(options, tasks=tuple(rules.tasks), partition=rules.partition, resume=True)
    try:
        model = find_model(options.engine, options.model, say)
        if model.checkpoint is not None:
            refuse_nan(Path(model.checkpoint.path))
    except MedbenchError as error:
        if takes_checkpoint(options.engine) and Path(options.model).is_dir():
            return invalid_checkpoint(options.model, rules, str(error))
        raise
    plan = plan_evaluation(options, tasks, protocol, say, model=model, notes=example_notes(tasks, protocol))
    wanted = plan.wanted
    refuse_repeats(wanted)
    ids = {task.name: [question.id for question in task.questions] for task in tasks}
    reference = read_baseline(asked.baseline, wanted, ids)
    controls = read_controls(options.runs, wanted, asked.baseline, rules.tasks)
    unit = float(protocol.decoding.max_new_tokens)
    gate = LiveGate(rules, tasks, wanted.seed, reference, controls, unit=unit, alpha_fail=asked.alpha_fail)
    if (moved := model.record.merge_deviation) is not None:
        say(f"{options.model}: the merge moved log-probabilities by at most {moved:.2g} nats")
    with open_evaluation(plan, say, keeper) as (run, engine), progress_for(quiet=options.quiet) as progress:
        noise = {
            task.name: measure(task, protocol, engine, questions=asked.aa, seed=wanted.seed)
            for task in (tasks if asked.aa else ())
        }
        results = run_gate(gate, run, protocol, engine, progress)
        judged = written(verdict_of(gate, results, run.record, noise), run.folder)
    return replace(judged, seconds=time.monotonic() - started)


def answer_whole(options: EvalOptions, asked: Asked, keeper: EngineKeeper, say: Say) -> Path:
    """Ask `options.model` every question, as a baseline must be; the run's folder."""
    options = replace(options, tasks=tuple(asked.rules.tasks), partition=asked.rules.partition, limit=None, resume=True)
    notes = example_notes(asked.tasks, asked.protocol)
    return answer_all(plan_evaluation(options, asked.tasks, asked.protocol, say, notes=notes), say, keeper).folder


def gate_candidates(
    candidates: Sequence[str],
    rules: GateFile,
    baseline: Path | None,
    options: EvalOptions,
    say: Say,
    *,
    aa: int = 0,
    where: str = "gates",
) -> list[Judged]:
    """A verdict for each candidate, in turn; arguments as for `Gatekeeper`. Raises MedbenchError for user errors."""
    if all((Path(name) / "run.json").exists() for name in candidates):
        return [gate_finished_run(Path(name), rules, baseline) for name in candidates]
    with Gatekeeper(rules, baseline, options, say, aa=aa, where=where) as keeper:
        return [keeper.judge(name) for name in candidates]


class Gatekeeper:
    """Tasks, gate file and one engine, kept for many checkpoints. Use as a context manager."""

    def __init__(
        self,
        rules: GateFile,
        baseline: Path | None,
        options: EvalOptions,
        say: Say,
        *,
        aa: int = 0,
        where: str = "gates",
    ) -> None:
        """`options` give engine, data, seed and runs folder; model, tasks and partition come from elsewhere.

        `aa` questions of each task are asked twice, for the noise floor. `where` opens messages about the rules.
        """
        from medbench.harness.benchmarks.catalog import TaskLoader

        self._options, self._aa = options, aa
        self._rules, self._baseline, self._say = rules, baseline, say
        loader = TaskLoader(self._options.data, say)
        refuse_unknown_tasks(rules, where, loader.names)
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
