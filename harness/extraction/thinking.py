"""A reply cut into its thought and its answer; stop strings count only outside the thought.

python -c "from medbench.harness.extraction.thinking import split_thought; print(split_thought('<think>hm</think> B'))"
"""

from __future__ import annotations

from dataclasses import dataclass

THOUGHT_TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))


@dataclass(frozen=True, slots=True)
class Thought:
    """A reply cut in two."""

    thought: str
    answer: str
    """What stands after the thought; "" when the thought was never closed."""
    offset: int
    """Where `answer` starts in the reply, in characters."""
    closed: bool


def split_thought(text: str, *, opened: bool = False) -> Thought:
    """Cut at the last closing tag; `opened` says that the prompt has opened the thought already.

    A closing tag without an opening one closes too (the template may open the thought silently); an opening tag after
    the last closing one, or any when nothing closes, leaves the thought open.
    """
    end, close = max((text.rfind(close) + len(close) * (close in text), close) for _, close in THOUGHT_TAGS)
    is_closed = end > 0 and close in text
    rest = text[end:] if is_closed else text
    if any(tag in rest for tag, _ in THOUGHT_TAGS) or (opened and not is_closed):
        return Thought(text, "", len(text), False)
    return Thought(text[:end], rest, end, True) if is_closed else Thought("", text, 0, True)


def cut_at_stop(text: str, stop: tuple[str, ...], *, opened: bool = False) -> str:
    """`text` up to the first stop string outside its thought."""
    parts = split_thought(text, opened=opened)
    cuts = [at for each in stop if (at := parts.answer.find(each)) >= 0] if parts.closed else []
    return text[: parts.offset + min(cuts)] if cuts else text


def opens_thought(prompt: str) -> bool:
    """True when the chat template has already opened the thought that the reply will close (R1, Qwen3-Thinking)."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in THOUGHT_TAGS))
