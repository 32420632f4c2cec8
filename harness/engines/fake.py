"""Stored or scripted replies as an engine: for tests, dry runs, and gates simulated on the replies of real models.

medbench eval replies --engine fake --replies replies.jsonl --tasks mmlu_pro_health
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medbench.harness.contracts import Checkpoint, Completion, Engine, Message, Request, sample_key
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.engines.stored_replies import check_replies
from medbench.harness.protocols.chat import plain_text

NEEDS = ("replies",)


def start(name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> Engine:
    """See engines.plugins."""
    assert choice.replies is not None
    return FakeEngine(read_replies(choice.replies)[0], choice.config.delay)


class FakeEngine:
    """Looks replies up by contracts.Sample.key, waiting `delay` seconds for each. A missing reply is an engine error.

    `completion_tokens` is the number of words.
    """

    name = "fake"
    chat_template: Literal["model", "server", "none"] = "none"

    def __init__(self, replies: Mapping[str, Mapping[str, Any]], delay: float = 0.0) -> None:
        self._replies = replies
        self._delay = delay

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return plain_text(messages)

    places = 1

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in requests:
            if request is None:
                return
            if self._delay:
                time.sleep(self._delay)
            yield self._complete(request)

    def _complete(self, request: Request) -> Completion:
        # a request's id is "<task>/<key>"; stored replies have only the key
        key = request.id.partition("/")[2]
        reply = self._replies.get(key)
        if reply is None and request.repeat:
            reply = self._for_every_repeat(key.removesuffix(f"#{request.repeat}"))
        if reply is None:
            return Completion(request.id, "", "error", error="no reply is stored for this question")
        text = reply["output"]
        if request.choices is not None:
            logprobs = {choice: 0.0 if choice.strip() == text.strip() else -10.0 for choice in request.choices}
            return Completion(request.id, "", "stop", logprobs=logprobs)
        return Completion(request.id, text, reply.get("finish_reason", "stop"), completion_tokens=len(text.split()))

    def _for_every_repeat(self, id: str) -> Mapping[str, Any] | None:
        """The question's reply, unless it says which repeat it answers."""
        reply = self._replies.get(id)
        return reply if reply is not None and reply.get("sample") is None else None

    def settings(self) -> Mapping[str, Any]:
        return {"delay": self._delay}

    def close(self) -> None:
        pass


def read_replies(path: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """({contracts.Sample.key: fields of stored_replies.Reply}, sha256 of the file). Raises MedbenchError."""
    replies = check_replies(path)
    return {sample_key(one.id, one.repeat): one._asdict() for one in replies.read()}, replies.sha256
