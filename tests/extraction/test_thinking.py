"""Where reasoning ends, and stop strings around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.extraction.thinking import cut_at_stop, opens_reasoning, split_reasoning


@pytest.mark.parametrize(
    "tags", [("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<|begin_of_thought|>", "<|end_of_thought|>")]
)
def test_text_after_the_closing_tag_is_the_answer(tags: tuple[str, str]) -> None:
    text = f"{tags[0]}first A{tags[1]} then B"
    parts = split_reasoning(text)
    assert (parts.answer, parts.closed) == (" then B", True)
    assert text[parts.offset :] == parts.answer


def test_a_reply_without_tags_is_all_answer() -> None:
    assert split_reasoning("B").answer == "B"


def test_open_reasoning_has_no_answer() -> None:
    assert not split_reasoning("<think>B").closed
    assert not split_reasoning("B", opened=True).closed
    assert not split_reasoning("<think>A</think>B<think>").closed


def test_the_last_closing_tag_counts() -> None:
    assert split_reasoning("<think>A</think>B</think>C").answer == "C"


def test_stop_strings_never_cut_inside_reasoning() -> None:
    text = "<think>one\nQuestion: two</think>three\nQuestion: four"
    assert cut_at_stop(text, ("\nQuestion:",)) == "<think>one\nQuestion: two</think>three"
    assert cut_at_stop("<think>one\nQuestion: two", ("\nQuestion:",)) == "<think>one\nQuestion: two"


def test_the_first_of_several_stop_strings_cuts() -> None:
    assert cut_at_stop("a##b$$c", ("$$", "##")) == "a"
    assert cut_at_stop("abc", ("#",)) == "abc"


def test_a_template_that_opens_the_reasoning_is_recognised() -> None:
    assert opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@given(st.text(max_size=100), st.booleans())
def test_the_parts_are_the_whole(text: str, opened: bool) -> None:
    parts = split_reasoning(text, opened=opened)
    assert parts.reasoning + parts.answer == text
    assert len(parts.reasoning) == parts.offset
