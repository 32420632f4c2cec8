"""How long the requests to one server wait together where it is busy or away, and when it counts as gone.

    patience = Patience(600, tries=5, where=url, describe=str, say=print)
    reply = await patience.answered(send, probe)

- A server that is busy (HTTP 429, or 503 with a time to wait) is asked again after the time that it names; meanwhile no
  request is sent at all. Without such a time the pauses grow from half a second to a minute.
- A request that fails otherwise (HTTP 5xx, no connection) is sent again after growing pauses of its own. Where it fails
  again and again while the server answers others, it is at fault itself. `probe`, a short request of the same kind,
  is sent to find that out where no others are under way.
- Where nothing is answered for all of `seconds`, the server is gone: Interrupted.

All of this belongs to one event loop.
"""

from __future__ import annotations

import email.utils
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import anyio

from medbench.harness.contracts import Interrupted, Say
from medbench.harness.text import duration

T = TypeVar("T")

LONGEST_PAUSE = 60.0
"""Seconds between two tries of a server that names no time."""
LEAST_PAUSE = 0.2
"""Seconds, also for a server that says 0."""
TELL_FROM = 1.0
"""Seconds of a pause of which the user is told."""
TELL_EVERY = 10.0
"""Least number of seconds between two such lines."""
BUSY = (429, 503)
PASSING = (408, 409)
OUT_OF_MONEY = ("insufficient_quota", "insufficient_credits", "billing_hard_limit_reached")


@dataclass(slots=True)
class _Trouble:
    """What one request has been through."""

    since: float
    worked: int
    """Replies to any request before its last failure."""
    tries: int = 0
    failed_at: float = -math.inf
    """When it failed last, otherwise than by a busy server."""


