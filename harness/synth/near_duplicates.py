"""Near-duplicates among millions of texts in bounded memory.

A text is compared with those earlier ones that share a band of its MinHash signature over word trigrams (Broder 1997;
bands as in Leskovec et al., Mining of Massive Datasets, 3.4). What the bands find is read back from a scratch file and
measured by rapidfuzz, so that a text is never called a near-duplicate by a collision.

Memory: BANDS tables of 4 bytes for each of SLOTS places and 8 bytes for each of REMEMBERED texts, 136 MiB in all, of
which the system hands out only pages that are used. Of more texts the oldest are forgotten. Libraries for this
(datasketch, text-dedup) keep every band of every text in dictionaries, which grow without limit.
"""

from __future__ import annotations

import os
import re
import tempfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from medbench.harness.checkpoints.packages import needed
from medbench.harness.files import cannot_write

REMEMBERED = 2**20
SLOTS = 2**20
"""Per band. A slot holds the latest text of those that fall on it."""
BANDS, ROWS = 32, 3
"""Two texts that share half of their trigrams meet in a band with probability 0.986, three quarters 0.99999999."""
SHINGLE = 3
LONGEST = 20_000
"""Characters compared: of longer texts the first."""
_WORD = re.compile(r"[^\W_]+")


class NearDuplicates:
    """Texts that were kept. Use as a context manager: it has a scratch file, which no folder shows."""

    def __init__(self, threshold: float, folder: Path, *, remembered: int = REMEMBERED, slots: int = SLOTS) -> None:
        """`threshold`: least similarity of a near-duplicate, 0..1, by rapidfuzz.fuzz.ratio over `normal` text. The
        scratch file is in `folder`."""
        with needed(
            "near-duplicates are found by rapidfuzz, which is not installed", "rapidfuzz", extra="'medbench[train]'"
        ):
            from rapidfuzz import fuzz

            self._ratio = fuzz.ratio
        self._threshold = threshold
        self._remembered, self._slots = remembered, slots
        self._tables = np.zeros((BANDS, slots), dtype=np.uint32)  # number of the text, counted from 1
        self._ends = np.zeros(remembered + 1, dtype=np.int64)
        self._n = 0
        self._latest: tuple[str, str, np.ndarray[Any, np.dtype[np.int64]]] | None = None
        draw = np.random.Generator(np.random.PCG64(20250722))
        self._factors = draw.integers(1, 2**63, (BANDS * ROWS, 1), dtype=np.uint64) | np.uint64(1)
        self._shifts = draw.integers(0, 2**63, (BANDS * ROWS, 1), dtype=np.uint64)
        self._mix = draw.integers(1, 2**63, (1, ROWS), dtype=np.uint64) | np.uint64(1)
        try:
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise cannot_write(folder, error) from None
        self._end = 0

    def find(self, text: str) -> tuple[int, float] | None:
        """(number of the kept text, counted from 0, similarity) of the first near-duplicate, or None."""
        words, places = self._read_in(text)
        found = {int(number) for number in self._tables[np.arange(BANDS), places] if number}
        for number in sorted(found):
            if number + self._remembered <= self._n:
                continue
            similarity = self._ratio(words, self._read(number), score_cutoff=100 * self._threshold) / 100
            if similarity >= self._threshold:
                return number - 1, similarity
        return None

    def keep(self, text: str) -> None:
        """Raises Interrupted where the scratch file cannot be written."""
        words, places = self._read_in(text)
        content = words.encode()
        self._n += 1
        try:
            os.pwrite(self._file.fileno(), content, self._end)
        except OSError as error:
            raise cannot_write(Path("scratch file of near-duplicates"), error) from None
        self._ends[(self._n - 1) % (self._remembered + 1)] = self._end
        self._end += len(content)
        self._ends[self._n % (self._remembered + 1)] = self._end
        self._tables[np.arange(BANDS), places] = self._n

    def _read_in(self, text: str) -> tuple[str, np.ndarray[Any, np.dtype[np.int64]]]:
        """What is compared, and its slots; kept for one text, which is first looked for and then kept."""
        if self._latest is None or self._latest[0] != text:
            words = normal(text)
            self._latest = text, words, self._places(words)
        return self._latest[1:]

    def _places(self, words: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The slot of each band."""
        hashes = np.array(_shingles(words), dtype=np.uint64)
        signature = ((self._factors * hashes + self._shifts) >> np.uint64(32)).min(axis=1).reshape(BANDS, ROWS)
        mixed = (signature * self._mix).sum(axis=1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(29)
        places: np.ndarray[Any, np.dtype[np.int64]] = (mixed % np.uint64(self._slots)).astype(np.int64)
        return places

    def _read(self, number: int) -> str:
        size = self._remembered + 1
        start, end = int(self._ends[(number - 1) % size]), int(self._ends[number % size])
        return os.pread(self._file.fileno(), end - start, start).decode()

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def normal(text: str) -> str:
    """What is compared: the words, without case and punctuation, of the first LONGEST characters."""
    return " ".join(_WORD.findall(text[:LONGEST].lower()))


def _shingles(words: str) -> list[int]:
    """Hashes of the distinct word trigrams; of fewer words, of all together."""
    split = words.split(" ")
    grams = {" ".join(split[at : at + SHINGLE]) for at in range(max(1, len(split) - SHINGLE + 1))}
    return [zlib.crc32(gram.encode()) for gram in grams]
