"""How fast an engine answers here, and so what a gate's verdict costs.

medbench doctor --speed smollm2-135m
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.benchmarks.task_folders import core_tasks
from medbench.harness.contracts import Completion, Engine, MedbenchError, Passed, Request, Say, Task
from medbench.harness.engines.plugins import takes_checkpoint
from medbench.harness.engines.pool import describe_engine, opened_engine
from medbench.harness.evaluation.determinism import first_task
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.plan import find_model
from medbench.harness.evaluation.requests import build_request, permuted
from medbench.harness.gates.schedule import BLOCK
from medbench.harness.protocols.protocol import DEFAULT, Protocol, load_protocol

SIZES = (1, 8)
"""Replies at once that are measured beside the engine's own number of places."""
SECONDS = 4.0
"""For each of them, at least."""
NEW_TOKENS = 64
"""Of a measured reply, at most."""
REPLY_TOKENS = 512
"""Of a reply, where a cost is told."""
SHARES = {10: 0.17, 5: 0.39, 3: 0.59, 2: 0.72}
"""Points between accuracy and floor -> the share of the questions that a gate needs, without stored runs to help.

Measured on 818 questions by tests/bench/gates.py; the table is in docs/gates.md.
"""


@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured with so many replies under way."""

    at_once: int
    replies: int
    """That ended, with as many under way from their first token to their last."""
    tokens: int
    """Of these replies."""
    took: float
    """Seconds of these replies, one by one, together."""
    waited: float = 0.0
    """Of these, before the first token: mostly reading prompts. 0 for an engine that does not report running replies,
    whose longer replies will cost less than is told."""

    @property
    def tokens_per_second(self) -> float:
        """Of all replies under way together, once their first tokens are there."""
        return self.at_once * self.tokens / (self.took - self.waited)

    def seconds(self, questions: int, reply_tokens: int) -> float:
        """Until so many questions are answered, in waves of `at_once` with `reply_tokens` each."""
        reply = self.waited / self.replies + reply_tokens * (self.took - self.waited) / self.tokens
        return math.ceil(questions / self.at_once) * reply


@dataclass(frozen=True, slots=True)
class Speed:
    """The result of `medbench doctor --speed`."""

    model: str
    engine: Mapping[str, Any]
    """Name and settings, as in run.json."""
    task: str
    """Whose questions were asked."""
    source: str
    """Where they came from: see contracts.Data.source."""
    places: int | None
    """Requests that a gate keeps under way; None for an engine that does not say, which gets blocks."""
    paces: tuple[Pace, ...]
    """By rising number at once."""
    questions: Mapping[str, int]
    """Default task -> number of its questions."""

    def whole_run(self, task: str) -> float:
        """Seconds for all questions, with replies of REPLY_TOKENS."""
        return self.paces[-1].seconds(self.questions[task], REPLY_TOKENS)

    def verdict(self, task: str, points: int) -> float:
        """Seconds for the questions that a gate needs with so many points between accuracy and floor."""
        return self.paces[-1].seconds(math.ceil(SHARES[points] * self.questions[task]), REPLY_TOKENS)

    def as_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("model", "engine", "task", "source", "places")},
            "paces": [asdict(one) | {"tokens_per_second": one.tokens_per_second} for one in self.paces],
            "reply_tokens": REPLY_TOKENS,
            "costs": {
                task: {
                    "questions": number,
                    "whole_run_seconds": self.whole_run(task),
                    "verdict_seconds": {str(points): self.verdict(task, points) for points in SHARES},
                }
                for task, number in self.questions.items()
            },
        }


def measure_speed(options: EvalOptions, say: Say) -> Speed:
    """Start the engine of `options` and measure it with questions of one task.

    Raises MedbenchError where the model or every task is unavailable, or a question fails.
    """
    if not takes_checkpoint(options.engine):
        raise MedbenchError(f"--speed needs an engine in this process: --engine vllm or hf, not {options.engine.name}")
    task = first_task(options.data, say)
    model = find_model(options.engine, options.model, say)
    with opened_engine(options.engine, options.model, model.checkpoint) as engine:
        places = getattr(engine, "places", None)
        paces = paces_of(engine, task, load_protocol(DEFAULT, max_new_tokens=NEW_TOKENS), say=say)
        described = describe_engine(engine)
    cards = TaskLoader(options.data).cards
    return Speed(
        model=model.record.name,
        engine=described,
        task=task.name,
        source=task.data.source,
        places=places,
        paces=paces,
        questions={name: cards[name].n for name in core_tasks()},
    )


def paces_of(
    engine: Engine,
    task: Task,
    protocol: Protocol,
    *,
    seconds: float = SECONDS,
    say: Say = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Pace, ...]:
    """The engine's pace for each of SIZES and for its places, or a block where it does not say how many it has."""
    places = getattr(engine, "places", None)
    most = places or BLOCK
    requests = _requests(task, protocol, engine)
    warm_up = replace(next(requests), max_new_tokens=8)  # what the first reply compiles or loads is no pace
    for completion in engine.generate([warm_up]):
        _refuse_fault(task, completion)
    found = []
    for at_once in sorted({*(size for size in SIZES if size < most), most}):
        say(f"{at_once} at once")
        found.append(_pace(engine, task, requests, at_once, waits=places is not None, seconds=seconds, clock=clock))
    return tuple(found)


def _pace(
    engine: Engine,
    task: Task,
    requests: Iterator[Request],
    at_once: int,
    *,
    waits: bool,
    seconds: float,
    clock: Callable[[], float],
) -> Pace:
    """Keep `at_once` replies under way until the time is over and as many have ended; abort the rest.

    Tokens per second of one reply are nearly the same for short and long ones, so it does not matter that mostly
    shorter ones have ended by then. `waits`: whether the engine takes None for "no request for now".
    """
    sent: dict[str, float] = {}
    first_token: dict[str, float] = {}
    milestones = (0,) if getattr(engine, "reports_milestones", False) else ()
    replies, tokens, took, waited, started = 0, 0, 0.0, 0.0, clock()

    def source() -> Iterator[Request | None]:
        while True:
            if len(sent) < at_once:
                request = next(requests)
                sent[request.id] = clock()
                yield replace(request, milestones=milestones)
            elif waits:
                yield None
            else:
                return

    while True:
        with closing(_stream(engine, source())) as stream:
            for one in stream:
                now = clock()
                if isinstance(one, Passed):
                    first_token[one.id] = now
                    continue
                _refuse_fault(task, one)
                since = sent.pop(one.id)
                took += now - since
                waited += first_token.pop(one.id, now if milestones else since) - since
                replies, tokens = replies + 1, tokens + one.completion_tokens
                if replies >= at_once and now - started >= seconds and took > waited:
                    return Pace(at_once, replies, tokens, took, waited)


def _stream(engine: Engine, source: Iterator[Request | None]) -> Generator[Completion | Passed, None, None]:
    yield from engine.generate(source)


def _requests(task: Task, protocol: Protocol, engine: Engine) -> Iterator[Request]:
    """The task's questions in a fixed order, without end; from the second time on as repeats."""
    questions = {question.id: question for question in task.questions}
    order = permuted(questions, seed=0, task=task.name)
    for repeat in itertools.count():
        for id in order:
            yield build_request(task, questions[id], protocol, engine, 0, repeat)


def _refuse_fault(task: Task, completion: Completion | Passed) -> None:
    if isinstance(completion, Completion) and completion.error is not None:
        raise MedbenchError(f"a question of {task.name} failed: {completion.error}")
