"""The first reader, kept as it was for protocol cot-v1: what it scores must not change. See answer.py for today's.

Its rules and its wording (patterns_v1) are copies on purpose, so that today's can change; it shares only the plain
matching of texts.

Only the text after the reasoning is read. Statements are looked for by kind, the strongest kind first, and within a
kind from the end backwards, because a later statement corrects an earlier one. A statement that names several labels is
ambiguous; one that names a letter that is not a label is no answer. Neither falls back to a weaker kind.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from medbench.harness.contracts import Extraction
from medbench.harness.extraction.choices import Choices
from medbench.harness.extraction.patterns_v1 import (
    BECAUSE,
    CHOICES,
    CLOSERS,
    CONCLUDED,
    DENIED,
    END,
    FILLER,
    HEADS,
    JOIN,
    MARKS,
    POINTED,
    PRAISED,
    REFUSAL,
    REJECTED,
)
from medbench.harness.extraction.statements import Statement, end_of, lines_of
from medbench.harness.extraction.thinking import REASONING_TAGS

READ_CHARACTERS = 100_000
"""Only this much of a completion is read, from its end: eight times the length of 4,096 tokens of prose."""
STATEMENTS = 200
"""At most this many statements of one kind are tried, counted from the end."""
OBJECT_CHARACTERS = 400
"""How many characters after "the answer is" are searched for the answer."""


_HEADS = re.compile("|".join(HEADS), re.IGNORECASE)
_CHOICES = re.compile("|".join(CHOICES), re.IGNORECASE)
_CONCLUDED = re.compile(CONCLUDED, re.IGNORECASE)
_POINTED = re.compile(POINTED)
_PRAISED_LETTER = re.compile(
    rf"(?<![^\W_])(?<!['’-])([A-Z])(?![^\W_]|['’-]\w)(?=[.)*]{{0,3}}([^\n.;]{{0,80}}?)(?:{PRAISED}))"
)
_LEAD = re.compile(rf"{MARKS}{FILLER}{MARKS}", re.IGNORECASE)
_DENIED = re.compile(DENIED, re.IGNORECASE)
_DENYING = re.compile(r"(?:\b(?:not|cannot|never|nor|neither)|n['’]t)\b(?:\s+\w+){0,2}[\s(]*$", re.IGNORECASE)
_BUT = re.compile(r"[^.\n]{0,60}?\bbut\s+(?:rather\s+)?", re.IGNORECASE)
_LETTER = re.compile(rf"([A-Z])(?![^\W_]|['’-]\w){END}")
_LOWER = re.compile(r"([a-z])(?=\s*[)\].:,;}*_\"”$]|\s*$|\s*\n)")
_JOINED = re.compile(rf"{CLOSERS}{JOIN}{MARKS}{FILLER}{MARKS}")
_SINGULAR = re.compile(r"[\s*_)\]\"']{0,4}\s(?:is|was|would|has|does|isn|cannot|can|seems|represents|refers)\b")
_REJECTED = re.compile(REJECTED, re.IGNORECASE)
_ARTICLE = re.compile(rf"\s+(?!{BECAUSE})[a-z]")
_WORD_TAIL = re.compile(rf"[ \t]+(?!{BECAUSE})[a-z]", re.IGNORECASE)
_WORD_JOIN = re.compile(r"[\s*_`\"']{0,4}(,\s*(?:and|or)\b|,|and\b|or\b|/)[\s*_`\"']{0,4}", re.IGNORECASE)
_LINE = re.compile(
    rf"[-–•→\s]{{0,6}}{MARKS}(?:(?:option|choice|answer)\s+)?{MARKS}([A-Z])(?![^\W_]|['’]\w)[*_`\"'’”)\]}}$.:,!\s-]{{0,12}}"
)
_EDGE = " \t\r\n*_`$\"'“”‘’«»()[]{}<>#|~.:;,!-–—"
"""Characters around an answer that stands alone on its line."""
_CLOSING = re.compile(r"(?<![)\],/])\s[*_]{0,3}\((?:(?:[Oo]ption|[Cc]hoice)\s+)?([A-Z])\)[\s*_`.!]{0,9}$")
"""A letter in brackets that ends the text: "... (B).", "... (option B)"."""
_OTHER_OPTION = re.compile(r"(?<!\w)\(?[A-Z][).]\s")
_LOWER_LINE = re.compile(r"\s*\(?([a-z])(?:[).:]|\s*$)[^\n]{0,200}")
_CLOSED = re.compile(r"\s*(?:[)\]*.:,!;\"”]|$|\n)")
_JOINED_BEFORE = re.compile(
    rf"(?<![^\W_])(?<!['’-])([A-Z])(?![^\W_]|['’-]\w){MARKS}(?:and|or|/|&){MARKS}(?:option\s+)?{MARKS}$"
)
_MARKS = re.compile(MARKS)
_OTHERS_NAMED = re.compile(r"(?<![^\W_])(?<!['’-])[B-HJ-Z](?![^\W_]|['’-]\w)|\b(?:not|wrong|incorrect|while|whereas)\b")
_LOWER_WORD = re.compile(r"\s+[a-z]")


_COPIED = Statement((), 0, 0)
"""Stands for a labelled line in the middle of a text, which may be an option copied from the question."""


def extract(
    text: str,
    *,
    labels: tuple[str, ...],
    options: tuple[str, ...] = (),
    finish_reason: str = "stop",
    opened: bool = False,
) -> Extraction:
    """The one of `labels` that the completion `text` gives as its answer, or None and the reason.

    `options` are the labels' texts, so that "The answer is aspirin" is understood. `opened` says that the prompt has
    opened the reasoning. Takes time linear in the length of `text`.
    """
    offset = _answer_start(text, opened)
    cut_off = finish_reason == "length"
    if offset is None:
        return Extraction(None, "truncated" if cut_off else "unparsed")
    extractor = _Extractor(text, max(offset, len(text) - READ_CHARACTERS), labels, options)
    if not extractor.text.strip():
        return Extraction(None, "truncated" if cut_off and offset else "empty")
    found = next(extractor.statements(), None)
    if found is None:
        if REFUSAL.search(extractor.text):
            return Extraction(None, "refused")
        return Extraction(None, "truncated" if cut_off else "unparsed")
    if len(found.labels) == 1:
        return Extraction(found.labels[0], "answered", extractor.span(found))
    return Extraction(None, "ambiguous" if found.labels else "unparsed", extractor.span(found))


def _answer_start(text: str, opened: bool) -> int | None:
    """Where the text after the reasoning starts; None if the reasoning was never closed."""
    end = max((text.rfind(close) + len(close) for _, close in REASONING_TAGS if close in text), default=0)
    if any(tag in text[end:] for tag, _ in REASONING_TAGS) or (opened and not end):
        return None
    return end


class _Extractor:
    """The answer part of one completion: compatibility characters folded, invisible ones dropped, offsets kept."""

    def __init__(self, text: str, start: int, labels: tuple[str, ...], options: tuple[str, ...]) -> None:
        raw = text[start:]
        if raw.isascii():
            self.text, self._origin = raw, None
        else:
            folded = [
                (folded, start + at)
                for at, character in enumerate(raw)
                if unicodedata.category(character) != "Cf"
                for folded in unicodedata.normalize("NFKC", character)
            ]
            self.text = "".join(character for character, _ in folded)
            self._origin = [at for _, at in folded]
        self._start = start
        self._labels = labels
        self._choices = Choices(labels, options)
        self._letters = self._choices.are_letters
        self._words = re.compile("(" + "|".join(map(re.escape, labels)) + r")\b", re.IGNORECASE) if labels else None

    def span(self, found: Statement) -> tuple[int, int]:
        if self._origin is None:
            return self._start + found.start, self._start + found.end
        last = min(found.end, len(self._origin)) - 1
        return self._origin[min(found.start, last)], self._origin[last] + 1

    def statements(self) -> Iterator[Statement]:
        """All statements, the decisive one first."""
        yield from self._after(_HEADS)
        if self._letters:
            yield from self._praised()
        yield from self._after(_CHOICES)
        yield from self._lines()
        yield from self._after(_CONCLUDED, weak=True)
        if self._letters:
            yield from self._after(_POINTED, weak=True)
            closing = _CLOSING.search(self.text[-OBJECT_CHARACTERS:])
            offset = max(0, len(self.text) - OBJECT_CHARACTERS)
            if (
                closing
                and closing.group(1) in self._labels
                and not _DENYING.search(self.text, offset, offset + closing.start())
            ):
                yield Statement((closing.group(1),), offset + closing.start(1), offset + closing.end(1))

    def _after(self, heads: re.Pattern[str], *, weak: bool = False) -> Iterator[Statement]:
        matches = list(heads.finditer(self.text))[-STATEMENTS:]
        for match in reversed(matches):
            if _DENYING.search(self.text[max(0, match.start() - 12) : match.end()]):
                continue
            weakly = weak or match.lastgroup == "weak"
            found = self._object(match.end(), weak=weakly, strong=heads is _HEADS and not weakly)
            if found is not None:
                yield found

    def _object(self, at: int, *, weak: bool, strong: bool) -> Statement | None:
        """The answer named at `at`, or None if none is."""
        text = self.text[at : at + OBJECT_CHARACTERS]
        bare, lead = end_of(_MARKS, text), end_of(_LEAD, text)
        denied = _DENIED.match(text, lead)
        if denied and not (not self._letters and denied.group().lower() == "no"):
            but = _BUT.match(text, denied.end())
            return self._object(at + but.end(), weak=weak, strong=strong) if but else None
        for position in dict.fromkeys((bare, lead)):
            option = self._choices.text_at(text, position)
            if option is not None:
                label, end = option
                return Statement((label,), at + position, at + end)
        if not self._letters:
            return None if weak else self._word(text, at, lead)
        for position in dict.fromkeys((bare, lead)):
            found = self._letter(text, at, position, weak=weak, strong=strong)
            if found is not None:
                return found
        return None

    def _letter(self, text: str, at: int, position: int, *, weak: bool, strong: bool) -> Statement | None:
        first = _LETTER.match(text, position)
        if first is None:
            named_so = strong or text[:position].lower().rstrip().endswith(("option", "choice", "letter"))
            first = _LOWER.match(text, position) if named_so else None
            if first is None or first.group(1).upper() not in self._labels:
                return None
            return Statement((first.group(1).upper(),), at + first.start(1), at + first.end(1))
        letter, end = first.group(1), first.end(1)
        if letter == "X" and "X" not in self._labels:
            return None  # the prompt's own "(X)", echoed
        if letter in "AI" and _ARTICLE.match(text, end):
            return None  # "A patient ...", "I think ..."
        if _REJECTED.match(text, end) or (weak and not _CLOSED.match(text, end)):
            return None
        named, last = [letter], self._choices.behind_text(text, end)
        while (joined := _JOINED.match(text, last)) and (more := _LETTER.match(text, joined.end())):
            if _SINGULAR.match(text, more.end(1)) or (more.group(1) in "AI" and _ARTICLE.match(text, more.end(1))):
                break  # "B, A is wrong": a new sentence, not a list
            named.append(more.group(1))
            last = self._choices.behind_text(text, more.end(1))
        known = tuple(dict.fromkeys(name for name in named if name in self._labels))
        if len(known) < 2 and not strong and letter not in self._labels:
            return None
        return Statement(known if letter in self._labels else known[:0], at + first.start(1), at + end)

    def _word(self, text: str, at: int, position: int) -> Statement | None:
        words = self._words
        first = words.match(text, position) if words else None
        if words is None or first is None or _WORD_TAIL.match(text, first.end()):
            return None
        named, end = [first.group(1).lower()], first.end()
        while (joined := _WORD_JOIN.match(text, end)) and (more := words.match(text, joined.end())):
            if joined.group(1) == "," and _WORD_TAIL.match(text, more.end()):
                break  # "yes, no patient died"
            named.append(more.group(1).lower())
            end = more.end()
        return Statement(tuple(dict.fromkeys(named)), at + first.start(1), at + end)

    def _praised(self) -> Iterator[Statement]:
        """ "Option C is correct", "(C) aspirin is the best choice"."""
        for match in reversed(list(_PRAISED_LETTER.finditer(self.text))[-STATEMENTS:]):
            letter, between = match.groups()
            others = _OTHERS_NAMED.search(between)
            article = letter in "AI" and _LOWER_WORD.match(between)
            if letter in self._labels and not others and not article:
                before = _JOINED_BEFORE.search(self.text, max(0, match.start() - 24), match.start())
                if before and before.group(1) in self._labels:
                    yield Statement((before.group(1), letter), before.start(1), match.end(1))
                yield Statement((letter,), match.start(1), match.end(1))

    def _lines(self) -> Iterator[Statement]:
        """A line, or the whole text, that is only a label, a labelled option or an option's text."""
        lines = list(lines_of(self.text))
        if not self._letters:
            yield from self._word_lines(lines)
        else:
            yield from self._letter_lines(lines)
        for start, line in dict.fromkeys((lines[-1], lines[0])):
            position = len(line) - len(line.lstrip(_EDGE))
            option = self._choices.text_at(line, position)
            if option is not None and not line[option[1] :].strip(_EDGE):
                yield Statement((option[0],), start + position, start + option[1])

    def _letter_lines(self, lines: list[tuple[int, str]]) -> Iterator[Statement]:
        if len(lines) == 1 and (lower := _LOWER_LINE.fullmatch(lines[0][1])) and lower.group(1).upper() in self._labels:
            at = lines[0][0] + lower.start(1)
            yield Statement((lower.group(1).upper(),), at, at + 1)
        labelled: dict[str, Statement] = {}
        alone: list[Statement] = []
        edges = (lines[0][0], lines[-1][0])
        for start, line in lines[-STATEMENTS:]:
            match = _LINE.match(line)
            if match is None or match.group(1) not in self._labels:
                continue
            found = Statement((match.group(1),), start + match.start(1), start + match.end(1))
            if _OTHER_OPTION.search(line, match.end()):
                return  # the options, copied in one line
            if match.end() == len(line):
                alone.append(found)
            elif line[match.end(1) : match.end()].strip(" *_`") and not _REJECTED.match(line, match.end(1)):
                labelled[match.group(1)] = found if start in edges else labelled.get(match.group(1), _COPIED)
        yield from reversed(alone)
        # several labelled lines are the options, copied or discussed one by one
        if len(labelled) == 1 and (found := next(iter(labelled.values()))) is not _COPIED:
            yield found

    def _word_lines(self, lines: list[tuple[int, str]]) -> Iterator[Statement]:
        """ "Yes, ..." at the start; a line that is only "maybe"."""
        for start, line in reversed(lines[-STATEMENTS:]):
            if line.strip(_EDGE).lower() in self._labels:
                at = len(line) - len(line.lstrip(_EDGE))
                yield Statement((line.strip(_EDGE).lower(),), start + at, start + at + len(line.strip(_EDGE)))
        start, line = lines[0]
        found = self._word(line, start, end_of(_MARKS, line))
        if found is not None:
            yield found
