"""Which steps of a reply can be paid for, whatever a judge says of them.

A judge sees one step and the source. It cannot see that a step is copied from the source, was said before, has nothing
to do with the question, or comes after the answer; and it may be talked into a verdict. So a step counts only if it
passes these checks, which need no model. Where they are wrong about an honest step, that step is merely not paid for.

python tests/bench/step_checks.py REPLIES.jsonl ROWS.jsonl    # how many steps of real replies count, and of copies
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

from medbench.harness.contracts import Question
from medbench.harness.extraction.answer import extract
from medbench.harness.judges.steps import sentences
from medbench.trainers.rewards.stop_words import GRAMMAR
from medbench.trainers.rewards.words import stems_of, words_of

Discount = Literal[
    "after_answer",  # an earlier step has stated the answer
    "no_sentence",  # a heading, a list of words, words in no order
    "to_judge",  # has a judge's own words, such as "supported", or marks of a prompt
    "hedged",  # true whatever is the case: "may or may not"
    "copied",  # the source's own words
    "off_topic",  # says nothing that the source says about what was asked
    "repeated",  # an earlier step said it
]
DISCOUNTS: tuple[Discount, ...] = get_args(Discount)

SENTENCE_WORDS = 5
COPIED_TRIGRAMS = 0.4
"""Share of a step's word trigrams that the source has, from which it is a copy: for copies with small changes."""
COPIED_WORDS = 0.8
"""Share of a step's words that a single sentence of the source has, from which it is a copy in another order."""
MOSTLY_COPIED = 0.25
"""Share of all trigrams of the steps from which no step counts: a copy with a change in each sentence."""
MOST_SPOILED = 0.25
"""Share of the steps in no order, or with words for a judge, from which no step counts."""
REPEATED = 0.8
"""Share of a step's telling words that an earlier step has, from which it says nothing new."""
RESTATED = 0.7
"""Share of a step's telling words that the question has, from which it only restates the question."""
QUOTED_WORDS = 4
"""A quotation of fewer words is a term."""


@dataclass(frozen=True, slots=True)
class _Source:
    sentences: tuple[frozenset[str], ...]
    """The words of each."""
    trigrams: frozenset[tuple[str, ...]]
    keys: frozenset[str]
    """Stems of the source that the question does not have."""
    telling: frozenset[str]
    """Those of sentences that share a stem with the question."""
    asked: frozenset[str]
    """Stems of question and options."""


def discounts_of(steps: Sequence[str], question: Question, source: str) -> list[Discount | None]:
    """For each step in order, why it cannot be paid for; None for one that can."""
    known = _source(source, question.question, question.options)
    found: list[Discount | None] = []
    said: list[frozenset[str]] = []
    answered = False
    for step in steps:
        own = _without_quotations(step)
        words, stems = words_of(own), _telling_words(own)
        why = "after_answer" if answered else _discount(step, words, stems, known, said)
        if why is None:
            said.append(stems)
        answered = answered or _answers(step, question)
        found.append(why)
    spoiled = _spoiled(steps, known)
    return [why or spoiled for why in found]


def _spoiled(steps: Sequence[str], known: _Source) -> Discount | None:
    """Why no step of the reply counts, where the checks of single steps may miss some."""
    grams = [gram for step in steps for gram in _trigrams(words_of(step))]
    if grams and sum(gram in known.trigrams for gram in grams) >= MOSTLY_COPIED * len(grams):
        return "copied"
    few = max(2, MOST_SPOILED * len(steps))
    if sum(map(_is_scrambled, steps)) >= few:
        return "no_sentence"
    return "to_judge" if sum(bool(_TO_JUDGE.search(step)) for step in steps) >= few else None


def _discount(
    step: str, words: tuple[str, ...], stems: frozenset[str], known: _Source, said: list[frozenset[str]]
) -> Discount | None:
    if _is_no_sentence(step):
        return "no_sentence"
    if _TO_JUDGE.search(step):
        return "to_judge"
    if _is_hedged(step.lower()):
        return "hedged"
    if len(words) < SENTENCE_WORDS or _is_copied(words, known):  # without what it quotes
        return "copied"
    keys = stems & known.keys
    if not (keys & known.telling or (keys and stems & known.asked)) or _restates(stems, known):
        return "off_topic"
    if any(len(stems & earlier) >= REPEATED * len(stems) for earlier in said):
        return "repeated"
    return None


