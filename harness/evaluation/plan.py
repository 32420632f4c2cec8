"""What an evaluation will ask of whom, settled before an engine starts."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from medbench.harness.benchmarks.option_order import can_shuffle
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Checkpoint, MedbenchError, Say, Task
from medbench.harness.engines.fake import read_replies
from medbench.harness.engines.pool import asks_checkpoint
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.files import slug
from medbench.harness.protocols.protocol import DEFAULT, FOREIGN, Protocol, load_protocol
from medbench.harness.runs import provenance
from medbench.harness.runs.records import ModelRecord, RunRecord, TaskRecord


@dataclass(frozen=True, slots=True)
class Plan:
    """One evaluation: everything that is known before the first question is asked."""

    options: EvalOptions
    tasks: Sequence[Task]
    protocol: Protocol
    checkpoint: Checkpoint | None
    """None where the weights are not on disk: a server, stored replies, an engine of the caller's."""
    record: RunRecord
    """run.json as a new run would begin with it."""

    @property
    def folder(self) -> Path:
        return self.options.runs / self.record.run_id


def plan_evaluation(
    options: EvalOptions, tasks: Sequence[Task], protocol: Protocol, say: Say, notes: Sequence[str] = ()
) -> Plan:
    """Raises MedbenchError for a model that cannot be used and for a task that lacks few-shot examples."""
    model, checkpoint = identify(options, say)
    notes = [*notes, *example_notes(tasks, protocol)]
    return Plan(options, tasks, protocol, checkpoint, new_record(options, model, tasks, protocol, notes))


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


def identify(options: EvalOptions, say: Say) -> tuple[ModelRecord, Checkpoint | None]:
    """Who answers. Raises MedbenchError for a checkpoint that cannot be used."""
    engine, name = options.engine, options.model
    if engine.replies is not None:
        return ModelRecord(name=name, kind="replies", fingerprint=read_replies(engine.replies)[1]), None
    if engine.base_url is not None:
        # the weights behind a server cannot be seen: its address and model name stand for them
        return ModelRecord(name=name, kind="served", fingerprint=_sha256(f"{engine.base_url} {name}")), None
    if engine.ready is not None or not asks_checkpoint(engine.name, name):
        fingerprint = getattr(engine.ready, "fingerprint", None) or _sha256(f"engine {engine.name} {name}")
        return ModelRecord(name=name, kind="engine", fingerprint=fingerprint), None
    checkpoint = resolve(name, say)
    return ModelRecord(**asdict(checkpoint)), checkpoint


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
