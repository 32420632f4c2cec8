"""Engines by name, started once and kept for the next checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from medbench.harness.checkpoints.packages import needed
from medbench.harness.contracts import Checkpoint, Engine, MedbenchError, Say
from medbench.harness.engines.fake import FakeEngine, read_replies
from medbench.harness.engines.hot_swap import WarmEngine
from medbench.harness.engines.plugins import plugin_names, start_plugin
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.text import did_you_mean


class EngineKeeper:
    """One engine for many checkpoints: vLLM stays warm and swaps, any other is started anew for each."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._warm: WarmEngine | None = None
        self._plain: Engine | None = None

    def serve(self, choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
        """The engine, with `checkpoint` in it; arguments as for `start_engine`."""
        if choice.name != "vllm" or choice.ready is not None:
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
    if choice.ready is not None:
        return cast(Engine, _Borrowed(choice.ready))
    if choice.config.batch_invariant and choice.name != "vllm":
        raise MedbenchError(
            f"engine_config.batch_invariant is a mode of vLLM: leave it out with --engine {choice.name}"
        )
    check_engine_name(choice.name)
    start = BUILT_IN.get(choice.name)
    return start(choice, name, checkpoint) if start else start_plugin(choice.name, name, checkpoint, choice.config)


def check_engine_name(name: str) -> None:
    """Raises MedbenchError for an engine that neither medbench nor a plugin has."""
    if name not in BUILT_IN and name not in plugin_names():
        raise MedbenchError(f"unknown engine {name!r}; {did_you_mean(name, [*BUILT_IN, *plugin_names()])}")


def asks_checkpoint(engine: str, model: str) -> bool:
    """Whether `model` is a checkpoint that must be found and fingerprinted; a plugin may take any other name."""
    return engine in ("vllm", "hf") or Path(model).is_dir()


def _vllm(choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
    from medbench.harness.engines.vllm import VLLMEngine

    assert checkpoint is not None
    with needed("vLLM cannot start"):
        return VLLMEngine(checkpoint.path, choice.config)


def _hf(choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
    from medbench.harness.engines.hf import HFEngine

    assert checkpoint is not None
    with needed("--engine hf cannot start"):
        return HFEngine(checkpoint.path, dtype=choice.config.dtype, batch_size=choice.config.batch_size)


def _openai(choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
    from medbench.harness.engines.openai import OpenAIEngine

    assert choice.base_url is not None
    config = choice.config
    return OpenAIEngine(choice.base_url, name, concurrency=config.concurrency, timeout=config.timeout)


def _fake(choice: EngineChoice, name: str, checkpoint: Checkpoint | None) -> Engine:
    assert choice.replies is not None
    return FakeEngine(read_replies(choice.replies)[0], choice.config.delay)


BUILT_IN = {"vllm": _vllm, "hf": _hf, "openai": _openai, "fake": _fake}


class _Borrowed:
    """An engine of the caller's, which medbench does not close."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        pass
