"""What a question offers: its labels and the texts of their options, and whether a piece of text is one of them."""

from __future__ import annotations

import re
import unicodedata

from medbench.harness.extraction.patterns import FOLLOW, SPECIES

_TERM = re.compile(
    # an apostrophe (but Turkish "D'dir"), a slash or a plus sign that joins no other letter, a hyphen
    r"['’](?!(?:d[iıuü]r|t[iıuü]r|y[iıuüea]|ye|n[iıuü]n)\b)\w|/(?![A-Z](?![^\W_]))\w|\+(?!\s*[A-Z](?![^\W_]))|-(?=\w)"
    rf"|(?:\.\s?|\s)(?i:{SPECIES})\b"
    r"|\s*\\(?!\)|\]|text|quad|,|\\|end|n\b)"  # LaTeX that goes on: "B \cdot V"
    r"|\s*(?:型|细胞|細胞|组|組|族|群|级|級|期|类|類|因子|형|세포|军|軍|肝炎|链)"
)
_NEXT_WORD = re.compile(r"(\.\s?|[ \t]+)([^\W\d_][^\W_]*)")
_FIRST_WORD = re.compile(r"[\s*_.:()\]–—-]{1,6}(?:(?:the|an?)\s+)?([^\W_]{2,})")
_FOLLOW = re.compile(FOLLOW, re.IGNORECASE)
_LAST_LATIN = "\u024f"
"""A word in another script beside a letter makes no term of the two."""
_GAP = re.compile(r"[\s*_).:\]-]{1,6}")
_ALL_OF = re.compile(r"\ball\s+of\s+(?:the\s+)?(?:above|these|them)\b", re.IGNORECASE)


class Choices:
    """The labels of one question and their options' texts."""

    def __init__(self, labels: tuple[str, ...], options: tuple[str, ...]) -> None:
        """Options may be missing, and may be the labels themselves."""
        self.labels = labels
        self.are_letters = all(len(label) == 1 for label in labels)
        named = [(label, option) for label, option in zip(labels, options, strict=False) if option != label]
        self.has_texts = bool(named)
        self._texts = sorted(
            ((label, compact) for label, option in named if len(compact := _compact(option)) > 1),
            key=lambda pair: -len(pair[1]),
        )
        self._words_of = {label: set(re.findall(r"[^\W_]{2,}", option.casefold())) for label, option in named}
        words = "|".join(map(re.escape, labels))
        self.word = re.compile(f"({words})(?![^\\W_])" if labels else r"(?!)", re.IGNORECASE)
        """A label as a word."""

    def text_at(self, text: str, position: int) -> tuple[str, int] | None:
        """(label, end) of the longest option whose whole text is at `position`; None if two labels have that text."""
        for label, option in self._texts:
            end = _match_compact(text, position, option)
            if end is not None:
                same = [other for other, compact in self._texts if compact == option]
                return (label, end) if len(same) == 1 else None
        return None

    def behind_text(self, text: str, end: int) -> int:
        """The end of the option's text, if that follows its letter: "B. Aspirin and D. Heparin"; otherwise `end`."""
        gap = _GAP.match(text, end)
        option = self.text_at(text, gap.end()) if gap else None
        return option[1] if option else end

    def begins_text(self, letter: str, text: str, end: int) -> bool:
        """Whether the word behind the letter that ends at `end` is one of its option's text."""
        words, first = self._words_of.get(letter), _FIRST_WORD.match(text, end, end + 80)
        return bool(words and first and first.group(1).casefold() in words and not _FOLLOW.match(first.group(1)))

    def text_before(self, text: str) -> tuple[str, int] | None:
        """(label, start) of the option with whose whole text `text` ends, up to marks."""
        bare = text.rstrip(" *_`\"'”’)\t")
        for word in re.finditer(r"(?<![^\W_])[^\W_]", text):
            option = self.text_at(text, word.start())
            if option is not None and option[1] >= len(bare):
                return option[0], word.start()
        return None

    def all_of_them(self, text: str) -> str | None:
        """The label of the option "all of the above", if `text` says so."""
        if not _ALL_OF.search(text):
            return None
        return next((label for label, option in self._texts if option.startswith("allof")), None)

    def is_term(self, letter: str, text: str, end: int) -> bool:
        """Whether the letter that ends at `end` is a part of a term: "C. difficile", "B cells", "D-dimer"."""
        if self.begins_text(letter, text, end):
            return False
        if _TERM.match(text, end):
            return True
        if text.startswith("/", end) and text[end + 1 : end + 2] not in self.labels:
            return True  # "B/L"
        word = _NEXT_WORD.match(text, end)
        if word is None or (word.group(1).startswith(".") and not word.group(2)[0].islower()):
            return False
        if word.group(2)[0] > _LAST_LATIN or word.group(2) in self.labels:
            return False
        return not _FOLLOW.match(text, word.start(2))


def _compact(text: str) -> str:
    """Only the letters and digits, folded: equal for texts that differ only in case, spacing and punctuation."""
    return "".join(character for character in unicodedata.normalize("NFKC", text).casefold() if character.isalnum())


def _match_compact(text: str, position: int, option: str) -> int | None:
    """The end of the text from `position` whose compact form is `option`, if a word ends there; otherwise None."""
    at, matched = position, 0
    while at < len(text) and matched < len(option):
        character = text[at].casefold()
        if character.isalnum():
            if not option.startswith(character, matched):
                return None
            matched += len(character)
        at += 1
    if matched < len(option) or (at < len(text) and text[at].isalnum()):
        return None
    return at