class Patience:
    """See the module."""

    def __init__(
        self, seconds: float, *, tries: int, where: str, describe: Callable[[Exception], str], say: Say
    ) -> None:
        """`tries`: how often a request is sent again after a fault of other kinds than being busy.

        `where` is the server, and `describe` gives a fault in a few words, for messages.
        """
        self._seconds, self._tries, self._where, self._describe, self._say = seconds, tries, where, describe, say
        self._worked = 0
        self._failing_since: float | None = None
        """When the first request failed after the last one that worked."""
        self._open_at = -math.inf
        self._pauses = 0
        self._told_at = -math.inf
        self._probing = anyio.Lock()
        self._probe_failed_at = -math.inf

    async def answered(self, send: Callable[[], Awaitable[T]], probe: Callable[[], Awaitable[object]] | None) -> T:
        """What `send` returns. Without a `probe`, only a busy server is waited for.

        Raises the fault of openai's that is the request's own, and Interrupted where the server is gone.
        """
        import openai

        trouble: _Trouble | None = None
        while True:
            while (left := self._open_at - anyio.current_time()) > 0:
                await anyio.sleep(left)
            try:
                reply = await send()
            except openai.APIError as fault:
                trouble = trouble or _Trouble(anyio.current_time(), self._worked)
                status = getattr(fault, "status_code", None)
                headers: Mapping[str, str] = fault.response.headers if isinstance(fault, openai.APIStatusError) else {}
                wait = seconds_to_wait(headers) if status in BUSY else None
                if status == 429 or wait is not None or (status == 503 and probe is None):
                    self._pause(wait, trouble, fault)
                elif probe is not None and _is_passing(fault):
                    await self._try_later(trouble, fault, probe)
                else:
                    if not _is_timeout(fault):
                        self._heard()  # it answers, if only to refuse
                    elif probe is not None:
                        self._patience_left(fault)
                    raise
                continue
            except openai.OpenAIError:  # an answer that cannot be used, see server_replies
                self._heard()
                raise
            self._heard()
            return reply

    def _heard(self) -> None:
        self._worked += 1
        self._failing_since = None
        self._pauses = 0

    def _pause(self, told: float | None, trouble: _Trouble, fault: Any) -> None:
        """Close for all requests."""
        if fault.status_code == 429 and _is_out_of_money(fault):
            raise self._gone(f"says that the account's quota is used up ({self._describe(fault)})")
        now = anyio.current_time()
        if now - trouble.since > self._seconds and self._worked > trouble.worked:
            raise fault  # others got through all the time
        wait = max(LEAST_PAUSE, _growing(self._pauses) if told is None else told)
        left = self._patience_left(fault, 0.0 if told is None else wait)
        if told is None:
            wait = min(wait, left)
            if now >= self._open_at:  # once for all that are refused together
                self._pauses += 1
        if now + wait > self._open_at:
            self._open_at = now + wait
            if wait >= TELL_FROM:
                asks = "asks to wait" if told is not None else "is busy: trying again in"
                self._tell(f"{self._where} {asks} {duration(wait)} ({self._describe(fault)}): all requests wait")

    async def _try_later(self, trouble: _Trouble, fault: Any, probe: Callable[[], Awaitable[object]]) -> None:
        others_worked = self._worked > trouble.worked
        trouble.worked, trouble.failed_at = self._worked, anyio.current_time()
        trouble.tries += 1
        if trouble.tries > self._tries and others_worked:
            raise fault
        wait = min(_growing(trouble.tries - 1), self._patience_left(fault))
        if trouble.tries > 1 and not others_worked:
            self._tell(f"{self._where} does not answer ({self._describe(fault)}): trying again")
        await anyio.sleep(max(LEAST_PAUSE, wait))
        if trouble.tries >= self._tries:
            await self._probe(trouble, probe)

    async def _probe(self, trouble: _Trouble, probe: Callable[[], Awaitable[object]]) -> None:
        import openai

        async with self._probing:
            if self._worked > trouble.worked or self._probe_failed_at > trouble.failed_at:
                return
            try:
                await probe()
            except openai.APIError as fault:
                if _is_passing(fault) or _is_timeout(fault):
                    self._probe_failed_at = anyio.current_time()
                    return
            except openai.OpenAIError:  # an answer, if none that can be used
                pass
            self._heard()

    def _patience_left(self, fault: Any, wait: float = 0.0) -> float:
        """In seconds. Raises Interrupted where nothing was answered for so long, or the wait would be too long."""
        now = anyio.current_time()
        if self._failing_since is None:
            self._failing_since = now
        left = self._failing_since + self._seconds - now
        if wait and wait > left:
            raise self._gone(f"asks to wait {duration(min(wait, 1e9))} ({self._describe(fault)})")
        if left <= 0:
            raise self._gone(f"has answered nothing for {duration(self._seconds)} ({self._describe(fault)})")
        return left

    def _gone(self, why: str) -> Interrupted:
        return Interrupted(
            f"{self._where} {why}: answers so far are kept: rerun the same command later (eval with --resume), or "
            f"wait longer with --patience, now {duration(self._seconds)}"
        )

    def _tell(self, line: str) -> None:
        now = anyio.current_time()
        if now - self._told_at >= TELL_EVERY:
            self._told_at = now
            self._say(f"{line}, up to --patience {duration(self._seconds)}")


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """Retry-After, in seconds or as a date, or retry-after-ms; 0 or more, None where there is none that can be read.

    A date is compared with the server's own clock, where the answer has its Date.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            told = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if told >= 0:  # NaN is not
            return told
    try:
        until = email.utils.parsedate_to_datetime(headers["retry-after"])
        now = email.utils.parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (until - now).total_seconds())
    except (KeyError, ValueError, TypeError, OverflowError):  # TypeError: one of them has no time zone
        return None


def _growing(pauses: int) -> float:
    """0.5 s, 1 s, 2 s, ... LONGEST_PAUSE, less up to a quarter, so that requests do not all come back at once."""
    return min(LONGEST_PAUSE, math.ldexp(0.5, min(pauses, 10))) * (1 - random.random() / 4)


def _is_passing(fault: Any) -> bool:
    """Whether the same request may succeed later: the server's side failed, or there was no connection."""
    import openai

    if isinstance(fault, openai.APIConnectionError):
        return not _is_timeout(fault)
    status = getattr(fault, "status_code", 0)
    return status in (*PASSING, *BUSY) or (status >= 500 and status not in (501, 505))


def _is_timeout(fault: Any) -> bool:
    """Whether the whole time for a request ran out (see server_replies.bounded_client): sending it again takes as
    long."""
    import openai

    return isinstance(fault, openai.APITimeoutError) and fault.__cause__ is None


def _is_out_of_money(fault: Any) -> bool:
    return bool({str(fault.code), str(fault.type)} & set(OUT_OF_MONEY))
