"""All extractors by name: medbench's own, and those of published scorers, each reproducing its source.

A published extractor looks for letters and takes them by position: the first label is A, also where the labels are
words (HuatuoGPT-o1, m1 and MedHELM ask PubMedQA as A. yes, B. no, C. maybe). A letter beyond the labels is a wrong
answer, not a missing one, as in the sources; it is the only case where `answer` is not one of `labels`. None of these
extractors looks for the end of the reasoning. All take linear time, except the search for the most similar option,
which is limited to GUESS_CHARACTERS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from functools import cache
from string import ascii_uppercase as LETTERS
from types import MappingProxyType
from typing import NamedTuple
from typing import Protocol as TypingProtocol

from medbench.harness.contracts import OPEN_EXTRACTION, OWN_EXTRACTION, Extraction
from medbench.harness.extraction import answer, answer_v1, open_answer

HUATUO_LETTERS = 14
"""HuatuoGPT-o1's scorer knows the letters A to N."""
GUESS_CHARACTERS = 50_000
"""A longer completion is not compared with the options for similarity, which takes quadratic time."""
OWN = frozenset({"medbench", OWN_EXTRACTION, OPEN_EXTRACTION})
"""medbench's extractors: the first one, today's, and that for questions without options."""
CHINESE = "\u4e00-\u9fff"


class Extractor(TypingProtocol):
    """The answer of a completion, or why it has none; arguments as for `answer.extract`."""

    def __call__(
        self,
        reply: str,
        /,
        *,
        labels: tuple[str, ...],
        options: tuple[str, ...] = ...,
        finish_reason: str = ...,
        opened: bool = ...,
    ) -> Extraction: ...


class _Found(NamedTuple):
    """The answer that a source finds, and its place if it has one."""

    key: str
    """A letter; for m1 also the text before the first ". " in a later line of an option."""
    span: tuple[int, int] | None


def _published(find: Callable[[str, tuple[str, ...]], _Found | None]) -> Extractor:
    """An Extractor around `find(reply, options)`."""

    def read(
        reply: str,
        /,
        *,
        labels: tuple[str, ...],
        options: tuple[str, ...] = (),
        finish_reason: str = "stop",
        opened: bool = False,
    ) -> Extraction:
        found = find(reply, options)
        if found is not None and len(found.key) == 1 and found.key in LETTERS:
            place = LETTERS.index(found.key)
            return Extraction(labels[place] if place < len(labels) else found.key, "answered", found.span)
        if not reply.strip():
            return Extraction(None, "empty")
        return Extraction(None, "truncated" if finish_reason == "length" else "unparsed")

    return read


# MMLU-Pro's: evaluate_from_local.py of TIGER-AI-Lab/MMLU-Pro. lm-eval's: its task mmlu_pro, _default_template_yaml.
_ANSWER_IS = re.compile(r"answer is \(?([A-J])\)?")
_ANSWER_COLON = re.compile(r"[aA]nswer:(?=\s*([A-J]))")
_LONE_LETTER = re.compile(r"\b([A-J])\b")


def _mmlu_pro(reply: str, options: tuple[str, ...]) -> _Found | None:
    """Its three patterns in turn: the first "answer is (X)", then "Answer: X", then the last letter on its own."""
    return _group(_ANSWER_IS.search(reply) or _answer_colon(reply) or _last(_LONE_LETTER, reply))


def _answer_colon(reply: str) -> re.Match[str] | None:
    r"""The match of `.*[aA]nswer:\s*([A-J])`: the last one in the first line that has any."""
    found, line_end = None, len(reply)
    for match in _ANSWER_COLON.finditer(reply):
        if match.start() > line_end:
            break
        if found is None and (newline := reply.find("\n", match.start())) >= 0:
            line_end = newline
        found = match
    return found


def _lm_eval_first(reply: str, options: tuple[str, ...]) -> _Found | None:
    """The first match of its only pattern, also inside reasoning that was never closed."""
    return _group(_ANSWER_IS.search(reply))


# MedHELM's: HELM maps the stripped completion to an option (multiple_choice_joint, compute_reference_metrics).
_FIRST_WORD = re.compile(r"\s*(\w+)")


def _medhelm_letter(reply: str, options: tuple[str, ...]) -> _Found | None:
    """The first word, which must be an option's letter. The source generates one token only."""
    word = _group(_FIRST_WORD.match(reply))
    return word if word and word.key in LETTERS[: len(options)] else None


# HuatuoGPT-o1's: evaluation/scorer.py of FreedomIntelligence/HuatuoGPT-o1.
_HUATUO_HEADER = "## Final Response\n\n"
_STRICT = re.compile(r"answer is\s*?([A-N])")


def huatuo_o1_output(reply: str) -> str:
    """The completion as HuatuoGPT-o1's eval.py stores it; an empty one is dropped there, from the denominator too."""
    return reply.replace("</s>", "").removeprefix(" ")


def _huatuo_o1(reply: str, options: tuple[str, ...]) -> tuple[_Found, _Found] | None:
    """(first match, last match)."""
    output = huatuo_o1_output(reply)
    choices = _match_choice(output, dict(zip(LETTERS, options, strict=False))) if output else None
    if choices is None:
        return None
    offset = None if "</s>" in reply else len(reply) - len(output)
    return _moved(choices[0], offset), _moved(choices[1], offset)


def _huatuo_o1_first(reply: str, options: tuple[str, ...]) -> _Found | None:
    choices = _huatuo_o1(reply, options)
    return choices and choices[0]


def _huatuo_o1_last(reply: str, options: tuple[str, ...]) -> _Found | None:
    choices = _huatuo_o1(reply, options)
    return choices and choices[1]


