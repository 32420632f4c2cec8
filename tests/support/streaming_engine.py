"""Stored replies as an engine with continuous batching: a step makes one word of each running reply, and tells when it
passes a milestone. A word is a token.

    StreamingEngine(replies, places=64)

As the plugin "streaming" it tells what it does, and its process can be killed at a chosen moment of that, see
gates/test_killed_gate.py.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medbench.harness.contracts import Checkpoint, Completion, Passed, Request
from medbench.harness.engines.fake import FakeEngine, read_replies
from medbench.harness.engines.settings import EngineChoice

NEEDS = ("replies",)
TOLD = "moment: "
"""Begins each line about a moment, on standard error."""
PLACES = 16
"""Of the plugin."""


class StreamingEngine(FakeEngine):
    """`asked`: ids of the questions in the order in which they were sent."""

    reports_milestones = True

    def __init__(
        self, replies: Mapping[str, Mapping[str, Any]], places: int = 64, stop_after: int | None = None
    ) -> None:
        super().__init__(replies)
        self.places, self._left = places, stop_after if stop_after is not None else 10**9
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion | Passed]:
        source, running = iter(requests), list[tuple[Request, Completion, int]]()
        while True:
            while len(running) < self.places and (request := next(source, None)) is not None:
                self.asked.append(request.id.partition("/")[2])
                self.tell("asked", self.asked[-1])
                running.append((request, self._complete(request), 0))
            if not running:
                return
            now, running = running, []
            for request, completion, tokens in now:
                if tokens + 1 >= completion.completion_tokens:
                    if not self._left:
                        raise KeyboardInterrupt
                    self._left -= 1
                    self.tell("finished")
                    yield completion
                    self.tell("stored")
                    continue
                running.append((request, completion, tokens + 1))
                if tokens in request.milestones:
                    yield Passed(request.id, tokens)
                    self.tell("passed")

    def tell(self, moment: str, of: str = "") -> None: ...


class TellingEngine(StreamingEngine):
    name = "streaming"

    def tell(self, moment: str, of: str = "") -> None:
        _tell(moment, of)


def start(name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> TellingEngine:
    """See medbench.harness.engines.plugins."""
    assert choice.replies is not None
    return TellingEngine(read_replies(choice.replies)[0], PLACES)


_kill_at = ""
_times = Counter[str]()


def kill_at(moment: str) -> None:
    """Kill this process at a moment such as "asked 3", which is the third time that something is asked.

    Moments of files are "opens NAME", before it is opened for writing under its own or a temporary name, and "renames
    NAME", before the temporary one takes the name.
    """
    global _kill_at
    _kill_at = moment
    sys.addaudithook(_tell_of_files)


def _tell(moment: str, of: str = "") -> None:
    os.write(2, f"{TOLD}{moment} {of}\n".encode())
    _times[moment] += 1
    if _kill_at == f"{moment} {_times[moment]}":
        os.kill(os.getpid(), signal.SIGKILL)


def _tell_of_files(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[1], str) and not {*"wax+"}.isdisjoint(arguments[1]):
        what, path = "opens", arguments[0]
    elif event == "os.rename":
        what, path = "renames", arguments[1]
    else:
        return
    if isinstance(path, str):
        # a temporary file is called .verdict.json.PROCESS.tmp
        name = Path(path).name.removesuffix(".tmp").removesuffix(f".{os.getpid()}").removeprefix(".")
        _tell(f"{what} {name}")
