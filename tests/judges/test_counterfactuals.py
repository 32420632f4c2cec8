"""Sentences with one thing changed: what is put there, what is left alone, and what cannot be changed."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.judges.counterfactuals import CHANGES, changed

TEXT = "In 240 women, metformin lowered mortality from 12.4% to 8.1% (p = 0.03); it was not given to children."


def all_of(sentence: str, kind: str, text: str = TEXT, draws: int = 60) -> set[str | None]:
    return {changed(sentence, text, kind, random.Random(seed)) for seed in range(draws)}


def test_a_number_keeps_its_form_and_is_not_another_one_of_the_text() -> None:
    found = all_of("Mortality was 8.1% among 1,240 women.", "number")
    assert None not in found
    for one in map(str, found):
        numbers = re.findall(r"[\d.,]+", one.rstrip("."))
        assert re.fullmatch(r"Mortality was \d+\.\d% among \d{1,3}(,\d{3})* women\.", one), one
        assert sum(new != old for new, old in zip(numbers, ("8.1", "1,240"), strict=True)) == 1
        assert "12.4" not in numbers


def test_a_percentage_stays_below_100() -> None:
    shares = [float(str(one).split()[2].rstrip("%")) for one in all_of("It was 80% of them.", "number")]
    assert max(shares) <= 100
    assert 80 not in shares


@pytest.mark.parametrize(
    "sentence",
    [
        "Vitamin B12 and IL-6 matter.",
        "The HbA1c of CD4-positive cells.",
        "It was 0 of 0.",
        "At 3-T, 2. this is so.",
        "",
    ],
)
def test_names_with_digits_are_no_numbers(sentence: str) -> None:
    assert all_of(sentence, "number") == {None}


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        ("Pressure increased.", "Pressure decreased."),
        ("Lower doses suffice.", "Higher doses suffice."),
        ("It is effective.", "It is ineffective."),
        ("Nothing of that kind.", None),
    ],
)
def test_a_direction_becomes_its_opposite(sentence: str, wanted: str | None) -> None:
    assert all_of(sentence, "direction") == {wanted}


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        ("It was associated with pain.", "It was not associated with pain."),
        ("It was not associated with pain.", "It was associated with pain."),
        ("It can help.", "It cannot help."),
        ("It cannot help.", "It can help."),
        ("There was no significant difference.", "There was a significant difference."),
        ("There were no significant differences.", "There were significant differences."),
        ("We found no evidence of that.", "We found evidence of that."),
        ("It had no effect.", "It had an effect."),
        ("Pressure rose.", None),
        ("Is it safe?", None),
    ],
)
def test_a_denial_is_added_or_taken_away(sentence: str, wanted: str | None) -> None:
    assert all_of(sentence, "negation") == {wanted}


def test_other_people_are_those_of_whom_the_text_does_not_speak() -> None:
    assert all_of("It helps women.", "population") == {"It helps men."}
    assert all_of("It helps women.", "population", "Men and women took part.") == {None}
    assert all_of("Women need it.", "population", "") == {"Men need it."}


@pytest.mark.parametrize(("kind", "word"), [("drug", "metformin"), ("finding", "mortality")])
def test_another_drug_or_finding_is_one_that_the_text_does_not_name(kind: str, word: str) -> None:
    found = all_of(f"{word.capitalize()} was studied.", kind)
    assert len(found) > 20
    for one in map(str, found):
        assert re.fullmatch(r"[A-Z][a-z]+ was studied\.", one)
        assert one.split()[0].lower() not in TEXT.lower()


@given(st.sampled_from(sorted(CHANGES)), st.text(max_size=200), st.text(max_size=200), st.integers(0, 5))
def test_any_text_is_changed_in_one_place_or_not_at_all(kind: str, sentence: str, text: str, seed: int) -> None:
    found = changed(sentence, text, kind, random.Random(seed))
    assert found == changed(sentence, text, kind, random.Random(seed))
    if found is not None:
        assert found != sentence
        start = next((at for at, (a, b) in enumerate(zip(found, sentence, strict=False)) if a != b), None)
        assert start is None or found[:start] == sentence[:start]
