"""Engines started, described, and kept for the next checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medbench.harness.contracts import BrokenCheckpoint, Checkpoint, Engine, Say
from medbench.harness.engines.hot_swap import WarmEngine
from medbench.harness.engines.plugins import check_choice, checked_engine, find_engine
from medbench.harness.engines.replicas.engine import ReplicatedEngine
from medbench.harness.engines.served_swap import SwapServer
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.secrets import redacted


class EngineKeeper:
    """One engine for many checkpoints: vLLM stays warm and swaps weights, as does its server if asked to; any other is
    restarted for each. Replicas stay where they are, and each does the same.

    An engine that the caller made is used as it is and never closed here.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._warm: WarmEngine | None = None
        self._plain: Engine | None = None
        self._replicas: ReplicatedEngine | None = None
        self._server: SwapServer | None = None

    def serve(self, choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
        """The engine, with `checkpoint` loaded; arguments as for `start_engine`."""
        if choice.instance is not None:
            return start_engine(choice, name, checkpoint)
        if choice.config.replicas is not None:
            return self._serve_replicas(choice, name, checkpoint)
        if choice.swap:
            assert checkpoint is not None
            self._server = self._server or SwapServer(choice)
            return self._server.serve(checkpoint)
        if choice.name != "vllm":
            self._close_plain()
            self._plain = start_engine(choice, name, checkpoint)
            return self._plain
        assert checkpoint is not None
        if self._warm is None:
            self._warm = WarmEngine(checkpoint, choice.config, self._say)
            return self._warm.engine
        try:
            self._warm.engine.wake()
            report = self._warm.swap(checkpoint)
        except BaseException:  # what it serves now is unknown: the next checkpoint gets a new engine
            warm, self._warm = self._warm, None
            warm.close()
            raise
        how = "engine restarted" if report.restarted else "swapped in"
        self._say(f"{name}: {how} in {report.seconds:.1f} s, the probe moved by {report.moved:.2g} nats")
        return self._warm.engine

    def pause(self) -> None:
        """Let others have a server until the next `serve`."""
        if self._server is not None:
            self._server.release()

    def rest(self) -> None:
        """Free the device until the next `serve`: vLLM sleeps if it was started with sleep mode, others are closed."""
        if self._warm is not None:
            self._warm.engine.sleep()
        if self._replicas is not None:
            self._replicas.rest()
        self._close_plain()

    def close(self) -> None:
        self.pause()
        self._close_plain()
        replicas, self._replicas = self._replicas, None
        if replicas is not None:
            replicas.close()
        warm, self._warm = self._warm, None
        if warm is not None:
            warm.close()

    def _serve_replicas(self, choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
        check_choice(choice)
        if self._replicas is None:
            self._replicas = ReplicatedEngine(choice)
        try:
            self._replicas.load(name, checkpoint)
        except BrokenCheckpoint:  # the next checkpoint may be sound
            raise
        except BaseException:  # what they serve now is unknown
            replicas, self._replicas = self._replicas, None
            replicas.close()
            raise
        return self._replicas

    def _close_plain(self) -> None:
        plain, self._plain = self._plain, None  # forgotten first: closed once, whatever fails
        if plain is not None:
            plain.close()


def describe_engine(engine: Engine) -> dict[str, Any]:
    """run.json's `engine`, without secrets."""
    return {"name": engine.name, "chat_template": engine.chat_template, "settings": redacted(engine.settings())}


def start_engine(choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
    """The engine of `choice`; heavy imports happen here. Raises MedbenchError where it cannot be started.

    `name` is the model's name, as a server knows it. `checkpoint` is None for engines that need none.
    """
    if choice.instance is not None:
        return checked_engine(choice.instance, "the given engine")
    check_choice(choice)
    if choice.swap:
        assert checkpoint is not None
        return SwapServer(choice).serve(checkpoint)
    plugin = "ray" if choice.config.replicas is not None else choice.name
    return checked_engine(find_engine(plugin).start(name, checkpoint, choice), f"engine {plugin!r}")


@contextmanager
def opened_engine(
    choice: EngineChoice, name: str, checkpoint: Checkpoint | None, keeper: EngineKeeper | None = None
) -> Iterator[Engine]:
    """An engine for the length of a `with` block: `keeper`'s, which stays open, or a new one."""
    engine = keeper.serve(choice, name, checkpoint) if keeper is not None else start_engine(choice, name, checkpoint)
    try:
        yield engine
    finally:
        if keeper is not None:
            keeper.pause()
        elif choice.instance is None:
            engine.close()
