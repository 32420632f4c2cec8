"""One evaluation from names to a sealed run: the model is found, the tasks loaded, the run opened, the engine started.

python -c "from medbench.harness.evaluation.options import EvalOptions; ..."
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.benchmarks.option_order import can_shuffle
from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Checkpoint, Engine, MedbenchError, Say, Task
from medbench.harness.engines.fake import read_replies
from medbench.harness.engines.pool import EngineKeeper, describe_engine, start_engine
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.progress import progress_for
from medbench.harness.evaluation.requests import askings_of
from medbench.harness.evaluation.runner import evaluate
from medbench.harness.files import slug
from medbench.harness.protocols.protocol import DEFAULT, FOREIGN, Protocol, load_protocol
from medbench.harness.runs import provenance
from medbench.harness.runs.records import ModelRecord, RunRecord, TaskRecord
from medbench.harness.runs.run_folder import Run, create_run, reopen_run, results_of
from medbench.harness.scoring.summary import TaskResult


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished evaluation."""

    folder: Path
    record: RunRecord
    results: dict[str, TaskResult]

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.folder),
            **self.record.model_dump(mode="json", include={"run_id", "status", "model", "limit", "totals", "notes"}),
            "protocol": self.record.protocol["name"],
            "results": {name: result.model_dump(mode="json") for name, result in self.results.items()},
        }


def evaluate_model(options: EvalOptions, say: Say) -> Outcome:
    """Raises MedbenchError before anything is written if something of what was asked is wrong."""
    notes: list[str] = []

    def warn(line: str) -> None:
        notes.append(line)
        say(line)

    loader = TaskLoader(options.data, warn)
    tasks = [keep_partition(loader.load(name), options.partition) for name in options.tasks]
    protocol = protocol_for(tasks, options)
    for line in example_notes(tasks, protocol):
        warn(line)
    model = model_record(options, (lambda _: None) if options.quiet else say)
    wanted = new_record(options, model, tasks, protocol, notes)
    folder = options.runs / wanted.run_id
    if options.resume and (folder / "run.json").exists():
        with reopen_run(folder, wanted) as run:
            if _covered(run, tasks, options.limit):
                return Outcome(folder, run.record, results_of(folder, options.tasks))
            engine = start_engine(options.engine, options.model, checkpoint_of(model))
            run.update(limit=options.limit, status="running")
            return _answer(run, tasks, protocol, engine, options)
    if (folder / "run.json").exists():
        raise MedbenchError(f"{folder} exists already: add --resume to go on with it, or --name for a new run")
    engine = start_engine(options.engine, options.model, checkpoint_of(model))
    if protocol.chat == "auto" and engine.chat_template == "none" and engine.name != "fake":
        warn(f"{model.name} has no chat template: questions are asked as plain text")
    record = wanted.model_copy(update={"engine": describe_engine(engine), "notes": list(dict.fromkeys(notes))})
    with create_run(options.runs, record) as run:
        return _answer(run, tasks, protocol, engine, options)


def protocol_for(tasks: Sequence[Task], options: EvalOptions) -> Protocol:
    """lm-eval's own tasks run under the protocol `lm-eval`, ours under any other; a run has one protocol."""
    foreign = [task.name for task in tasks if task.foreign is not None]
    name = options.protocol or (FOREIGN if foreign else DEFAULT)
    if foreign and len(foreign) < len(tasks):
        ours = [task.name for task in tasks if task.foreign is None]
        raise MedbenchError(f"{', '.join(foreign)} are asked as lm-eval says, {', '.join(ours)} by a protocol of ours: "
                            f"evaluate them in two runs")  # fmt: skip
    if foreign and name != FOREIGN:
        raise MedbenchError(f"{', '.join(foreign)} can only be asked as lm-eval says: leave --protocol out")
    if name == FOREIGN and not foreign:
        raise MedbenchError(f"protocol {FOREIGN} is for lm-eval's own tasks: choose another for {tasks[0].name}")
    if foreign and options.shots is not None:
        raise MedbenchError("--shots: lm-eval's own tasks show the worked examples that their YAML names: leave it out")
    protocol = load_protocol(
        name,
        max_new_tokens=options.max_new_tokens,
        thinking=options.thinking,
        temperature=options.temperature,
        shots=options.shots,
    )
    _refuse_pointless(protocol, tasks, options)
    return protocol


def example_notes(tasks: Sequence[Task], protocol: Protocol) -> list[str]:
    """What a reader should know of the worked examples. Raises MedbenchError for a task that has too few."""
    notes = []
    for task in tasks:
        if not protocol.shots or task.foreign is not None:
            continue
        if task.examples is None:
            raise MedbenchError(f"{task.name} has no worked examples, which protocol {protocol.name} shows: --shots 0")
        task.examples.draw(task.questions[0].id, protocol.shots)
        if task.examples.note:
            notes.append(task.examples.note)
    return notes


