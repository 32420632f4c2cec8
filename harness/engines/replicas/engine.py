"""Many replicas of one engine as a contracts.Engine: loaded, fed, watched, and replaced when they die.

    engine = ReplicatedEngine(EngineChoice("vllm", EngineConfig(replicas=8)))
    engine.load("step-800", checkpoint); engine.generate(requests); engine.close()

A replica is lost when its process or its node is gone, when its engine fails, and when it answers nothing for
`patience` seconds. It is then restarted, while the others go on; after MOST_LOSSES in a row without an answer
between them it is not. `dispatch` says what becomes of its requests, and `incidents` what readers of the run are told.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medbench.harness.checkpoints.fingerprint import fingerprint
from medbench.harness.checkpoints.weights import weight_files
from medbench.harness.contracts import Checkpoint, Completion, Interrupted, MedbenchError, Message, Passed, Request
from medbench.harness.engines.replicas import placement, shipping
from medbench.harness.engines.replicas.agreement import different, refuse_other_versions
from medbench.harness.engines.replicas.cluster import Cluster, connect
from medbench.harness.engines.replicas.dispatch import Dispatcher
from medbench.harness.engines.replicas.replica import Failure, Replica, Report, Serving, packed_request, unpacked
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.text import duration, one_line

AHEAD = 2
"""Requests that a replica has at most, in multiples of its places: its queue never runs dry."""
FEWEST_AHEAD = 64
"""And at least: transformers sorts so many by length."""
TICK = 2.0
"""Seconds between two signs of life of a replica that has nothing to tell."""
GATHER = 0.0005
"""Seconds for each replica that one waits for more completions before it tells: the driver is asked less often."""
MOST_LOSSES = 3
LOAD_SECONDS = 3600.0
"""For a checkpoint to be loaded, after which a replica counts as hung."""
CLOSE_SECONDS = 10.0
START_SECONDS = 120.0
"""For the process of a replica to start."""

log = logging.getLogger("medbench")


@dataclass(slots=True)
class _Member:
    """One replica, as the driver sees it."""

    index: int
    group: Any
    """Its placement group."""
    actor: Any = None
    node: str | None = None
    """Known where weights are shipped."""
    serving: Serving | None = None
    """None while it loads, and once it is gone."""
    loading: Any = None
    """Ray's reference to what `serve` will return."""
    since: float = 0.0
    """When it began to load, or last told something, or got its first request."""
    poll: Any = None
    """The outstanding `take`."""
    losses: int = 0
    """In a row, without a completion between them."""

    @property
    def described(self) -> str:
        return f"replica {self.index}" + (f" on node {self.serving.node}" if self.serving is not None else "")


@dataclass(slots=True)
class _Asked:
    """What the replicas are to serve."""

    name: str
    checkpoint: Checkpoint | None
    weights: str | None
    """Fingerprint of the weight files, as this machine sees them."""
    paths: dict[str, str] = field(default_factory=dict)
    """Node -> the folder that it loads, where weights are shipped."""


