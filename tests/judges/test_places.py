"""Where steps stand in a reply: what is marked is what was judged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.gate_runs import answer

from medbench.harness.judges.places import places_of
from medbench.harness.judges.steps import steps_of

WORDS = st.lists(
    st.sampled_from(
        ["Drug", "fell", "by 5.", "*very*", "\n- ", "It rose.", "  ", "\U0001d54f", "Is it?", "\n\n", "# A\n"]
    )
)


def bare(text: str) -> str:
    return "".join(character for character in text if not character.isspace() and character not in "*_`")


def test_steps_are_found_behind_list_marks_in_emphasis_and_over_line_ends() -> None:
    output = "1. The **drug** lowered it.\n2. It\nrose again. It rose again."
    steps = ["The drug lowered it.", "It rose again.", "It rose again."]
    found = places_of(steps, output)
    assert [output[slice(*place)] for place in found if place] == [
        "The **drug** lowered it.",
        "It\nrose again.",
        "It rose again.",
    ]


def test_a_step_that_the_reply_does_not_have_has_no_place_and_the_next_ones_do() -> None:
    assert places_of(["Nowhere.", "Here.", "Here."], "It is. Here.") == [None, (7, 12), None]


@given(WORDS)
def test_whatever_a_reply_is_made_of_each_place_holds_its_step_and_none_overlaps(words: list[str]) -> None:
    output = f"<think>{' '.join(words)}</think>yes"
    steps = steps_of(answer("q", output=output))
    found = places_of(steps, output)
    assert None not in found
    ends = 0
    for step, place in zip(steps, found, strict=True):
        assert place is not None
        assert place[0] >= ends
        assert bare(output[slice(*place)]) == bare(step)
        ends = place[1]
