"""Extractors of published scorers: cases that follow from their sources, real replies, and hostile sizes."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medbench.harness.contracts import OWN_EXTRACTION, Extraction
from medbench.harness.extraction.answer import extract
from medbench.harness.extraction.published import EXTRACTORS, GUESS_CHARACTERS, LETTERS, OWN, huatuo_o1_output

FOUR = tuple("ABCD")
TEN = tuple("ABCDEFGHIJ")
DRUGS = ("Aspirin", "Low-dose heparin", "Warfarin", "Zinc")
WORDS = ("yes", "no", "maybe")
PUBLISHED = sorted(set(EXTRACTORS) - OWN)
# fmt: off
PIECES = [
    "answer is ", "answer is (", "nswer:", "Answer: ", "answer:\t", "Answer", "the ", "is ", " ", "\n", "\r", "\u2028",
    "A", "B", "C", "D", "J", "K", "N", "a", "b ", "no", "(", ")", "*", ".", "'", '"', "#", "_", "是", "项", "为", "İ",
    "aspirin", "Zinc", "low-dose heparin", "yes", "maybe", "\\boxed{", "\\fbox{", "\\text{", "\\boxed", "{", "}", "= ",
    "## Final Response\n\n", "</s>", "<|im_start|>answer", "<think>", "</think>",
]
# fmt: on
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def read(
    extractor: str, text: str, labels: tuple[str, ...] = FOUR, options: tuple[str, ...] = DRUGS, **given: str
) -> Extraction:
    return EXTRACTORS[extractor](text, labels=labels, options=options, **given)  # type: ignore[arg-type]


def answer(extractor: str, text: str, labels: tuple[str, ...] = FOUR, options: tuple[str, ...] = DRUGS) -> str | None:
    return read(extractor, text, labels, options).answer


def test_medbench_is_the_extraction_of_everything_else() -> None:
    assert EXTRACTORS[OWN_EXTRACTION] is extract


# MMLU-Pro


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B). No, the answer is (C).", "B"),  # the first counts
        ("The answer is D", "D"),
        ("The answer is (B or C)", "B"),
        ("the answer is Dopamine", "D"),  # no word boundary is required
        ("The answer is **C**.", "C"),  # not by the first pattern, but as the last letter on its own
        ("The answer is a combination of (B) and (E).", "E"),
        ("THE ANSWER IS (B), not C", "C"),  # case counts
        ("Answer: B", "B"),
        ("answer:\n\n  B\nAnswer: C", "B"),  # the first line that has one
        ("answer: B, or rather answer: C\nanswer: D", "C"),  # the last on that line
        ("answer:Answer: B", "B"),  # overlapping
        ("answer: Because\nAnswer: C", "B"),  # also the first letter of a word
        ("Not (A), so I think.", "I"),  # the pronoun is a letter on its own too
        ("Hepatitis B or A.", "A"),
        ("Vitamin B12 and (C_3) and D-dimer", "D"),  # B12 and C_3 are words, D-dimer is two
        ("no idea", None),
        ("", None),
    ],
)
def test_mmlu_pro_tries_its_three_patterns_in_turn(text: str, letter: str | None) -> None:
    assert answer("mmlu-pro", text, TEN, ()) == letter


def mmlu_pro_source(text: str) -> str | None:
    """The patterns as the source has them."""
    found = re.search(r"answer is \(?([A-J])\)?", text) or re.search(r".*[aA]nswer:\s*([A-J])", text)
    if found:
        return found.group(1)
    found = re.search(r"\b[A-J]\b(?!.*\b[A-J]\b)", text, re.DOTALL)
    return found.group(0) if found else None


@settings(max_examples=400)
@given(texts)
def test_mmlu_pro_in_linear_time_finds_what_the_patterns_of_the_source_find(text: str) -> None:
    assert answer("mmlu-pro", text, TEN, ()) == mmlu_pro_source(text)


def test_mmlu_pro_gives_the_recorded_letter_for_every_stored_reply(data_dir: Path) -> None:
    rows = map(json.loads, (data_dir / "mmlu_pro_medical" / "health.jsonl").open(encoding="utf-8"))
    options = {row["question_id"]: tuple(row["options"]) for row in rows}
    files = sorted((data_dir / "replay").glob("mmlu_pro_health_*.jsonl"))
    assert len(files) >= 2
    for file in files:
        replies = [json.loads(line) for line in file.open(encoding="utf-8")]
        wrong = [
            reply["question_id"]
            for reply in replies
            for there in [options[reply["question_id"]]]
            if answer("mmlu-pro", reply["output"], TEN[: len(there)], there) != reply["official_pred"]
        ]
        assert (len(replies), wrong) == (818, []), file.name


# lm-eval


def test_lm_eval_has_one_pattern_and_reads_unfinished_reasoning() -> None:
    assert answer("lm-eval-first", "The answer is (B). No, the answer is (C).") == "B"
    assert answer("lm-eval-first", "<think>Perhaps the answer is (A), but") == "A"
    assert answer("lm-eval-first", "Answer: B") is None
    assert read("lm-eval-first", "<think>Perhaps", finish_reason="length").outcome == "truncated"


# MedHELM


@pytest.mark.parametrize("text", ["B", " B", "B\n", "B.", "B. Low-dose heparin"])
def test_medhelm_takes_the_letter_that_comes_first(text: str) -> None:
    assert answer("medhelm-letter", text) == "B"


@pytest.mark.parametrize("text", ["b", "(B)", "**B**", "Aspirin", "The answer is B", "E", "AB", "１", "ß", ""])
def test_medhelm_takes_nothing_else(text: str) -> None:
    assert answer("medhelm-letter", text) is None


# HuatuoGPT-o1


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("The answer is A. Or the answer is B.", "A", "B"),
        ("B is wrong. So the answer is A.", "A", "A"),  # this form comes before all others
        ("The answer is (B), not C.", "B", "C"),  # the bracket keeps it from that form
        ("the answer is Nifedipine", "N", "N"),  # any capital A to N after "answer is"
        ("So: B. Then again, (C).", "B", "C"),
        ("B C D", "B", "D"),  # B's match includes the space after it, so C has none before it
        ("A patient with B-cell lymphoma: C", "B", "C"),  # the article is left out
        ("选B。", "B", "B"),
        ("Answer:B", "B", "B"),
        ("Hepatitis B", "B", "B"),
        ("zinc, then aspirin, then zinc", "A", "D"),  # the first choice is the option whose first occurrence comes last
        ("## Thinking\n\nB or C\n\n## Final Response\n\nIt is A!", "A", "A"),
        ("## Final Response\n\nB\n\n## Final Response\n\nD", "D", "D"),
        ("asprin would be it", "A", "A"),  # similarity
    ],
)
def test_huatuo_o1_matches_in_the_order_of_its_scorer(text: str, first: str, last: str) -> None:
    assert (answer("huatuo-o1-first", text), answer("huatuo-o1-last", text)) == (first, last)


def free_letters_of_the_source(text: str) -> list[str]:
    expression = r"([\u4e00-\u9fff]|is |是|项|\*|\W|\ |\(|为|^|'|\"|#)(?![aA] )([ABCD])(\W|[\u4e00-\u9fff]|$)"
    return [match.group(2) for match in re.finditer(expression, text, re.DOTALL)]


@settings(max_examples=400)
@given(texts.filter(lambda text: "answer is" not in text and "Final" not in text and "</s>" not in text))
def test_huatuo_o1_finds_the_letters_that_the_pattern_of_the_source_finds(text: str) -> None:
    letters = free_letters_of_the_source(text.removeprefix(" "))
    if letters:
        assert (answer("huatuo-o1-first", text), answer("huatuo-o1-last", text)) == (letters[0], letters[-1])
    else:
        span = read("huatuo-o1-last", text).span
        assert span is None or span[1] - span[0] > 1  # an option's text, or a guess


def test_huatuo_o1_guesses_the_most_similar_option_and_among_equals_the_last() -> None:
    assert answer("huatuo-o1-last", "?!") == "D"
    assert answer("huatuo-o1-last", "warfarine") == "C"
    assert read("huatuo-o1-last", "warfarim").span is None


def test_huatuo_o1_drops_only_an_empty_reply() -> None:
    for text in ("", " ", "</s>", " </s>"):
        assert huatuo_o1_output(text) == ""
        assert answer("huatuo-o1-last", text) is None
    assert read("huatuo-o1-last", "").outcome == "empty"
    assert huatuo_o1_output(" \n") == "\n"
    assert answer("huatuo-o1-last", " \n") == "D"  # the last of equally dissimilar options


def test_spans_account_for_header_and_first_space() -> None:
    text = " ## Final Response\n\nIt is (B), aspirin."
    assert text[slice(*read("huatuo-o1-last", text).span or ())] == "B"
    text = " it would be low-dose heparin"
    assert text[slice(*read("huatuo-o1-last", text).span or ())] == "low-dose heparin"
    assert read("huatuo-o1-last", "</s>It is (B)").span is None


# m1


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"A? B? So \boxed{C}.", "C"),
        (r"\boxed{A} ... \boxed{b}", "B"),  # the last box, in any case
        (r"\boxed{\text{D}}", "D"),
        (r"\boxed{X = B}", "B"),
        (r"\boxed{low-dose HEPARIN}", "B"),
        (r"\boxed{C. Warfarin}", "C"),
        (r"\boxed{C) Warfarin}", "C"),
        (r"\fbox{D}", "D"),
        (r"\boxed{warfarine}", "C"),
        (r"The answer is A. Or \boxed{B", "A"),  # an unclosed box does not count
        ("So: B. Then again, (C).", "C"),
        ("<|im_start|>think\n(A)\n<|im_start|>answer\nFinal Answer: (B)", "B"),
        (r"<|im_start|>think \boxed{A}<|im_start|>answer aspirin", "A"),
        ("(A)\n\n## Final Response\n\n(B)", "B"),
        ("<think>Perhaps (A), but", "A"),
        ("", "D"),
    ],
)
def test_m1_reads_the_last_box_or_everything(text: str, letter: str) -> None:
    assert answer("m1", text) == letter


def test_m1_knows_only_the_first_line_of_an_option() -> None:
    text = "It must be rest."
    assert text[slice(*read("m1", text, ("A", "B"), ("Rest\nin bed", "Zinc")).span or ())] == "rest"
    assert answer("m1", "and iron it is", ("A", "B"), ("Rest", "Zinc\nA. and iron")) == "A"
    assert answer("m1", "\\boxed{rest\nin bed}", ("A", "B"), ("Rest\nin bed", "Zinc")) == "A"


def test_m1_gives_the_span_of_the_answer() -> None:
    boxes = {r"So \boxed{\text{C}}": "C", r"\boxed{it is (B)}": "B", r"\boxed{zinc!}": "zinc"}
    for text, found in (boxes | {"(A)\n\n## Final Response\n\nzinc!": "zinc"}).items():
        assert text[slice(*read("m1", text).span or ())] == found


# all published extractors


@pytest.mark.parametrize("extractor", PUBLISHED)
def test_words_are_taken_by_their_position(extractor: str) -> None:
    text = "C" if extractor == "medhelm-letter" else "The answer is C"
    assert answer(extractor, text, WORDS, WORDS) == "maybe"


@pytest.mark.parametrize("extractor", ["huatuo-o1-last", "m1"])
def test_words_themselves_are_read_where_the_source_reads_options(extractor: str) -> None:
    assert answer(extractor, "maybe", WORDS, WORDS) == "maybe"
    assert answer("mmlu-pro", "maybe", WORDS, WORDS) is None


@pytest.mark.parametrize("extractor", ["mmlu-pro", "lm-eval-first", "huatuo-o1-last"])
def test_a_letter_beyond_the_labels_is_a_wrong_answer_and_not_a_missing_one(extractor: str) -> None:
    found = read(extractor, "The answer is H.")
    assert (found.answer, found.outcome) == ("H", "answered")


@pytest.mark.parametrize("extractor", PUBLISHED)
@settings(max_examples=200)
@given(texts, st.sampled_from([(FOUR, DRUGS), (WORDS, WORDS)]), st.sampled_from(["stop", "length"]), st.booleans())
def test_any_text_gives_a_label_or_a_letter_beyond_them_or_a_reason(
    extractor: str, text: str, asked: tuple[tuple[str, ...], tuple[str, ...]], reason: str, opened: bool
) -> None:
    labels, options = asked
    found = EXTRACTORS[extractor](text, labels=labels, options=options, finish_reason=reason, opened=opened)
    assert (found.outcome == "answered") == (found.answer is not None)
    assert found.answer is None or found.answer in labels or found.answer in LETTERS[len(labels) :]
    if found.answer is None:
        assert found.outcome in ("unparsed", "truncated", "empty")
        assert found.span is None
    if found.span is not None:
        start, end = found.span
        assert 0 <= start <= end <= len(text)
        letter = LETTERS[labels.index(found.answer)] if found.answer in labels else found.answer
        option = options[labels.index(found.answer)] if found.answer in labels else ""
        said = text[start:end].lower()
        assert said in (str(letter).lower(), option.lower(), f"{letter}. {option}".lower())


def test_similarity_is_not_tried_on_long_replies() -> None:
    assert answer("huatuo-o1-last", "e" * GUESS_CHARACTERS) is not None
    for extractor in ("huatuo-o1-first", "huatuo-o1-last", "m1"):
        assert read(extractor, "e" * (GUESS_CHARACTERS + 1)).outcome == "unparsed"


HOSTILE = ["A ", "answer", "answer is ", "answer:", "answer:\n", "Answer: ", "(", " ", "{", "}", "\\boxed{", "\\boxed"]
HOSTILE += ["是", "İ", "</s>", "<|im_start|>answer", "## Final Response\n\n", "low-dose heparin "]


@pytest.mark.slow
@pytest.mark.parametrize("extractor", PUBLISHED)
def test_a_megabyte_is_quick(extractor: str) -> None:
    for piece in HOSTILE:
        text = piece * (1_000_000 // len(piece))
        started = time.perf_counter()
        read(extractor, text, TEN, DRUGS * 2 + DRUGS[:2])
        assert time.perf_counter() - started < 10, piece  # about 0.2 s; the source's own patterns take hours


@pytest.mark.parametrize("extractor", ["huatuo-o1-last", "m1"])
def test_the_longest_similarity_search_is_quick(extractor: str) -> None:
    # every letter just rare enough that difflib looks at each of its occurrences
    text = "".join(chr(ord("a") + at % 26) if at % 4 == 0 else "\u0430" for at in range(GUESS_CHARACTERS))
    options = tuple("".join(chr(ord("a") + (at * step) % 26) for at in range(300)) for step in range(1, 11))
    started = time.perf_counter()
    read(extractor, text, TEN, options)
    assert time.perf_counter() - started < 5  # about 0.5 s
