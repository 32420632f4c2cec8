"""Verdicts by HTTP, on this machine's own address.

    POST /judge {"checkpoint": PATH}     accepted: 202 and the item; with ?wait=1 the item once it is judged
    GET /verdicts/ID                     the item; /verdicts/ID.html is a page
    GET /queue                           what is queued, running and judged; / is a page

Whatever arrives is hostile. Only the loopback address listens; a request that names another host, or that a page of
another origin sends, is turned away; a body is one small JSON object; a path must lie in an allowed folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medbench.harness.checkpoints.watch_folder import MARKS
from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.files import as_text, parse_json
from medbench.harness.secrets import redact
from medbench.harness.text import foreign
from medbench.harness.verdict_server.queue import ID_LENGTH, Full, JudgingQueue
from medbench.reports.write import pages
from medbench.reports.write.serve import ADDRESS, HEADERS, TYPES, names_this_machine, running

LONGEST_BODY = 16 * 1024
LONGEST_PATH = 4096
SILENT_SECONDS = 30.0
"""Without a byte from a client that has not finished its request."""
OVER_SHOWN = 200
ASSETS = ("site.css", "theme.js")
JSON, HTML = "application/json", TYPES[".html"]


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, redact(why)


@dataclass(frozen=True, slots=True)
class Desk:
    """What the answers are made from."""

    queue: JudgingQueue
    allowed: Sequence[Path]
    """Resolved folders: what lies in one of them may be judged."""
    rules: Mapping[str, Any]
    """What the verdicts are about: "gate_file", "gates" and "baseline"."""
    keep_fault: Callable[[BaseException], str]

    def listed(self) -> dict[str, Any]:
        """What GET /queue answers, without the verdicts' details."""
        items = self.queue.items()
        short = {item.id: {key: value for key, value in item.as_json().items() if key != "verdict"} for item in items}
        over = sorted((item for item in items if item.over), key=lambda item: item.ended or "", reverse=True)
        return {
            **self.rules,
            "allowed": list(map(str, self.allowed)),
            "running": [short[item.id] for item in items if item.state == "running"],
            "queued": [short[item.id] for item in items if item.state == "queued"],
            "judged": [short[item.id] for item in over[:OVER_SHOWN]],
        }


