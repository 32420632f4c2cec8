"""Finds training rows that overlap a benchmark question.

There are three kinds of overlap; the first that applies is reported:
  stem   the row contains the whole question (or PubMedQA abstract), ignoring case, punctuation and spacing
  ngram  the row contains a share of its 13-grams (for Brown et al. 2020, appendix C, and lm-eval's decontamination a
         single one is enough; here it is not, and 13-grams that several questions share, such as vital signs, do not
         count)
  near   one stretch of the row contains most of its content words in the same order (by rapidfuzz), or nearly all
         content words of a long question in any order, or half of its long options

rapidfuzz rather than MinHash (datasketch), because MinHash compares whole documents, and a question inside a long case
is a small part of one. Not found: a paraphrase in other words, a translation, and a reworded short question (under 8
content words) with short options.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pydantic import Field

from medbench.harness.config import Record
from medbench.harness.contracts import Question
from medbench.trainers.rewards.stop_words import says_nothing

Kind = Literal["stem", "ngram", "near"]
Part = Literal["question", "options", "context"]
Words = tuple[str, ...]

SEED = 5
"""Candidates share word 5-grams with a row: with 15 % of the words changed, 44 % of the 5-grams stay."""
COMMON = 12
"""A 5-gram in more questions than this is a stock phrase ("which of the following is the")."""
SEED_SHARE = 0.1
"""Share of its 5-grams that makes a question a candidate."""
IDENTIFYING = 3
"""Content words that identify a question by its stem alone, or one fewer in a stem of LONG_STEM words. "Which of the
following is true?" has none, and is the same question only with the same options."""
LONG_STEM = 8
OPTION_WORDS = 24
"""Words in a row from long options, at least half of a question's options: sentences, not names of diseases."""
SHUFFLED = (20, 0.85)
"""Distinct content words, and the share of them in one stretch, that make a near-duplicate in any order."""
EXCERPT_CHARACTERS = 200
NGRAMS_AT_LEAST = 4
"""Shared 13-grams, unless a question has fewer: 16 consecutive words, more than two related questions share."""
NEAR_WORDS = 8
"""With fewer content words, a near-duplicate cannot be told from another question on the same topic."""
LONG_TEXT = (40, 0.8)
"""Number of words of any kind, and the share of them in order, that make a near-duplicate."""
WINDOW = 1.3
"""Length of the compared stretch of the row, as a multiple of the question's."""


class OverlapConfig(Record):
    """Thresholds above which a row counts as overlapping."""

    ngram: int = Field(13, ge=8, le=50)
    ngram_share: float = Field(0.25, gt=0, le=1)
    """Share of a question's own 13-grams."""
    near: float = Field(0.7, gt=0.5, le=1)
    """Share of a question's content words, in order."""


@dataclass(frozen=True, slots=True)
class TrainingText:
    """Everything that training shows the model of one row, as one text."""

    row: int
    """Line or row number, counted from 1."""
    text: str
    stem: str = ""
    """The row's question without options, if it has one: very short stems are compared with this only."""
    later_stems: tuple[str, ...] = ()
    """Further questions of the same row, such as those of a chat."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """One row and one question that it overlaps."""

    row: int
    task: str
    question_id: str
    part: Part
    kind: Kind
    score: float
    """Share of the question's words (stem: 1), 13-grams or content words found in the row, 0..1."""
    excerpt: str
    """The overlapping text of the row, without case and punctuation."""


@dataclass(frozen=True, slots=True)
class _Passage:
    """One text of a question that must not be trained on."""

    task: str
    question: Question
    part: Part
    words: Words
    joined: str
    content: Words
    seeds: int
    """Number of its 5-grams in the index."""
    options: tuple[str, ...] = ()
    """For the part "options": those long enough to be recognised, joined."""


def find_overlaps(
    rows: Iterable[TrainingText],
    benchmarks: Mapping[str, Sequence[Question]],
    config: OverlapConfig | None = None,
) -> list[Overlap]:
    """All overlaps, in the order of the rows; `benchmarks`: task name -> questions."""
    index = OverlapIndex(benchmarks, config or OverlapConfig())
    return [overlap for row in rows for overlap in index.overlaps(row)]


