"""Judges reasoning by its structure alone: original steps, in order, about the options, leading to the answer.

Whether a step is true is not judged; that would need a model. What is judged takes some effort to fake: a step counts
if it is a sentence with new words, which come neither from the prompt, nor from an earlier step, nor from what could be
said about any question ("carefully considering each option, ...").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from medbench.harness.contracts import Question
from medbench.harness.extraction.answer import extract
from medbench.trainers.rewards.stop_words import GRAMMAR
from medbench.trainers.rewards.words import stems_of, words_of

STEP_WORDS = 5
"""A shorter sentence is a heading or a remark."""
LEAST_SUBSTANCE = 0.25
"""Share of the reasoning's words that must be in steps: padding around a step is not reasoning."""
LEAST_LINKED = 0.2
"""Share of the steps that must mention the question, its context or an option: else it is about something else."""
FULL_STEPS = 4
"""More steps than this earn no more."""
COPIED = 0.7
"""Share of a sentence's word trigrams taken from the prompt or earlier sentences that makes it a copy."""
TAIL_CHARACTERS = 400

_SENTENCE = re.compile(r"(?<=[.!?;])[\"')*\]]{0,3}\s+(?=[^a-z])|\n+")
_NUMBERED = re.compile(r"[\s*_#>\-•]{0,8}(?:step\s*)?(\d{1,2})\s*(?:[.):]|[-–—]\s)[\s*_]{0,4}", re.IGNORECASE)
_LETTER = re.compile(r"(?<![^\W_])(?<!['’-])([A-Z])(?![^\W_]|['’-]\w)(?!\s+[a-z])|\b(?:option|choice)\s+\(?([A-Z])\b")
_CAPITAL = re.compile(r"\b[A-Z]\b")
_OF_LETTER = re.compile(
    r"(?<![^\W_])([A-Z])\)?\s+(?:is|was|would|can|cannot|could|does|has|fits|explains|causes|are)\b"
)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the structure of the reasoning shows, each 0..1."""

    present: float
    """Number of original steps over FULL_STEPS, at most 1; 0 without reasoning."""
    ordered: float
    """1 if steps are numbered from 1 and each says something, 0.5 for prose without numbers."""
    considered: float | None
    """Share of the options that some step discusses; None without options that have a text of their own."""
    concludes: float
    """1 if the end of the reasoning names the answer given after it."""
    contradicts: bool
    """Whether the end of the reasoning names another answer."""

    @property
    def score(self) -> float:
        """Mean of the four, 0..1; 0 without reasoning, or if it contradicts the answer."""
        if not self.present or self.contradicts:
            return 0.0
        parts = [self.present, self.ordered, self.concludes, *([] if self.considered is None else [self.considered])]
        return sum(parts) / len(parts)


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    words: tuple[str, ...]
    stems: frozenset[str]
    new: int
    """New words; 0 for a sentence that is copied, repeated or not a sentence."""
    number: int | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """The words of a prompt, computed once per question."""

    words: frozenset[str]
    """Stems of question and options: repeating them is not new. The context may be quoted: it is the evidence."""
    linked: frozenset[str]
    trigrams: frozenset[tuple[str, ...]]
    options: tuple[tuple[str, frozenset[str]], ...]


def reasoning_of(
    thought: str, question: Question, answer: str, *, least_steps: int = 2, least_words: int = 4
) -> Reasoning:
    """`answer` is the label or the free text that the reply gives after its reasoning.

    Fewer steps than `least_steps`, or fewer new words in total than `least_words`, do not count as reasoning.
    """
    asked = _asked(question.question, question.options, question.labels, question.context)
    sentences = list(_sentences(thought, asked))
    steps = [sentence for sentence in sentences if sentence.new]
    linked = sum(bool(asked.linked & s.stems or _letters(s.text, question.labels)) for s in steps)
    substance = sum(len(step.words) for step in steps) / max(1, sum(len(sentence.words) for sentence in sentences))
    is_reasoned = (
        len(steps) >= least_steps
        and sum(step.new for step in steps) >= least_words
        and substance >= LEAST_SUBSTANCE
        and linked >= LEAST_LINKED * len(steps)
    )
    concludes, contradicts = _conclusion(thought, question, answer)
    return Reasoning(
        present=min(1.0, len(steps) / FULL_STEPS) if is_reasoned else 0.0,
        ordered=_order(sentences),
        considered=_considered(sentences, asked, question.labels) if asked.options else None,
        concludes=concludes,
        contradicts=contradicts,
    )


@lru_cache(maxsize=512)
def _asked(question: str, options: tuple[str, ...], labels: tuple[str, ...], context: str) -> _Asked:
    own = frozenset(stems_of(words_of(" ".join((question, *options)))))
    texts = (question, *options, context)
    named = tuple((label, frozenset(stems_of(words_of(text)))) for label, text in zip(labels, options, strict=True))
    return _Asked(
        words=own,
        linked=own | frozenset(stems_of(words_of(context))),
        trigrams=frozenset(gram for text in texts for gram in _trigrams(words_of(text))),
        options=named if options != labels else (),
    )


def _sentences(thought: str, asked: _Asked) -> Iterator[_Sentence]:
    """The sentences in order, each with the number that it starts with and its new words."""
    known: set[str] = set(asked.words)
    said: set[tuple[str, ...]] = set(asked.trigrams)
    for piece in _SENTENCE.split(thought):
        if not piece or not piece.strip():
            continue
        numbered = _NUMBERED.match(piece)
        text = piece[numbered.end() :] if numbered else piece
        words = words_of(text)
        stems = frozenset(stems_of(words))
        trigrams = _trigrams(words)
        new: set[str] = set()
        is_sentence = len(words) >= STEP_WORDS and 2 * len(set(words)) > len(words) and not GRAMMAR.isdisjoint(words)
        if is_sentence and sum(gram in said for gram in trigrams) < COPIED * len(trigrams):
            new = set(stems) - known
        said.update(trigrams)
        known |= new
        yield _Sentence(text, words, stems, len(new), int(numbered.group(1)) if numbered else None)


def _trigrams(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return list(zip(words, words[1:], words[2:], strict=False))


def _letters(text: str, labels: tuple[str, ...]) -> set[str]:
    """Labels that a sentence names explicitly: "(B)", "B:", "option B", "B is"."""
    if not _CAPITAL.search(text):
        return set()
    found = {letter for pair in _LETTER.findall(text) for letter in pair if letter} | set(_OF_LETTER.findall(text))
    return found & set(labels)


def _order(sentences: list[_Sentence]) -> float:
    numbers = [sentence.number for sentence in sentences if sentence.number is not None]
    if len(numbers) < 2:
        return 0.5
    said: list[int] = []  # new words under each number
    for sentence in sentences:
        if sentence.number is not None:
            said.append(0)
        if said:
            said[-1] += sentence.new
    follows = [numbers[0] == 1] + [
        after == before + 1 or (after == 1 and before > 1) for before, after in pairwise(numbers)
    ]
    return sum(good and new > 0 for good, new in zip(follows, said, strict=True)) / len(numbers)


def _considered(sentences: list[_Sentence], asked: _Asked, labels: tuple[str, ...]) -> float:
    """An option is discussed if a sentence with new words names it, by its letter or by half of its words."""
    spoken: set[str] = set()
    for sentence in sentences:
        if not sentence.new:
            continue
        spoken |= _letters(sentence.text, labels)
        spoken |= {label for label, words in asked.options if words and 2 * len(words & sentence.stems) >= len(words)}
    return len(spoken) / len(labels)


def _conclusion(thought: str, question: Question, answer: str) -> tuple[float, bool]:
    """(1 if the last sentences name `answer` else 0, whether they name another label and not `answer`)."""
    tail = thought[-TAIL_CHARACTERS:].strip()
    if not question.labels:
        return float(_names(tail, answer)), False
    pieces = [piece.strip() for piece in _SENTENCE.split(tail) if piece and piece.strip()][-2:]
    texts = {label: text for label, text in zip(question.labels, question.options, strict=True) if text != label}
    for piece in reversed(pieces):
        found = extract(piece, labels=question.labels, options=question.options).answer
        if found == answer:
            return 1.0, False
        named = {label for label, text in texts.items() if _names(piece, text)}
        if texts:
            named |= _letters(piece, question.labels)
        if named == {answer}:
            return 1.0, False
        if answer not in named and _CONCLUDING.search(piece) and not _DENYING.search(piece):
            another = found is not None if not named else len(named) == 1
            if another:
                return 0.0, True
    return 0.0, False


# only an explicit conclusion can contradict: a last sentence may name another option to reject it
_CONCLUDING = re.compile(
    r"\b(?:answer|correct|conclu\w+|therefore|thus|hence|so|choose|choice|pick|must\s+be|it\s+is)\b", re.IGNORECASE
)
_DENYING = re.compile(
    r"\b(?:not|no|never|neither|nor|without|cannot|wrong|incorrect|unlike\w*|less|exclud\w+|rul\w+\s+out|reject\w*|eliminat\w+|"
    r"rather|instead|except|although|though|but|than|avoid\w*|contraindicated)\b|n['’]t\b",
    re.IGNORECASE,
)


def _names(piece: str, option: str) -> bool:
    words = " ".join(words_of(option))
    return bool(words) and f" {words} " in f" {' '.join(words_of(piece))} "
