"""Engines started once and kept for the next checkpoint."""

from __future__ import annotations

from typing import Any

from medbench.harness.checkpoints.packages import needed
from medbench.harness.contracts import Checkpoint, Engine, MedbenchError, Say
from medbench.harness.engines.fake import FakeEngine, read_replies
from medbench.harness.engines.hot_swap import WarmEngine
from medbench.harness.engines.settings import EngineChoice


class EngineKeeper:
    """One engine for many checkpoints: vLLM stays warm and swaps, any other is started anew for each."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._warm: WarmEngine | None = None
        self._plain: Engine | None = None

    def serve(self, choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
        """The engine, with `checkpoint` in it; arguments as for `start_engine`."""
        if choice.name != "vllm":
            if self._plain is not None:
                self._plain.close()
            self._plain = start_engine(choice, name, checkpoint)
            return self._plain
        assert checkpoint is not None
        if self._warm is None:
            self._warm = WarmEngine(checkpoint, choice.config, self._say)
            return self._warm.engine
        self._warm.engine.wake()
        report = self._warm.swap(checkpoint)
        how = "engine started anew" if report.restarted else "swapped in"
        self._say(f"{name}: {how} in {report.seconds:.1f} s, the probe moved by {report.moved:.2g} nats")
        return self._warm.engine

    def rest(self) -> None:
        """Give the device back until the next `serve`: vLLM sleeps where it was started so, any other is closed."""
        if self._warm is not None:
            self._warm.engine.sleep()
        if self._plain is not None:
            self._plain.close()
            self._plain = None

    def close(self) -> None:
        for engine in (self._warm, self._plain):
            if engine is not None:
                engine.close()


def describe_engine(engine: Engine) -> dict[str, Any]:
    """What run.json keeps of the engine."""
    return {"name": engine.name, "chat_template": engine.chat_template, "settings": dict(engine.settings())}


def start_engine(choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
    """The engine of `choice`; heavy imports happen here.

    `name` is the model's name, as a server knows it. `checkpoint` is None for a server and for stored replies.
    """
    config = choice.config
    if config.batch_invariant and choice.name != "vllm":
        raise MedbenchError(
            f"engine_config.batch_invariant is a mode of vLLM: leave it out with --engine {choice.name}"
        )
    if choice.name == "fake":
        assert choice.replies is not None
        return FakeEngine(read_replies(choice.replies)[0], config.delay)
    if choice.name == "openai":
        from medbench.harness.engines.openai import OpenAIEngine

        assert choice.base_url is not None
        return OpenAIEngine(choice.base_url, name, concurrency=config.concurrency, timeout=config.timeout)
    assert checkpoint is not None
    if choice.name == "hf":
        from medbench.harness.engines.hf import HFEngine

        with needed("--engine hf cannot start"):
            return HFEngine(checkpoint.path, dtype=config.dtype, batch_size=config.batch_size)
    from medbench.harness.engines.vllm import VLLMEngine

    with needed("vLLM cannot start"):
        return VLLMEngine(checkpoint.path, config)
