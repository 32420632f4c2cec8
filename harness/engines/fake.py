"""Stored or scripted replies behind the Engine contract: tests, dry runs, gates simulated on real models' replies.

medbench eval replies --engine fake --replies replies.jsonl --tasks mmlu_pro_health
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medbench.harness.contracts import Completion, MedbenchError, Message, Request
from medbench.harness.data import read_jsonl


class FakeEngine:
    """Answers question id -> reply; `delay` seconds a reply. An id without a reply is an engine error."""

    name = "fake"
    chat_template: Literal["model", "server", "none"] = "none"

    def __init__(self, replies: Mapping[str, Mapping[str, Any]], delay: float = 0.0) -> None:
        self._replies = replies
        self._delay = delay

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return "\n\n".join(message.content for message in messages)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            if self._delay:
                time.sleep(self._delay)
            yield self._complete(request)

    def _complete(self, request: Request) -> Completion:
        # a request's id is "<task>/<question id>"; stored replies know the question alone
        reply = self._replies.get(request.id.partition("/")[2])
        if reply is None:
            return Completion(request.id, "", "error", error="no reply is stored for this question")
        text = reply["output"]
        if request.choices is not None:
            logprobs = {choice: 0.0 if choice.strip() == text.strip() else -10.0 for choice in request.choices}
            return Completion(request.id, "", "stop", logprobs=logprobs)
        return Completion(request.id, text, reply.get("finish_reason", "stop"), completion_tokens=len(text.split()))

    def settings(self) -> Mapping[str, Any]:
        return {"delay": self._delay}

    def close(self) -> None:
        pass


def read_replies(path: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """({id: {"output", "finish_reason"?}}, sha256 of the file). Raises MedbenchError naming the line."""
    replies: dict[str, dict[str, Any]] = {}
    for number, row in read_jsonl(path):
        id = row.get("id", row.get("question_id"))
        if not isinstance(id, str | int) or isinstance(id, bool):
            raise MedbenchError(f'{path}:{number}: no "id"; each line is {{"id": ..., "output": ...}}')
        if not isinstance(row.get("output"), str):
            raise MedbenchError(f'{path}:{number}: "output" is not text')
        if row.get("finish_reason", "stop") not in ("stop", "length"):
            raise MedbenchError(f'{path}:{number}: "finish_reason" must be "stop" or "length"')
        if str(id) in replies:
            raise MedbenchError(f"{path}:{number}: id {id} stands twice; keep one line")
        replies[str(id)] = {"output": row["output"], "finish_reason": row.get("finish_reason", "stop")}
    if not replies:
        raise MedbenchError(f"{path}: the file is empty")
    return replies, hashlib.sha256(path.read_bytes()).hexdigest()
