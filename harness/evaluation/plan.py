"""The plan of an evaluation, and the one way to open the run and the engine that carry it out.

    with open_evaluation(plan_evaluation(options, tasks, protocol, say), say) as (run, engine): ...

Everything that can be wrong with a request is found while planning, before an engine starts or a file is written.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from medbench.harness.benchmarks.option_order import can_shuffle
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Checkpoint, Engine, MedbenchError, Say, Task
from medbench.harness.engines.plugins import check_choice, takes_checkpoint
from medbench.harness.engines.pool import EngineKeeper, describe_engine, opened_engine, start_engine
from medbench.harness.engines.served_swap import StaleServer
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.engines.stored_replies import check_replies
from medbench.harness.engines.vllm import AdapterNotServed
from medbench.harness.evaluation.experts import (
    EngineInTurns,
    Experts,
    find_experts,
    refuse_adapters,
    refuse_unknown_targets,
)
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.question_order import order_seed
from medbench.harness.files import slug
from medbench.harness.protocols.protocol import DEFAULT, FOREIGN, OPEN, Protocol, load_protocol
from medbench.harness.runs import provenance
from medbench.harness.runs.records import ModelRecord, RunRecord, TaskRecord
from medbench.harness.runs.run_folder import Run, create_run, is_run, refuse_existing, reopen_run
from medbench.harness.secrets import redacted_command, without_credentials

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Model:
    """The model that answers."""

    record: ModelRecord
    checkpoint: Checkpoint | None = None
    """Its weights on disk; None for a server and for stored replies."""
    experts: Experts | None = None
    """The adapters on `checkpoint` that answer for it; None where it answers itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An evaluation that has not begun."""

    options: EvalOptions
    tasks: tuple[Task, ...]
    protocol: Protocol
    model: Model
    wanted: RunRecord
    """run.json as it would be written now. Its run_id depends only on what makes two evaluations the same run."""

    @property
    def folder(self) -> Path:
        return self.options.runs / self.wanted.run_id

    @property
    def begun(self) -> bool:
        """Whether the run's folder exists."""
        return is_run(self.folder)

    def with_notes(self, *lines: str) -> Plan:
        """Add lines to run.json's notes; duplicates are dropped."""
        notes = list(dict.fromkeys([*self.wanted.notes, *lines]))
        return replace(self, wanted=self.wanted.model_copy(update={"notes": notes}))


def plan_evaluation(
    options: EvalOptions,
    tasks: Sequence[Task],
    protocol: Protocol,
    say: Say,
    *,
    model: Model | None = None,
    notes: Sequence[str] = (),
    clock: Clock = utc_now,
) -> Plan:
    """Find the model (unless `model` is given) and describe the run; `notes` go to run.json.

    Raises MedbenchError for a model that cannot be used, see `find_model`.
    """
    model = model or (_experts(options, tasks, say) if options.adapters else None)
    model = model or find_model(options.engine, options.model, say)
    wanted = _new_record(options, model.record, tasks, protocol, clock)
    told = model.experts.notes if model.experts is not None else ()
    return Plan(options, tuple(tasks), protocol, model, wanted).with_notes(*notes, *told)


@contextmanager
def open_evaluation(plan: Plan, say: Say, keeper: EngineKeeper | None = None) -> Iterator[tuple[Run, Engine]]:
    """The run of `plan`, new or as it was left, and an engine that serves its model: `keeper`'s, or one of its own.

    An existing run is compared with the plan before the engine starts; a new one is written after the engine has
    started, so that a failed start leaves no folder. Raises MedbenchError where the run exists and options.resume is
    off, or where it is another run. On StaleServer the run is left as it was before.
    """
    if plan.begun:
        if not plan.options.resume:
            refuse_existing(plan.folder)
        with (
            reopen_run(plan.folder, plan.wanted) as run,
            _engine_of(plan, say, keeper) as (_, engine),
            _of_this_model_only(run),
        ):
            yield run, engine
        return
    with _engine_of(plan, say, keeper) as (plan, engine):
        if _is_untemplated(plan, engine):
            note = f"{plan.model.record.name} has no chat template: questions are asked as plain text"
            say(note)
            plan = plan.with_notes(note)
        order = plan.options.order_seed or order_seed(plan.options.runs, plan.model.record)
        record = plan.wanted.model_copy(update={"engine": describe_engine(engine), "order_seed": order})
        with create_run(plan.options.runs, record) as run, _of_this_model_only(run):
            yield run, engine