def _match_choice(text: str, options: Mapping[str, str]) -> tuple[_Found, _Found] | None:
    """(first, last) choice in the text after the header, or in all of it if there is no header."""
    _, header, answer = text.rpartition(_HUATUO_HEADER)
    choices = _choices(answer, options) if options else None
    if choices is None or not header:
        return choices
    offset = len(text) - len(answer)
    return _moved(choices[0], offset), _moved(choices[1], offset)


def _choices(text: str, options: Mapping[str, str]) -> tuple[_Found, _Found] | None:
    """(first, last) "answer is B", or letter on its own, or option's text, or else the most similar option."""
    for pattern in (_STRICT, _free_letter(len(options))):
        first, last = _group(pattern.search(text)), _group(_last(pattern, text))
        if first and last:
            return first, last
    lower = text.lower()
    named = {key: option.lower() for key, option in options.items() if option.lower() in lower}
    if named:
        # as its first choice, the source takes the option whose first occurrence comes last
        first_at, first_key = max(((lower.index(option), key) for key, option in named.items()), key=lambda at: at[0])
        last_at, last_key = max(((lower.rindex(option), key) for key, option in named.items()), key=lambda at: at[0])
        spans = len(lower) == len(text)  # lower-casing can lengthen a text
        return (
            _Found(first_key, (first_at, first_at + len(named[first_key])) if spans else None),
            _Found(last_key, (last_at, last_at + len(named[last_key])) if spans else None),
        )
    guess = _most_similar(lower, options) if len(lower) <= GUESS_CHARACTERS else None
    return (_Found(guess, None), _Found(guess, None)) if guess is not None else None


@cache
def _free_letter(count: int) -> re.Pattern[str]:
    """The source's pattern, without the alternatives that its others include."""
    letters = LETTERS[: min(count, HUATUO_LETTERS)]
    return re.compile(rf"(?:^|[\W{CHINESE}])(?![aA] )([{letters}])(?:\W|[{CHINESE}]|$)")


def _most_similar(text: str, options: Mapping[str, str]) -> str:
    """The option most similar to `text`; among equals the last."""
    similarity = SequenceMatcher(None, "", text)
    best, best_key = 0.0, ""
    for key, option in options.items():
        similarity.set_seq1(option.lower())
        if (ratio := similarity.ratio()) >= best:
            best, best_key = ratio, key
    return best_key


# m1's: src/eval/{inference_keep_think,extract_format,score}.py of UCSC-VLAA/m1.
_M1_ANSWER = "<|im_start|>answer"
_BRACE = re.compile(r"[{}]")


def _m1(reply: str, options: tuple[str, ...]) -> _Found | None:
    r"""An option's text or letter in the last \boxed{} (or all of the answer), or else HuatuoGPT-o1's last match."""
    start, end = max(reply.rfind(_M1_ANSWER), 0), len(reply)
    for command in ("\\boxed", "\\text"):
        start, end = _unwrapped(reply, *_last_boxed(reply, start, end), command)
    boxed = reply[start:end]
    for letter, option in zip(LETTERS, options, strict=False):
        if boxed.lower() in (option.lower(), f"{letter}. {option}".lower(), letter.lower()):
            return _Found(letter, (start, end))
    choices = _match_choice(boxed, _listed(options))
    return choices and _moved(choices[1], start)


def _last_boxed(text: str, start: int, end: int) -> tuple[int, int]:
    r"""The span of the last \boxed{...} in text[start:end], or of the last \fbox{...}, or else (start, end)."""
    at = text.rfind("\\boxed", start, end)
    at = at if at >= 0 else text.rfind("\\fbox", start, end)
    depth = 0
    for brace in _BRACE.finditer(text, at, end) if at >= 0 else ():
        depth += 1 if brace.group() == "{" else -1
        if depth == 0 and brace.group() == "}":
            return at, brace.end()
    return start, end


def _unwrapped(text: str, start: int, end: int, command: str) -> tuple[int, int]:
    """The span inside `command{...}`, of an equation its right side; (start, end) if the text is not of that form."""
    if not text.startswith(command + "{", start, end) or not text.endswith("}", start, end):
        return start, end
    start, end = start + len(command) + 1, end - 1
    equals = text.rfind("=", start, end)
    if equals >= 0:
        start = end - len(text[equals + 1 : end].lstrip(" "))
    return start, end


def _listed(options: tuple[str, ...]) -> dict[str, str]:
    """The options as m1 parses them from its prompt, line by line: of an option with several lines, only the first."""
    prompt = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    lines = (line.strip().partition(". ") for line in prompt.split("\n"))
    return {key: text for key, dot, text in lines if dot}


def _group(match: re.Match[str] | None) -> _Found | None:
    return _Found(match[1], match.span(1)) if match else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def _moved(found: _Found, by: int | None) -> _Found:
    """`found` in a text that begins `by` characters earlier; without a span where `by` is None."""
    if found.span is None or by is None:
        return _Found(found.key, None)
    return _Found(found.key, (found.span[0] + by, found.span[1] + by))


EXTRACTORS: Mapping[str, Extractor] = MappingProxyType(
    {
        "medbench": answer_v1.extract,  # the first reader, of cot-v1
        OWN_EXTRACTION: answer.extract,
        OPEN_EXTRACTION: open_answer.extract,
        "mmlu-pro": _published(_mmlu_pro),
        "huatuo-o1-first": _published(_huatuo_o1_first),
        "huatuo-o1-last": _published(_huatuo_o1_last),
        "m1": _published(_m1),
        "medhelm-letter": _published(_medhelm_letter),
        "lm-eval-first": _published(_lm_eval_first),
    }
)
