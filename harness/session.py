"""One evaluation from names to a sealed run: the model is found, the tasks loaded, the run opened, the engine started.

python -c "from medbench.harness.session import EvalOptions; ..."
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medbench.harness import provenance
from medbench.harness.checkpoints import resolve
from medbench.harness.config import EngineConfig, EvalConfig, read_yaml
from medbench.harness.contracts import Engine, MedbenchError, Task
from medbench.harness.data import keep_partition
from medbench.harness.engines.fake import FakeEngine, read_replies
from medbench.harness.evaluate import askings_of, evaluate
from medbench.harness.installing import needed
from medbench.harness.progress import progress_for
from medbench.harness.protocol import DEFAULT, FOREIGN, Protocol, load_protocol
from medbench.harness.scoring import TaskResult
from medbench.harness.shuffling import can_shuffle
from medbench.harness.store import (
    ModelRecord,
    Run,
    RunRecord,
    TaskRecord,
    create_run,
    reopen_run,
    results_of,
    slug,
)
from medbench.harness.task_loader import TaskLoader

Say = Callable[[str], None]
DEFAULT_TASKS = ("medqa", "mmlu_pro_medical", "pubmedqa")


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What `medbench eval` was asked, config file and command line joined."""

    model: str
    tasks: tuple[str, ...] = DEFAULT_TASKS
    protocol: str | None = None
    engine: str = "vllm"
    base_url: str | None = None
    replies: Path | None = None
    data: str | None = None
    partition: str = "all"
    limit: int | None = None
    max_new_tokens: int | None = None
    thinking: bool | None = None
    temperature: float | None = None
    shots: int | None = None
    samples: int = 1
    shuffle_options: int = 0
    runs: Path = Path("runs")
    name: str | None = None
    seed: int = 0
    resume: bool = False
    quiet: bool = False
    engine_config: EngineConfig = field(default_factory=EngineConfig)


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


def options_of(given: Mapping[str, Any]) -> EvalOptions:
    """The command line's options over the config file's over the defaults."""
    config = read_yaml(given["config_file"], EvalConfig) if given["config_file"] else EvalConfig()

    def chosen(key: str) -> Any:
        return given[key] if given[key] is not None else getattr(config, key, None)

    tasks = given["tasks"].split(",") if given["tasks"] is not None else config.tasks
    names = tuple(dict.fromkeys(task.strip() for task in tasks if task.strip())) if tasks is not None else DEFAULT_TASKS
    if not names:
        raise MedbenchError("--tasks names no task: give one or more, separated by commas")
    refuse_bad_name(given["name"])
    base_url, replies = chosen("base_url"), given["replies"]
    engine = chosen("engine") or ("openai" if base_url else "fake" if replies else "vllm")
    if (engine == "openai") != (base_url is not None):
        raise MedbenchError("--engine openai and --base-url belong together: give both, or neither")
    if (engine == "fake") != (replies is not None):
        raise MedbenchError("--engine fake and --replies belong together: give both, or neither")
    samples, shuffles = chosen("samples") or 1, chosen("shuffle_options") or 0
    if samples > 1 and shuffles:
        raise MedbenchError("--samples and --shuffle-options are two measurements: make two runs")
    return EvalOptions(
        model=given["model"],
        tasks=names,
        protocol=chosen("protocol"),
        engine=engine,
        base_url=base_url,
        replies=replies,
        data=given["data"],
        partition=given["partition"],
        limit=chosen("limit"),
        max_new_tokens=chosen("max_new_tokens"),
        thinking=chosen("thinking"),
        temperature=chosen("temperature"),
        shots=chosen("shots"),
        samples=samples,
        shuffle_options=shuffles,
        runs=given["runs"],
        name=given["name"],
        seed=chosen("seed") or 0,
        resume=given["resume"],
        quiet=given["quiet"],
        engine_config=config.engine_config,
    )


def refuse_bad_name(name: str | None) -> None:
    """Raises MedbenchError for what is no name of a run folder."""
    if name is not None and slug(name) != name:
        raise MedbenchError(f"--name {name!r}: letters, digits, dot, dash, underscore only; try {slug(name)}")


def evaluate_model(options: EvalOptions, tasks_folder: Path, say: Say) -> Outcome:
    """Raises MedbenchError before anything is written if something of what was asked is wrong."""
    notes: list[str] = []

    def warn(line: str) -> None:
        notes.append(line)
        say(line)

    loader = TaskLoader(tasks_folder, options.data, warn)
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
            engine = start_engine(options, model)
            run.update(limit=options.limit, status="running")
            return _answer(run, tasks, protocol, engine, options)
    if (folder / "run.json").exists():
        raise MedbenchError(f"{folder} exists already: add --resume to go on with it, or --name for a new run")
    engine = start_engine(options, model)
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
    if options.samples > 1 and not sampled and options.engine != "fake":
        raise MedbenchError(f"--samples {options.samples}: protocol {protocol.name} is not sampled, all replies would "
                            f"be equal: add --temperature 0.7")  # fmt: skip
    if options.samples > 1 and any(task.foreign is not None for task in tasks):
        raise MedbenchError("--samples: lm-eval's own tasks are asked as their YAML says, once")
    if options.shuffle_options:
        fixed = [task.name for task in tasks if task.foreign is not None or not any(map(can_shuffle, task.questions))]
        if fixed:
            raise MedbenchError(f"--shuffle-options: {', '.join(fixed)} has no lettered options: leave it out")
    if protocol.continuation is not None and options.engine == "openai":
        raise MedbenchError(f"protocol {protocol.name} goes on with cut-off replies, which a chat server cannot: use "
                            f"--engine vllm or hf")  # fmt: skip


def describe_engine(engine: Engine) -> dict[str, Any]:
    """What run.json keeps of the engine."""
    return {"name": engine.name, "chat_template": engine.chat_template, "settings": dict(engine.settings())}


def start_engine(options: EvalOptions, model: ModelRecord) -> Engine:
    """The engine that `options` name; heavy imports happen here."""
    config = options.engine_config
    if config.batch_invariant and options.engine != "vllm":
        raise MedbenchError(f"engine_config.batch_invariant is a mode of vLLM: leave it out with --engine "
                            f"{options.engine}")  # fmt: skip
    if options.engine == "fake":
        assert options.replies is not None
        return FakeEngine(read_replies(options.replies)[0], config.delay)
    if options.engine == "openai":
        from medbench.harness.engines.openai import OpenAIEngine

        assert options.base_url is not None
        return OpenAIEngine(options.base_url, options.model, concurrency=config.concurrency, timeout=config.timeout)
    assert model.path is not None
    if options.engine == "hf":
        from medbench.harness.engines.hf import HFEngine

        with needed("--engine hf cannot start"):
            return HFEngine(model.path, dtype=config.dtype, batch_size=config.batch_size)
    from medbench.harness.engines.vllm import VLLMEngine

    with needed("vLLM cannot start"):
        return VLLMEngine(model.path, config)


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
    if options.engine == "fake":
        assert options.replies is not None
        return ModelRecord(name=options.model, kind="replies", fingerprint=read_replies(options.replies)[1])
    if options.engine == "openai":
        # the weights behind a server cannot be seen: its address and model name stand for them
        identity = hashlib.sha256(f"{options.base_url} {options.model}".encode()).hexdigest()
        return ModelRecord(name=options.model, kind="served", fingerprint=identity)
    return ModelRecord(**asdict(resolve(options.model, say)))


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
        engine={"name": options.engine},
        packages=provenance.packages(),
        git_commit=provenance.git_commit(),
        notes=notes,
    )