class OverlapIndex:
    """Index of the benchmarks: 5-gram -> questions. Memory grows with the benchmarks, not with the rows."""

    def __init__(self, benchmarks: Mapping[str, Sequence[Question]], config: OverlapConfig) -> None:
        self._config = config
        texts = list(_texts(benchmarks))
        seeds: dict[Words, list[int]] = defaultdict(list)
        clusters: dict[Words, set[str]] = defaultdict(set)
        self._short: dict[Words, list[int]] = defaultdict(list)
        for at, (_, question, part, words) in enumerate(texts):
            if len(words) < SEED:
                self._short[words].append(at)
            for seed in dict.fromkeys(_ngrams(words, SEED)):
                seeds[seed].append(at)
            if part == "options":
                continue
            for gram in _ngrams(words, config.ngram):
                clusters[gram].add(question.cluster)
        self._seeds = {seed: tuple(found) for seed, found in seeds.items() if len(found) <= COMMON}
        self._shared = {gram for gram, found in clusters.items() if len(found) > 1}
        kept = Counter(at for found in self._seeds.values() for at in found)
        self._passages = [
            _Passage(
                task, question, part, words, _join(words), _content(words), kept[at], _long_options(question, part)
            )
            for at, (task, question, part, words) in enumerate(texts)
        ]

    def overlaps(self, row: TrainingText) -> Iterator[Overlap]:
        words = _words(row.text)
        text = _join(words)
        stems = dict.fromkeys(_words(stem) for stem in (row.stem, *row.later_stems) if stem)
        for at in (at for stem in stems for at in self._short.get(stem, ())):
            question = self._passages[at].question
            if question.options == question.labels or _has_options(text, question):
                yield self._overlap(row, self._passages[at], "stem", 1.0, words)
        hits = self._seeds.keys() & _ngrams(words, SEED)
        shared = Counter(at for seed in hits for at in self._seeds[seed])
        candidates = [at for at in sorted(shared) if shared[at] >= SEED_SHARE * self._passages[at].seeds]
        places = self._places(words, hits, candidates) if candidates else {}
        many = any(shared[at] >= SEED for at in candidates)  # with fewer 5-grams there is no 13-gram that counts
        grams = set(_ngrams(words, self._config.ngram)) if many else set()
        for at in candidates:
            passage = self._passages[at]
            stretch = _stretch(words, passage, places[at])
            compared = self._compare(text, grams, passage, stretch)
            if compared is not None:
                yield self._overlap(row, passage, *compared, stretch)

    def _places(self, words: Words, hits: Set[Words], candidates: list[int]) -> dict[int, list[int]]:
        """Candidate -> positions of its 5-grams in the row, ascending."""
        places: dict[int, list[int]] = {at: [] for at in candidates}
        for place, seed in enumerate(_ngrams(words, SEED)):
            if seed in hits:
                for at in self._seeds[seed]:
                    if at in places:
                        places[at].append(place)
        return places

    def _compare(self, text: str, grams: set[Words], passage: _Passage, stretch: Words) -> tuple[Kind, float] | None:
        """(kind, score), or None if the row, with `stretch` as its most similar part, contains too little of it."""
        if passage.options:
            return _compare_options(text, passage)
        identifies = _identifies(passage)
        has_options = _has_options(text, passage.question)
        if passage.joined in text and (identifies or has_options or _has_answer(text, passage.question)):
            return "stem", 1.0
        own = [gram for gram in _ngrams(passage.words, self._config.ngram) if gram not in self._shared]
        shared = sum(gram in grams for gram in own)
        if own and shared >= min(len(own), NGRAMS_AT_LEAST) and shared >= self._config.ngram_share * len(own):
            return "ngram", shared / len(own)
        similarity = _similarity(passage, stretch)
        enough = len(passage.content) >= NEAR_WORDS or (identifies and has_options)
        return ("near", similarity) if enough and similarity >= self._config.near else None

    def _overlap(self, row: TrainingText, passage: _Passage, kind: Kind, score: float, stretch: Words) -> Overlap:
        excerpt = " ".join(stretch)[:EXCERPT_CHARACTERS]
        return Overlap(row.row, passage.task, passage.question.id, passage.part, kind, round(score, 4), excerpt)


