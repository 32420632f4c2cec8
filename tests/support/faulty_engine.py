"""Stored replies from an engine that fails at chosen questions: for tests of what watches engines.

As the plugin "faulty" (see `install`) its requests are told by the words in the question:

- "poison" kills the process
- "stuck" keeps it busy for ever
- "broken" raises
- "slow" takes a second
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medbench.harness.contracts import Checkpoint, Completion, MedbenchError, Message, Passed, Request
from medbench.harness.engines.plugins import GROUP
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.protocols.chat import plain_text

NEEDS = ("checkpoint",)
STALE = "STALE"
"""File beside a checkpoint: a replica that finds it removes it, and serves something else."""
REFUSED = "REFUSED"
"""File beside a checkpoint: a replica that finds it cannot load it."""


def install(site: Path) -> Path:
    """A folder for sys.path that makes it a plugin."""
    info = site / "faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nfaulty = support.faulty_engine\n")
    return site


class FaultyEngine:
    """`places` is 4."""

    name = "faulty"
    chat_template: Literal["model", "server", "none"] = "none"
    places = 4
    reports_milestones = True

    def __init__(self, path: Path, delay: float) -> None:
        self._delay = delay
        self._probe = float(sum(path.joinpath("config.json").read_bytes()))
        if (path / REFUSED).exists():
            raise MedbenchError(f"{path}: refused")
        if (path / STALE).exists():
            (path / STALE).unlink()
            self._probe += 1

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return plain_text(messages)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion | Passed]:
        source, running = iter(requests), list[Request]()
        while True:
            while len(running) < self.places and (request := next(source, None)) is not None:
                running.append(request)
            if not running:
                return
            request = running.pop(0)
            if request.choices is not None:
                yield Completion(request.id, "", "stop", logprobs=dict.fromkeys(request.choices, self._probe))
                continue
            self._fail(request.prompt)
            if request.milestones:
                yield Passed(request.id, request.milestones[0])
            yield Completion(request.id, f"The answer is (A). {request.id}", "stop", 3, 4)

    def _fail(self, prompt: str) -> None:
        time.sleep(1.0 if "slow" in prompt else self._delay)
        if "poison" in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if "stuck" in prompt:
            time.sleep(10_000)
        if "broken" in prompt:
            raise RuntimeError("the engine core is gone")

    def settings(self) -> Mapping[str, Any]:
        return {"device": "cpu"}

    def close(self) -> None: ...


def start(name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> FaultyEngine:
    """See medbench.harness.engines.plugins."""
    assert checkpoint is not None
    return FaultyEngine(Path(checkpoint.path), choice.config.delay)
