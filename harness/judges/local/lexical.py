"""What the words of a step and a source say by themselves: features beside the encoder, and the baseline to beat.

They count what step and source share: words, numbers, pairs of words, denials. They know no opposites and none of the
lists that counterfactuals.py draws from, so that the baseline is one that anybody would write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from medbench.harness.judges.steps import sentences

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_DENIAL = re.compile(r"\b(?:no|not|cannot|never|without|neither|nor|none|n't|unable|fail(?:s|ed)?|lack(?:s|ed)?)\b")
SHORTEST = 4
"""Letters of a content word."""
FEATURES = (
    "words in source", "content words in source", "pairs of words in source", "words in nearest sentence",
    "content words in nearest sentence", "nearest sentence's words in step", "longest run", "words not in source",
    "numbers", "numbers not in source", "numbers not in nearest sentence", "denials", "denials of nearest sentence",
    "denials differ", "length",
)  # fmt: skip


def content_words(text: str) -> frozenset[str]:
    """Numbers, and words of at least SHORTEST letters, in small letters."""
    return frozenset(word for word in _words(text) if word[0].isdigit() or len(word) >= SHORTEST)


def features_of(step: str, source: str) -> list[float]:
    """Of FEATURES, in that order; shares and small counts."""
    words, known = _words(step), _known(source)
    content = content_words(step)
    pairs = set(pairwise(words))
    nearest = max(known.sentences, key=lambda one: _alike(words, content, one), default=_Sentence((), frozenset(), 0))
    numbers = _NUMBER.findall(step)
    denials = len(_DENIAL.findall(step.lower()))
    of_nearest = set(nearest.words)
    return [
        _share(sum(word in known.words for word in words), len(words)),
        _share(len(content & known.content), len(content)),
        _share(len(pairs & known.pairs), len(pairs)),
        _share(sum(word in of_nearest for word in words), len(words)),
        _share(len(content & nearest.content), len(content)),
        _share(sum(word in set(words) for word in nearest.words), len(nearest.words)),
        _share(_longest_run(words, nearest.words), len(words)),
        min(10, sum(word not in known.words for word in words)) / 10,
        min(5, len(numbers)) / 5,
        min(3, sum(number not in known.words for number in numbers)) / 3,
        min(3, sum(number not in of_nearest for number in numbers)) / 3,
        min(3, denials) / 3,
        min(3, nearest.denials) / 3,
        float(denials % 2 != nearest.denials % 2),
        math.log1p(len(words)) / 5,
    ]


@dataclass(frozen=True, slots=True)
class _Sentence:
    words: tuple[str, ...]
    content: frozenset[str]
    denials: int


@dataclass(frozen=True, slots=True)
class _Source:
    words: frozenset[str]
    content: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    sentences: tuple[_Sentence, ...]


@lru_cache(maxsize=64)  # steps of the same source come one after another
def _known(source: str) -> _Source:
    words = _words(source)
    return _Source(
        frozenset(words),
        content_words(source),
        frozenset(pairwise(words)),
        tuple(
            _Sentence(_words(one), content_words(one), len(_DENIAL.findall(one.lower()))) for one in sentences(source)
        ),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _alike(words: Sequence[str], content: frozenset[str], sentence: _Sentence) -> float:
    return len(content & sentence.content) + 0.1 * len(set(words) & set(sentence.words))


def _longest_run(one: Sequence[str], other: Sequence[str]) -> int:
    """Most words in a row that both have."""
    longest, ends = 0, [0] * (len(other) + 1)
    for word in one:
        ends = [0, *(ends[at] + 1 if word == found else 0 for at, found in enumerate(other))]
        longest = max(longest, *ends)
    return longest


def _share(count: int, of: int) -> float:
    return count / of if of else 0.0