def allowed_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders, resolved. Raises MedbenchError for one that is not there."""
    for folder in folders:
        if not folder.is_dir():
            raise MedbenchError(f"{folder}: no such folder: checkpoints must lie in an existing one")
    return [folder.resolve() for folder in folders]


@contextmanager
def answering(desk: Desk, port: int) -> Iterator[str]:
    """The server's address while it answers. Raises MedbenchError for a port that is taken; 0 is any free one."""
    try:
        server = _Server((ADDRESS, port), _Handler)
    except OSError as error:
        raise MedbenchError(f"port {port}: {error.strerror}: give another one to --serve, 0 for any") from None
    server.desk = desk
    with running(server) as address:
        yield address


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that waits for a verdict must not keep the server from ending
    desk: Desk

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client went away, or was silent for too long."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "medbench"
    sys_version = ""
    timeout = SILENT_SECONDS

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, route: Callable[[], tuple[HTTPStatus, str, bytes]]) -> None:
        try:
            self._refuse_strangers()
            status, kind, content = route()
        except Refused as refused:
            status, kind, content = refused.status, JSON, _json({"error": refused.why})
        except ConnectionError:
            raise
        except TimeoutError:
            status, kind, content = HTTPStatus.REQUEST_TIMEOUT, JSON, _json({"error": "the request did not end"})
        except Exception as error:
            fault = self.server.desk.keep_fault(error)
            status, kind, content = HTTPStatus.INTERNAL_SERVER_ERROR, JSON, _json({"error": fault})
        self._send(status, kind, content)

    def _get(self) -> tuple[HTTPStatus, str, bytes]:
        desk, path = self.server.desk, urlsplit(self.path).path
        if path == "/":
            return HTTPStatus.OK, HTML, pages.judging_page(desk.listed()).encode("utf-8", "replace")
        if path == "/queue":
            return HTTPStatus.OK, JSON, _json(desk.listed())
        if (found := re.fullmatch(rf"/verdicts/([0-9a-f]{{{ID_LENGTH}}})(\.html)?", path)) is not None:
            item = desk.queue.find(found[1])
            if item is not None and found[2]:
                return HTTPStatus.OK, HTML, pages.verdict_page(item.as_json()).encode("utf-8", "replace")
            if item is not None:
                return HTTPStatus.OK, JSON, _json(item.as_json())
        name = path.removeprefix("/assets/")
        if name in ASSETS and path != name:
            return HTTPStatus.OK, TYPES[Path(name).suffix], pages.ASSETS[name]
        raise Refused(HTTPStatus.NOT_FOUND, "no such page: there are /, /queue, /verdicts/ID, and POST /judge")

    def _post(self) -> tuple[HTTPStatus, str, bytes]:
        asked = urlsplit(self.path)
        if asked.path != "/judge":
            raise Refused(HTTPStatus.NOT_FOUND, "only /judge takes a POST")
        wait = {"": False, "wait=0": False, "wait=1": True}.get(asked.query)
        if wait is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "the only query is ?wait=1")
        queue = self.server.desk.queue
        try:
            item = queue.accept(self._checkpoint())
        except Full as error:
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, str(error)) from None
        except Interrupted as error:
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from None
        except MedbenchError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        if wait:
            item = queue.wait(item.id)
        return HTTPStatus.OK if item.over else HTTPStatus.ACCEPTED, JSON, _json(item.as_json())

    def _refuse_strangers(self) -> None:
        """A web page elsewhere can make a browser send requests here, and can give this address a name of its own."""
        if not names_this_machine(self.headers.get("Host")):
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to its own address alone")
        origin = self.headers.get("Origin")
        own = {f"http://{name}:{self.server.server_address[1]}" for name in (ADDRESS, "localhost")}
        if origin is not None and origin not in own:
            raise Refused(HTTPStatus.FORBIDDEN, "pages of another origin may not ask")
        elsewhere = self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        if elsewhere and self.command == "POST":
            raise Refused(HTTPStatus.FORBIDDEN, "pages of another origin may not ask")

    def _checkpoint(self) -> Path:
        """The folder that the request names. Raises Refused unless it is a checkpoint in an allowed folder."""
        content = self._body()
        if not isinstance(content, dict) or content.keys() != {"checkpoint"}:
            raise Refused(HTTPStatus.BAD_REQUEST, 'the body must be {"checkpoint": PATH} and nothing else')
        named = content["checkpoint"]
        if not isinstance(named, str) or not named or len(named) > LONGEST_PATH or "\0" in named:
            raise Refused(HTTPStatus.BAD_REQUEST, '"checkpoint" must be a path')
        if not Path(named).is_absolute():
            raise Refused(HTTPStatus.BAD_REQUEST, f'"checkpoint" must be an absolute path, not {foreign(named)}')
        try:
            path = Path(named).resolve()
            inside = any(path.is_relative_to(folder) for folder in self.server.desk.allowed)
        except (OSError, RuntimeError, ValueError):  # a link loop, a name too long, half a surrogate pair
            inside = False
        if not inside:
            allowed = ", ".join(map(as_text, self.server.desk.allowed))
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"{foreign(named)}: not in {allowed}: start medbench watch with --allow FOLDER for another",
            )
        if not path.is_dir() or not any((path / mark).exists() for mark in MARKS):
            raise Refused(HTTPStatus.NOT_FOUND, f"{foreign(named)}: no checkpoint: no folder with {' or '.join(MARKS)}")
        return path

    def _body(self) -> Any:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send the body as {JSON}")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length) or self.headers.get("Transfer-Encoding"):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "send the body with its Content-Length, in one piece")
        if int(length) > LONGEST_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {LONGEST_BODY} bytes")
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is shorter than its Content-Length")
        try:
            return parse_json(content)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error).partition(";")[0]) from None

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """For what http.server itself refuses: a request that is no HTTP, a method that there is none of."""
        status = HTTPStatus(code)
        self.command = getattr(self, "command", None) or "GET"
        self.close_connection = True
        self._send(status, JSON, _json({"error": status.phrase.lower()}))

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
