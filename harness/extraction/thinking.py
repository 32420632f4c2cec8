"""Splits a completion into its reasoning and its answer; stop strings count only outside the reasoning.

python -c "import medbench.harness.extraction.thinking as t; print(t.split_reasoning('<think>a</think>B'))"

The marks are those of chat templates and of vLLM's reasoning parsers (vllm/reasoning, vllm/parser), which are named
beside them; else the source is.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

REASONING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""The tags that a reply is trained to write, and those of the first reader (answer_v1)."""


class _Marks(NamedTuple):
    """Regular expressions of one format, case ignored."""

    opening: str
    closing: str
    ending: str = ""
    """What ends a thought; "" for the opening mark with a slash behind its first character."""


_TAGS = (
    _Marks(r"<think(?:ing)?\b[^<>\n]{0,40}>", r"</think(?:ing)?\b[^<>\n]{0,40}>"),  # most; hy_v3: <think:...>
    _Marks(r"<(?:seed|mm):think>", r"</(?:seed|mm):think>"),  # seed_oss, minimax_m3
    _Marks(r"<ifm\|think\w{0,10}>", r"</ifm\|think\w{0,10}>"),  # k2_horizon
    _Marks(r"\[think\]", r"\[/think\]"),  # mistral
    _Marks(r"◁think▷", r"◁/think▷"),  # Kimi-VL-Thinking's template
    _Marks(r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>", "<|close|>think<|sep|>"),  # kimi_k3
    _Marks(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>", "<|END_THINKING|>"),  # cohere_command
    # Sky-T1's and OpenThinker's system prompt
    _Marks(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>", "<|end_of_thought|>"),
    _Marks(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>", "<|inner_suffix|>"),  # Apertus' template
    _Marks(r"<\|content_thinking\|>", r"<\|content_text\|>", "<|content_text|>"),  # inkling
    _Marks(r"<unused94>", r"<unused95>", "<unused95>"),  # MedGemma 1.5's model card
    _Marks(r"<\|channel>", r"<channel\|>", "<channel|>"),  # gemma4
    # gptoss: Harmony's channels
    _Marks(
        r"<\|channel\|>\s*(?:analysis|commentary)",
        r"<\|channel\|>\s*final\s*(?:<\|message\|>)?",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    # sections that prompts ask for, and models write without being asked (EXAONE Deep and Marco-o1: thought)
    *(
        _Marks(f"<{name}>", f"</{name}>")
        for name in (
            "thoughts?",
            "reason(?:ing)?",
            "reflection",
            "analysis",
            "scratchpad",
            "rationale",
            "chain[_-]of[_-]thought",
            "inner[_-]monologue",
        )
    ),
    # unknown ones
    _Marks(r"<(?!/|\|end)[^\s<>/]{0,20}think[^\s<>]{0,20}>", r"<(?:/|\|end)[^\s<>]{0,20}think[^\s<>]{0,20}>"),
)
"""A closing mark counts without an opening one too: the template may open the reasoning."""
_SENTENCES = (
    # granite
    _Marks(r"\W{0,9}here(?:'s|’s| is) my thought process:", r"here(?:'s|’s| is) my response:", "Here is my response:"),
    # HuatuoGPT-o1
    _Marks(r"\s*#{1,4} *thinking\b\W{0,9}$", r"^#{1,4} *final (?:response|answer)\b[:* ]*", "## Final Response"),
    # ollama's terminal
    _Marks(r"\s*thinking\.\.\.\s*$", r"^\s*\.\.\.done thinking\.", "...done thinking."),
)
"""An opening mark counts at the start only, a closing one only after it."""

_TAG = re.compile(
    "(?=[<\\[◁])(?:"
    + "|".join(f"(?P<open{n}>{marks.opening})|(?P<shut{n}>{marks.closing})" for n, marks in enumerate(_TAGS))
    + ")",
    re.IGNORECASE,
)
_SENTENCE = tuple(
    tuple(re.compile(one, re.IGNORECASE | re.MULTILINE) for one in (marks.opening, marks.closing))
    for marks in _SENTENCES
)
# what is left of gptoss's channels where special tokens are dropped: "analysisWe need ...assistantfinalC"
_ANALYSIS = re.compile(r"\s*analysis(?=[A-Z\"'“(*\d])")
_BARE = re.compile(r"assistant ?(?:(?P<open>analysis|commentary)|(?P<shut>final))")
_OPENING = re.compile("|".join(marks.opening for marks in (*_TAGS, *_SENTENCES)), re.IGNORECASE | re.MULTILINE)
_BEHIND_OPENING = re.compile(r"\s*(?:thought\s*)?(?:<\|message\|>\s*)?\Z")
_PART = re.compile(r"<\|(?:channel|message|open|close|sep)\|>|think|thought", re.IGNORECASE)
"""Of a special token that only together with others is a mark, or is one of an unknown format."""
_LABEL = re.compile(r"\s*(?:thoughts?|thinking)[ \t]*[:.…]{0,4}[ \t]*\n", re.IGNORECASE)
"""A first line that names a thought whose marks were lost: Gemma's channels, decoded without special tokens."""
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*(?=\S)")


@dataclass(frozen=True, slots=True)
class SplitCompletion:
    """A completion in two parts."""

    reasoning: str
    """With its tags."""
    answer: str
    """The text after the reasoning; "" if the reasoning was never closed."""
    offset: int
    """Where `answer` starts in the completion, in characters."""
    closed: bool
    guessed: bool = False
    """Whether the text looks like a thought of an unknown format, and its last paragraph was taken for the answer."""


def split_reasoning(text: str, *, opened: bool = False) -> SplitCompletion:
    """Split at the last closing mark; `opened` says that the prompt has already opened the reasoning.

    A closing mark without an opening one counts too (the template may open the reasoning silently). An opening mark
    after the last closing one, or any opening mark where nothing closes, leaves the reasoning open. Where nothing
    follows the last reasoning, the answer is what was written before it.
    """
    start, is_open, marked = 0, opened, False
    opened_at, before = 0, (0, 0)
    for opens, at, end in _marks(text):
        marked = True
        if opens and not is_open:
            is_open, opened_at = True, at
        elif not opens:
            before = (start, opened_at if is_open else start)
            start, is_open = end, False
    if is_open:
        return SplitCompletion(text, "", len(text), False)
    if not marked:
        return _guessed(text) if _LABEL.match(text) else SplitCompletion("", text, 0, True)
    if not text[start:].strip() and text[slice(*before)].strip():
        first, end = before
        return SplitCompletion(text[:first] + text[end:], text[first:end], first, True)
    return SplitCompletion(text[:start], text[start:], start, True)


def without_marks(reasoning: str) -> str:
    """SplitCompletion.reasoning as plain text: a paragraph ends where a mark stood."""
    pieces, start = [], 0
    for _, at, end in _marks(reasoning):
        pieces.append(reasoning[start:at])
        start = max(start, end)
    return "\n\n".join([*pieces, reasoning[start:]]).strip()


def _marks(text: str) -> Iterator[tuple[bool, int, int]]:
    """(whether it opens, start, end) of every mark, in order."""
    tags = (((tag.lastgroup or "").startswith("open"), tag.start(), tag.end()) for tag in _TAG.finditer(text))
    bare = ((word.group("open") is not None, word.start(), word.end()) for word in _BARE.finditer(text))
    return heapq.merge(_sentence(text), tags, bare, key=lambda mark: mark[1])


def _sentence(text: str) -> Iterator[tuple[bool, int, int]]:
    """The opening mark that the text starts with, and the closing ones that belong to it."""
    if begun := _ANALYSIS.match(text):
        yield True, begun.start(), begun.end()
    for opening, closing in _SENTENCE:
        if begun := opening.match(text):
            yield True, begun.start(), begun.end()
            for closed in closing.finditer(text):
                yield False, closed.start(), closed.end()
            return


def _guessed(text: str) -> SplitCompletion:
    paragraphs = [match.end() for match in _PARAGRAPH.finditer(text.rstrip())]
    if not paragraphs:
        return SplitCompletion(text, "", len(text), False, guessed=True)
    start = paragraphs[-1]
    return SplitCompletion(text[:start], text[start:], start, True, guessed=True)


def cut_at_stop(text: str, stop: tuple[str, ...], *, opened: bool = False) -> str:
    """`text` up to the first stop string outside its reasoning."""
    parts = split_reasoning(text, opened=opened)
    cuts = [at for each in stop if (at := parts.answer.find(each)) >= 0] if parts.closed else []
    return text[: parts.offset + min(cuts)] if cuts else text


def opens_reasoning(prompt: str) -> bool:
    """Whether the chat template has opened the reasoning that the completion will close (R1, Qwen3-Thinking)."""
    return _opened_by(prompt) is not None


def _opened_by(prompt: str) -> str | None:
    """The opening mark at the end of the prompt."""
    tail = prompt[-80:]
    marks = list(_OPENING.finditer(tail))
    return marks[-1].group() if marks and _BEHIND_OPENING.match(tail, marks[-1].end()) else None


def ending_mark(text: str, prompt: str) -> str:
    """What ends the thought that `text`, a reply to `prompt`, leaves open, with a line break; "" for one without
    marks."""
    opened = [at for opens, at, _ in _marks(text) if opens]
    mark = text[opened[-1] :] if opened else _opened_by(prompt)
    if mark is None:
        return ""
    if tag := _TAG.match(mark):
        marks = _TAGS[int((tag.lastgroup or "").removeprefix("open"))]
        return "\n" + (marks.ending or f"{mark[0]}/{tag.group()[1:]}")
    for marks, (opening, _) in zip(_SENTENCES, _SENTENCE, strict=True):
        if opening.match(mark):
            return f"\n\n{marks.ending}"
    return "assistantfinal"


def marks_reasoning(tokens: Iterable[str]) -> frozenset[str]:
    """Those of a tokenizer's special tokens that mark reasoning: they are kept where a completion is decoded."""
    return frozenset(token for token in tokens if _TAG.fullmatch(token) or _PART.search(token))