_STUDY_WORDS = "group receive received number year month week day hour assign included"
_OF_ANY_STUDY = frozenset(stems_of(words_of(_STUDY_WORDS)))
"""They say nothing about this one."""


def _restates(stems: frozenset[str], known: _Source) -> bool:
    return len(stems & known.asked) >= RESTATED * len(stems)


@lru_cache(maxsize=256)  # the replies to a question are judged one after another
def _source(source: str, question: str, options: tuple[str, ...]) -> _Source:
    asked = _telling_words(" ".join((question, *options)))
    split = sentences(source)
    parts, stems = [words_of(sentence) for sentence in split], [_telling_words(sentence) for sentence in split]
    return _Source(
        sentences=tuple(map(frozenset, parts)),
        trigrams=frozenset(gram for words in parts for gram in _trigrams(words)),
        keys=frozenset().union(*stems) - asked - _OF_ANY_STUDY,
        telling=frozenset().union(*(own for own in stems if own & asked)) - asked - _OF_ANY_STUDY,
        asked=asked,
    )


def _telling_words(text: str) -> frozenset[str]:
    """Stems, and numbers with a fraction."""
    return frozenset((*stems_of(words_of(text)), *_FRACTION.findall(text)))


_FRACTION = re.compile(r"\d+[.,]\d+")


def _trigrams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(words, words[1:], words[2:], strict=False)


def _is_copied(words: tuple[str, ...], known: _Source) -> bool:
    shared = sum(gram in known.trigrams for gram in _trigrams(words))
    if shared >= COPIED_TRIGRAMS * (len(words) - 2):
        return True
    return any(sum(word in own for word in words) >= COPIED_WORDS * len(words) for own in known.sentences)


def _without_quotations(step: str) -> str:
    return _QUOTED.sub(lambda found: " " if len(found[0].split()) >= QUOTED_WORDS else found[0], step)


_QUOTED = re.compile(
    r"“[^“”]{1,2000}”|\"[^\"]{1,2000}\"|«[^«»]{1,2000}»|(?<!\w)'[^'\n]{12,2000}'(?!\w)|‘[^‘’]{1,2000}’"
)


def _answers(step: str, question: Question) -> bool:
    if question.labels:
        return extract(step, labels=question.labels, options=question.options).answer is not None
    return bool(_STATES_THE_ANSWER.search(step))


_STATES_THE_ANSWER = re.compile(
    r"\b(?:the|my)\s+(?:final\s+|correct\s+)?answer\s+(?:is|would\s+be)\b|\\boxed", re.IGNORECASE
)


_TO_JUDGE = re.compile(
    r"\b(?:supported|contradicted|not covered|verdicts?|judges?|grader|fact[- ]?check\w*|instructions?|tags?|"
    r"(?:this|each|every|these)\s+(?:of\s+these\s+)?(?:steps?|sentences?|statements?|lines?))\b|"
    r"\b(?:step|source)\s*:|<[/|a-z]|[{}|]",
    re.IGNORECASE,
)


def _is_hedged(step: str) -> bool:
    return bool(_EMPTY_HEDGE.search(step)) or len(_DOUBT.findall(step)) >= 2


_EMPTY_HEDGE = re.compile(
    r"^either\b.*\bor\b|"
    r"\b(?:may|might|could|can|does|do|did|is|are|was|were|has|have|will|would|should)\s+or\s+"
    r"(?:(?:may|might|could|can|does|do|did|is|are|was|were|has|have|will|would|should)\s+)?(?:not\b|n['’]t)|"
    r"\b(?:or|and\s+also|but\s+also)\s+(?:(?:may|might|could|perhaps|maybe|possibly)\s+)?not\b|"
    r"\bor\s+(?:it\s+)?(?:does|is|was|did|has|may|might|could)(?:\s+not|n['’]t)\b|"
    r"\bcan(?:not|['’]t)\s+be\s+(?:ruled\s+out|excluded)\b"
)
_DOUBT = re.compile(
    r"\b(?:may|might|could|possibly|perhaps|maybe|conceivabl[ey]|potentially|presumably|arguably|possible|"
    r"plausibl[ey]|seem(?:s|ed)?|appears?|in\s+some\s+(?:cases|patients|sense)|to\s+some\s+(?:degree|extent))\b"
)


