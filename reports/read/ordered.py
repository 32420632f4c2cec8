"""A task's samples in the order in which they are shown, whatever order they were answered in and however many.

Of a large file the first pass keeps where each line stands, and the second reads the lines in order: memory grows with
the number of questions and not with the length of the replies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from medbench.harness.contracts import MedbenchError, sample_key
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.sample_check import SeenLines
from medbench.harness.runs.sample_line import Count, Line, decode
from medbench.reports.read.folders import inside
from medbench.reports.read.lines import order_of

BATCH_ROWS = 1_000
BATCH_BYTES = 1_000_000
MOST_HELD = 16 * 2**20
"""Files up to this size are decoded once and held in memory, which takes three times as much."""
NEW_LINE = ord("\n")


class _Key(msgspec.Struct, gc=False):
    """What the order of the rows, their heads and SeenLines depend on."""

    id: str
    prompt: str
    gold: str
    repeat: Count = 0
    order: tuple[Count, ...] | None = None


_decode_key = msgspec.json.Decoder(_Key).decode
_Place = tuple[str, int, str, str, int, int, int, int]
"""Where a line stands: order_of its id, id, repeat, offset, length, number from 1. Compares as lines are ordered."""


class OrderedSamples:
    """The samples of one task, by question and repeat. Use as a context manager.

    Entering raises MedbenchError, naming the file, where there is none that can be read.
    """

    def __init__(self, folder: Path, task: str, record: RunRecord | None = None) -> None:
        self.prefix = ""
        """What all prompts begin with."""
        self.faults: list[str] = []
        """A line on each damaged one, which is left out; whole when the last batch has been taken.

        Of two different answers to one question both are left out: nobody can say which one counts.
        """
        self._seen = SeenLines(record, task)
        self._path = Path(inside(folder, f"samples/{task}.jsonl"))
        self._places: list[_Place] = []
        self._held: dict[int, Line] = {}
        """Offset -> line, of a file that is small enough."""

    def __enter__(self) -> OrderedSamples:
        try:
            self._file = self._path.open("rb")
            self._first_pass(hold=os.fstat(self._file.fileno()).st_size <= MOST_HELD)
        except OSError as error:
            raise MedbenchError(f"{self._path}: cannot be read ({error.strerror})") from None
        self._places = sorted(
            place for place in self._places if sample_key(place[3], place[4]) not in self._seen.contradicted
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()

    def batches(self) -> Iterator[list[Line]]:
        """All lines in order, once, at most BATCH_ROWS and BATCH_BYTES at a time; a longer line by itself."""
        batch: list[Line] = []
        size = 0
        for *_, offset, length, number in self._places:
            line = self._held.pop(offset, None) or self._read(offset, length, number)
            if line is None:
                continue
            if batch and (len(batch) == BATCH_ROWS or size + length > BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(line)
            size += length
        if batch:
            yield batch

    def _first_pass(self, *, hold: bool) -> None:
        places, held = self._places, self._held
        prefix: str | None = None
        offset = 0
        for number, raw in enumerate(self._file, 1):
            length = len(raw)
            if raw[-1] != NEW_LINE:
                break  # the torn last line of an evaluation that runs
            try:
                line = decode(raw) if hold else _key_of(raw)
                new = self._seen.add(raw, line, line.id, line.repeat)
            except ValueError as error:
                self.faults.append(f"line {number}: {error}")
                new = False
            if new:
                if isinstance(line, Line):
                    held[offset] = line
                places.append((*order_of(line.id), line.id, line.repeat, offset, length, number))
                if prefix is None:
                    prefix = line.prompt
                elif not line.prompt.startswith(prefix):
                    prefix = _common(prefix, line.prompt)
            offset += length
        self.prefix = prefix or "" if len(places) > 1 else ""

    def _read(self, offset: int, length: int, number: int) -> Line | None:
        try:
            return decode(os.pread(self._file.fileno(), length, offset))
        except ValueError as error:
            self.faults.append(f"line {number}: {error}")
            return None


def _key_of(raw: bytes) -> _Key:
    try:
        return _decode_key(raw)
    except (ValueError, RecursionError):
        line = decode(raw)
        return _Key(line.id, line.prompt, line.gold, line.repeat, line.order)


def _common(a: str, b: str) -> str:
    """What both begin with."""
    return next((a[:place] for place, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(a, b))
