"""A local HTTP server with OpenAI's API that answers as a test says, and keeps what it was asked.

with serving(lambda call: refusal("Unsupported parameter: 'seed'") if "seed" in call.body else chat()) as server:
    run(["eval", "m", "--base-url", server.url, ...])
assert "seed" not in server.calls[-1].body
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, object, dict[str, str]]
"""Status, body (bytes, or what becomes JSON), headers."""


@dataclass(frozen=True)
class Call:
    """One POST."""

    number: int
    """From 1."""
    at: float
    """time.monotonic()"""
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The prompt, or all turns."""
        return str(self.body.get("prompt") or self.body["messages"])

    @property
    def is_probe(self) -> bool:
        """Whether it only asks if the server answers at all."""
        return "Hello" in self.text[:60]


@dataclass
class Server:
    """See the module. `models` answers GET, or `pages` does, by path."""

    script: Callable[[Call], Answer | None]
    """None: the connection is closed without an answer."""
    models: Callable[[], Answer] = lambda: (200, {"data": [{"id": "m", "owned_by": "me"}]}, {})
    pages: Callable[[str], Answer] | None = None
    calls: list[Call] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    """The header Authorization of every request of any kind."""
    port: int = 0
    _http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """At the port of the last time, if there was one."""
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.keys.append(self.headers["authorization"])
                self.answer(outer.models() if outer.pages is None else outer.pages(self.path))

            def do_POST(self) -> None:
                outer.keys.append(self.headers["authorization"])
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with lock:
                    call = Call(len(outer.calls) + 1, time.monotonic(), self.path, headers, body)
                    outer.calls.append(call)
                self.answer(outer.script(call))

            def answer(self, answer: Answer | None) -> None:
                if answer is None or outer._http is None:
                    return
                status, body, headers = answer
                self.send_response(status)
                for name, value in ({"content-type": "application/json"} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass

        self._http = Quiet(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """From now on connections are refused, and those under way get no answer."""
        http, self._http = self._http, None
        if http is not None:
            http.shutdown()
            http.server_close()


@contextmanager
def serving(script: Callable[[Call], Answer | None], **settings: Any) -> Iterator[Server]:
    server = Server(script, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def chat(content: object = "The answer is (A).", **changes: object) -> Answer:
    """A reply of /chat/completions; `changes` to its message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **changes}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    return 200, {"id": "x", "model": "m", "choices": [choice], "usage": usage}, {}


def text(content: str) -> Answer:
    """A reply of /completions."""
    return 200, {"id": "x", "model": "m", "choices": [{"index": 0, "text": content, "finish_reason": "stop"}]}, {}


def refusal(message: str = "bad", status: int = 400, headers: dict[str, str] | None = None, **error: object) -> Answer:
    return status, {"error": {"message": message, "type": "invalid_request_error", **error}}, headers or {}
