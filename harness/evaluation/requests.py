"""Questions turned into requests: prompts, repeats, option orders, seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from typing import Protocol as TypingProtocol

from medbench.harness.benchmarks.option_order import can_shuffle, shuffled
from medbench.harness.contracts import Message, Question, Request, Task, sample_key
from medbench.harness.protocols.chat import plain_text
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.experts import adapter_of
from medbench.harness.runs.records import RunRecord


class Renderer(TypingProtocol):
    """The part of an engine that turns messages into a prompt: see contracts.Engine."""

    @property
    def chat_template(self) -> Literal["model", "server", "none"]: ...
    def render(self, messages: Sequence[Message], thinking: bool | None) -> str: ...


class PlainText:
    """A Renderer for questions that no engine is asked: no chat template."""

    chat_template: Literal["model", "server", "none"] = "none"

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return plain_text(messages)


@dataclass(frozen=True, slots=True)
class Instance:
    """One repeat of a question."""

    task: Task
    question: Question
    """As asked: with its options in `order`, where they are shuffled."""
    repeat: int = 0
    order: tuple[int, ...] | None = None
    """See contracts.Sample."""
    adapter: str | None = None
    """Fingerprint of the adapter that is asked, in a run of experts; None is the model itself."""

    @property
    def key(self) -> str:
        return sample_key(self.question.id, self.repeat)


def permuted(ids: Iterable[str], *, seed: int | str, task: str) -> list[str]:
    """The fixed order of a task's questions: by hash, so it is the same on every machine and in every subset."""
    return sorted(ids, key=lambda id: hashlib.sha256(f"{seed}\0{task}\0{id}".encode()).digest())


def sampling_seed(seed: int, task: str, key: str) -> int:
    """The seed of one completion, 0 to 2^31 - 1.

    With one seed for all, every question would get the same random draws, and errors that the intervals take to be
    independent would be correlated.
    """
    return int.from_bytes(hashlib.sha256(f"sampling\0{seed}\0{task}\0{key}".encode()).digest()[:4]) >> 1


def instances_of(task: Task, record: RunRecord, limit: int | None) -> Iterator[Instance]:
    """The first `limit` questions of the seeded order, all repeats of a question together.

    A run with shuffled options leaves out questions whose options cannot be shuffled.
    """
    by_id = {q.id: q for q in task.questions if not record.shuffle_options or can_shuffle(q)}
    for id in permuted(by_id, seed=record.seed, task=task.name)[:limit]:
        expert = adapter_of(record, task.name, by_id[id].category)
        adapter = None if expert is None else expert.fingerprint
        for repeat in range(record.shuffle_options):
            question, order = shuffled(by_id[id], repeat, record.seed)
            yield Instance(task, question, repeat, order, adapter)
        if not record.shuffle_options:
            yield from (Instance(task, by_id[id], repeat, adapter=adapter) for repeat in range(record.samples))


def build_request(
    task: Task, question: Question, protocol: Protocol, engine: Renderer, seed: int, repeat: int = 0
) -> Request:
    """The question as the protocol asks this engine; each repeat has its own sampling seed."""
    if task.foreign is not None:
        return _foreign_request(task, question, protocol, engine, seed)
    examples = task.examples.draw(question.id, protocol.shots) if task.examples and protocol.shots else ()
    messages = protocol.messages(question, examples)
    templated = protocol.chat == "auto" and engine.chat_template != "none"
    prompt = engine.render(messages, protocol.thinking) if templated else plain_text(messages)
    return Request(
        id=f"{task.name}/{sample_key(question.id, repeat)}",
        messages=messages,
        prompt=prompt,
        templated=templated,
        max_new_tokens=protocol.thinking_tokens or protocol.decoding.max_new_tokens,
        temperature=protocol.decoding.temperature,
        top_p=protocol.decoding.top_p,
        top_k=protocol.decoding.top_k,
        seed=sampling_seed(seed, task.name, sample_key(question.id, repeat)),
        stop=() if templated else tuple(protocol.stop),
        choices=tuple(f" {label}" for label in question.labels) if protocol.method == "loglikelihood" else None,
        thinking=protocol.thinking,
        extraction=protocol.extraction,
        repeat=repeat,
    )


def _foreign_request(task: Task, question: Question, protocol: Protocol, engine: Renderer, seed: int) -> Request:
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
