"""An engine that answers every question with the model's name: `medbench eval B --engine echo` always answers B."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from medbench.harness.contracts import Checkpoint, Completion, Message, Request
from medbench.harness.engines.settings import EngineChoice

NEEDS = ()  # no checkpoint, no server: the model's name is enough


class EchoEngine:
    name = "echo"
    chat_template: Literal["model", "server", "none"] = "none"

    def __init__(self, model: str) -> None:
        self._model = model

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return "\n".join(message.content for message in messages)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            yield Completion(request.id, f"The answer is ({self._model}).", "stop", completion_tokens=5)

    def settings(self) -> Mapping[str, Any]:
        return {"echoes": self._model}

    def close(self) -> None: ...


def start(name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> EchoEngine:
    return EchoEngine(name)
