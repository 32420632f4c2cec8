"""The accuracy that a protocol's source would report, compared with sums by hand."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.contracts import Question, Sample
from medbench.harness.protocols.protocol import Protocol, built_in_names, load_protocol
from medbench.harness.scoring.published_accuracy import Published, published

QUESTIONS = [
    Question(f"q{number}", f"c{number}", "Which?", tuple("wxyzuv"[:number]), tuple("ABCDEF"[:number]), "B")
    for number in range(2, 7)
]
"""Question q<n> has n options."""


def sample(options: int, output: str = "", extracted: str | None = None, **changes: Any) -> Sample:
    plain: dict[str, Any] = {
        "id": f"q{options}",
        "cluster": f"c{options}",
        "prompt": "Which?",
        "output": output,
        "finish_reason": "stop",
        "extracted": extracted,
        "outcome": "answered" if extracted else "unparsed",
        "span": None,
        "gold": "B",
        "score": float(extracted == "B"),
        "error": None,
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "category": {},
    }
    return Sample(**{**plain, **changes})


def of(name: str, *samples: Sample) -> Published | None:
    return published(load_protocol(name).extraction, QUESTIONS, iter(samples))


def test_mmlu_pro_counts_a_guess_by_its_expected_value() -> None:
    found = of("mmlu-pro-official", sample(4, extracted="B"), sample(5, extracted="C"), sample(5), sample(2))
    assert found is not None
    assert found.accuracy == pytest.approx((1 + 0 + 1 / 5 + 1 / 2) / 4)
    assert found.how.startswith("2 of 4 replies without an answer count 1/options")
    assert "\n" not in found.how


def test_mmlu_pro_does_not_guess_for_a_letter_beyond_the_options() -> None:
    assert of("mmlu-pro-official", sample(2, extracted="J")) == Published(
        accuracy=0.0, how="0 of 1 replies without an answer count 1/options, the expected value of the script's guess"
    )


@given(st.lists(st.tuples(st.integers(2, 6), st.sampled_from(["B", "A", None])), min_size=1, max_size=30))
def test_mmlu_pro_is_medbenchs_accuracy_plus_the_guesses(rows: list[tuple[int, str | None]]) -> None:
    found = of("mmlu-pro-official", *(sample(options, extracted=extracted) for options, extracted in rows))
    ours = Fraction(sum(extracted == "B" for _, extracted in rows), len(rows))
    guesses = sum((Fraction(1, options) for options, extracted in rows if extracted is None), Fraction(0))
    assert found is not None
    assert found.accuracy == pytest.approx(float(ours + guesses / len(rows)))


def test_huatuo_o1_takes_the_better_of_first_and_last_match_over_all_questions() -> None:
    rows = [sample(4, "B, then (C)."), sample(4, "B, or else (D)."), sample(4, "A; rather B."), sample(4, "C.")]
    assert of("huatuo-o1", *rows) == Published(
        accuracy=0.5, how="the better of first match (50.0%) and last match (25.0%); no reply was empty"
    )


def test_huatuo_o1_leaves_empty_replies_out() -> None:
    found = of("huatuo-o1", sample(4, "B."), sample(4, ""), sample(4, " "), sample(4, "</s>"), sample(4, "(A)"))
    assert found is not None
    assert found.accuracy == 0.5
    assert found.how.endswith("3 empty replies left out")


@pytest.mark.parametrize("name", ["mmlu-pro-official", "huatuo-o1"])
def test_failed_requests_are_left_out_and_nothing_scored_is_none(name: str) -> None:
    failed = sample(4, "", score=None, error="timeout", outcome="error")
    right = sample(4, "B.", extracted="B")
    found = of(name, failed, right, failed)
    assert found is not None
    assert found.accuracy == 1.0
    assert of(name, failed) is None
    assert of(name) is None


def test_samples_are_read_once() -> None:
    passes = 0

    def once() -> Iterator[Sample]:
        nonlocal passes
        passes += 1
        yield sample(4, "B.", extracted="B")

    for name in ("mmlu-pro-official", "huatuo-o1"):
        assert published(load_protocol(name).extraction, QUESTIONS, once()) is not None
    assert passes == 2


@pytest.mark.parametrize("name", sorted(set(built_in_names()) - {"mmlu-pro-official", "huatuo-o1"}))
def test_sources_that_count_like_medbench_have_no_published_accuracy(name: str) -> None:
    assert of(name, sample(4, "B.", extracted="B"), sample(4, "")) is None


def test_the_extractor_decides_so_custom_protocols_have_it_too() -> None:
    mine = Protocol(name="mine", about="mine", method="generate", prompt="?", extraction="mmlu-pro")
    assert published(mine.extraction, QUESTIONS, [sample(2)]) == Published(
        accuracy=0.5, how="1 of 1 replies without an answer count 1/options, the expected value of the script's guess"
    )
