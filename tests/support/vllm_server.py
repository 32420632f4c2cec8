"""A real vLLM server with a tiny model on this machine, and a proxy before it that changes what a test says.

with vllm_server(folder, tmp_path, "--api-key", KEY) as url: ...
with proxy(url, lambda call: (200, {}) if call.path == "/collective_rpc" else None) as meddling: ...
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

STARTUP_S = 240


@contextmanager
def vllm_server(model: Path, folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """The URL of a server of `model` under the name "tiny"; its log is in `folder`. Skips the test without vLLM."""
    if find_spec("vllm") is None:  # importing it takes seconds
        pytest.skip("vLLM is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not `vllm serve`, which looks up the version of a distribution named vllm; CPU builds have another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--dtype", "float32", *arguments]
    log = folder / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command,
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    try:
        _wait_for_health(port, server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_for_health(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(f"the vLLM server did not come up (exit status {server.poll()}):\n{log.read_text()[-3000:]}")


@dataclass
class Passing:
    """A request on its way to the server. What is changed here is what the server gets."""

    method: str
    path: str
    body: Any


@contextmanager
def proxy(url: str, meddle: Callable[[Passing], tuple[int, object] | None]) -> Iterator[str]:
    """The URL of a proxy. `meddle` may change a request, or answer it itself with (status, JSON)."""
    root = url.removesuffix("/v1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.pass_on(None)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            self.pass_on(json.loads(content) if content else None)

        def pass_on(self, body: Any) -> None:
            call = Passing(self.command, self.path, body)
            own = meddle(call)
            status, content = self.ask(call) if own is None else (own[0], json.dumps(own[1]).encode())
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def ask(self, call: Passing) -> tuple[int, bytes]:
            headers = {"content-type": "application/json", "authorization": self.headers.get("authorization") or ""}
            data = None if call.body is None and call.method == "GET" else json.dumps(call.body or {}).encode()
            request = urllib.request.Request(root + call.path, data, headers, method=call.method)
            try:
                with urllib.request.urlopen(request, timeout=120) as reply:
                    return reply.status, reply.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