@contextmanager
def _engine_of(plan: Plan, say: Say, keeper: EngineKeeper | None) -> Iterator[tuple[Plan, Engine]]:
    """The engine that answers; and the plan, another one where vLLM refuses to serve an adapter beside its base."""
    choice, name, experts = plan.options.engine, plan.options.model, plan.model.experts
    if experts is None:
        with opened_engine(choice, name, plan.model.checkpoint, keeper) as engine:
            yield plan, engine
        return
    if experts.merged is None:
        try:
            engine = start_engine(experts.choice(choice), name, experts.base)
        except AdapterNotServed as refusal:
            experts = experts.in_turns(str(refusal), say)
            say(experts.notes[-1])
            wanted = plan.wanted.model_copy(update={"model": experts.record()})
            plan = replace(plan, model=replace(plan.model, record=wanted.model, experts=experts), wanted=wanted)
            plan = plan.with_notes(*experts.notes)
        else:
            try:
                yield plan, engine
            finally:
                engine.close()
            return
    in_turns = EngineInTurns(experts, experts.choice(choice), say)
    try:
        yield plan, cast(Engine, in_turns)
    finally:
        in_turns.close()


@contextmanager
def _of_this_model_only(run: Run) -> Iterator[None]:
    """Take back what the run was given in the `with` block, if the server turns out to have other weights."""
    try:
        yield
    except StaleServer:
        run.withdraw()
        raise


def _is_untemplated(plan: Plan, engine: Engine) -> bool:
    """Whether the protocol would use a chat template and the model has none. Stored replies have had their prompt."""
    replies = plan.model.record.kind == "replies"
    return plan.protocol.chat == "auto" and engine.chat_template == "none" and not replies


def _experts(options: EvalOptions, tasks: Sequence[Task], say: Say) -> Model:
    """Raises MedbenchError for adapters that cannot be used, and for an engine that takes none."""
    adapters = dict(options.adapters)
    check_choice(options.engine)
    refuse_adapters(options.engine)
    refuse_unknown_targets(adapters, tasks)
    base = find_model(options.engine, options.model, say).checkpoint
    assert base is not None
    experts = find_experts(adapters, base, options.engine, say)
    answered = {target.partition("/")[0] for target in adapters}
    if others := [task.name for task in tasks if task.name not in answered]:
        note = f"{', '.join(others)}: no adapter: answered by {options.model} itself"
        experts = replace(experts, notes=(*experts.notes, note))
    return Model(experts.record(), base, experts)


def find_model(choice: EngineChoice, name: str, say: Say) -> Model:
    """The model called `name`. Raises MedbenchError for a checkpoint or a file of replies that cannot be used."""
    if choice.instance is not None:
        own = getattr(choice.instance, "fingerprint", None)
        fingerprint = own if isinstance(own, str) else _sha256(f"{choice.name} {name}")
        return Model(ModelRecord(name=name, kind="engine", fingerprint=fingerprint))
    check_choice(choice)
    if takes_checkpoint(choice):
        checkpoint = resolve(name, say, base=choice.config.base)
        return Model(ModelRecord(**asdict(checkpoint)), checkpoint)
    if choice.config.base is not None:
        raise MedbenchError(f"--base: engine {choice.name} loads no adapter: leave it out")
    if choice.replies is not None:
        return Model(ModelRecord(name=name, kind="replies", fingerprint=check_replies(choice.replies).sha256))
    # the weights cannot be seen: the server's address, or the engine's name, and the model's name stand for them
    if choice.base_url is not None:
        address = without_credentials(choice.base_url)
        return Model(ModelRecord(name=name, kind="served", fingerprint=_sha256(f"{address} {name}")))
    return Model(ModelRecord(name=name, kind="engine", fingerprint=_sha256(f"{choice.name} {name}")))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def protocol_for(tasks: Sequence[Task], options: EvalOptions) -> Protocol:
    """The run's one protocol: `lm-eval` for lm-eval's own tasks, an open one for tasks without options, any other for
    the rest of medbench's.

    Raises MedbenchError for a mixture of these, and for options that the protocol or the tasks cannot honour.
    """
    foreign = [task.name for task in tasks if task.foreign is not None]
    name = options.protocol or (FOREIGN if foreign else default_protocol(tasks))
    if foreign and len(foreign) < len(tasks):
        own = [task.name for task in tasks if task.foreign is None]
        raise MedbenchError(
            f"{', '.join(foreign)}: asked by lm-eval's rules; {', '.join(own)}: asked by a medbench protocol; "
            f"evaluate them in two runs"
        )
    if foreign and name != FOREIGN:
        raise MedbenchError(f"{', '.join(foreign)}: can only be asked by lm-eval's rules: leave --protocol out")
    if name == FOREIGN and not foreign:
        raise MedbenchError(f"protocol {FOREIGN} is for lm-eval's own tasks: choose another for {tasks[0].name}")
    if foreign and options.shots is not None:
        raise MedbenchError("--shots: lm-eval's own tasks use the few-shot examples of their YAML: leave it out")
    protocol = load_protocol(
        name,
        max_new_tokens=options.max_new_tokens,
        thinking_tokens=options.thinking_tokens,
        thinking=options.thinking,
        temperature=options.temperature,
        shots=options.shots,
    )
    if not foreign:
        refuse_unfit(protocol, tasks)
    _refuse_pointless(protocol, tasks, options)
    return protocol


