"""The statements of a reply that name an answer, kind by kind, the strongest kind first, each kind from its end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medbench.harness.extraction.choices import Choices
from medbench.harness.extraction.doubt import (
    is_conditional,
    is_denied,
    is_guess,
    is_none_of,
    is_not_meant,
    sentence_before,
)
from medbench.harness.extraction.option_verdicts import chosen_option
from medbench.harness.extraction.patterns import (
    BECAUSE,
    CHOICES,
    CLOSERS,
    CONCLUDED,
    DENIED,
    FILLER,
    FOREIGN_DENIED,
    FOREIGN_NOUNS,
    GOOD,
    HEADS,
    JOIN,
    MARKS,
    POINTED,
    PRAISE_LEAD,
    PRAISED,
    REJECTED,
    TERM_LEAD,
    any_of,
)

STATEMENTS = 200
"""At most this many statements of one kind are tried, counted from the end."""
OBJECT_CHARACTERS = 400
"""How many characters after "the answer is" are searched for the answer."""


def _starting(alternatives: Sequence[str], others: str) -> re.Pattern[str]:
    """For alternatives that begin behind something that is no letter or digit, or else with a character of `others`.

    Saying so first halves the time: within a word none of them is tried.
    """
    return re.compile(rf"(?:(?<![^\W_])|(?=[{others}]))(?:{'|'.join(alternatives)})", re.IGNORECASE)


_ALONE = r"(?<![^\W_])(?<!['’-])([A-Z])(?![^\W_]|['’-]\w)"
"""A capital letter that is a word of its own."""
_HEADS = _starting(HEADS, r"\\<\[\"'答正")
_FOREIGN = re.compile(
    rf"{FOREIGN_NOUNS}(?P<between>(?-i:[^\n.;A-Z]){{0,40}}?)(?=(?-i:[A-Z])(?![^\W_]|['’-]\w))", re.IGNORECASE
)
_FOREIGN_DENIED = re.compile(FOREIGN_DENIED, re.IGNORECASE)
_ANNOUNCED = re.compile(r":[*_\s]*\n[\s*_>#(\[-]*([A-Z])(?![^\W_]|['’-]\w)(?=[*_]{0,3}(?:[).:\]]|[ \t]*(?:\n|$)))")
_PRAISE = re.compile(PRAISED, re.IGNORECASE)
_PRAISED_LETTER = re.compile(rf"{_ALONE}(?=[.)*\]]{{0,3}}([^\n.;]{{0,80}}?)(?i:{PRAISED}))")
_PRAISE_LEAD = re.compile(PRAISE_LEAD, re.IGNORECASE)
_PRAISED_OPTION = re.compile(
    rf"\s{{1,8}}(?:is|are|would\s+be|must\s+be|remains|seems)\s+(?:\w+ly\s+)?{GOOD}", re.IGNORECASE
)
_ONLY = re.compile(
    rf"\b(?i:only)\s+(?i:option\s+|choice\s+)?[(*]{{0,3}}{_ALONE}[)*]{{0,3}}\s+"
    rf"(?=(?i:best\s+)?(?i:{any_of('fits matches explains accounts satisfies is describes can would remains')})\b)"
)
_CHOICES = _starting(CHOICES, "故应选選而應就=⇒→➜")
_THAT_YES = re.compile(
    rf"\b{any_of('that so hence thus therefore summary short overall conclude conclusion say dr')}[\s,:]{{1,3}}"
    r"(?=(?:yes|no|maybe)\b\s*(?:[,.;:!)]|$))",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(CONCLUDED, re.IGNORECASE)
_POINTED = re.compile(POINTED)
_CLOSING = re.compile(r"(?<![)\],/])\s[*_]{0,3}\((?:(?:[Oo]ption|[Cc]hoice)\s+)?([A-Z])\)[\s*_`.!]{0,9}$")
"""A letter in brackets that ends the text: "... (B).", "... (option B)"."""
_LAST = re.compile(r"(?:^|[\s:])[*_(]{0,3}([A-Z])[)*_]{0,3}[.!]?\s*$")
_TERM_LEAD = re.compile(rf"{TERM_LEAD}[\s:*_-]*$", re.IGNORECASE)

# the answer itself, behind a head
_MARKS = re.compile(MARKS)
_LEAD = re.compile(rf"{MARKS}{FILLER}{MARKS}", re.IGNORECASE)
_DENIED = re.compile(DENIED, re.IGNORECASE)
_BUT = re.compile(r"[^.\n]{0,60}?\bbut\s+(?:rather\s+)?", re.IGNORECASE)
_LETTER = re.compile(r"([A-Z])(?![^\W_])")
_LOWER = re.compile(r"([a-z])(?=\s*[)\].:,;}*_\"”$|]|\s*$|\s*\n)")
_ARTICLE = re.compile(rf"\s+(?!{BECAUSE})[a-z]")
_VERBS = any_of(
    "am was would will think believe choose chose pick say have had can could do don need see feel know guess must "
    "should cannot"
)
_PRONOUN = re.compile(rf"['’]\w|\s+{_VERBS}\b")
_REJECTED = re.compile(REJECTED, re.IGNORECASE)
_CLOSED = re.compile(r"\s*(?:[^\w\s]|$|\n)")
_JOINED = re.compile(rf"{CLOSERS}{JOIN}{MARKS}{FILLER}{MARKS}")
_JOINED_BEFORE = re.compile(rf"{_ALONE}{MARKS}(?:and|or|/|&){MARKS}(?:option\s+)?{MARKS}$")
_SINGULAR = re.compile(r"[\s*_)\]\"']{0,4}\s(?:is|was|would|has|does|isn|cannot|can|seems|represents|refers)\b")
_OTHERS_NAMED = re.compile(
    r"(?<![^\W_])(?<!['’-])[B-HJ-Z](?![^\W_]|['’-]\w)|\b(?:not|wrong|incorrect|while|whereas)\b|不"
)
_LOWER_WORD = re.compile(r"\s+[a-z]")
_KEY = re.compile(r"[\"']\w*(?:answer|choice|option|letter|prediction|decision)\w*[\"']", re.IGNORECASE)
_VALUE = re.compile(r"\s*[\"']")

# the same where the labels are words
_WORD_LEAD = re.compile(
    r"[\s*_`$\"'“”(\[{<#>|~]{0,20}(?:[A-Z][).:\]]{1,2}\s*)?(?:(?:an?|the|most|very|more)\s+)?(?:"
    + any_of(
        "likely probably qualified definite clear cautious tentative resounding strong firm conditional simple overall "
        "yes/no/maybe indeed clearly definitely almost_certainly weak moderate partial short final simply just still "
        "therefore thus so towards? to"
    )
    + r"[\s:,]+){0,3}[*_`\"'“(\[]{0,6}",
    re.IGNORECASE,
)
_WORD_TAIL = re.compile(rf"[ \t]+(?!{BECAUSE})[a-z]|-", re.IGNORECASE)
_WORD_JOIN = re.compile(r"[\s*_`\"']{0,4}(,\s*(?:and|or)\b|,|and\b|or\b|/)[\s*_`\"']{0,4}", re.IGNORECASE)
_WORD_HEDGE = re.compile(
    r"[\s,;]{0,3}(?:but|or|though|although)\s+(?:also\s+)?(?:maybe|perhaps|possibly|probably|likely|not)\b",
    re.IGNORECASE,
)

# lines
_EDGE = " \t\r\n*_`$\"'“”‘’«»()[]{}<>#|~.:;,!-–—=✅✓✔☑👉🎉🙂😊👍💡"
"""Characters around an answer that stands alone on its line."""
_LINE = re.compile(
    rf"[-–•→✅✓✔☑👉➡\s]{{0,6}}{MARKS}(?i:(?:option|choice|answer)\s+)?{MARKS}([A-Z])(?![^\W_]|['’]\w)"
    r"[*_`\"'’”)\]}>|=$.:,!\s-]{0,12}"
)
_ROW = re.compile(r"\s*\|?\s*(?:Q?\d{1,4}[.)]?|[Qq]uestion(?:\s+\d{1,4})?)\s*\|[\s*_(]*([A-Z])[\s*_).]*\|?\s*")
"""A row of a table: the number of the question and the letter."""
_LABELLED = re.compile(r"[\s*_>#(\[•-]*([A-Z])(?=[*_]{0,3}[).:\]])")
_BULLET = re.compile(r"[\s*_>#(\[-]*[A-Z][).:\]]{1,2}(?=\s)")
_OTHER_OPTION = re.compile(r"(?<!\w)\(?[A-Z][).]\s")
_BUT_NOT = re.compile(
    r"\s*[(,]?\s*(?:and\s+|but\s+)?(?:not|rather\s+than|instead\s+of|over)\s+(?:option\s+)?\(?[A-Z]\)?\s*\)?[.!]?\s*$"
)
_LOWER_LINE = re.compile(r"\s*\(?([a-z])(?:[).:]|\s*$)[^\n]{0,200}")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that was understood: the labels that it names (none if it names another letter), and its span."""

    labels: tuple[str, ...]
    start: int
    end: int


