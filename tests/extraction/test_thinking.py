"""Where reasoning ends, and stop strings around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.extraction.answer import extract
from medbench.harness.extraction.thinking import (
    cut_at_stop,
    ending_mark,
    marks_reasoning,
    opens_reasoning,
    split_reasoning,
)

FORMATS = {
    "DeepSeek-R1, Qwen3": ("<think>", "</think>"),
    "Claude's prompt": ("<thinking>", "</thinking>"),
    "capitals": ("<THINK>", "</THINK>"),
    "hy_v3": ("<think:opensource>", "</think:opensource>"),
    "Seed-OSS": ("<seed:think>", "</seed:think>"),
    "MiniMax M3": ("<mm:think>", "</mm:think>"),
    "K2 Horizon": ("<ifm|think_fast>", "</ifm|think_fast>"),
    "Magistral": ("[THINK]", "[/THINK]"),
    "Kimi-VL": ("◁think▷", "◁/think▷"),
    "Kimi K3": ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    "Cohere Command A": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "Sky-T1": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "Apertus": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "Inkling": ("<|content_thinking|>", "<|content_text|>"),
    "MedGemma 1.5": ("<unused94>thought\n", "<unused95>"),
    "Gemma 4": ("<|channel>thought\n", "<channel|>"),
    "gpt-oss": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "gpt-oss without special tokens": ("analysisWe need one letter. ", "assistantfinal"),
    "Granite": ("Here is my thought process:\n", "\nHere is my response:\n"),
    "HuatuoGPT-o1": ("## Thinking\n\n", "\n\n## Final Response\n\n"),
    "ollama": ("Thinking...\n", "\n...done thinking.\n"),
    "EXAONE Deep": ("<thought>\n", "</thought>\n"),
    "a prompt's own": ("<reasoning>", "</reasoning>"),
    "an unknown one": ("<my_thinking>", "</my_thinking>"),
}
MARKS = pytest.mark.parametrize("marks", FORMATS.values(), ids=FORMATS)


@MARKS
def test_text_after_the_closing_mark_is_the_answer(marks: tuple[str, str]) -> None:
    text = f"{marks[0]}The answer is (A).{marks[1]}The answer is (B)."
    parts = split_reasoning(text)
    assert (parts.answer.strip(), parts.closed) == ("The answer is (B).", True)
    assert text[parts.offset :] == parts.answer
    assert extract(text, labels=tuple("ABCD")).answer == "B"


@MARKS
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_nothing_is_read_inside_a_thought_that_does_not_end(marks: tuple[str, str], reason: str) -> None:
    found = extract(f"{marks[0]}The answer is (A).\n\nThe answer is (B).", labels=tuple("ABCD"), finish_reason=reason)
    assert (found.answer, found.outcome) == (None, "truncated" if reason == "length" else "unparsed")


@MARKS
def test_the_answer_before_a_thought_that_ends_the_text_counts(marks: tuple[str, str]) -> None:
    if marks[0][0] in "<[◁":  # the others only begin a text
        assert extract(f"Answer: C\n{marks[0]}Not (A).{marks[1]}", labels=tuple("ABCD")).answer == "C"


@MARKS
@pytest.mark.parametrize("by_prompt", [False, True])
def test_a_thought_that_is_cut_off_is_ended_by_the_mark_of_its_format(marks: tuple[str, str], by_prompt: bool) -> None:
    if by_prompt and marks[0][0] not in "<[◁":  # no template opens a thought by a sentence
        return
    opening, thought = marks[0], "The answer is (A), or is it"
    prompt, text = (opening, thought) if by_prompt else ("Which?", opening + thought)
    assert opens_reasoning(prompt) == by_prompt
    ending = ending_mark(text, prompt)
    assert ending.strip().lower() == marks[1].strip().lower()
    ended = f"{text}{ending}\n\nThe answer is (B"
    parts = split_reasoning(ended, opened=by_prompt)
    assert (parts.answer.strip(), parts.closed) == ("The answer is (B", True)
    assert extract(ended, labels=tuple("ABCD"), opened=by_prompt).answer == "B"


def test_the_thought_opened_last_is_ended() -> None:
    assert ending_mark("<think>a</think>b[THINK]c", "Which?") == "\n[/THINK]"
    assert ending_mark("a</think>b<thought>c", "Which?<think>\n") == "\n</thought>"


@pytest.mark.parametrize("prompt", ["Which?", "<think>\n\n</think>\n\n", "Here is my thought process:\n Which?"])
def test_a_thought_without_marks_needs_no_ending(prompt: str) -> None:
    assert ending_mark("I think it is (A), or", prompt) == ""


def test_a_first_line_that_names_a_thought_is_noted_and_the_last_paragraph_read() -> None:
    found = extract("thought\nThe answer is (A).\n\nNo, that is wrong.\n\nC. Zinc", labels=tuple("ABCD"))
    assert (found.answer, found.note) == ("C", "unmarked_thought")
    found = extract("thought\nThe answer is (A). Hmm", labels=tuple("ABCD"))
    assert (found.answer, found.note) == (None, "unmarked_thought")
    assert extract("thought\nFirst.\n\nThe answer is (A)", labels=tuple("ABCD"), finish_reason="length").answer is None


@pytest.mark.parametrize(
    "text", ["Analysis: the dose is high. The answer is (B).", "### Thinking\nB", "I was thinking... B."]
)
def test_words_about_thinking_are_no_marks(text: str) -> None:
    assert split_reasoning(text.replace("### Thinking\nB", "B")).closed


def test_special_tokens_that_mark_reasoning_are_known() -> None:
    special = [
        "<|im_end|>",
        "[THINK]",
        "[/THINK]",
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "<unused94>",
        "<unused7>",
        "</s>",
    ]
    assert marks_reasoning(special) == {"[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<unused94>"}


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
    assert opens_reasoning("<|turn>model\n<|channel>thought\n")
    assert opens_reasoning("[/INST][THINK]")
    assert opens_reasoning("<|start|>assistant<|channel|>analysis<|message|>")
    assert not opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@given(st.text(max_size=100), st.booleans())
def test_the_parts_are_the_whole(text: str, opened: bool) -> None:
    parts = split_reasoning(text, opened=opened)
    assert parts.reasoning + parts.answer == text
    assert len(parts.reasoning) == parts.offset
