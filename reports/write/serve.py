"""The site on this machine's own address, built again when runs change: for watching a training.

    medbench report runs -o site --serve --open

Only the loopback address listens, and only requests that name it are answered, so that no web page can reach the
server under another name. Dot files, folders without an index and links out of the site are not found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from medbench.harness.contracts import MedbenchError
from medbench.reports.write.pages import POLICY

ADDRESS = "127.0.0.1"
POLL_SECONDS = 1.5
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TYPES = {
    "": "application/octet-stream",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


@contextmanager
def serving(site: Path, port: int) -> Iterator[str]:
    """The address of the site while it is served. Raises MedbenchError for a port that is taken; 0 is any free one."""
    try:
        server = ThreadingHTTPServer((ADDRESS, port), partial(_Handler, directory=str(site)))
    except OSError as error:
        raise MedbenchError(f"port {port}: {error.strerror}: give another --port, 0 for any") from None
    server.daemon_threads = True
    with running(server) as address:
        yield address


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """The address of a server on this machine while it answers, in a thread of its own; closed at the end."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{ADDRESS}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def keep_building(
    build: Callable[[], None],
    signature: Callable[[], str],
    say: Callable[[str], None],
    *,
    stop: Callable[[], bool] = lambda: False,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Call `build` whenever `signature` has changed, until `stop`. A fault is said once and outlived."""
    seen, said = signature(), ""
    while not stop():
        time.sleep(poll_seconds)
        try:
            now = signature()
            if now != seen:
                build()
                seen, said = now, ""
        except MedbenchError as error:
            if str(error) != said:
                say(f"medbench: {error}")
            seen, said = "", str(error)


def names_this_machine(host: str | None) -> bool:
    """Whether a request's Host, with its port, is the loopback address and not a name that a web page gave it."""
    return (host or "").rpartition(":")[0] in (ADDRESS, "localhost")


class _Handler(SimpleHTTPRequestHandler):
    """Files of the site and nothing else."""

    extensions_map = TYPES
    server_version = "medbench"
    sys_version = ""

    def send_head(self) -> Any:
        if not names_this_machine(self.headers.get("Host")):
            self.send_error(421, "this server answers to its own address alone")
            return None
        path = unquote(urlsplit(self.path).path)
        if any(part.startswith(".") for part in path.split("/")) or "\0" in path or not self._inside():
            self.send_error(404)
            return None
        return super().send_head()

    def _inside(self) -> bool:
        try:
            return Path(self.translate_path(self.path)).resolve().is_relative_to(Path(self.directory).resolve())
        except (OSError, RuntimeError):  # a link loop, or a name longer than a file system has
            return False

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