def default_protocol(tasks: Sequence[Task]) -> str:
    """The protocol of medbench's own `tasks` where none is named."""
    return OPEN if any(map(_is_open, tasks)) else DEFAULT


def refuse_unfit(protocol: Protocol, tasks: Sequence[Task]) -> None:
    """Raises MedbenchError for a protocol that asks for an option where tasks have none, and the other way round."""
    without = [task.name for task in tasks if _is_open(task)]
    options = [task.name for task in tasks if not _is_open(task)]
    if without and options:
        raise MedbenchError(
            f"{', '.join(without)} asks for a quantity, {', '.join(options)} for an option: evaluate them in two runs"
        )
    if without and not protocol.is_open:
        raise MedbenchError(
            f"{', '.join(without)}: no options, which protocol {protocol.name} asks for: use protocol {OPEN}"
        )
    if options and protocol.is_open:
        raise MedbenchError(f"protocol {protocol.name} is for tasks without options: choose another for {options[0]}")


def _is_open(task: Task) -> bool:
    return task.foreign is None and not all(question.labels for question in task.questions)


def example_notes(tasks: Sequence[Task], protocol: Protocol) -> list[str]:
    """Notes on the source of the few-shot examples. Raises MedbenchError for a task with too few of them."""
    notes = []
    for task in tasks:
        if not protocol.shots or task.foreign is not None:
            continue
        if task.examples is None:
            raise MedbenchError(
                f"{task.name} has no few-shot examples, which protocol {protocol.name} needs: add --shots 0"
            )
        task.examples.draw(task.questions[0].id, protocol.shots)
        if task.examples.note:
            notes.append(task.examples.note)
    return notes


def _refuse_pointless(protocol: Protocol, tasks: Sequence[Task], options: EvalOptions) -> None:
    """Raises MedbenchError for repeats that could not differ, and for a continuation that the engine cannot do."""
    refuse_equal_samples(options.samples, protocol, tasks, options.engine.name, where="--samples")
    if options.shuffle_options:
        fixed = [task.name for task in tasks if task.foreign is not None or not any(map(can_shuffle, task.questions))]
        if fixed:
            raise MedbenchError(f"--shuffle-options: {', '.join(fixed)}: no lettered options: leave it out")
    refuse_continuation(protocol, options.engine)


def refuse_continuation(protocol: Protocol, engine: EngineChoice) -> None:
    """Raises MedbenchError for a protocol that continues replies, where the engine cannot."""
    templates = getattr(engine.instance, "chat_template", None)
    chats = engine.name == "openai" and not engine.swap  # a swapped server gets the whole prompt's tokens
    if protocol.continues and (chats or templates == "server"):
        raise MedbenchError(
            f"protocol {protocol.name} continues truncated replies, which a chat server cannot do: "
            f"use --engine vllm or hf"
        )


def refuse_equal_samples(samples: int, protocol: Protocol, tasks: Sequence[Task], engine: str, *, where: str) -> None:
    """Raises MedbenchError for several samples a question where they could not differ; `where`: the user's word."""
    if samples > 1 and not protocol.is_sampled and engine != "fake":
        raise MedbenchError(
            f"{where} {samples}: protocol {protocol.name} decodes greedily, so all replies would be equal: "
            f"set a temperature, e.g. 0.7"
        )
    if samples > 1 and any(task.foreign is not None for task in tasks):
        raise MedbenchError(f"{where}: lm-eval's own tasks are asked once, as their YAML says: leave it out")


def _new_record(
    options: EvalOptions,
    model: ModelRecord,
    tasks: Sequence[Task],
    protocol: Protocol,
    clock: Clock,
) -> RunRecord:
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
    identity = [
        model.fingerprint,
        model.tokenizer_sha256,
        *([model.config_sha256] if model.config_sha256 is not None else []),
        resolved,
        options.seed,
        options.partition,
        options.samples,
        options.shuffle_options,
        {name: (task.sha256, task.examples) for name, task in described.items()},
    ]
    digest = _sha256(json.dumps(identity, sort_keys=True))
    return RunRecord(
        run_id=options.name or f"{slug(model.name)}-{slug(protocol.name)}-{digest[:6]}",
        status="running",
        created=clock().isoformat(timespec="seconds"),
        command=redacted_command(sys.argv),
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
    )
