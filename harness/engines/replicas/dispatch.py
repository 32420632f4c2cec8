"""Which replica is asked what, and what becomes of the requests of one that dies. No Ray, no clock.

    dispatcher = Dispatcher()
    dispatcher.join(0, room=64)
    dispatcher.accept(request)
    for replica, requests in dispatcher.deal().items(): ...
    if dispatcher.finished(0, completion): yield completion

A request goes to the replica with the fewest under way. Those of a replica that dies are asked again, and any of them
may have been its death. So from then on they are suspects, and a replica has at most one suspect among its requests.
The suspect that is under way at a second death is given up, unless replicas die without it too: then deaths say less of
it, and as many more are needed, up to DOUBT. What is given up is held back until nothing else is left to ask, in case
a later death without it clears it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from medbench.harness.contracts import Completion, Passed, Request

MOST_DEATHS = 2
"""Replicas that may die under a request before it is given up, where none dies without it."""
DOUBT = 3
"""Most further deaths that are needed where others die without it."""


@dataclass(slots=True)
class _Held:
    """A request that has no completion yet."""

    request: Request
    replica: int | None = None
    """Which one works on it; None while it waits."""
    deaths: int = 0
    """Of replicas that it was under way at."""
    why: str = ""
    """Of the last one."""
    told: int = -1
    """The highest milestone that has been passed on."""


@dataclass(slots=True)
class _Load:
    room: int
    ids: dict[str, None] = field(default_factory=dict)
    """Under way, in the order in which they were sent."""
    suspect: str | None = None


class Dispatcher:
    """The requests of one call of Engine.generate."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._waiting: deque[str] = deque()
        self._suspects: deque[str] = deque()
        self._loads: dict[int, _Load] = {}
        self._given_up: dict[str, None] = {}
        self._room = 0
        self._deaths = 0

    def join(self, replica: int, room: int) -> None:
        """From now on `replica` takes up to `room` requests at once."""
        self._loads[replica] = _Load(room)
        self._room += room

    def leave(self, replica: int, why: str, *, blamed: bool = True) -> int:
        """`replica` is gone: its requests, so many, wait for another. `blamed`: one of them may be the reason."""
        load = self._loads.pop(replica)
        self._room -= load.room
        self._deaths += blamed
        alone = load.suspect or (next(iter(load.ids)) if len(load.ids) == 1 else None)
        for id in load.ids if blamed else reversed(load.ids):
            held = self._held[id]
            held.replica = None
            if not blamed:
                (self._suspects if held.deaths else self._waiting).appendleft(id)
                continue
            held.deaths, held.why = held.deaths + 1, why
            if id == alone and self._is_guilty(held):
                self._given_up[id] = None
            else:
                self._suspects.append(id)
        for id in [one for one in self._given_up if not self._is_guilty(self._held[one])]:
            del self._given_up[id]
            self._suspects.append(id)
        return len(load.ids)

    def give_up(self) -> list[Completion]:
        """The requests that are given up, once nothing else is left to ask."""
        if len(self._given_up) < len(self._held):
            return []
        lost = [(id, self._held.pop(id)) for id in self._given_up]
        self._given_up.clear()
        return [
            Completion(
                id, "", "error",
                error=f"given up: {held.deaths} replicas in turn were lost while they worked on it ({held.why})",
            )
            for id, held in lost
        ]  # fmt: skip

    @property
    def replicas(self) -> Iterator[int]:
        return iter(self._loads)

    @property
    def unfinished(self) -> int:
        """Requests without a completion, under way or waiting."""
        return len(self._held)

    def under_way(self, replica: int) -> int:
        return len(self._loads[replica].ids)

    def has_room(self) -> bool:
        """Whether one more request would be sent at once."""
        return len(self._held) < self._room

    def accept(self, request: Request) -> None:
        self._held[request.id] = _Held(request)
        self._waiting.append(request.id)

    def deal(self) -> dict[int, list[Request]]:
        """What to send now: replica -> its new requests."""
        dealt: dict[int, list[Request]] = {}
        while self._suspects:
            free = [replica for replica, load in self._loads.items() if load.suspect is None]
            if not free:
                break
            replica, id = min(free, key=self.under_way), self._suspects.popleft()
            self._loads[replica].suspect = id
            self._send(id, replica, dealt)
        while self._waiting and (free := [one for one, load in self._loads.items() if len(load.ids) < load.room]):
            self._send(self._waiting.popleft(), min(free, key=self.under_way), dealt)
        return dealt

    def finished(self, replica: int, completion: Completion) -> bool:
        """Whether the completion counts: it answers a request that this replica works on."""
        load, held = self._loads.get(replica), self._held.get(completion.id)
        if load is None or held is None or held.replica != replica:
            return False
        del self._held[completion.id], load.ids[completion.id]
        if load.suspect == completion.id:
            load.suspect = None
        return True

    def passed(self, replica: int, passed: Passed) -> bool:
        """Whether this is news: a request that is asked again passes its milestones again."""
        held = self._held.get(passed.id)
        if held is None or held.replica != replica or passed.tokens <= held.told:
            return False
        held.told = passed.tokens
        return True

    def _send(self, id: str, replica: int, dealt: dict[int, list[Request]]) -> None:
        held = self._held[id]
        held.replica = replica
        self._loads[replica].ids[id] = None
        dealt.setdefault(replica, []).append(held.request)

    def _is_guilty(self, held: _Held) -> bool:
        return held.deaths >= MOST_DEATHS + min(DOUBT, self._deaths - held.deaths)
