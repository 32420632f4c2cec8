"""One evaluation, from names to a sealed run."""

from __future__ import annotations

from typing import Any

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.contracts import Engine, Say
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.evaluation.experts import EngineInTurns
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.plan import Plan, example_notes, open_evaluation, plan_evaluation, protocol_for
from medbench.harness.evaluation.progress import progress_for
from medbench.harness.evaluation.requests import instances_of
from medbench.harness.evaluation.runner import evaluate, refuse_foreign_answers, seal
from medbench.harness.runs.run_folder import Run, reopen_run, results_of, results_path
from medbench.harness.runs.stored_run import StoredRun


def evaluate_model(options: EvalOptions, say: Say) -> StoredRun:
    """Evaluate `options.model` and seal its run. Raises MedbenchError for a faulty request, before writing anything."""
    notes: list[str] = []

    def warn(line: str) -> None:
        notes.append(line)
        say(line)

    loader = TaskLoader(options.data, warn)
    tasks = [keep_partition(loader.load(name), options.partition) for name in options.tasks]
    protocol = protocol_for(tasks, options)
    for line in example_notes(tasks, protocol):
        warn(line)
    plan = plan_evaluation(options, tasks, protocol, (lambda _: None) if options.quiet else say, notes=notes)
    for line in plan.model.experts.notes if plan.model.experts is not None else ():
        say(line)
    return answer_all(plan, say)


def answer_all(plan: Plan, say: Say, keeper: EngineKeeper | None = None) -> StoredRun:
    """Ask everything that the plan asks and its run does not hold yet; no engine starts where nothing is missing."""
    limit = plan.options.limit
    if plan.begun and plan.options.resume:
        with reopen_run(plan.folder, plan.wanted) as run:
            if _is_covered(run, plan):
                if not all(results_path(run.folder, task.name).exists() for task in plan.tasks):
                    refuse_foreign_answers(run, plan.tasks)
                    seal(run, plan.tasks, plan.protocol)
                return StoredRun(run.folder, run.record, results_of(run.folder, plan.wanted.tasks))
    with open_evaluation(plan, say, keeper) as (run, engine), progress_for(quiet=plan.options.quiet) as progress:
        run.begin(limit=limit, status="running", **_served_otherwise(run, engine))
        results = evaluate(run, plan.tasks, plan.protocol, engine, limit=limit, progress=progress)
        return StoredRun(run.folder, run.record, results)


def _served_otherwise(run: Run, engine: Engine) -> dict[str, Any]:
    """Changes of run.json where its adapters are served in another way than in the session before."""
    record = run.record
    served = "merged" if isinstance(engine, EngineInTurns) else "lora"
    if record.model.experts is None or record.model.experts.served == served:
        return {}
    experts = record.model.experts.model_copy(update={"served": served})
    note = "adapters: some questions were answered beside the base, others by merged adapters"
    return {
        "model": record.model.model_copy(update={"experts": experts}),
        "notes": list(dict.fromkeys([*record.notes, note])),
    }


def _is_covered(run: Run, plan: Plan) -> bool:
    """Whether the run is sealed and holds every answer that the plan asks for."""
    if run.record.status != "complete":
        return False
    done = {task.name: run.done(task.name) for task in plan.tasks}
    limit = plan.options.limit
    return all(one.key in done[task.name] for task in plan.tasks for one in instances_of(task, run.record, limit))
