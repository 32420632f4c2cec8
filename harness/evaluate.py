"""Tasks x engine -> samples on disk -> results. Questions go out in a seeded permutation and come back in any order.

python -c "from medbench.harness.evaluate import permuted; print(permuted(['a', 'b', 'c'], seed=0, task='medqa'))"
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol as TypingProtocol

from medbench.harness.contracts import Engine, Message, Question, Request, Sample, Task
from medbench.harness.protocol import Protocol
from medbench.harness.scoring import TaskResult, score_completion, summarize
from medbench.harness.store import Run, read_samples


class Progress(TypingProtocol):
    """Told of each sample as it is stored."""

    def start(self, task: str, total: int, done: int) -> None: ...
    def advance(self, task: str, sample: Sample) -> None: ...


@dataclass(frozen=True, slots=True)
class _Asked:
    task: Task
    question: Question
    request: Request


def permuted(ids: Iterable[str], *, seed: int, task: str) -> list[str]:
    """The fixed order of a task's questions: by hash, so the same on every machine and for every subset."""
    return sorted(ids, key=lambda id: hashlib.sha256(f"{seed}\0{task}\0{id}".encode()).digest())


def evaluate(
    run: Run, tasks: Sequence[Task], protocol: Protocol, engine: Engine, *, limit: int | None, progress: Progress
) -> dict[str, TaskResult]:
    """Ask what the run has not answered yet, store each answer as it comes, then write results and seal the run.

    All tasks go out in one stream, so that an engine's batch stays full where one task ends and the next begins.
    """
    todo: list[tuple[Task, Question]] = []
    for task in tasks:
        by_id = {question.id: question for question in task.questions}
        order = permuted(by_id, seed=run.record.seed, task=task.name)[:limit]
        done = run.done(task.name)
        progress.start(task.name, len(order), sum(id in done for id in order))
        todo.extend((task, by_id[id]) for id in order if id not in done)
    for task, sample in ask(run, todo, protocol, engine):
        progress.advance(task.name, sample)
    return seal(run, tasks, protocol)


def ask(
    run: Run, questions: Sequence[tuple[Task, Question]], protocol: Protocol, engine: Engine
) -> Iterator[tuple[Task, Sample]]:
    """Each question's sample as it is answered, scored and stored, in completion order.

    Whatever happens on the way (Ctrl-C, a full disk), samples stored so far stay, and run.json keeps the totals.
    """
    started = time.monotonic()
    before = run.record.totals
    prompt_tokens = completion_tokens = 0
    asked: dict[str, _Asked] = {}
    stream = engine.generate(_requests(questions, protocol, engine, run.record.seed, asked))
    try:
        for completion in stream:
            one = asked.pop(completion.id)
            sample = score_completion(one.task, one.question, one.request, completion)
            run.append(one.task.name, sample)
            prompt_tokens += sample.prompt_tokens
            completion_tokens += sample.completion_tokens
            yield one.task, sample
    finally:
        if isinstance(stream, Generator):
            stream.close()  # aborts what is under way
        totals = before.model_copy(
            update={
                "seconds": round(before.seconds + time.monotonic() - started, 3),
                "prompt_tokens": before.prompt_tokens + prompt_tokens,
                "completion_tokens": before.completion_tokens + completion_tokens,
            }
        )
        run.update(totals=totals)


def seal(run: Run, tasks: Sequence[Task], protocol: Protocol) -> dict[str, TaskResult]:
    """Write the results of what is stored and mark the run complete; failed if a task has no score at all."""
    results = {task.name: summarize(task, protocol.name, read_samples(run.folder, task.name)) for task in tasks}
    for result in results.values():
        run.write_result(result)
    failed = any(result.accuracy is None for result in results.values())
    run.update(status="failed" if failed else "complete")
    return results


def _requests(
    questions: Sequence[tuple[Task, Question]], protocol: Protocol, engine: Engine, seed: int, asked: dict[str, _Asked]
) -> Iterator[Request]:
    for task, question in questions:
        request = build_request(task, question, protocol, engine, seed)
        asked[request.id] = _Asked(task, question, request)
        yield request


def build_request(task: Task, question: Question, protocol: Protocol, engine: Engine, seed: int) -> Request:
    """One question as the protocol asks it of this engine."""
    if task.foreign is not None:
        return _foreign_request(task, question, protocol, engine, seed)
    messages = protocol.messages(question)
    templated = protocol.chat == "auto" and engine.chat_template != "none"
    prompt = engine.render(messages, protocol.thinking) if templated else "\n\n".join(m.content for m in messages)
    return Request(
        id=f"{task.name}/{question.id}",
        messages=messages,
        prompt=prompt,
        templated=templated,
        max_new_tokens=protocol.decoding.max_new_tokens,
        temperature=protocol.decoding.temperature,
        top_p=protocol.decoding.top_p,
        top_k=protocol.decoding.top_k,
        seed=seed,
        stop=() if templated else tuple(protocol.stop),
        choices=tuple(f" {label}" for label in question.labels) if protocol.method == "loglikelihood" else None,
        thinking=protocol.thinking,
    )


def _foreign_request(task: Task, question: Question, protocol: Protocol, engine: Engine, seed: int) -> Request:
    assert task.foreign is not None
    choices = task.foreign.continuations(question.id)
    templated = choices is None and engine.chat_template == "model"
    chat = (lambda messages: engine.render(messages, protocol.thinking)) if templated else None
    prompt = task.foreign.text(question.id, chat)
    generation = task.foreign.generation() if choices is None else {"max_new_tokens": 1}
    return Request(
        id=f"{task.name}/{question.id}",
        messages=(Message("user", prompt),),
        prompt=prompt,
        templated=templated,
        seed=seed,
        choices=choices,
        **generation,
    )
