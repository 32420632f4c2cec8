"""The order in which questions are shown, and the first words of each."""

from __future__ import annotations

import re

HEAD = 80

_NUMBERED = re.compile(r"(\D*)(\d{1,18})(\D*)", re.ASCII)


def order_of(id: str) -> tuple[str, int, str]:
    """Sort key of questions: q9 before q10."""
    match = _NUMBERED.fullmatch(id)
    return (match[1], int(match[2]), match[3]) if match else (id, 0, "")


def head_of(prompt: str, prefix: str) -> str:
    """First words of the question; `prefix` is what all prompts of the task begin with.

    What the last "Question:" of the prompt stands before, else what the prompts begin to differ in.
    """
    start = prompt.rfind("Question:")
    if start >= 0:
        start += len("Question:")
    else:
        line = prefix.rfind("\n") + 1
        start = line if len(prefix) - line < HEAD // 2 else len(prefix)
    words = prompt[start : start + HEAD + 20].strip()
    if not words.isprintable() or "  " in words:
        words = " ".join(words.split())
    return words if len(words) <= HEAD else words[: HEAD - 1].rstrip() + "…"
