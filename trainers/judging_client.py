"""Asks a running `medbench watch --serve` for verdicts.

JudgingClient("http://127.0.0.1:8750").judge(Path("out/checkpoint-100"))["overall"]
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from medbench.harness.contracts import MedbenchError
from medbench.harness.text import foreign

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
"""How long a server may be away, as while it restarts, before there is no verdict."""
ANSWER_SECONDS = 30.0


class NoVerdict(Exception):
    """Why a checkpoint could not be judged, in one line."""


class JudgingClient:
    """A server's verdicts; a request is repeated while the server is away, which accepts a checkpoint only once."""

    def __init__(self, address: str, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Raises MedbenchError for what is no address."""
        self._address, self._patience = address.rstrip("/"), patience_seconds
        try:
            url = httpx.URL(self._address)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            raise MedbenchError(f"server {foreign(address)!r}: give an address, as http://127.0.0.1:8750")
        self._http = httpx.Client(timeout=ANSWER_SECONDS, trust_env=False)  # no proxy between two local programs

    def refuse_outside(self, folder: Path) -> None:
        """Raises MedbenchError where no server answers, or it may not judge what is in `folder`."""
        try:
            listed = self._answer("GET", "/queue")
            allowed = [Path(path) for path in listed["allowed"]]
        except (NoVerdict, httpx.HTTPError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MedbenchError(
                f"{self._address}: no answer of a medbench server ({reason}): start it with medbench watch --serve PORT"
            ) from None
        if not any(folder.resolve().is_relative_to(path) for path in allowed):
            raise MedbenchError(
                f"{self._address}: may not judge what is in {folder}: start it with --allow {folder.resolve()}"
            )

    def judge(self, checkpoint: Path) -> dict[str, Any]:
        """verdict.json with "run" and "seconds", once there is one. Raises NoVerdict."""
        item = self._patiently("POST", "/judge", {"checkpoint": str(checkpoint.resolve())})
        while item.get("state") in ("queued", "running"):
            time.sleep(POLL_SECONDS)
            item = self._patiently("GET", f"/verdicts/{item.get('id')}")
        verdict = item.get("verdict")
        if not isinstance(verdict, dict):
            raise NoVerdict(str(item.get("error") or "the server gave none"))
        return verdict

    def _patiently(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        until = time.monotonic() + self._patience
        while True:
            try:
                return self._answer(method, path, body)
            except httpx.HTTPError as error:
                if time.monotonic() >= until:
                    raise NoVerdict(
                        f"{self._address}: no answer for {self._patience:.0f} s ({type(error).__name__}): is "
                        f"medbench watch --serve running?"
                    ) from None
                time.sleep(POLL_SECONDS)

    def _answer(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The JSON of an answer. Raises NoVerdict for a refusal, and httpx.HTTPError for a server that is away."""
        response = self._http.request(method, f"{self._address}{path}", json=body)
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise NoVerdict(f"{self._address}{path}: the answer is not a medbench server's")
        if response.is_error:
            raise NoVerdict(f"{self._address}: {content.get('error') or response.status_code}")
        return content
