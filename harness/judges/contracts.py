"""What a judge is: something that says of a step of reasoning whether a source text supports it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from medbench.harness.contracts import Say
from medbench.harness.engines.settings import EngineChoice

Verdict = Literal["supported", "contradicted", "not covered"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True, slots=True)
class Item:
    """A step and the text that it is judged by."""

    id: str
    """See item_id: the same step and source have the same id, wherever they occur."""
    step: str
    source: str


@dataclass(frozen=True, slots=True)
class Ruling:
    """A judge's word on one item: a verdict, or why there is none, which is never a verdict."""

    id: str
    verdict: Verdict | None
    fault: str | None = None
    """Set exactly where `verdict` is None."""


@dataclass(frozen=True, slots=True)
class JudgeChoice:
    """Which judge, and what it needs."""

    name: str
    """Built in or a plugin's, see judges.plugins."""
    command: str | None = None
    """The program of the judge `command`, with its arguments as in a shell."""
    model: str | None = None
    """The model of the judge `llm`."""
    engine: EngineChoice | None = None
    """What runs `model`."""
    timeout: float = 600.0
    """Seconds without a verdict after which a judge is taken to hang."""
    say: Say = lambda _: None
    kept: bool = False
    """Whether it is asked again and again, as in a training: a program is then started once, and must answer each item
    as it comes."""


class Judge(Protocol):
    """judges.plugins says how to add one."""

    name: str
    """As a user gives it; part of a file name."""
    fingerprint: str
    """A hash of everything that verdicts depend on; another fingerprint is asked again."""

    def judge(self, items: Sequence[Item]) -> Iterator[Ruling]:
        """Rulings in any order, as they come. A later ruling on the same item replaces the earlier one.

        An item without a ruling counts as failed. Raises MedbenchError where nothing can be judged at all.
        """
        ...

    def close(self) -> None: ...


def item_id(step: str, source: str) -> str:
    """32 hexadecimal digits of a sha256."""
    content = f"{step}\0{source}".encode("utf-8", "replace")
    return hashlib.sha256(content).hexdigest()[:32]