_COPIED = Statement((), 0, 0)
"""Stands for a labelled line in the middle of a text, which may be an option copied from the question."""


class Statements:
    """The statements of one cleaned text."""

    def __init__(self, text: str, choices: Choices) -> None:
        self._text, self._choices = text, choices
        self._labels = choices.labels

    def of(self, start: int) -> Iterator[Statement]:
        """All statements from `start` on, the decisive one first."""
        letters = self._choices.are_letters
        yield from self._behind(_HEADS, start)
        if letters:
            yield from self._foreign(start)
            yield from self._announced(start)
            yield from self._praised(start)
        yield from self._praised_texts(start)
        if not letters:
            yield from self._behind(_THAT_YES, start)
        yield from self._behind(_CHOICES, start)
        if letters and (chosen := chosen_option(self._text, self._labels, start)):
            yield Statement((chosen.group(1),), chosen.start(1), chosen.end(1))
        if start == 0:
            yield from self._lines()
        yield from self._behind(_CONCLUDED, start, weak=True)
        if letters:
            yield from self._behind(_POINTED, start, weak=True)
            yield from self._at_the_end(start)

    def _behind(self, heads: re.Pattern[str], start: int, *, weak: bool = False) -> Iterator[Statement]:
        """ "The answer is B": what stands behind one of the heads."""
        for match in _last(heads.finditer(self._text, start)):
            if is_not_meant(self._text, match.start(), match.end()):
                continue
            weakly = weak or match.lastgroup == "weak"
            found = self._object(match.end(), weak=weakly, strong=heads is _HEADS and not weakly)
            if found is None and _KEY.match(match.group()) and _VALUE.match(self._text, match.end()):
                found = Statement((), match.start(), match.end())  # "answer_choice": "None of the above"
            if found is not None:
                yield found

    def _foreign(self, start: int) -> Iterator[Statement]:
        for match in _last(_FOREIGN.finditer(self._text, start)):
            at = match.end()
            if _FOREIGN_DENIED.search(match.group("between") + " " + self._text[at + 1 : at + 10]):
                continue
            found = self._letter(self._text[at : at + OBJECT_CHARACTERS], at, 0, weak=False, strong=False)
            if found is not None:
                yield found

    def _announced(self, start: int) -> Iterator[Statement]:
        """ "The next step is:", and the option on the next line, but no list of options."""
        for match in _last(_ANNOUNCED.finditer(self._text, start)):
            letter, end = match.group(1), match.end()
            if letter not in self._labels or is_denied(self._text, match.start()):
                continue
            behind = (_LABELLED.match(line) for _, line in lines_of(self._text[end : end + 10 * OBJECT_CHARACTERS]))
            others = {other.group(1) for other in behind if other} & set(self._labels) - {letter}
            if not others:
                yield Statement((letter,), match.start(1), match.end(1))

    def _praised(self, start: int) -> Iterator[Statement]:
        """ "Option C is correct", "(C) aspirin is the best choice", "Only B explains all"."""
        if not _PRAISE.search(self._text, start) and not _ONLY.search(self._text, start):
            return  # looking around every letter is slow
        found = [*_PRAISED_LETTER.finditer(self._text, start), *_ONLY.finditer(self._text, start)]
        for match in sorted(found, key=lambda match: match.start(1), reverse=True)[:STATEMENTS]:
            letter = match.group(1)
            between = match.group(2) if match.re is _PRAISED_LETTER else ""
            article = letter in "AI" and _LOWER_WORD.match(between)
            if (
                letter not in self._labels
                or article
                or _OTHERS_NAMED.search(between)
                or self._is_unpraised(match, between)
            ):
                continue
            before = _JOINED_BEFORE.search(self._text, max(0, match.start(1) - 24), match.start(1))
            if before and before.group(1) in self._labels:
                yield Statement((before.group(1), letter), before.start(1), match.end(1))
            yield Statement((letter,), match.start(1), match.end(1))

    def _is_unpraised(self, match: re.Match[str], between: str) -> bool:
        text, at, end = self._text, match.start(1), match.end(1)
        if match.re is _PRAISED_LETTER and not _PRAISE_LEAD.search(text[max(0, at - 40) : at]):
            return True
        if is_none_of(text, at) or (between.strip() and self._choices.is_term(match.group(1), text, end)):
            return True
        praise = end + len(between)
        return "would" in text[praise : praise + 20].lower() and is_conditional(text, at, praise)

    def _praised_texts(self, start: int) -> Iterator[Statement]:
        """ "Nifedipine is the correct answer"."""
        if not self._choices.has_texts:
            return
        for match in _last(_PRAISED_OPTION.finditer(self._text, start)):
            sentence = sentence_before(self._text, match.start())
            begin = match.start() - len(sentence)
            option = self._choices.text_before(sentence)
            if option is not None and not is_not_meant(self._text, begin + option[1], match.end()):
                yield Statement((option[0],), begin + option[1], match.start())

    def _at_the_end(self, start: int) -> Iterator[Statement]:
        """A letter that ends the text, in brackets, or as the only one that is named at all."""
        offset = max(start, len(self._text) - OBJECT_CHARACTERS)
        tail = self._text[offset:]
        for end in (_CLOSING.search(tail), _LAST.search(tail)):
            if end is None or end.group(1) not in self._labels:
                continue
            at = offset + end.start(1)
            if is_not_meant(self._text, at, at):
                continue
            if end.re is _LAST and (is_guess(self._text, at) or not self._is_only(end.group(1), at)):
                continue
            if _FOREIGN_DENIED.search(sentence_before(self._text, at)):
                continue
            yield Statement((end.group(1),), at, at + 1)

    def _is_only(self, letter: str, at: int) -> bool:
        named = {one for one in re.findall(_ALONE, self._text) if one in self._labels}
        return named == {letter} and not _TERM_LEAD.search(self._text, max(0, at - 40), at)

    def _object(self, at: int, *, weak: bool, strong: bool) -> Statement | None:
        """The answer named at `at`, or None if none is."""
        text = self._text[at : at + OBJECT_CHARACTERS]
        bare, lead = end_of(_MARKS, text), end_of(_LEAD, text)
        letters = self._choices.are_letters
        denied = _DENIED.match(text, lead)
        if denied and (letters or denied.group().lower() != "no"):
            but = _BUT.match(text, denied.end())
            return self._object(at + but.end(), weak=weak, strong=strong) if but else None
        for position in dict.fromkeys((bare, lead)):
            option = self._choices.text_at(text, position)
            if option is not None:
                label, end = option
                joined = _JOINED.match(text, end)
                other = self._choices.text_at(text, joined.end()) if joined else None
                named = (label,) if other is None or other[0] == label else (label, other[0])
                return Statement(named, at + position, at + end)
        if not letters:
            return None if weak else self._word(text, at, max(lead, end_of(_WORD_LEAD, text)))
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
        if self._is_no_label(text, letter, end) or _REJECTED.match(text, end):
            return None
        if weak and not _CLOSED.match(text, end):
            return None
        named, last = self._list(text, letter, end)
        known = tuple(dict.fromkeys(name for name in named if name in self._labels))
        if len(known) > 1 and (every := self._choices.all_of_them(text[end : last + 40])):
            return Statement((every,), at + first.start(1), at + last)
        if len(known) < 2 and not strong and letter not in self._labels:
            return None
        return Statement(known if letter in self._labels else (), at + first.start(1), at + end)

    def _is_no_label(self, text: str, letter: str, end: int) -> bool:
        if letter == "X" and "X" not in self._labels:
            return True  # the prompt's own "(X)", echoed
        if letter in "AI" and _ARTICLE.match(text, end):
            return True  # "A patient ..."
        return bool(letter == "I" and _PRONOUN.match(text, end)) or self._choices.is_term(letter, text, end)

    def _list(self, text: str, letter: str, end: int) -> tuple[list[str], int]:
        """(the letters of a list that begins with this one, where it ends)."""
        named, last = [letter], self._choices.behind_text(text, end)
        while (joined := _JOINED.match(text, last)) and (more := _LETTER.match(text, joined.end())):
            if _SINGULAR.match(text, more.end(1)) or (more.group(1) in "AI" and _ARTICLE.match(text, more.end(1))):
                break  # "B, A is wrong": a new sentence, not a list
            if self._choices.is_term(more.group(1), text, more.end(1)):
                break
            named.append(more.group(1))
            last = self._choices.behind_text(text, more.end(1))
        return named, last

    def _word(self, text: str, at: int, position: int) -> Statement | None:
        words = self._choices.word
        first = words.match(text, position)
        if first is None or _WORD_TAIL.match(text, first.end()):
            return None
        named, end = [first.group(1).lower()], first.end()
        if hedge := _WORD_HEDGE.match(text, end):
            return Statement(tuple(dict.fromkeys([*named, *self._labels])), at + first.start(1), at + hedge.end())
        while (joined := _WORD_JOIN.match(text, end)) and (more := words.match(text, joined.end())):
            if joined.group(1) == "," and _WORD_TAIL.match(text, more.end()):
                break  # "yes, no patient died"
            named.append(more.group(1).lower())
            end = more.end()
        return Statement(tuple(dict.fromkeys(named)), at + first.start(1), at + end)

    def _lines(self) -> Iterator[Statement]:
        """A line, or the whole text, that is only a label, a labelled option or an option's text."""
        lines = list(lines_of(self._text))
        if not lines:
            return
        yield from self._letter_lines(lines) if self._choices.are_letters else self._word_lines(lines)
        for start, line in dict.fromkeys((lines[-1], lines[0])):
            position = len(line) - len(line.lstrip(_EDGE))
            option = self._choices.text_at(line, position)
            if option is not None and not line[option[1] :].strip(_EDGE):
                yield Statement((option[0],), start + position, start + option[1])

    def _letter_lines(self, lines: list[tuple[int, str]]) -> Iterator[Statement]:
        if len(lines) == 1:
            yield from self._only_line(*lines[0])
        labelled: dict[str, Statement] = {}
        alone: list[Statement] = []
        edges = (lines[0][0], lines[-1][0])
        for start, line in lines[-STATEMENTS:]:
            if (row := _ROW.fullmatch(line)) and row.group(1) in self._labels:
                alone.append(Statement((row.group(1),), start + row.start(1), start + row.end(1)))
                continue
            match = _LINE.match(line)
            if match is None or match.group(1) not in self._labels:
                continue
            letter, at, end = match.group(1), match.start(1), match.end(1)
            begins = self._choices.begins_text(letter, line, end)
            if _OTHER_OPTION.search(line, match.end()) and not begins:
                return  # the options, copied in one line
            found = Statement((letter,), start + at, start + end)
            several = self._letter(line[at : at + OBJECT_CHARACTERS], start + at, 0, weak=False, strong=False)
            if several is not None and several.labels != (letter,):
                if set(several.labels) == set(self._labels):
                    return
                alone.append(several)
            elif not line[match.end() :].strip(_EDGE) or _BUT_NOT.match(line, end):
                alone.append(found)
            elif _REJECTED.match(line, end) or self._choices.is_term(letter, line, end):
                continue
            elif begins or line[end : match.end()].strip(" *_`"):
                labelled[letter] = found if start in edges else labelled.get(letter, _COPIED)
        yield from reversed(alone)
        # several labelled lines are the options, copied or discussed one by one
        if len(labelled) == 1 and (found := next(iter(labelled.values()))) is not _COPIED:
            yield found

    def _only_line(self, start: int, line: str) -> Iterator[Statement]:
        """ "b) aspirin", "C C C C"."""
        if (lower := _LOWER_LINE.fullmatch(line)) and lower.group(1).upper() in self._labels:
            at = start + lower.start(1)
            yield Statement((lower.group(1).upper(),), at, at + 1)
        repeated = set(line.split())
        if len(repeated) == 1 and (letter := next(iter(repeated)).strip(_EDGE)) in self._labels:
            at = start + line.index(letter)
            yield Statement((letter,), at, at + 1)

    def _word_lines(self, lines: list[tuple[int, str]]) -> Iterator[Statement]:
        """ "Yes, ..." at the start; a line that is only "maybe" or "(C) maybe"."""
        for start, line in reversed(lines[-STATEMENTS:]):
            at = end_of(_BULLET, line)
            word = line[at:].strip(_EDGE)
            if word.lower() in self._labels:
                at += line[at:].index(word)
                yield Statement((word.lower(),), start + at, start + at + len(word))
        for start, line in dict.fromkeys((lines[-1], lines[0])):
            found = self._word(line, start, end_of(_WORD_LEAD, line))
            if found is not None:
                yield found


def _last(matches: Iterator[re.Match[str]]) -> Iterator[re.Match[str]]:
    """The last STATEMENTS of them, from the end."""
    return reversed(list(matches)[-STATEMENTS:])


def end_of(pattern: re.Pattern[str], text: str) -> int:
    """Where a match of `pattern` at the start of `text` ends; 0 if there is none."""
    match = pattern.match(text)
    return match.end() if match else 0


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(offset, line) of each line that is not blank."""
    at = 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            yield at, line.rstrip("\r\n")
        at += len(line)
