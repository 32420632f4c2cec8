"""Checkpoints evaluated only as far as their verdicts need, in one engine that is kept from one to the next.

    rules = GateFile(gates=[Gate("medqa", at_least=0.6)])
    with Gatekeeper(rules, None, EvalOptions(""), print) as keeper:
        print(keeper.judge("checkpoints/step-800").verdict.why)

Used by `medbench gate`, `medbench watch` and the training loop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.checkpoints.weights import refuse_nan
from medbench.harness.contracts import BrokenCheckpoint, Engine, Say, Task
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.evaluation.evaluate import answer_all
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.plan import (
    example_notes,
    find_model,
    open_evaluation,
    plan_evaluation,
    refuse_continuation,
    refuse_equal_samples,
    refuse_unfit,
)
from medbench.harness.evaluation.progress import progress_for
from medbench.harness.evaluation.repeatability import measure
from medbench.harness.gates.baseline import costs_beside, read_baseline, read_controls, refuse_other_answers, weights_of
from medbench.harness.gates.finished_run import gate_finished_run, protocol_of, samples_of
from medbench.harness.gates.ledger import Ledger
from medbench.harness.gates.live_gate import LiveGate, verdict_of
from medbench.harness.gates.rules import GateFile, refuse_judged, refuse_unknown_tasks
from medbench.harness.gates.run_gate import run_gate
from medbench.harness.gates.token_limits import NO_LIMITS, limits_for
from medbench.harness.gates.verdict import Judged, invalid_checkpoint, written
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.comparability import refuse_shuffled
from medbench.harness.runs.run_folder import is_run


@dataclass(frozen=True, slots=True)
class Asked:
    """What a checkpoint is asked, and the rules it is judged by."""

    rules: GateFile
    tasks: Sequence[Task]
    """The rules' tasks, with only the questions of the rules' partition."""
    protocol: Protocol
    samples: int = 1
    """Replies to each question, of which the mean is judged."""
    baseline: Path | None = None
    aa: int = 0
    """Questions per task that are asked twice, for what repeats alone change."""
    alpha_fail: float | None = None
    """Chance of a wrong fail; None is the rules' alpha."""
    ledger: Ledger | None = None
    """Which part of alpha each checkpoint may spend on a wrong pass; None: all of it."""


def judge_checkpoint(options: EvalOptions, asked: Asked, keeper: EngineKeeper, say: Say) -> Judged:
    """Evaluate `options.model` as far as the verdict needs. Questions that its run has answers to are not asked again.

    A checkpoint folder whose files are broken fails; raises MedbenchError for any other fault.
    """
    started = time.monotonic()
    try:
        judged = _judge(options, asked, keeper, say)
    except BrokenCheckpoint as error:
        return invalid_checkpoint(options.model, asked.rules, str(error))
    return replace(judged, seconds=time.monotonic() - started)


def _judge(options: EvalOptions, asked: Asked, keeper: EngineKeeper, say: Say) -> Judged:
    rules, tasks, protocol = asked.rules, asked.tasks, asked.protocol
    options = replace(options, tasks=tuple(rules.tasks), partition=rules.partition, samples=asked.samples, resume=True)
    model = find_model(options.engine, options.model, say)
    if model.checkpoint is not None:
        refuse_nan(Path(model.checkpoint.path))
    plan = plan_evaluation(options, tasks, protocol, say, model=model, notes=example_notes(tasks, protocol))
    wanted = plan.wanted
    refuse_shuffled(wanted)
    ids = {task.name: [question.id for question in task.questions] for task in tasks}
    reference = read_baseline(asked.baseline, wanted, ids)
    if reference is not None:
        refuse_other_answers(tasks, reference.samples)
    # refuses rules that do not fit, before an engine starts
    LiveGate(rules, tasks, wanted.seed, reference, samples=asked.samples)
    if (moved := model.record.merge_deviation) is not None:
        say(f"{options.model}: the merge moved log-probabilities by at most {moved:.2g} nats")
    with open_evaluation(plan, say, keeper) as (run, engine), progress_for(quiet=options.quiet) as progress:
        noise = {
            task.name: measure(task, protocol, engine, questions=asked.aa, seed=wanted.seed)
            for task in (tasks if asked.aa else ())
        }
        seed = options.seed if protocol.is_sampled else None
        entry = asked.ledger.enter(model.record, seed) if asked.ledger is not None else None
        if entry is not None:
            say(f"{options.model}: {entry.described(rules)}")
        # stopped runs only beside an order of the checkpoint's own, which medbench 0.1.0 did not have
        partial = run.record.order_seed is not None
        gate = LiveGate(
            rules.model_copy(update={"alpha": entry.alpha}) if entry is not None else rules,
            tasks,
            run.record.order,
            reference,
            read_controls(options.runs, run.record, asked.baseline, rules.tasks, partial=partial),
            unit=float(protocol.most_tokens),
            alpha_fail=asked.alpha_fail or rules.alpha,
            samples=asked.samples,
            limits=limits_for(protocol) if _stops_early(rules, engine) else NO_LIMITS,
        )
        results = run_gate(gate, run, protocol, engine, progress)
        verdict = verdict_of(gate, results, run.record, noise, number=entry.number if entry is not None else None)
        if asked.ledger is not None and entry is not None and verdict.overall == "pass":
            asked.ledger.passed(entry)
        costs = costs_beside(asked.baseline, reference, run.folder, run.record)
        return written(verdict.model_copy(update={"costs": costs}), run.folder, rules, weights_of(reference))


