"""Stored replies, JSON lines {"id", "output"}: each line is checked, and each fault is reported with its line.

    medbench score replies.jsonl --task medqa

    {"id": "6001", "output": "The answer is (E).", "finish_reason": "stop", "sample": 0}

"question_id" may be used instead of "id"; "finish_reason" ("stop" or "length") and "sample" (which of several replies
to the question, from 0) are optional, and other keys are ignored. A file is read line by line, so that memory grows
with the number of ids and not with the length of the texts.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import parse_json
from medbench.harness.text import foreign

FAULTS_SHOWN = 20
MOST_SAMPLES = 1_000_000
"""Most replies to one question; one bit of memory for each."""
LONGEST_LINE = 64 * 2**20
"""Bytes."""


class Reply(NamedTuple):
    """One line."""

    id: str
    output: str
    finish_reason: Literal["stop", "length"]
    sample: int | None
    """None where the line does not say; counts as 0."""

    @property
    def repeat(self) -> int:
        return self.sample or 0


@dataclass(slots=True)
class Replies:
    """A file of replies that has been checked: its ids, without its texts."""

    path: Path
    sha256: str = ""
    """Of the file's bytes."""
    n: int = 0
    samples: int = 0
    """Replies per question: one more than the highest "sample"."""
    _seen: dict[str, bytearray] = field(default_factory=dict)
    """id -> one bit per sample."""

    def add(self, reply: Reply) -> bool:
        """False if this sample of the question has been seen already."""
        byte, bit = divmod(reply.repeat, 8)
        bits = self._seen.setdefault(reply.id, bytearray(1))
        if byte >= len(bits):
            bits.extend(bytes(byte + 1 - len(bits)))
        if bits[byte] >> bit & 1:
            return False
        bits[byte] |= 1 << bit
        self.n += 1
        self.samples = max(self.samples, reply.repeat + 1)
        return True

    def lacking(self, ids: Collection[str]) -> int:
        """How many of `ids` have fewer than `samples` replies."""
        return sum(
            id not in self._seen or sum(byte.bit_count() for byte in self._seen[id]) < self.samples for id in ids
        )

    def read(self) -> Iterator[Reply]:
        """Read the lines again. Raises MedbenchError at the end if they have changed since they were checked."""
        digest = hashlib.sha256()
        for number, line in _lines(self.path):
            digest.update(line)
            try:
                yield _parsed(line, number)
            except ValueError:
                break
        if digest.hexdigest() != self.sha256:
            raise MedbenchError(f"{self.path} changed while it was being read: run again when it is complete")


def check_replies(path: Path, known: Collection[str] | None = None, task: str = "") -> Replies:
    """Read the whole file once. `known` holds the ids of the questions of `task`; None accepts any id.

    Raises MedbenchError with the first FAULTS_SHOWN faults, one per line, and the number of further ones.
    """
    found = Replies(path)
    digest = hashlib.sha256()
    faults: list[str] = []
    n_faults = number = 0
    for number, line in _lines(path):
        digest.update(line)
        try:
            reply = _parsed(line, number)
            if known is not None and reply.id not in known:
                raise ValueError(f"id {_short(reply.id)} is not a question of {task}{_near(reply.id, known)}")
            if not found.add(reply):
                which = "" if reply.sample is None else f" for sample {reply.sample}"
                raise ValueError(f"duplicate id {_short(reply.id)}{which}, also on an earlier line: keep one")
        except ValueError as fault:
            n_faults += 1
            if len(faults) < FAULTS_SHOWN:
                faults.append(f"{path}:{number}: {fault}")
    if not number:
        raise MedbenchError(f"{path}: the file is empty")
    if n_faults == 1:
        raise MedbenchError(faults[0])
    if faults:
        more = [f"and {n_faults - len(faults)} more"] if n_faults > len(faults) else []
        raise MedbenchError(f"{path}: {n_faults} faulty lines of {number}", *faults, *more)
    found.sha256 = digest.hexdigest()
    return found


def _parsed(line: bytes, number: int) -> Reply:
    """Raises ValueError with the line's fault."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB")
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if not text.strip():
        raise ValueError("a blank line")
    row = parse_json(text)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {_kind(row)}")
    id = row.get("id", row.get("question_id"))
    if not isinstance(id, str | int) or isinstance(id, bool) or id == "":
        raise ValueError(f'no "id"{_found(row, "id")}; each line is {{"id": ..., "output": ...}}')
    output = row.get("output")
    if not isinstance(output, str):
        raise ValueError(f'"output" must be text{_found(row, "output")}')
    finish_reason = row.get("finish_reason", "stop")
    if finish_reason not in ("stop", "length"):
        raise ValueError(f'"finish_reason" must be "stop" or "length"{_found(row, "finish_reason")}')
    sample = row.get("sample", 0)
    if not isinstance(sample, int) or isinstance(sample, bool) or not 0 <= sample < MOST_SAMPLES:
        raise ValueError(f'"sample" must be a whole number from 0 to {MOST_SAMPLES - 1}{_found(row, "sample")}')
    return Reply(str(id), output, finish_reason, sample if "sample" in row else None)


def refuse_unreadable(path: Path) -> None:
    """Raises MedbenchError for a path that is missing, not a file, or not readable."""
    _opened(path).close()


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line); a line that is too long is cut one byte after LONGEST_LINE."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            yield number, line
            while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE + 1)


def _opened(path: Path) -> BinaryIO:
    try:
        if path.exists() and not path.is_file():  # it is read twice, which a pipe cannot be
            raise MedbenchError(f"{path}: not a file: name a file of replies")
        return path.open("rb")
    except FileNotFoundError:
        raise MedbenchError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MedbenchError(f"{path}: cannot be read ({reason})") from None


def _near(id: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(id, known, n=1, cutoff=0.8) if len(id) < 100 else []
    return f"; did you mean {near[0]}?" if near else ""


def _found(row: dict[str, Any], key: str) -> str:
    """The value of `key`, for an error message."""
    return f" (found {_short(row[key])})" if key in row else ""


def _short(value: object) -> str:
    text = repr(value[:60]) if isinstance(value, str) else foreign(value, 60)  # repr() of a deep list is a fault
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
