"""Steps with a known verdict, made from abstracts: what the local judge learns from and is tested on.

    pairs_of(abstracts, seed=0)

For each abstract a source, which is its text without one or two sentences, and as many steps of each verdict:

    supported      a sentence of the source; a sentence of the authors' conclusion, which the source does not hold
    contradicted   such a sentence with one thing changed (see counterfactuals), the kinds as evenly as texts allow
    not covered    a sentence that was left out of the source ("left out"); a sentence of another abstract, one of those
                   that share most words with this one ("other abstract")

All of them are reworded alike, so that neither a copy nor a rewording gives a verdict away. That a sentence is left out
of a source makes it not covered, not false: a change is only known to contradict a text that holds the original.
Conclusions are what a source supports in other words. Those that ask for research or advise something are left out, and
those that share few words with the abstract, of which it is doubtful whether the abstract supports them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medbench.harness.judges.abstracts import Abstract
from medbench.harness.judges.contracts import Verdict
from medbench.harness.judges.counterfactuals import CHANGES, changed
from medbench.harness.judges.local.lexical import content_words
from medbench.harness.judges.local.rewording import framed, reworded

LEFT_OUT, OTHER = "left out", "other abstract"
KINDS = (*CHANGES, LEFT_OUT, OTHER)
"""Of what is not supported."""
Form = Literal["sentence", "conclusion"]

MOST_SENTENCES = 5
MOST_CONCLUSIONS = 2
WORDS = range(6, 61)
"""Words of a sentence that is used."""
ONLY_THERE = 3
"""Content words that a sentence left out must have to itself, or the rest of the source covers it."""
SHARED = 0.5
"""Share of a conclusion's content words that the abstract must have."""
NEIGHBOURS = 5
_ADVICE = re.compile(
    r"\b(?:further|future|should|need(?:s|ed)?|recommend\w*|warrant\w*|research|must|propose\w*|advis\w*)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A step, a source, and what the one says of the other."""

    abstract: str
    """Id of the one that the source is of."""
    step: str
    source: str
    verdict: Verdict
    kind: str
    """One of KINDS; "" for a supported step."""
    form: Form
    """What the step was made from."""
    origin: str
    """The sentence that it was made from."""


def pairs_of(abstracts: Sequence[Abstract], seed: int) -> list[Pair]:
    """In the order of the abstracts; the same for the same seed. Other abstracts are taken from among these."""
    near = _neighbours(abstracts)
    used: Counter[str] = Counter()
    return [
        pair
        for at, abstract in enumerate(abstracts)
        for pair in _of_abstract(abstract, [abstracts[other] for other in near[at]], used, _chance(seed, abstract))
    ]


def _chance(seed: int, abstract: Abstract) -> random.Random:
    return random.Random(f"{seed} {abstract.id}")


def _of_abstract(
    abstract: Abstract, near: Sequence[Abstract], used: Counter[str], draw: random.Random
) -> Iterator[Pair]:
    usable = [sentence for sentence in dict.fromkeys(abstract.sentences()) if len(sentence.split()) in WORDS]
    left_out = _left_out(abstract, usable, draw)
    source = abstract.without(frozenset(left_out))
    kept: list[tuple[Form, str]] = [("sentence", one) for one in usable if one not in left_out]
    kept = draw.sample(kept, min(MOST_SENTENCES, len(kept)))
    kept += [("conclusion", one) for one in conclusions_of(abstract)][:MOST_CONCLUSIONS]
    changes = [(form, origin, *made) for form, origin in kept if (made := _change(origin, source, used, draw))]
    elsewhere: list[tuple[Form, str]] = [("sentence", one) for other in near for one in other.sentences()]
    elsewhere += [("conclusion", one) for other in near for one in conclusions_of(other)]
    elsewhere = [(form, one) for form, one in elsewhere if len(one.split()) in WORDS]
    number = min(len(changes), len(kept))
    for form, origin in draw.sample(kept, number):
        step = framed(reworded(origin, draw), draw)
        yield Pair(abstract.id, step, source, "supported", "", form, origin)
    for form, origin, kind, step in changes[:number]:
        yield Pair(abstract.id, framed(step, draw), source, "contradicted", kind, form, origin)
    for origin in left_out[:number]:
        step = framed(reworded(origin, draw), draw)
        yield Pair(abstract.id, step, source, "not covered", LEFT_OUT, "sentence", origin)
    for form, origin in draw.sample(elsewhere, min(len(elsewhere), max(0, number - len(left_out)))):
        step = framed(reworded(origin, draw), draw)
        yield Pair(abstract.id, step, source, "not covered", OTHER, form, origin)


def conclusions_of(abstract: Abstract) -> list[str]:
    """The sentences of the conclusion that the abstract supports, as far as words tell."""
    known = content_words(abstract.text)
    return [
        sentence
        for sentence in abstract.conclusion
        if len(sentence.split()) in WORDS
        and not _ADVICE.search(sentence)
        and (words := content_words(sentence))
        and len(words & known) / len(words) >= SHARED
    ]


def _left_out(abstract: Abstract, usable: Sequence[str], draw: random.Random) -> list[str]:
    """One or two sentences that say something which the rest does not."""
    found: list[str] = []
    for sentence in draw.sample(usable, len(usable)):
        if len(found) == (2 if len(usable) > 6 else 1):
            break
        rest = content_words(abstract.without(frozenset([*found, sentence])))
        if len(content_words(sentence) - rest) >= ONLY_THERE:
            found.append(sentence)
    return found if len(usable) > len(found) + 1 else []


def _change(origin: str, source: str, used: Counter[str], draw: random.Random) -> tuple[str, str] | None:
    """(kind, the changed step): the kind that was used least so far, of those that fit."""
    base = reworded(origin, draw)
    fitting = {kind: step for kind in CHANGES if (step := changed(base, f"{source} {origin}", kind, draw))}
    if not fitting:
        return None
    kind = min(fitting, key=lambda kind: used[kind])
    used[kind] += 1
    return kind, fitting[kind]


def _neighbours(abstracts: Sequence[Abstract]) -> Mapping[int, Sequence[int]]:
    """The abstracts that share most words with each, weighted by how rare they are; not itself."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(abstracts) < 2:
        return dict.fromkeys(range(len(abstracts)), ())
    weights = TfidfVectorizer(sublinear_tf=True).fit_transform([one.text for one in abstracts])
    near = (weights @ weights.T).toarray()
    np.fill_diagonal(near, -1.0)
    order = np.argsort(-near, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(abstracts) - 1)]
    return {at: [int(other) for other in row] for at, row in enumerate(order)}