class ReplicatedEngine:
    """See the module. Raises MedbenchError where Ray or its resources are missing."""

    def __init__(self, choice: EngineChoice, *, cpus: int | None = None) -> None:
        """`cpus`: of a Ray that is started here; None is what this process may use."""
        self._choice = replace(
            choice,
            config=_of_one(choice),
            replies=None if choice.replies is None else choice.replies.absolute(),
        )
        self._config = choice.config
        self.name = choice.name
        """Of the engine in each replica."""
        self._call = 0
        self._asked: _Asked | None = None
        self._renderer: Any = None
        self._known: Serving | None = None
        self._lost: Counter[str] = Counter()
        self._asked_again = 0
        self._not_applied: dict[str, str] = {}
        self._members: list[_Member] = []
        self._cluster: Cluster | None = connect(choice.config.ray_address, cpus=cpus)
        self._ray = self._cluster.ray
        try:
            plan = placement.plan(self._choice, choice.config, self._cluster.nodes())
            self._plan = plan
            self._class = self._ray.remote(max_restarts=0, max_concurrency=8)(Replica)
            self._members = [_Member(index, None) for index in range(plan.replicas)]
            groups = placement.reserve(self._ray, plan)
            for member, group in zip(self._members, groups, strict=True):
                member.group = group
                self._start(member)
        except BaseException:
            self.close()
            raise

    # --- contracts.Engine -----------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> Literal["model", "server", "none"]:
        return self._first.chat_template

    @property
    def places(self) -> int | None:
        each = [one.serving.places for one in self._members if one.serving is not None]
        return None if None in each else sum(each)  # type: ignore[arg-type]

    @property
    def reports_milestones(self) -> bool:
        return self._first.reports_milestones

    @property
    def not_applied(self) -> Mapping[str, str]:
        return self._not_applied

    @property
    def incidents(self) -> Sequence[str]:
        """What happened to replicas, for readers of the run."""
        lines = [
            f"{'a replica was' if count == 1 else f'{count} replicas were'} lost ({why})"
            for why, count in self._lost.items()
        ]
        again = f"; {self._asked_again} requests were asked again" if self._asked_again else ""
        return [f"{'; '.join(lines)}{again}"] if lines else []

    def settings(self) -> Mapping[str, Any]:
        return {**self._first.settings, "replicas": len(self._members), "ray": str(self._ray.__version__)}

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        if self._renderer is None:
            self._renderer = self._own_renderer()
        return str(self._renderer(messages, thinking))

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion | Passed]:
        self._call += 1
        source, dispatcher = iter(requests), Dispatcher()
        for member in self._members:
            if member.serving is not None:
                dispatcher.join(member.index, _room(member.serving))
        try:
            while True:
                while dispatcher.has_room() and (request := next(source, None)) is not None:
                    dispatcher.accept(request)
                if not dispatcher.unfinished:
                    return
                if given_up := dispatcher.give_up():
                    yield from given_up
                    continue
                self._send(dispatcher)
                yield from self._collect(dispatcher)
        finally:
            self._call += 1
            for member in self._members:
                member.poll = None
                if member.serving is not None:
                    member.actor.put.remote(self._call, ())  # ends what is under way

    def close(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster is None:
            return
        try:
            actors = [one.actor for one in self._members if one.actor is not None]
            with suppress(Exception):  # they are killed in any case
                closing = [one.actor.close.remote() for one in self._members if one.serving is not None]
                if closing:
                    self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
            for actor in actors:
                with suppress(Exception):
                    self._ray.kill(actor)
            placement.release(self._ray, [one.group for one in self._members if one.group is not None])
        finally:
            cluster.close()

    # --- for the keeper of engines --------------------------------------------------------------------------------

    def load(self, name: str, checkpoint: Checkpoint | None) -> None:
        """Serve `checkpoint` from now on; all replicas load it at once, and must agree on what they then serve.

        Raises what an engine raises for a checkpoint that it cannot load, and MedbenchError for replicas that differ.
        """
        weights = None
        if checkpoint is not None:
            checkpoint = replace(checkpoint, path=str(Path(checkpoint.path).absolute()))  # elsewhere is another folder
            weights = fingerprint(weight_files(Path(checkpoint.path)))
        self._asked = _Asked(name, checkpoint, weights)
        self._renderer = None
        self._lost.clear()
        self._asked_again = 0
        self._not_applied = {}
        started = time.monotonic()
        for member in self._members:
            member.losses = 0
            if member.actor is None:
                self._start(member)
        self._ship(self._members)
        for member in self._members:
            self._load(member)
        self._wait_for_all()
        self._agree()
        self._known = self._first
        for member in self._members:
            for line in member.serving.said if member.serving is not None else ():
                log.info("replica %d: %s", member.index, line)
        log.info("%s: served by %d replicas after %s", name, len(self._members), duration(time.monotonic() - started))

    def rest(self) -> None:
        """Free the devices until the next `load`."""
        resting = [member.actor.rest.remote() for member in self._members if member.serving is not None]
        with suppress(self._ray.exceptions.RayError):  # `load` finds out
            self._ray.get(resting)

    # --- replicas -------------------------------------------------------------------------------------------------

    @property
    def _first(self) -> Serving:
        """What all replicas serve, or have served where none is left."""
        serving = next((member.serving for member in self._members if member.serving is not None), self._known)
        if serving is None:
            raise Interrupted(GONE)
        return serving

    def _start(self, member: _Member) -> None:
        options = placement.options_of(self._plan, member.group)
        member.actor = self._class.options(**options).remote(self._choice, self._plan.threads, placement.environment())
        member.serving = member.loading = member.poll = None

    def _load(self, member: _Member) -> None:
        asked = self._asked
        assert asked is not None
        path = asked.checkpoint.path if asked.checkpoint is not None else ""
        path = asked.paths.get(member.node or "", path)
        member.serving, member.since = None, time.monotonic()
        member.loading = member.actor.serve.remote(asked.name, asked.checkpoint, path, asked.weights)

    def _ship(self, members: Sequence[_Member]) -> None:
        """Where that is asked for, see to it that the nodes of these replicas have the weights."""
        asked = self._asked
        assert asked is not None
        if not self._config.ship_weights or asked.checkpoint is None or asked.weights is None:
            return
        try:
            for member in members:
                member.node = self._ray.get(member.actor.node.remote(), timeout=START_SECONDS)
            new = {one.node: one.actor for one in members if one.node is not None and one.node not in asked.paths}
            if new:
                asked.paths |= shipping.ship(self._ray, new, asked.checkpoint, asked.weights)
        except self._ray.exceptions.RayTaskError as error:
            raise MedbenchError(f"--ship-weights: {one_line(error.cause)[-400:]}") from None
        except self._ray.exceptions.RayError as error:
            raise MedbenchError(f"--ship-weights: {self._why_gone(error)} while weights were sent: run again") from None

    def _loaded(self, member: _Member) -> Serving | Failure:
        """What came of loading. A replica whose process died meanwhile has failed too."""
        found = self._result(member, member.loading)
        member.loading = None
        return found if isinstance(found, Failure) else _serving(found)

    def _wait_for_all(self) -> None:
        """Until each has loaded. One that dies, or serves something stale, gets another try; for any other fault the
        first is raised, once no replica is loading any more."""
        first: tuple[_Member, Failure] | None = None
        while loading := {member.loading: member for member in self._members if member.loading is not None}:
            ready, _ = self._ray.wait(list(loading), num_returns=1, timeout=TICK)
            hung = [] if ready else self._hung(LOAD_SECONDS, loading=True)
            for member in [loading[reference] for reference in ready] or hung:
                found = _hung(LOAD_SECONDS) if hung else self._loaded(member)
                member.loading = None
                if isinstance(found, Serving):
                    member.serving = found
                    continue
                member.losses += 1
                if found.kind != "fault" or member.losses >= MOST_LOSSES:
                    first = first or (member, found)
                    continue
                log.info("replica %d is restarted: %s", member.index, found.why)
                self._lost[found.why] += 1
                self._restart(member)
        if first is not None:
            member, failure = first
            error = failure.raised()
            before = f"replica {member.index}: " if failure.kind == "fault" else ""
            raise type(error)(f"{before}{error.lines[0]}", *error.lines[1:])

    def _agree(self) -> None:
        """Raises MedbenchError where replicas serve different things even after a restart."""
        for last in (False, True):
            servings = {one.index: one.serving for one in self._members if one.serving is not None}
            refuse_other_versions(servings)
            odd = different(servings)
            if not odd:
                return
            if last:
                whose = "; ".join(f"replica {one} on node {servings[one].node}: {why}" for one, why in odd.items())
                for member in self._members:
                    self._kill(member)
                raise MedbenchError(
                    f"the replicas do not serve the same weights, even after a restart ({whose}): "
                    f"compare the nodes' GPUs, drivers and files"
                )
            for index, why in odd.items():
                log.info("%s is restarted: %s", self._members[index].described, why)
                self._lost[why] += 1
                self._restart(self._members[index])
            self._wait_for_all()

    def _restart(self, member: _Member) -> None:
        self._kill(member)
        self._start(member)
        self._ship([member])
        self._load(member)

    def _kill(self, member: _Member) -> None:
        if member.actor is not None:
            with suppress(Exception):  # it may be dead
                self._ray.kill(member.actor)
        member.actor = member.serving = member.loading = member.poll = None

    # --- while questions are answered -----------------------------------------------------------------------------

    def _send(self, dispatcher: Dispatcher) -> None:
        """Give replicas their new requests, and ask those that have some for what has happened. Raises Interrupted
        where there are none left, and none that loads."""
        if not any(True for _ in dispatcher.replicas) and not any(one.loading is not None for one in self._members):
            raise Interrupted(GONE)
        gather = GATHER * len(self._members)
        dealt = dispatcher.deal()
        for index in list(dispatcher.replicas):
            member, requests = self._members[index], [packed_request(one) for one in dealt.get(index, ())]
            if requests and dispatcher.under_way(index) == len(requests):
                member.since = time.monotonic()  # it had nothing to do before
            if member.poll is None and dispatcher.under_way(index):
                member.poll = member.actor.take.remote(self._call, requests, TICK, gather)
            elif requests:
                member.actor.put.remote(self._call, requests)

    def _collect(self, dispatcher: Dispatcher) -> Iterator[Completion | Passed]:
        """Wait until something has happened, and yield what has."""
        polls = {one.poll: one for one in self._members if one.poll is not None}
        loads = {one.loading: one for one in self._members if one.loading is not None}
        awaited = [*polls, *loads]
        if awaited:
            ready, rest = self._ray.wait(awaited, num_returns=1, timeout=TICK)
            if rest:
                ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        else:
            ready = []
        for reference in ready:
            if reference in loads:
                self._joined(loads[reference], dispatcher)
                continue
            member = polls[reference]
            found = self._result(member, reference)
            member.poll = None
            report = Report((), found) if isinstance(found, Failure) else found
            yield from self._told(member, report, dispatcher)
            if report.failure is not None:
                self._lose(member, report.failure.why, dispatcher, blamed=not _of_the_node(report.failure))
        for member in self._hung(self._config.patience, dispatcher):
            self._lose(member, _hung(self._config.patience).why, dispatcher)
        for member in self._hung(LOAD_SECONDS, loading=True):
            self._failed_to_return(member, _hung(LOAD_SECONDS))

    def _told(self, member: _Member, report: Report, dispatcher: Dispatcher) -> Iterator[Completion | Passed]:
        if report.events:
            member.since = time.monotonic()
        if report.not_applied:
            self._not_applied.update(report.not_applied)
        for event in report.events:
            found = unpacked(event)
            if isinstance(found, Passed):
                if dispatcher.passed(member.index, found):
                    yield found
            elif dispatcher.finished(member.index, found):
                member.losses = 0
                yield found

    def _lose(self, member: _Member, why: str, dispatcher: Dispatcher, *, blamed: bool = True) -> None:
        """The replica is lost: its requests are asked again elsewhere, and it is restarted."""
        where = member.described
        asked_again = dispatcher.leave(member.index, why, blamed=blamed)
        self._lost[why] += 1
        self._asked_again += asked_again
        member.losses += 1
        again = f"; {asked_again} requests are asked again" if asked_again else ""
        if member.losses >= MOST_LOSSES:
            self._kill(member)
            log.info("%s is lost for good: %s%s", where, why, again)
        else:
            log.info("%s is lost and restarted: %s%s", where, why, again)
            self._restart(member)

    def _joined(self, member: _Member, dispatcher: Dispatcher) -> None:
        """A replica that was restarted has loaded its checkpoint: it must serve what the others do."""
        found = self._loaded(member)
        if isinstance(found, Failure):
            return self._failed_to_return(member, found)
        servings = {one.index: one.serving for one in self._members if one.serving is not None}
        try:
            refuse_other_versions({**servings, member.index: found})
        except MedbenchError as error:
            return self._failed_to_return(member, Failure.of(error))
        odd = different({**servings, member.index: found})
        if servings and member.index in odd:
            return self._failed_to_return(member, Failure("fault", (odd[member.index],)))
        member.serving = found
        dispatcher.join(member.index, _room(found))
        log.info("%s is back", member.described)
        return None

    def _failed_to_return(self, member: _Member, failure: Failure) -> None:
        member.losses += 1
        self._kill(member)
        if member.losses < MOST_LOSSES:
            self._restart(member)
        else:
            log.info("replica %d is lost for good: %s", member.index, failure.why)

    def _hung(self, seconds: float, dispatcher: Dispatcher | None = None, *, loading: bool = False) -> list[_Member]:
        """Replicas that have been silent for so long, with work to do."""
        busy = (
            [one for one in self._members if one.loading is not None]
            if loading
            else [self._members[index] for index in dispatcher.replicas if dispatcher.under_way(index)]
            if dispatcher is not None
            else []
        )
        return [one for one in busy if time.monotonic() - one.since > seconds]

    def _result(self, member: _Member, reference: Any) -> Any:
        """What the call returned; a Failure where the replica is gone."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Failure("fault", (self._why_gone(error),))

    def _why_gone(self, error: BaseException) -> str:
        text = one_line(error)
        if "node has died" in text or "node was terminated" in text or "node is dead" in text:
            return NODE_GONE
        if "low on memory" in text or "OutOfMemory" in type(error).__name__:
            return "out of memory: Ray killed it"
        if isinstance(error, self._ray.exceptions.ActorDiedError | self._ray.exceptions.ActorUnavailableError):
            if "creation task" in text:  # medbench is not there, or another one
                return f"it cannot start: {text[-300:]}"
            return "its process is gone"
        return f"{type(error).__name__}: {text[:200]}"

    def _own_renderer(self) -> Any:
        """Chat turns are rendered here for engines that use the checkpoint's template: asking a replica for each
        question would take longer than all the rest."""
        checkpoint = self._asked.checkpoint if self._asked is not None else None
        if checkpoint is not None and self._choice.name in ("vllm", "hf"):
            from medbench.harness.protocols.chat import load_tokenizer, render_chat

            tokenizer = load_tokenizer(checkpoint.path)
            return lambda messages, thinking: render_chat(tokenizer, messages, thinking)
        if self._choice.name == "fake":
            from medbench.harness.protocols.chat import plain_text

            return lambda messages, thinking: plain_text(messages)
        actor = next(member.actor for member in self._members if member.serving is not None)
        return lambda messages, thinking: self._ray.get(actor.render.remote(messages, thinking))


GONE = "all replicas are gone: answers so far are kept: rerun the same command with --resume"
NODE_GONE = "its node is gone"


def _of_one(choice: EngineChoice) -> EngineConfig:
    """Settings of the engine in each replica."""
    config = choice.config.model_copy(update={"replicas": None, "ray_address": None, "ship_weights": False})
    if choice.name == "vllm" and config.tensor_parallel_size * config.data_parallel_size > 1:
        # inside a placement group vLLM would start Ray workers of its own, for which nothing is reserved
        config = config.model_copy(update={"vllm_args": {"distributed_executor_backend": "mp", **config.vllm_args}})
    return config


def _room(serving: Serving) -> int:
    return max(FEWEST_AHEAD, AHEAD * (serving.places or 0))


def _hung(seconds: float) -> Failure:
    return Failure("fault", (f"it has told nothing for {duration(seconds)}",))


def _of_the_node(failure: Failure) -> bool:
    return failure.why == NODE_GONE


def _serving(found: Any) -> Serving:
    assert isinstance(found, Serving)
    return found