def _stops_early(rules: GateFile, engine: Engine) -> bool:
    """Whether a verdict may come before long replies end."""
    return rules.decide_after == "evidence" and getattr(engine, "reports_milestones", False)


def answer_whole(options: EvalOptions, asked: Asked, keeper: EngineKeeper, say: Say) -> Path:
    """Ask `options.model` every question, which a baseline needs, and return the run folder."""
    options = replace(
        options,
        tasks=tuple(asked.rules.tasks),
        partition=asked.rules.partition,
        limit=None,
        samples=asked.samples,
        resume=True,
    )
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
    fresh_ledger: str | None = None,
) -> list[Judged]:
    """One verdict per candidate, in order; arguments as for `Gatekeeper`. Raises MedbenchError for user errors."""
    if all(is_run(name) for name in candidates):
        return [gate_finished_run(Path(name), rules, baseline) for name in candidates]
    with Gatekeeper(rules, baseline, options, say, aa=aa, fresh_ledger=fresh_ledger) as keeper:
        return [keeper.judge(name) for name in candidates]


class Gatekeeper:
    """Rules, their tasks and one engine, kept for many checkpoints. Use as a context manager."""

    def __init__(
        self,
        rules: GateFile,
        baseline: Path | None,
        options: EvalOptions,
        say: Say,
        *,
        aa: int = 0,
        fresh_ledger: str | None = None,
    ) -> None:
        """`options` give engine, data, seed and runs folder; their model, tasks and partition are ignored.

        `baseline` is a finished run's folder. `aa` questions per task are asked twice, for what repeats alone change.
        `fresh_ledger`: why the ledger of these rules counts checkpoints from 1 again, see gates.ledger.
        Raises MedbenchError for a task that is unknown or not available.
        """
        from medbench.harness.benchmarks.catalog import TaskLoader

        loader = TaskLoader(options.data, say)
        refuse_unknown_tasks(rules, loader.names)
        refuse_judged(rules)
        self._rules, self._baseline, self._options, self._say, self._aa = rules, baseline, options, say, aa
        self._tasks = [keep_partition(loader.load(name), rules.partition) for name in rules.tasks]
        self._protocol, self._samples = protocol_of(rules, baseline, self._tasks), samples_of(rules, baseline)
        refuse_unfit(self._protocol, self._tasks)
        refuse_equal_samples(self._samples, self._protocol, self._tasks, options.engine.name, where="samples")
        refuse_continuation(self._protocol, options.engine)
        self._keeper = EngineKeeper(say)
        self._ledger = Ledger(options.runs, rules, baseline)
        if fresh_ledger is not None:
            self._ledger.start_afresh(fresh_ledger)

    def judge(self, name: str) -> Judged:
        """Judge a model or checkpoint, which is evaluated only as far as the verdict needs, or a finished run's folder.

        A checkpoint folder whose files are broken fails; raises MedbenchError for any other fault.
        """
        if is_run(name):
            return gate_finished_run(Path(name), self._rules, self._baseline)
        options = replace(self._options, model=name, limit=None)
        asked = Asked(
            self._rules,
            self._tasks,
            self._protocol,
            self._samples,
            baseline=self._baseline,
            aa=self._aa,
            ledger=self._ledger,
        )
        return judge_checkpoint(options, asked, self._keeper, self._say)

    def drop_engine(self) -> None:
        """Close the engine, of which nothing is known after a fault; the next checkpoint gets a new one."""
        self._keeper.close()

    @property
    def about(self) -> dict[str, Any]:
        """What the verdicts are about, for people: gate file, gates in words, and the baseline's run."""
        baseline = None if self._baseline is None else self._baseline.name
        return {
            "gate_file": self._rules.file_name or "gates",
            "gates": [gate.rule for gate in self._rules.gates],
            "baseline": baseline,
            "rules": self.key,
        }

    @property
    def key(self) -> str:
        """See `GateFile.key`; verdicts with another one answer another question."""
        return self._ledger.key

    def __enter__(self) -> Gatekeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.close()
