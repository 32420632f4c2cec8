"""Tasks and engine to samples on disk to results. Questions are sent in a seeded order and finish in any order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from typing import Protocol as TypingProtocol

from medbench.harness.contracts import Completion, Engine, MedbenchError, Passed, Request, Sample, Task
from medbench.harness.evaluation.experts import EngineInTurns, turns
from medbench.harness.evaluation.requests import Instance, build_request, instances_of
from medbench.harness.extraction.thinking import ending_mark, opens_reasoning, split_reasoning
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.provenance import peak_memory_gib
from medbench.harness.runs.records import RunRecord, Totals
from medbench.harness.runs.run_folder import Run, read_samples
from medbench.harness.runs.sample_check import refuse_other_answer
from medbench.harness.scoring.calibration import summarize_calibration
from medbench.harness.scoring.option_order_bias import summarize_shuffling
from medbench.harness.scoring.published_accuracy import published
from medbench.harness.scoring.repeated_samples import summarize_sampling
from medbench.harness.scoring.score import score_completion
from medbench.harness.scoring.summary import TaskResult, summarize

KEEP_SECONDS = 10
"""How often run.json gets the totals: what a killed session loses of its time and tokens."""


class Progress(TypingProtocol):
    """Is told of each sample when it is stored, and now and then by a gate of the time to its verdict, in words."""

    def start(self, task: str, total: int, done: int) -> None: ...
    def advance(self, task: str, sample: Sample) -> None: ...
    def expect(self, time: str) -> None: ...


@dataclass(frozen=True, slots=True)
class RunsOn:
    """The reply to a question is longer than so many tokens, and not finished."""

    key: str
    """See contracts.Sample.key."""
    tokens: int


@dataclass(frozen=True, slots=True)
class _Sent:
    instance: Instance
    request: Request


def evaluate(
    run: Run, tasks: Sequence[Task], protocol: Protocol, engine: Engine, *, limit: int | None, progress: Progress
) -> dict[str, TaskResult]:
    """Ask what the run does not hold yet, store each sample when it finishes, then write the results and seal the run.

    All tasks share one stream of requests, so that the engine's batch stays full between tasks; merged adapters take
    turns, a stream each.
    """
    todo: list[Instance] = []
    refuse_foreign_answers(run, tasks)
    for task in tasks:
        instances = list(instances_of(task, run.record, limit))
        done = run.done(task.name)
        progress.start(task.name, len(instances), sum(one.key in done for one in instances))
        todo.extend(one for one in instances if one.key not in done)
    for instances in _turns(todo, engine):
        for task, found in ask(run, instances, protocol, engine):
            if isinstance(found, Sample):
                progress.advance(task.name, found)
    return seal(run, tasks, protocol)


def _turns(todo: list[Instance], engine: Engine) -> Iterator[list[Instance]]:
    """What is asked in one stream; before each, `engine` serves who answers it."""
    if not isinstance(engine, EngineInTurns):
        yield todo
        return
    for adapter, instances in turns(todo):
        engine.turn_to(adapter)
        yield instances


def ask(
    run: Run,
    instances: Iterable[Instance | None],
    protocol: Protocol,
    engine: Engine,
    milestones: tuple[int, ...] = (),
) -> Generator[tuple[Task, Sample | RunsOn], None, None]:
    """Ask, score and store; yields each sample in completion order. A None among the instances goes to the engine.

    Between them, what an engine that reports milestones says of running replies; none of that is stored.

    On any exception (Ctrl-C, a full disk) the samples stored so far are kept, and run.json gets the totals.
    """
    started = time.monotonic()
    before, noted = run.record.totals, run.record.notes
    stored = prompt_tokens = completion_tokens = 0
    sent: dict[str, _Sent] = {}
    stream = completions(_requests(instances, protocol, engine, run.record.seed, milestones, sent), protocol, engine)

    def totals() -> Totals:
        return before.model_copy(
            update={
                "seconds": round(before.seconds + time.monotonic() - started, 3),
                "prompt_tokens": before.prompt_tokens + prompt_tokens,
                "completion_tokens": before.completion_tokens + completion_tokens,
                "peak_memory_gib": peak_memory_gib() if _is_here(engine.settings()) else None,
            }
        )

    kept = started
    try:
        for completion in stream:
            if isinstance(completion, Passed):
                instance = sent[completion.id].instance
                yield instance.task, RunsOn(instance.key, completion.tokens)
                continue
            one = sent.pop(completion.id)
            task = one.instance.task
            sample = score_completion(task, one.instance.question, one.request, completion, one.instance.order)
            run.append(task.name, sample)
            stored += 1
            prompt_tokens += sample.prompt_tokens
            completion_tokens += sample.completion_tokens
            if time.monotonic() - kept > KEEP_SECONDS:
                kept = time.monotonic()
                run.update(totals=totals(), **_told(run.record, engine, noted))
            yield task, sample
    finally:
        stream.close()  # aborts what is under way
        if stored:
            run.update(totals=totals(), **_told(run.record, engine, noted))


def _is_here(settings: Mapping[str, Any]) -> bool:
    """Whether the engine's memory is this process's."""
    return settings.get("device") == "cpu" and "replicas" not in settings


def _told(record: RunRecord, engine: Engine, noted: Sequence[str]) -> dict[str, Any]:
    """Changes of run.json by what the engine has to tell: what of the requests it could not apply, in this session or
    before, and what happened to it. `noted`: the notes before it was asked."""
    found: Mapping[str, str] = getattr(engine, "not_applied", {})
    incidents: Sequence[str] = getattr(engine, "incidents", ())
    if not found and not incidents:
        return {}
    notes = {"notes": list(dict.fromkeys([*noted, *found.values(), *incidents]))}
    if not found:
        return notes
    settings = record.engine.get("settings", {})
    fields = sorted({*record.not_applied, *found})
    return {**notes, "engine": {**record.engine, "settings": {**settings, "not_applied": fields}}}


def completions(
    requests: Iterator[Request | None], protocol: Protocol, engine: Engine
) -> Generator[Completion | Passed, None, None]:
    """The engine's completions. Reasoning that its limit cuts off is continued after the protocol's cue, if it has one
    for that; under a budget of thinking tokens, an answer that the budget cuts off is continued as it is.

    Tokens are counted over both parts; those of the cue are not.
    """
    if not protocol.continues:
        with _closing(engine.generate(requests)) as stream:
            yield from stream
        return
    sent: dict[str, Request] = {}
    cut_off: dict[str, Completion] = {}
    """What goes on, with what was put behind it."""
    waiting: deque[Request] = deque()
    """Continuations of `cut_off`, to be sent before any new request."""

    def source() -> Iterator[Request | None]:
        for request in requests:
            yield from _drained(waiting)
            if request is not None:
                sent[request.id] = request
            yield request
        yield from _drained(waiting)

    while True:
        with _closing(engine.generate(source())) as stream:
            for completion in stream:
                if isinstance(completion, Passed):
                    first = cut_off.get(completion.id)
                    before = first.completion_tokens if first is not None else 0
                    yield replace(completion, tokens=before + completion.tokens)
                    continue
                request = sent.pop(completion.id)
                if completion.id in cut_off:
                    yield _joined(cut_off.pop(completion.id), completion)
                elif (begun := _begun(request, completion, protocol)) is not None:
                    cut_off[completion.id] = begun
                    forced = replace(
                        request,
                        prompt=request.prompt + begun.text,
                        max_new_tokens=protocol.most_tokens - request.max_new_tokens,
                        milestones=_beyond(completion.completion_tokens, request.milestones),
                    )
                    sent[forced.id] = forced
                    waiting.append(forced)
                else:
                    yield completion
        if not waiting:
            return


def _drained(waiting: deque[Request]) -> Iterator[Request]:
    while waiting:
        yield waiting.popleft()


def _beyond(tokens: int, milestones: tuple[int, ...]) -> tuple[int, ...]:
    """What is left of them after so many tokens."""
    return tuple(one - tokens for one in milestones if one >= tokens)


def _joined(first: Completion, second: Completion) -> Completion:
    """A completion and its continuation as one."""
    if second.error is not None:
        return second
    return replace(
        second,
        text=first.text + second.text,
        prompt_tokens=first.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
        cued=first.cued,
    )


def _begun(request: Request, completion: Completion, protocol: Protocol) -> Completion | None:
    """The completion as the model is to continue it; None where it is finished, or stays cut off."""
    if completion.finish_reason != "length":
        return None
    parts = split_reasoning(completion.text, opened=opens_reasoning(request.prompt))
    budget = protocol.thinking_tokens is not None
    if parts.closed and parts.reasoning and not parts.guessed:
        return completion if budget else None
    text = completion.text
    if budget:
        text = text.rstrip("\ufffd") + ending_mark(text, request.prompt)  # a character may be cut in two
    return replace(completion, text=text + (protocol.cue or ""), cued=True)


@contextmanager
def _closing(stream: Iterator[Completion | Passed]) -> Iterator[Iterator[Completion | Passed]]:
    try:
        yield stream
    finally:
        if isinstance(stream, Generator):
            stream.close()


def seal(run: Run, tasks: Sequence[Task], protocol: Protocol) -> dict[str, TaskResult]:
    """Write the results of the stored samples and mark the run complete, or failed if a task has no score at all."""
    results = {task.name: _result(run, task, protocol) for task in tasks}
    for result in results.values():
        run.write_result(result)
    failed = any(result.accuracy is None for result in results.values())
    run.update(status="failed" if failed else "complete")
    return results


def refuse_foreign_answers(run: Run, tasks: Sequence[Task]) -> None:
    """Raises MedbenchError where a stored sample answers a question that its task does not have, or was scored against
    another right answer."""
    for task in tasks:
        gold = {question.id: question.gold for question in task.questions}
        for sample in run.answered(task.name) if task.foreign is None else ():
            if sample.id in gold and sample.order is None:
                refuse_other_answer(task.name, sample, gold[sample.id])
            elif sample.id not in gold:
                raise MedbenchError(
                    f"{run.folder}: an answer to question {sample.id[:60]!r}, which {task.name} does not have: "
                    f"the run is damaged or of other data; evaluate again under another --name"
                )


def _result(run: Run, task: Task, protocol: Protocol) -> TaskResult:
    """The result of one task's stored samples, with the extra measurements that only some runs have."""

    def samples() -> Iterator[Sample]:
        return read_samples(run.folder, task.name)

    extras: dict[str, Any] = {}
    if run.record.samples > 1:
        extras["sampling"] = summarize_sampling(samples())
    if run.record.shuffle_options:
        extras["shuffling"] = summarize_shuffling(samples())
    elif task.foreign is None:
        extras["published"] = published(protocol.extraction, task.questions, samples())
    if protocol.method == "loglikelihood":
        extras["calibration"] = summarize_calibration(samples())
    return summarize(task, protocol.name, samples()).model_copy(update=extras)


def _requests(
    instances: Iterable[Instance | None],
    protocol: Protocol,
    engine: Engine,
    seed: int,
    milestones: tuple[int, ...],
    sent: dict[str, _Sent],
) -> Iterator[Request | None]:
    for one in instances:
        if one is None:
            yield None
            continue
        request = build_request(one.task, one.question, protocol, engine, seed, one.repeat)
        if milestones:
            request = replace(request, milestones=milestones)
        if one.adapter is not None and not isinstance(engine, EngineInTurns):
            request = replace(request, adapter=one.adapter)
        sent[request.id] = _Sent(one, request)
        yield request