def _refuse_pointless(protocol: Protocol, tasks: Sequence[Task], options: EvalOptions) -> None:
    """Raises MedbenchError for repeats that could not differ, and for a continuation that an engine cannot give."""
    sampled = protocol.method == "generate" and protocol.decoding.temperature > 0
    if options.samples > 1 and not sampled and options.engine.name != "fake":
        raise MedbenchError(f"--samples {options.samples}: protocol {protocol.name} is not sampled, all replies would "
                            f"be equal: add --temperature 0.7")  # fmt: skip
    if options.samples > 1 and any(task.foreign is not None for task in tasks):
        raise MedbenchError("--samples: lm-eval's own tasks are asked as their YAML says, once")
    if options.shuffle_options:
        fixed = [task.name for task in tasks if task.foreign is not None or not any(map(can_shuffle, task.questions))]
        if fixed:
            raise MedbenchError(f"--shuffle-options: {', '.join(fixed)} has no lettered options: leave it out")
    if protocol.continuation is not None and options.engine.name == "openai":
        raise MedbenchError(f"protocol {protocol.name} goes on with cut-off replies, which a chat server cannot: use "
                            f"--engine vllm or hf")  # fmt: skip


def _answer(run: Run, tasks: Sequence[Task], protocol: Protocol, engine: Engine, options: EvalOptions) -> Outcome:
    try:
        with progress_for(quiet=options.quiet) as progress:
            results = evaluate(run, tasks, protocol, engine, limit=options.limit, progress=progress)
    finally:
        engine.close()
    return Outcome(run.folder, run.record, results)


def _covered(run: Run, tasks: Sequence[Task], limit: int | None) -> bool:
    """Whether the sealed run holds every answer that is asked for."""
    if run.record.status != "complete":
        return False
    done = {task.name: run.done(task.name) for task in tasks}
    return all(one.key in done[task.name] for task in tasks for one in askings_of(task, run.record, limit))


def model_record(options: EvalOptions, say: Say) -> ModelRecord:
    """Who answers. Raises MedbenchError for a checkpoint that cannot be used."""
    if options.engine.name == "fake":
        assert options.engine.replies is not None
        return ModelRecord(name=options.model, kind="replies", fingerprint=read_replies(options.engine.replies)[1])
    if options.engine.name == "openai":
        # the weights behind a server cannot be seen: its address and model name stand for them
        identity = hashlib.sha256(f"{options.engine.base_url} {options.model}".encode()).hexdigest()
        return ModelRecord(name=options.model, kind="served", fingerprint=identity)
    return ModelRecord(**asdict(resolve(options.model, say)))


def checkpoint_of(model: ModelRecord) -> Checkpoint | None:
    """The checkpoint behind `model`; None for a server and for stored replies."""
    return Checkpoint(**model.model_dump()) if model.path is not None else None


def new_record(
    options: EvalOptions, model: ModelRecord, tasks: Sequence[Task], protocol: Protocol, notes: list[str]
) -> RunRecord:
    """run.json of an evaluation that has not begun; its name follows from what makes it one run."""
    described = {
        task.name: TaskRecord(
            version=task.version,
            split=task.split,
            n=len(task.questions),
            examples=task.examples.sha256 if task.examples and protocol.shots else None,
            **asdict(task.data),
        )
        for task in tasks
    }
    resolved = protocol.model_dump(mode="json")
    identity = [model.fingerprint, model.tokenizer_sha256, resolved, options.seed, options.partition,
                options.samples, options.shuffle_options,
                {name: (task.sha256, task.examples) for name, task in described.items()}]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return RunRecord(
        run_id=options.name or f"{slug(model.name)}-{slug(protocol.name)}-{digest[:6]}",
        status="running",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=sys.argv,
        model=model,
        tasks=described,
        protocol=resolved,
        seed=options.seed,
        partition=options.partition,
        limit=options.limit,
        samples=options.samples,
        shuffle_options=options.shuffle_options,
        engine={"name": options.engine.name},
        packages=provenance.packages(),
        git_commit=provenance.git_commit(),
        notes=notes,
    )


@contextmanager
def opened_run(
    options: EvalOptions, model: ModelRecord, wanted: RunRecord, keeper: EngineKeeper
) -> Iterator[tuple[Run, Engine]]:
    """The run of `wanted`, new or as it was left, and the engine with `model` in it."""
    engine = keeper.serve(options.engine, options.model, checkpoint_of(model))
    folder = options.runs / wanted.run_id
    if (folder / "run.json").exists():
        run = reopen_run(folder, wanted)
    else:
        run = create_run(options.runs, wanted.model_copy(update={"engine": describe_engine(engine)}))
    with run:
        yield run, engine