def _texts(benchmarks: Mapping[str, Sequence[Question]]) -> Iterator[tuple[str, Question, Part, Words]]:
    for task, questions in benchmarks.items():
        for question in questions:
            yield task, question, "question", _words(question.question)
            if options := [words for option in question.options if len(words := _words(option)) >= SEED]:
                yield task, question, "options", tuple(word for words in options for word in words)
            if question.context:
                yield task, question, "context", _words(question.context)


def _words(text: str) -> Words:
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORD.findall(folded))


def _content(words: Words) -> Words:
    return tuple(word for word in words if not says_nothing(word))


def _join(words: Words) -> str:
    return f" {' '.join(words)} "


def _ngrams(words: Words, n: int) -> Iterator[Words]:
    return zip(*(words[at:] for at in range(n)), strict=False)


def _stretch(words: Words, passage: _Passage, places: list[int]) -> Words:
    """The part of the row with most of the (ascending) positions, a little longer than the passage."""
    length = int(len(passage.words) * WINDOW) + SEED
    best, first = (0, 0), 0
    for last, place in enumerate(places):
        while place - places[first] >= length:
            first += 1
        best = max(best, (last - first + 1, -first))
    held = places[-best[1] : -best[1] + best[0]]
    spare = max(0, length - (held[-1] - held[0] + SEED))
    return words[max(0, held[0] - spare) : held[-1] + SEED + spare]


def _similarity(passage: _Passage, stretch: Words) -> float:
    """Share of the passage's content words that the stretch contains in the same order.

    For a long passage, nearly all of them in any order or most of all its words in the same order count as well.
    """
    from rapidfuzz.distance import LCSseq

    if not passage.content:
        return 0.0
    content = _content(stretch)
    similarity = LCSseq.similarity(passage.content, content) / len(passage.content)
    distinct = set(passage.content)
    there = len(distinct.intersection(content)) / len(distinct)
    if len(distinct) >= SHUFFLED[0] and there >= SHUFFLED[1]:
        similarity = max(similarity, there)
    if len(passage.words) >= LONG_TEXT[0]:
        in_all = LCSseq.similarity(passage.words, stretch) / len(passage.words)
        similarity = max(similarity, in_all) if in_all >= LONG_TEXT[1] else similarity
    return similarity


def _identifies(passage: _Passage) -> bool:
    if passage.question.options == passage.question.labels:  # yes, no, maybe: no help in telling questions apart
        return len(passage.words) >= SEED
    return len(passage.content) >= IDENTIFYING - (len(passage.words) >= LONG_STEM)


def _compare_options(text: str, passage: _Passage) -> tuple[Kind, float] | None:
    found = [option for option in passage.options if option in text]
    share = len(found) / len(passage.question.options)
    enough = share >= 0.5 and sum(option.count(" ") - 1 for option in found) >= OPTION_WORDS
    return ("near", share) if enough else None


def _long_options(question: Question, part: Part) -> tuple[str, ...]:
    options = [_words(option) for option in question.options] if part == "options" else []
    return tuple(_join(words) for words in options if len(words) >= SEED)


def _has_options(text: str, question: Question) -> bool:
    """Whether the row contains at least half of the question's options, in any order."""
    if question.options == question.labels:
        return False
    options = _joined(question.options)
    return 2 * sum(bool(option.strip()) and option in text for option in options) >= len(options)


def _has_answer(text: str, question: Question) -> bool:
    """Whether the row contains the right option, and it is specific ("None of the above" is not)."""
    if question.options == question.labels or question.gold not in question.labels:
        return False
    gold = _joined(question.options)[question.labels.index(question.gold)]
    return gold in text and bool(_content(tuple(gold.split())))


@lru_cache(maxsize=10_000)
def _joined(options: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_join(_words(option)) for option in options)


_WORD = re.compile(r"[^\W_]+")
