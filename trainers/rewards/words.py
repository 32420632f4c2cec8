"""The words of a text, and the stems of those that say something about a particular question."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from medbench.trainers.rewards.stop_words import content_stem

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


def words_of(text: str) -> tuple[str, ...]:
    """In lower case."""
    return tuple(_WORD.findall(text.lower()))


def stems_of(words: Sequence[str]) -> Iterator[str]:
    """Stems of the words that are specific to this question; numbers count from two digits."""
    return filter(None, map(content_stem, words))
