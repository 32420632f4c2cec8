"""Whether a reply has the format that training asks for: one closed think block, then one answer, and nothing else.

The format is stricter than what the harness's extraction accepts, because the model learns to write whatever earns a
reward. The answer itself is extracted by the harness only.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from medbench.harness.contracts import Extraction, Question
from medbench.harness.extraction.answer import READ_CHARACTERS
from medbench.harness.extraction.thinking import REASONING_TAGS, split_reasoning
from medbench.harness.scoring.score import score_reply
from medbench.trainers.rewards.free_answer import matches, read_free_answer
from medbench.trainers.rewards.single_answer import names_another

Fault = Literal[
    "gigantic",  # longer than what extraction reads
    "truncated",  # cut off by the token limit
    "invisible",  # invisible characters, HTML comments
    "before",  # text before the reasoning
    "no_thought",
    "unclosed",
    "tags",  # opened or closed more than once, nested, another spelling of the tag
    "no_answer",  # extraction finds none of the labels
    "several_answers",
    "long_answer",  # reasoning after the answer
    "scorer_addressed",  # grades itself, plays another role, addresses the scorer
    "no_reasoning",  # the think block contains no original reasoning
    "contradiction",  # the reasoning concludes another answer
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
ANSWER_CHARACTERS = 600
"""Longest text after the reasoning: an answer with a sentence or two, not a second chain of thought."""

OPEN, CLOSE = REASONING_TAGS[0]
# anything like a think tag: other case, spaces, attributes, other brackets, other vendors' names
_TAG_LIKE = re.compile(
    r"[<‹〈«]\s*[/\\|]?\s*(?:begin_of_|end_of_)?(?:think|thinking|thought)\b[^\n<>]{0,40}[>›〉»]?"
    r"|[\[{(|]\s*[/\\]?\s*(?:think|thinking|thought)\s*[\]})|]"
)
_TORN_BEFORE, _TORN_BEHIND = re.compile(r"<[/\w]{0,9}$"), re.compile(r"[/\w]{0,9}>")
"""The halves of a tag with another tag inside: "</thi</think>nk>"."""
_LOOKALIKES = str.maketrans("тһіӏпкоυցԍнҺ", "thilnkougghh")
"""Letters of other scripts that look like those of the tag's name. A full table of confusables is not needed: a tag
that is not recognised leaves the reply without reasoning."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_HIDDEN_BLANKS = "\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5"
"""Letters and symbols that are invisible: Hangul fillers, the empty Braille cell, joiners of another category."""

