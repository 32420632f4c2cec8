"""Rewording: the meaning stays, and nothing is put in that would be a counterfactual."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.judges.counterfactuals import DRUGS, FINDINGS, OPPOSITES, POPULATIONS
from medbench.harness.judges.local.rewording import WORDS, framed, reworded

SENTENCE = "However, morphine was compared with 12% placebo (p = 0.03), but several subjects were not assessed."


@pytest.mark.parametrize(
    "said",
    [
        "Morphine was compared to 12% placebo",
        "12 percent placebo",
        "compared with 12% placebo, but",
        "a number of participants were not evaluated",
        "placebo.",
    ],
)
def test_each_rewording_comes_up_sooner_or_later(said: str) -> None:
    assert any(said in reworded(SENTENCE, random.Random(seed)) for seed in range(200))


@given(st.integers(0, 10_000))
def test_numbers_and_denials_are_never_put_in(seed: int) -> None:
    found = framed(reworded(SENTENCE, random.Random(seed)), random.Random(seed))
    assert set(re.findall(r"\d+", found)) <= set(re.findall(r"\d+", SENTENCE))
    assert found.count(" not ") <= SENTENCE.count(" not ")


def test_no_rewording_is_a_word_that_counterfactuals_put_in() -> None:
    put_in = {*DRUGS, *FINDINGS, *(word for pair in (*OPPOSITES, *POPULATIONS) for word in pair)}
    assert {word for new in WORDS.values() for word in new.split()} & put_in <= {"with"}  # of "compared with"


def test_a_name_keeps_its_capital_in_a_frame() -> None:
    assert {framed("DNA was found.", random.Random(seed)) for seed in range(100)} == {"DNA was found."}
    assert any(framed("The drug was safe.", random.Random(seed)).endswith(" the drug was safe.") for seed in range(100))


@given(st.text(max_size=200), st.integers(0, 100))
def test_any_text_can_be_reworded(text: str, seed: int) -> None:
    draw = random.Random(seed)
    assert isinstance(framed(reworded(text, draw), draw), str)
