"""Where statements are looked for: skipping the insides of words finds what a search at every character finds.

pytest tests/extraction/test_statements.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.extraction.patterns import CHOICES, HEADS
from medbench.harness.extraction.statements import _CHOICES, _HEADS

DATA = Path(__file__).parent.parent / "data"
PLAIN = {
    "heads": (_HEADS, re.compile("|".join(HEADS), re.IGNORECASE)),
    "choices": (_CHOICES, re.compile("|".join(CHOICES), re.IGNORECASE)),
}
PIECES = (
    "the answer is", "Answer:", "ANS.", "final answer", "correct option is", "choice", ": ", "no, ", "wait", "Q1.",
    "A", "B", "x", "7", "_", " ", "\n", "|", "*", "\\boxed{", "\\fbox{", "boxed{", "<answer>", "[answer]", '"answer":',
    "'choice':", "where X is", "答案是", "正确答案", "réponse est", "ответ:", "故选", "选项", "就是", "=>", "→", "pick",
    "it's ", "therefore ", "i.e. ", "that is ", "not sure but ", "not B but ", "say", "é", "ß", "İ", "ſ", "K",
)  # fmt: skip


def found(pattern: re.Pattern[str], text: str) -> list[tuple[tuple[int, int], str | None]]:
    return [(match.span(), match.lastgroup) for match in pattern.finditer(text)]


def replies() -> Iterator[str]:
    for path in sorted(DATA.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from (value for value in json.loads(line).values() if isinstance(value, str))


@pytest.mark.parametrize("name", PLAIN)
def test_replies_that_are_kept_for_tests_have_the_same_statements(name: str) -> None:
    fast, plain = PLAIN[name]
    for text in replies():
        assert found(fast, text) == found(plain, text)


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.sampled_from(sorted(PLAIN)))
def test_any_mixture_of_words_and_marks_has_the_same_statements(text: str, name: str) -> None:
    fast, plain = PLAIN[name]
    assert found(fast, text) == found(plain, text)
