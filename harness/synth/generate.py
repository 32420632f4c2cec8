"""Asks the questions and keeps every reply; nothing that is kept is asked again.

Questions are begun in order. At most `window` of them are open at once, which bounds what has to be remembered here and
by whoever reads the journal back in order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from medbench.harness.contracts import Completion, Engine, MedbenchError, Passed, Request, Say
from medbench.harness.evaluation.requests import sampling_seed
from medbench.harness.extraction.thinking import opens_reasoning
from medbench.harness.protocols.chat import plain_text
from medbench.harness.synth.candidates import Candidate, Journal
from medbench.harness.synth.chains import Chain, chains_of, next_strategy
from medbench.harness.synth.prompts import messages_of
from medbench.harness.synth.questions import Asked
from medbench.harness.synth.reading import verdict_on
from medbench.harness.synth.recipe import SynthRecipe
from medbench.harness.text import foreign

OPEN_REPLIES = 1024
LEAST_OPEN = 64
NOTHING = 50
"""Replies without any text, from the first one on, after which the generator is taken to return nothing."""
SAY_SECONDS = 10.0
STOP = ("\nQuestion:",)
"""For models without a chat template, which go on to invent the next question."""


@dataclass(slots=True)
class _Open:
    asked: Asked
    chains: list[Chain]
    under_way: int = 0


@dataclass(frozen=True, slots=True)
class _Sent:
    open: _Open
    attempt: int
    strategy: str
    request: Request


@dataclass(slots=True)
class Session:
    """What was done in one go."""

    replies: int = 0
    right: int = 0
    failed: int = 0
    with_text: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_fault: str = ""


def window_of(recipe: SynthRecipe) -> int:
    """Most questions open at once."""
    return max(LEAST_OPEN, OPEN_REPLIES // recipe.sampling.attempts)


class Generation:
    """One session. `known`: place -> replies of questions that are begun and not complete."""

    def __init__(
        self,
        recipe: SynthRecipe,
        engine: Engine,
        journal: Journal,
        known: dict[int, list[Candidate]],
        *,
        had_text: bool,
        say: Say,
        total: int,
        done: int,
    ) -> None:
        """`total` and `done`: questions; `had_text`: whether an earlier reply had any text."""
        self._recipe, self._engine, self._journal, self._known = recipe, engine, journal, known
        self._had_text, self._say, self._total, self._done = had_text, say, total, done
        self._window = window_of(recipe)
        self._open: dict[int, _Open] = {}
        self._ready: deque[Request] = deque()
        self._sent: dict[str, _Sent] = {}
        self._is_patient = hasattr(engine, "places")
        self._is_used_up = False
        self._begun = -1
        self.session = Session()

    def run(self, questions: Iterator[Asked]) -> Session:
        """Ask until every question is complete. Raises MedbenchError for a generator that returns nothing at all, and
        Interrupted as Engine.generate; what came before is kept."""
        said = started = time.monotonic()
        while True:
            stream = self._engine.generate(self._requests(questions))
            try:
                for completion in stream:
                    if isinstance(completion, Passed):
                        continue
                    self._take(completion)
                    if time.monotonic() - said > SAY_SECONDS:
                        said = time.monotonic()
                        self._say(self._line(said - started))
            finally:
                if isinstance(stream, Generator):
                    stream.close()  # aborts what is under way
            if self._sent:
                raise MedbenchError(
                    f"engine {self._engine.name} ended without answering {len(self._sent)} requests: run again with "
                    f"--resume"
                )
            if not self._ready and self._is_used_up:
                break
        self._refuse_nothing(1)
        return self.session

    def _requests(self, questions: Iterator[Asked]) -> Iterator[Request | None]:
        while True:
            if self._ready:
                request = self._ready.popleft()
                yield request
            elif not self._is_used_up and self._has_room():
                asked = next(questions, None)
                if asked is None:
                    self._is_used_up = True
                else:
                    self._begin(asked)
            elif self._sent and self._is_patient:
                yield None
            else:
                return

    def _has_room(self) -> bool:
        if not self._open:
            return True
        return self._begun + 1 - next(iter(self._open)) < self._window

    def _begin(self, asked: Asked) -> None:
        before = self._known.pop(asked.at, [])
        if before and before[0].id != asked.question.id:
            raise changed_source(asked, before[0])
        one = _Open(asked, chains_of(before, self._recipe.sampling.attempts))
        self._open[asked.at], self._begun = one, asked.at
        for attempt in range(self._recipe.sampling.attempts):
            self._ask(one, attempt)
        self._close_if_done(one)

    def _ask(self, one: _Open, attempt: int) -> None:
        """Make ready what follows in a chain, if anything does."""
        chain = one.chains[attempt]
        strategy = next_strategy(chain, one.asked.question.id, attempt, self._recipe)
        if strategy is None:
            one.chains[attempt] = []  # its texts are in the journal
            return
        request = request_for(one.asked, attempt, chain, strategy, self._recipe, self._engine)
        self._sent[request.id] = _Sent(one, attempt, strategy, request)
        self._ready.append(request)
        one.under_way += 1

    def _take(self, completion: Completion) -> None:
        sent = self._sent.pop(completion.id, None)
        if sent is None:
            raise MedbenchError(
                f"engine {self._engine.name} answers {foreign(completion.id, 60)!r}, which was not asked: fix it"
            )
        one = sent.open
        candidate = _candidate(sent, completion)
        self._journal.append(candidate)
        self._count(candidate)
        one.chains[sent.attempt].append(candidate)
        one.under_way -= 1
        self._ask(one, sent.attempt)
        self._close_if_done(one)

    def _close_if_done(self, one: _Open) -> None:
        if not one.under_way:
            del self._open[one.asked.at]
            self._done += 1

    def _count(self, candidate: Candidate) -> None:
        session = self.session
        session.replies += 1
        session.right += bool(candidate.right)
        session.failed += candidate.error is not None
        session.with_text += bool(candidate.output.strip())
        session.prompt_tokens += candidate.prompt_tokens
        session.completion_tokens += candidate.completion_tokens
        session.first_fault = session.first_fault or candidate.error or ""
        self._refuse_nothing(NOTHING)

    def _refuse_nothing(self, least: int) -> None:
        session = self.session
        if self._had_text or session.with_text or session.replies < least:
            return
        why = f", the first: {foreign(session.first_fault)}" if session.first_fault else ", all of them empty"
        raise MedbenchError(
            f"the generator returns nothing: none of {session.replies} replies has any text{why}: correct the "
            f"generator, and start again in a new folder"
        )

    def _line(self, seconds: float) -> str:
        session = self.session
        rate = session.replies / max(seconds, 1e-6)
        failed = f", {session.failed} failed" if session.failed else ""
        return (
            f"{self._done} of {self._total} questions; {session.replies} replies ({rate:.1f}/s, "
            f"{session.completion_tokens / max(seconds, 1e-6):.0f} tokens/s), {session.right} right{failed}"
        )


def request_for(
    asked: Asked, attempt: int, chain: Chain, strategy: str, recipe: SynthRecipe, engine: Engine
) -> Request:
    """What is sent. Its id ends with the question's id and, as for `medbench eval`, the number of the reply: see
    `number_of`, by which stored replies are found."""
    sampling, question = recipe.sampling, asked.question
    messages = messages_of(
        asked.kind,
        question,
        strategy=strategy,
        earlier=[one.output for one in chain],
        verifiable=asked.verifiable,
        system=asked.system,
    )
    templated = engine.chat_template != "none"
    prompt = engine.render(messages, sampling.thinking) if templated else plain_text(messages)
    number = number_of(attempt, len(chain), recipe)
    return Request(
        id=f"{asked.at}/{question.id}" + (f"#{number}" if number else ""),
        messages=messages,
        prompt=prompt,
        templated=templated,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=seed_of(recipe, question.id, attempt, len(chain)),
        stop=() if templated else STOP,
        thinking=sampling.thinking,
        repeat=number,
    )


def number_of(attempt: int, round: int, recipe: SynthRecipe) -> int:
    """Number of a reply among all that its question can have, from 0: the "sample" of a stored reply."""
    rounds = 1 + recipe.verify.rounds + recipe.verify.told_answer
    return attempt * rounds + round


def seed_of(recipe: SynthRecipe, id: str, attempt: int, round: int) -> int:
    return sampling_seed(recipe.sampling.seed, "synth", f"{id}#{attempt}.{round}")


def changed_source(asked: Asked, candidate: Candidate) -> MedbenchError:
    return MedbenchError(
        f"{asked.where}: question {foreign(asked.question.id, 40)}, where the stored replies have "
        f"{foreign(candidate.id, 40)}: the source has changed; restore it, or start again in a new folder"
    )


def _candidate(sent: _Sent, completion: Completion) -> Candidate:
    asked, request = sent.open.asked, sent.request
    opened = opens_reasoning(request.prompt)
    verdict = verdict_on(completion, asked, opened=opened)
    return Candidate(
        at=asked.at,
        id=asked.question.id,
        attempt=sent.attempt,
        round=len(sent.open.chains[sent.attempt]),
        strategy=sent.strategy,  # type: ignore[arg-type]
        prompt=asked.kind.name,
        seed=request.seed,
        output=_whole(completion.text),
        finish_reason=completion.finish_reason,
        error=None if completion.error is None else _whole(completion.error)[:2000],
        answer=None if verdict.answer is None else _whole(verdict.answer),
        right=verdict.right,
        span=verdict.span,
        opened=opened,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
    )


def _whole(text: str) -> str:
    """With "?" for halves of surrogate pairs, which cannot be written."""
    return text.encode("utf-8", "replace").decode()
