"""Splits a completion into its reasoning and its answer; stop strings count only outside the reasoning.

python -c "import medbench.harness.extraction.thinking as t; print(t.split_reasoning('<think>a</think>B'))"
"""

from __future__ import annotations

from dataclasses import dataclass

REASONING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)


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


def split_reasoning(text: str, *, opened: bool = False) -> SplitCompletion:
    """Split at the last closing tag; `opened` says that the prompt has already opened the reasoning.

    A closing tag without an opening one counts too (the template may open the reasoning silently). An opening tag after
    the last closing tag, or any opening tag where nothing closes, leaves the reasoning open.
    """
    end, close = max((text.rfind(close) + len(close) * (close in text), close) for _, close in REASONING_TAGS)
    is_closed = end > 0 and close in text
    rest = text[end:] if is_closed else text
    if any(tag in rest for tag, _ in REASONING_TAGS) or (opened and not is_closed):
        return SplitCompletion(text, "", len(text), False)
    return SplitCompletion(text[:end], rest, end, True) if is_closed else SplitCompletion("", text, 0, True)


def cut_at_stop(text: str, stop: tuple[str, ...], *, opened: bool = False) -> str:
    """`text` up to the first stop string outside its reasoning."""
    parts = split_reasoning(text, opened=opened)
    cuts = [at for each in stop if (at := parts.answer.find(each)) >= 0] if parts.closed else []
    return text[: parts.offset + min(cuts)] if cuts else text


def opens_reasoning(prompt: str) -> bool:
    """Whether the chat template has opened the reasoning that the completion will close (R1, Qwen3-Thinking)."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in REASONING_TAGS))