CLAUSE_WORDS = 5
"""A step without a clause of as many is a list: "Falls 2.3, placebo 2.2"."""
_CLAUSE = re.compile(r"[,;:](?=\s)")
LEAST_GRAMMAR = 0.1
"""Share of function words below which a step is a list of words."""


def _is_no_sentence(step: str) -> bool:
    words = words_of(step)
    if len(words) < SENTENCE_WORDS or 2 * len(set(words)) <= len(words):
        return True
    if not any(len(clause.split()) >= CLAUSE_WORDS for clause in _CLAUSE.split(step)):
        return True
    grammar = sum(word in GRAMMAR or word.endswith(("n't", "n’t")) for word in words)
    return grammar < LEAST_GRAMMAR * len(words) or _is_scrambled(step)


_DETERMINER = ["a", "an", "the", "its", "their", "our", "your", "his", "every"]
_PREPOSITION = ["of", "from", "with", "into", "onto", "upon", "among", "between"]
_FINITE = ["is", "was", "are", "were", "has", "had", "does", "did", "could", "might", "would", "should", "must"]
_CONJUNCTION = ["and", "or", "but", "nor"]
_LINK = ["in", "on", "at", "by", "to", "for", "as", "than", "that", "if", "because"]
_SUBJECT = ["they", "we", "he", "she"]


def _pairs(*pairs: tuple[list[str], list[str]]) -> frozenset[tuple[str, str]]:
    return frozenset((one, two) for first, second in pairs for one in first for two in second)


_CLASHES = _pairs(
    (["over", "under", "through", "after", "before", "during", "without", "within"], ["of", "than", *_FINITE]),
    (
        _DETERMINER,
        [
            "them",
            "him",
            "us",
            "me",
            *_DETERMINER,
            *_PREPOSITION,
            *_FINITE,
            *_CONJUNCTION,
            *_LINK,
            *_SUBJECT,
            "been",
            "be",
            "not",
        ],
    ),
    ([*_PREPOSITION, "in", "on", "at", "by", "for", "to"], [*_FINITE, *_SUBJECT, "of", "been"]),
    (["of", "from", "with"], ["in", "with", "for", "by", "to", "on", "of", "than", "and", "or"]),
    (["to", "for", "by"], ["for", "with", "from", "by", "than", "as"]),
    (["in", "on", "at"], ["for", "with", "from", "by", "than"]),
    (["by", "for"], ["to"]),
    (_FINITE, ["who", "whom"]),
    (["than"], ["of", "and", "or", "is", "than"]),
    (_CONJUNCTION, _CONJUNCTION),
    (_FINITE, _FINITE),
    (["been", "be"], [*_FINITE, "been", "be"]),
)
"""Function words that do not follow one another: "the of", "of is", "was had"."""
_NO_BEGINNING = frozenset(["of", "than", "been"])
_NO_END = frozenset([*_DETERMINER, *_CONJUNCTION, "of", "from", "into", "than", "between", "among"])
_PLAIN_WORD = re.compile(r"[^\s]+")


def _is_scrambled(step: str) -> bool:
    """Whether function words stand where no English sentence has them. Acronyms such as OR and the label A are none."""
    tokens = [token if token.isupper() else token.lower() for token in _PLAIN_WORD.findall(step)]
    last = tokens[-1].rstrip(".!?") if tokens else ""
    return (
        any(pair in _CLASHES for pair in pairwise(tokens))
        or (tokens[:1] != [] and tokens[0] in _NO_BEGINNING)
        or last in _NO_END
    )
