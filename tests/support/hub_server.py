"""A Hub on 127.0.0.1 for huggingface_hub and datasets: repositories, commits, gates, and faults on demand.

    with HubServer() as hub:
        commit = hub.add("model", "org/tiny", files_of(folder), revision="v1")
        run(..., env=hub.environment(tmp_path))

What it answers is what these clients ask for: /api/models/ID and /api/datasets/ID (with /revision, /tree, /paths-info),
/ID/resolve/REVISION/FILE with ETag, X-Repo-Commit and ranges. Files of kinds that the real Hub keeps in LFS are
redirected to another host, localhost, as the real one sends them to its CDN.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]
Form = Mapping[str, list[str]]

TOKEN = "hf_" + "readsgatedmodels" * 2
"""Of an account with access to everything."""
STRANGER = "hf_" + "acceptednolicence" * 2
"""Of an account without access to gated repositories."""
IN_LFS = (".safetensors", ".parquet")


@dataclass
class Repo:
    kind: str
    id: str
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    token: str | None
    range: str | None


def files_of(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


class HubServer:
    """A server on a thread. The attributes below may be changed while it serves."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.asked: list[Asked] = []
        self.too_many: dict[str, int] = {}
        """Repository -> how many of its next requests are answered with 429."""
        self.limit: dict[str, str] = {"Retry-After": "0"}
        """Headers of these answers."""
        self.broken: dict[str, int] = {}
        """sha256 of a file -> how many of its next downloads end after half of what was to be sent."""
        self.status: dict[str, int] = {}
        """Repository -> the status of all answers, as of a Hub that is out of order."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._blobs: dict[str, bytes] = {}
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; nothing answers at the address any more."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, kind: str, id: str, files: Files, *, revision: str = "main", gated: bool = False) -> str:
        """Make `files` the newest commit of a branch or tag; returns the commit."""
        repo = self.repos.setdefault((kind, id), Repo(kind, id))
        repo.gated = gated
        content = [id, *(f"{path} {sha256(files[path])}" for path in sorted(files))]
        commit = hashlib.sha1("\n".join(content).encode()).hexdigest()
        repo.commits[commit] = files
        repo.refs[revision] = commit
        self._blobs |= {sha256(one): one for one in files.values()}
        return commit

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """For a child process whose only hub this is; `home` keeps its caches."""
        other = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "MEDBENCH_DATA")
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(other)}
        return {
            **kept,
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": self.url,
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets` would ask a host on the internet
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MEDBENCH_CACHE": str(home / "medbench"),
            "NO_PROXY": "127.0.0.1,localhost",
            **changes,
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            def do_HEAD(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                form = parse_qs(self.rfile.read(length).decode()) if length else {}
                url = urlsplit(self.path)
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
                asked = Asked(self.command, url.path, token, self.headers.get("Range"))
                hub.asked.append(asked)
                answer = hub.answer(
                    asked, parse_qs(url.query), form, to_cdn=self.headers["Host"].startswith("localhost")
                )
                self._send(answer)

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                body = answer.body
                if "Content-Length" not in answer.headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if answer.breaks_off:
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    self.close_connection = True
                    return
                self.wfile.write(body)

        return Handler

    def answer(
        self, asked: Asked, query: Mapping[str, list[str]], form: Mapping[str, list[str]], *, to_cdn: bool
    ) -> Answer:
        if to_cdn:
            return self._content(asked, asked.path.removeprefix("/cdn/"), {})
        found = _Place.of(asked.path)
        if found is None:
            return refusal(404, "Sorry, we can't find the page you are looking for.")
        if self.too_many.get(found.id, 0) > 0:
            self.too_many[found.id] -= 1
            return refusal(429, "We had to rate limit your IP.", **self.limit)
        if found.id in self.status:
            return refusal(self.status[found.id], "Internal Error - We're working hard to fix this.")
        if asked.token not in (None, TOKEN, STRANGER):
            return refusal(401, "Invalid credentials in Authorization header")
        repo = self.repos.get((found.kind, found.id))
        if repo is None:
            if asked.token is None:  # the real one does not say whether it is absent or private
                return refusal(401, "Invalid username or password.")
            return refusal(404, "Repository not found", "RepoNotFound")
        commit = repo.refs.get(found.revision, found.revision if found.revision in repo.commits else "")
        if not commit:
            return refusal(404, f"Invalid rev id: {found.revision}", "RevisionNotFound")
        files = repo.commits[commit]
        if found.what == "info":
            return as_json(_info(repo, commit))
        if found.what == "tree":
            return _tree(
                files, found.path, recursive=query.get("recursive", ["false"])[0].lower() == "true", commit=commit
            )
        if found.what == "paths-info":
            return as_json([_entry(path, files[path]) for path in form.get("paths", []) if path in files])
        if repo.gated and asked.token != TOKEN:
            refused = f"Access to {repo.kind} {repo.id} is restricted. You must have access to it and be authenticated"
            return refusal(401 if asked.token is None else 403, refused, "GatedRepo")
        if found.path not in files:
            return refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        return self._file(asked, found.path, files[found.path], commit)

    def _file(self, asked: Asked, path: str, content: bytes, commit: str) -> Answer:
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.endswith(IN_LFS):
            return self._content(asked, sha256(content), headers)
        headers |= {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        return Answer(302, headers | {"Location": f"http://localhost:{self.port}/cdn/{sha256(content)}"})

    def _content(self, asked: Asked, digest: str, headers: dict[str, str]) -> Answer:
        content = self._blobs[digest]
        breaks_off = asked.method == "GET" and self.broken.get(digest, 0) > 0
        if breaks_off:
            self.broken[digest] -= 1
        headers = {**headers, "ETag": f'"{digest}"'}
        if asked.range is None:
            return Answer(200, headers, content, breaks_off)
        start = int(asked.range.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Answer(206, headers, content[start:], breaks_off)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""
    breaks_off: bool = False


@dataclass(frozen=True)
class _Place:
    """What a path names."""

    kind: str
    id: str
    what: str
    revision: str
    path: str = ""

    @staticmethod
    def of(path: str) -> _Place | None:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("models", "datasets"):
            kind, id, rest = parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:]
            if not rest:
                return _Place(kind, id, "info", "main")
            if len(rest) >= 2 and rest[0] in ("revision", "tree", "paths-info"):
                what = {"revision": "info"}.get(rest[0], rest[0])
                return _Place(kind, id, what, rest[1], "/".join(rest[2:]))
            return None
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        if len(parts) >= 5 and parts[2] == "resolve":
            return _Place(kind, "/".join(parts[:2]), "file", parts[3], "/".join(parts[4:]))
        return None


def _info(repo: Repo, commit: str) -> dict[str, Any]:
    files = [{"rfilename": path} for path in repo.commits[commit]]
    return {
        "_id": commit[:24], "id": repo.id, "author": repo.id.partition("/")[0], "sha": commit, "siblings": files,
        "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z", "private": False,
        "gated": "auto" if repo.gated else False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
    }  # fmt: skip


def _tree(files: Files, below: str, *, recursive: bool, commit: str) -> Answer:
    """Of `below`, a folder of the repository or "" for its root."""
    start = f"{below}/" if below else ""
    inside = [path for path in sorted(files) if path.startswith(start)]
    if not inside:
        return refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
    folders = {
        str(parent) for path in inside for parent in PurePosixPath(path).parents if str(parent) not in (".", below)
    }
    entries = [_folder(path) for path in sorted(folders)] + [_entry(path, files[path]) for path in inside]
    return as_json([one for one in entries if recursive or "/" not in one["path"].removeprefix(start)])


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": oid, "size": len(content), "path": path}
    if path.endswith(IN_LFS):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def as_json(content: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(content).encode())


def refusal(status: int, message: str, code: str = "", **headers: str) -> Answer:
    coded = {"X-Error-Code": code} if code else {}
    return Answer(status, {"X-Error-Message": message, **coded, **headers}, json.dumps({"error": message}).encode())
