"""The journal of candidates: every reply once, in the order in which they came, and read back question by question.

Each line is in the kernel's hands before the next reply is read, so kill -9 loses what was under way and leaves at most
one torn last line. Questions are begun in order and only so many are open at once, so that reading them back in order
takes the memory of the open ones, not of the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import LineLog, cannot_write

CANDIDATES = "candidates.jsonl"
SCHEMA_VERSION = 1
_BLOCK = 2**16
LONGEST_LINE = 64 * 2**20


class Candidate(msgspec.Struct, frozen=True):
    """One reply."""

    at: Annotated[int, msgspec.Meta(ge=0)]
    """The question's place among those of all sources."""
    id: str
    """The question's own id."""
    attempt: Annotated[int, msgspec.Meta(ge=0)]
    round: Annotated[int, msgspec.Meta(ge=0)]
    """0 is the first reply; a wrong answer is followed by another round."""
    strategy: Literal["first", "backtracking", "new_path", "verification", "correction", "told_answer"]
    prompt: str
    """The kind, with its version."""
    seed: int
    output: str
    finish_reason: Literal["stop", "length", "error"]
    error: str | None
    answer: str | None
    """As extracted; None if there is none."""
    right: bool | None
    """None where a reply cannot be right or wrong: it failed, or the row has no answer to compare it with."""
    span: tuple[int, int] | None
    """Where in the output the answer is."""
    opened: bool
    """Whether the prompt had opened the reasoning."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    schema_version: int = SCHEMA_VERSION

    @property
    def is_told(self) -> bool:
        return self.strategy == "told_answer"

    @property
    def key(self) -> str:
        return f"{self.at}#{self.attempt}.{self.round}"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Candidate)


class Journal:
    """The file open for appending. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / CANDIDATES
        cut_torn_line(self._path)
        self._log = LineLog(self._path)

    def append(self, candidate: Candidate) -> None:
        """Raises Interrupted where it cannot be written; what was appended before is kept."""
        self._log.append(_encoder.encode(candidate) + b"\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()


def read_candidates(folder: Path) -> Iterator[Candidate]:
    """Raises MedbenchError naming a line that is damaged or too new. A torn last line is left out."""
    path = folder / CANDIDATES
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    with lines:
        number = 0
        while line := lines.readline(LONGEST_LINE):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) < LONGEST_LINE:
                    return
                raise _damaged(path, number)
            try:
                candidate = _decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise _damaged(path, number) from None
            if candidate.schema_version > SCHEMA_VERSION:
                raise MedbenchError(
                    f"{path}:{number}: schema version {candidate.schema_version} is newer than {SCHEMA_VERSION}: "
                    f"upgrade medbench"
                )
            yield candidate


def by_question(
    candidates: Iterator[Candidate], is_done: Callable[[list[Candidate]], bool]
) -> Iterator[tuple[int, list[Candidate], bool]]:
    """(place, replies, whether all its replies are there) of each question with replies, in order of place."""
    waiting: dict[int, list[Candidate]] = {}
    turn = 0
    for candidate in candidates:
        waiting.setdefault(candidate.at, []).append(candidate)
        while turn in waiting and is_done(waiting[turn]):
            yield turn, waiting.pop(turn), True
            turn += 1
    for at in sorted(waiting):
        yield at, waiting[at], is_done(waiting[at])


def _damaged(path: Path, number: int) -> MedbenchError:
    return MedbenchError(
        f"{path}:{number}: not a line written by medbench synth, or damaged: put the file back as it was, or start "
        f"again in a new folder"
    )


def cut_torn_line(path: Path) -> None:
    """Remove what a kill left of the last line, looking at the file's end only."""
    try:
        with path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - _BLOCK)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    file.truncate(start + found + 1)
                    return
                end = start
            file.truncate(0)
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(path, error) from None