_LABEL = r"[\"'“‘]*(?:supported|contradicted|not\s+covered)\b"
"""What a judge of the reasoning may say of a step."""
# No other reward depends on such text; a judge that is a language model may follow it.
# Matched on lower-case text, each alternative starting with a letter: several times faster than ignoring case.
_TO_SCORER = re.compile(
    r"<\|\w{1,30}\|>|\[/?inst\]|</?(?:system|assistant|user|reward|score|grade|verdict|step|source)\s*>|"
    r"<(?:start|end)_of_turn>|"
    r"(?:ignore|disregard|forget|override)\s+(?:all|any|the|your|my|previous|prior|above|earlier|these|scoring|grading)\b"
    r"[^.\n]{0,30}\b(?:instructions?|rules|rubric|prompt|source\s+text)\b|"
    r"(?:new|updated|revised)\s+instructions?\s*:|"
    r"(?:dear|hey|hello|notes?\s+(?:to|for)|message\s+(?:to|for)|attention)\b[^.\n]{0,20}"
    r"\b(?:grader|scorer|evaluator|judge|verifier|reward|fact[- ]?checker)\b|"
    r"you\s+are\s+(?:now\s+)?an?\s+(?:\w+\s+){0,2}(?:judge|grader|evaluator|verifier|fact[- ]?checker)\b|"
    r"(?:judge|grader|evaluator|verifier|fact[- ]?checker)\s*:|"
    r"source\s*:[^\n]{0,400}\bstep\s*:|"
    rf"(?:say|answer|respond|reply|output|return|print|write)\s+(?:(?:with|only|just)\s+)*{_LABEL}|"
    r"(?:call|mark|label|rate|classify|treat|count|accept|grade)\s+(?:this|it|that|each|every|all|the)\b[^.\n]{0,30}"
    rf"{_LABEL}|"
    r"(?:full|max|maximum|highest|top|perfect)\s+(?:rewards?|marks?|credit|points)\b|"
    r"reward[\"']?\s*(?:[:=]|is|of|to)?\s*\+?\d|"
    r"(?:is_correct|correct(?:ness)?|grade|verdict|self[-_ ]?(?:check|grade|score|evaluation|assessment))"
    r"[\"']?\s*[:=]\s*[\"']?(?:true|yes|correct|passe?d?|a\+|supported)(?!\w)|"
    r"score[\"']?\s*[:=]\s*(?:1\.0+|100\s*%|10\s*/\s*10|1\s*/\s*1)(?!\d)|"
    r"(?:my|this)\s+(?:answer|reply|response)\s+(?:was|has\s+been|should\s+be|must\s+be)\s+"
    r"(?:marked|graded|scored|verified|accepted|rewarded)\b"
)
_OTHER_ROLE = re.compile(
    r"^\W{0,4}(?:(?:user|human|assistant|scorer|grader|evaluator|verifier|judge|developer)\s*\]?:"
    r"|(?<=# )(?:instruction|input|user|human|assistant)\b)",
    re.MULTILINE,
)
_SYSTEM_TURN = re.compile(
    r"^\W{0,4}(?:SYSTEM|\[system\]|System (?:message|prompt|note|override))\s*\]?\s*:", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A parsed reply. `thought`, its reasoning, is "" if the tags are out of order."""

    thought: str
    answer: Extraction
    correct: bool
    """Regardless of faults; by the harness's scorer, or for free text by free_answer.matches."""
    faults: tuple[Fault, ...]
    """Of the format only, in the order of FAULTS; empty if the format is right."""


def read_reply(
    text: str, question: Question, *, finish_reason: str = "stop", opened: bool = False, tolerance: float = 0.0
) -> Reply:
    """`opened`: the prompt has opened the think block already, so the reply only closes it. `tolerance` is that of
    free_answer.matches, for a question without labels."""
    answer, correct = _judged(text, question, finish_reason, opened, tolerance)
    faults: list[Fault] = []
    if len(text) > READ_CHARACTERS:
        return Reply("", answer, correct, ("gigantic",))
    if finish_reason != "stop":
        faults.append("truncated")
    if _is_hidden(text):
        faults.append("invisible")
    thought, behind = _cut(text, opened, faults)
    if behind is not None:
        _check_answer(behind, answer, text, question, faults)
    if _addresses_the_scorer(text):
        faults.append("scorer_addressed")
    return Reply(thought, answer, correct, tuple(fault for fault in FAULTS if fault in faults))


def _judged(
    text: str, question: Question, finish_reason: str, opened: bool, tolerance: float
) -> tuple[Extraction, bool]:
    if question.labels:
        answer, score = score_reply(
            text, question.labels, question.options, question.gold, finish_reason=finish_reason, opened=opened
        )
        return answer, bool(score)
    parts = split_reasoning(text, opened=opened)
    if len(text) > READ_CHARACTERS or not parts.closed:
        return Extraction(None, "truncated" if finish_reason == "length" else "unparsed"), False
    answer = read_free_answer(text, parts.offset)
    return answer, answer.answer is not None and matches(answer.answer, question.gold, tolerance)


def _addresses_the_scorer(text: str) -> bool:
    lower = text.lower()
    if _OTHER_ROLE.search(lower) or _SYSTEM_TURN.search(text):
        return True
    return any(
        not (lower[at].isalpha() and lower[max(0, at - 1) : at].isalnum())  # "unrewarding 1" is not "reward 1"
        for at in (match.start() for match in _TO_SCORER.finditer(lower))
    )


def _is_hidden(text: str) -> bool:
    if "<!--" in text or "<![" in text:
        return True
    return bool(_CONTROL.search(text)) or any(_shows_nothing(character) for character in set(text))


def _shows_nothing(character: str) -> bool:
    """Format, surrogate, private-use and unassigned characters, fillers, variation selectors."""
    return (
        unicodedata.category(character) in ("Cf", "Cs", "Co", "Cn")
        or character in _HIDDEN_BLANKS
        or "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
    )


def _cut(text: str, opened: bool, faults: list[Fault]) -> tuple[str, str | None]:
    """(reasoning, text after it), the latter None if the tags are out of order."""
    opens, closes = text.count(OPEN), text.count(CLOSE)
    alike = len(_TAG_LIKE.findall(_skeleton(text)))
    if alike > opens + closes or opens > 1 or closes > 1 or (opened and opens):
        faults.append("tags")
        return "", None
    if not closes:
        faults.append("unclosed" if opens or opened else "no_thought")
        return "", None
    if not opens and not opened:
        faults.append("tags")
        return "", None
    start = 0 if opened else text.index(OPEN)
    end = text.index(CLOSE)
    if end < start:
        faults.append("tags")
        return "", None
    if text[:start].strip():
        faults.append("before")
    thought, behind = text[start + (0 if opened else len(OPEN)) : end], text[end + len(CLOSE) :]
    if _TORN_BEFORE.search(thought[-12:]) or _TORN_BEHIND.match(behind):
        faults.append("tags")
    return thought, behind


def _skeleton(text: str) -> str:
    """The visible text: compatibility forms folded, invisible characters dropped, look-alike letters made Latin."""
    text = html.unescape(text) if "&" in text else text
    if text.isascii():
        return text.lower()
    seen = "".join(character for character in text if not _shows_nothing(character))
    return unicodedata.normalize("NFKC", seen).lower().translate(_LOOKALIKES)


def _check_answer(behind: str, answer: Extraction, text: str, question: Question, faults: list[Fault]) -> None:
    if answer.answer is None or answer.span is None:
        faults.append("several_answers" if answer.outcome == "ambiguous" else "no_answer")
        return
    if len(behind.strip()) > ANSWER_CHARACTERS:
        faults.append("long_answer")
    if not question.labels:
        return
    named = unicodedata.normalize("NFKC", text[slice(*answer.span)])
    if named.strip().casefold() != answer.answer.casefold():
        faults.append("no_answer")  # the option's text without its label
    if names_another(unicodedata.normalize("NFKC", behind), answer.answer, question):
        faults.append("several_answers")
