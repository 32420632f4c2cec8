"""Near-duplicates: what is similar is found, what is not is never called so, and memory is bounded.

pytest tests/synth/test_near_duplicates.py
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz
from support.synth import name_of

from medbench.harness.synth.near_duplicates import NearDuplicates, normal

WORDS = [name_of(random.Random(seed), 3) for seed in range(300)]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map(" ".join)


def prose(seed: int, n: int = 150) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(n))


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(TEXTS, min_size=1, max_size=8))
def test_the_same_words_are_always_found_and_the_first_text_stays(texts: list[str], tmp_path_factory) -> None:
    with NearDuplicates(0.9, tmp_path_factory.getbasetemp(), slots=1024) as index:
        for text in texts:
            if index.find(text) is None:
                index.keep(text)
        for text in texts:
            assert index.find(f"{text.upper()} !!") is not None


@settings(deadline=None, max_examples=100)
@given(kept=st.lists(TEXTS, min_size=1, max_size=8), asked=TEXTS)
def test_what_is_called_a_near_duplicate_is_as_similar_as_said(kept: list[str], asked: str, tmp_path_factory) -> None:
    """With one slot per band every text collides with the one before it."""
    with NearDuplicates(0.8, tmp_path_factory.getbasetemp(), slots=1) as index:
        for text in kept:
            index.keep(text)
        found = index.find(asked)
        if found is not None:
            number, similarity = found
            assert similarity >= 0.8
            assert similarity == pytest.approx(fuzz.ratio(normal(asked), normal(kept[number])) / 100)


def test_a_text_with_a_few_other_words_is_found(tmp_path: Path) -> None:
    """8 % of the words changed: 200 of 200 found among 200 others."""
    with NearDuplicates(0.9, tmp_path) as index:
        for seed in range(200):
            index.keep(prose(seed))
        found = 0
        for seed in range(200):
            draw, words = random.Random(-seed - 1), prose(seed).split()
            for at in draw.sample(range(len(words)), 12):
                words[at] = draw.choice(WORDS)
            hit = index.find(" ".join(words))
            found += hit is not None and hit[0] == seed
    assert found == 200


def test_other_texts_are_not_found(tmp_path: Path) -> None:
    with NearDuplicates(0.9, tmp_path) as index:
        for seed in range(200):
            index.keep(prose(seed))
        assert [seed for seed in range(1000, 1200) if index.find(prose(seed))] == []


def test_the_oldest_texts_are_forgotten_and_the_latest_never(tmp_path: Path) -> None:
    with NearDuplicates(0.9, tmp_path, remembered=50, slots=1024) as index:
        for seed in range(180):
            index.keep(prose(seed, 40))
            assert index.find(prose(seed, 40)) == (seed, 1.0)
        latest = [seed for seed in range(180) if index.find(prose(seed, 40))]
    assert min(latest) == 130
    assert len(latest) >= 49


def test_texts_without_words_are_alike(tmp_path: Path) -> None:
    with NearDuplicates(0.9, tmp_path) as index:
        index.keep("...")
        assert index.find("!?") is not None
        assert index.find("word") is None


def test_the_scratch_file_is_not_left_behind(tmp_path: Path) -> None:
    with NearDuplicates(0.9, tmp_path) as index:
        index.keep("a text of some words")
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
