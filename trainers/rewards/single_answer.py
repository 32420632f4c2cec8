"""Whether the text after the reasoning names a single answer: no hedge, no second letter, no list of all options.

The harness's extraction decides what the answer is, and is lenient ("The answer is (B) (C)" is read as B). That is
right for scoring and wrong for a reward, which would teach a model to name several.
"""

from __future__ import annotations

import re

from medbench.harness.contracts import Question
from medbench.harness.extraction.answer import extract

READ_CHARACTERS = 2_400
MOST_STATEMENTS = 2
"""At most this many sentences may name the answer: a reason, and the statement itself."""

_PIECES = re.compile(r"(?<=[.!?;])\s+|\n+|\s+(?=\\boxed)|(?<=[}\])])\s*[,;]\s*|,\s+(?=(?:else|otherwise|if|or)\b)")
_ALL_OF_THEM = re.compile(
    r"\b(?:all|any|both|each|every|either|some|one)\s+(?:one\s+)?of\s+(?:the|them|these)\b", re.IGNORECASE
)
_OFFERING = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|alternatively|between\b[^.\n]{1,40}\band)"
    r"(?:\s+(?:else|even|the|an?|also|maybe|perhaps|possibly))*[\s:,(*\"']*$",
    re.IGNORECASE,
)
_CAPITAL = re.compile(r"(?<![^\W_])(?<!['’-])([A-ZАВЕЅІЈСНКМОРТХΑΒΕΖΗΙΚΜΝΟΡΤΧ])(?![^\W_]|['’-]\w)")
"""A single capital letter, Latin or a look-alike."""
_SMALL = re.compile(
    r"(?<![^\W_])(?<!['’.-])([b-z]|(?<=[(\[{])a)(?=\s*(?:[,;)\]}/&]|\.?\s*$|\s(?:and|or)\b))", re.MULTILINE
)
"""A lower-case letter where a label could be, not in prose; "a" only in brackets."""
_NO_LABEL_BEFORE = re.compile(
    r"\b(?:vitamins?|hepatitis|types?|groups?|grades?|class|stages?|factors?|proteins?|influenza|bipolar|lead|blood|"
    r"immunoglobulin|ig|coenzyme|ha?emophilia|haptens?|apolipoprotein|troponin|cyclin|beta|phase|chain|cell|dr|mrs?|ms)"
    r"\s+(?:[A-Z]\s*(?:,|and|or|/)\s*)?$",
    re.IGNORECASE,
)
_GENUS = re.compile(
    r"\.\s?(?!(?:maybe|perhaps|possibly|then|also|either|both|because|since|this|that|option)\b)[a-z]{4,}"
)
_ARTICLE = re.compile(r"\s+[a-z]")


def names_another(behind: str, answer: str, question: Question) -> bool:
    """Whether `behind`, the text after the reasoning, names a label besides `answer`, or `answer` over and over."""
    behind = behind[:READ_CHARACTERS]
    pieces = [
        extract(piece, labels=question.labels, options=question.options)
        for piece in _PIECES.split(behind)
        if piece.strip()
    ]
    return (
        any(piece.outcome == "ambiguous" or piece.answer not in (None, answer) for piece in pieces)
        or sum(piece.answer is not None for piece in pieces) > MOST_STATEMENTS
        or _offers_another(behind, answer, question)
        or (_other_letter if all(len(label) == 1 for label in question.labels) else _other_word)(
            behind, answer, question
        )
    )


def _offers_another(behind: str, answer: str, question: Question) -> bool:
    """Another option's text as a second answer ("(B), or possibly aspirin"), or all of them at once."""
    own = question.options[question.labels.index(answer)]
    rest = _without(behind, own)
    others = [text for text in question.options if text not in question.labels and text.lower() not in own.lower()]
    return bool(_ALL_OF_THEM.search(rest)) or any(
        _OFFERING.search(rest, max(0, match.start() - 60), match.start())
        for option in others
        if len(option) > 2
        for match in re.finditer(re.escape(option), rest, re.IGNORECASE)
    )


def _other_letter(behind: str, answer: str, question: Question) -> bool:
    rest = behind
    for option in sorted(question.options, key=len, reverse=True):  # the C of "Hepatitis C" is not a label
        rest = _without(rest, option) if len(option) > 2 else rest
    return any(
        match.group(1).upper() != answer and _is_label(match, rest, question.labels)
        for pattern in (_CAPITAL, _SMALL)
        for match in pattern.finditer(rest)
    )


def _is_label(match: re.Match[str], text: str, labels: tuple[str, ...]) -> bool:
    """Whether a single capital names an option: not in "vitamin D", "E. coli", "A patient". A look-alike does."""
    letter, start, end = match.group(1).upper(), match.start(), match.end()
    if not letter.isascii():
        return True
    if letter not in labels or _NO_LABEL_BEFORE.search(text, max(0, start - 40), start) or _GENUS.match(text, end):
        return False
    is_article = letter in "AI" and _ARTICLE.match(text, end)
    return not is_article or text[:start].rstrip().endswith(("(", "option", "or"))


def _other_word(behind: str, answer: str, question: Question) -> bool:
    """For yes, no and maybe: only where they are used as answers, because prose is full of them."""
    words = "|".join(map(re.escape, question.labels))
    standing = re.findall(
        rf"\banswers?\W+(?:(?:is|was|be)\W+)?({words})\b|[(\[{{*\"']\s*({words})\s*[)\]}}*\"']|^\W*({words})\W*$",
        behind,
        re.IGNORECASE | re.MULTILINE,
    )
    joined = re.findall(rf"\b({words})\W+(?:or\W+|and\W+)?(?:maybe\W+)?({words})\b", behind, re.IGNORECASE)
    named = {word.lower() for group in (*standing, *joined) for word in group if word}
    return bool(named - {answer})


def _without(text: str, option: str) -> str:
    """Replaced by spaces, so that offsets stay the same."""
    return re.sub(re.escape(option), lambda match: "·" * len(match.group()), text, flags=re.IGNORECASE)
