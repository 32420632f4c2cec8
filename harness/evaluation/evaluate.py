"""One evaluation from names to a finished run: the tasks loaded, the run opened, the engine started.

python -c "import medbench; print(medbench.evaluate('smollm2-135m', data='sample', limit=8))"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.contracts import Checkpoint, Engine, MedbenchError, Say, Task
from medbench.harness.engines.pool import describe_engine, start_engine
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.plan import Plan, example_notes, plan_evaluation, protocol_for
from medbench.harness.evaluation.progress import progress_for
from medbench.harness.evaluation.requests import askings_of
from medbench.harness.evaluation.runner import evaluate
from medbench.harness.runs.run_folder import Run, create_run, reopen_run, results_of
from medbench.harness.runs.stored_run import StoredRun

StartEngine = Callable[[EngineChoice, str, Checkpoint | None], Engine]


def evaluate_model(options: EvalOptions, say: Say) -> StoredRun:
    """Ask everything and keep everything. Raises MedbenchError before anything is written if the request is wrong."""
    notes: list[str] = []

    def warn(line: str) -> None:
        notes.append(line)
        say(line)

    loader = TaskLoader(options.data, warn)
    tasks = [keep_partition(loader.load(name), options.partition) for name in options.tasks]
    protocol = protocol_for(tasks, options)
    for line in example_notes(tasks, protocol):
        say(line)
    plan = plan_evaluation(options, tasks, protocol, (lambda _: None) if options.quiet else say, notes)
    if (plan.folder / "run.json").exists():
        if not options.resume:
            raise MedbenchError(f"{plan.folder} exists already: add --resume to continue it, or --name for a new run")
        with reopen_run(plan.folder, plan.record) as run:
            if _covered(run, tasks, options.limit):
                return StoredRun(plan.folder, run.record, results_of(plan.folder, options.tasks))
    with open_evaluation(plan, start_engine, say) as (run, engine):
        if (run.record.limit, run.record.status) != (options.limit, "running"):
            run.update(limit=options.limit, status="running")
        try:
            with progress_for(quiet=options.quiet) as progress:
                results = evaluate(run, tasks, protocol, engine, limit=options.limit, progress=progress)
        finally:
            engine.close()
    return StoredRun(run.folder, run.record, results)


@contextmanager
def open_evaluation(plan: Plan, start: StartEngine, say: Say) -> Iterator[tuple[Run, Engine]]:
    """The plan's run, new or as it was left, and the engine that `start` gives for the plan's model."""
    options = plan.options
    if (plan.folder / "run.json").exists():
        with reopen_run(plan.folder, plan.record) as run:
            engine = start(options.engine, options.model, plan.checkpoint)
            yield run, engine
        return
    engine = start(options.engine, options.model, plan.checkpoint)
    notes = plan.record.notes
    if plan.protocol.chat == "auto" and engine.chat_template == "none" and options.engine.replies is None:
        say(line := f"{options.model} has no chat template: questions are asked as plain text")
        notes = [*notes, line]
    changes = {"engine": describe_engine(engine), "notes": list(dict.fromkeys(notes))}
    with create_run(options.runs, plan.record.model_copy(update=changes)) as run:
        yield run, engine


def _covered(run: Run, tasks: Sequence[Task], limit: int | None) -> bool:
    """Whether the sealed run holds every answer that is asked for."""
    if run.record.status != "complete":
        return False
    done = {task.name: run.done(task.name) for task in tasks}
    return all(one.key in done[task.name] for task in tasks for one in askings_of(task, run.record, limit))
