"""Pairs of step and source: what is known of each, how they are balanced, and which abstracts they come from."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from support.abstracts import abstracts_data

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.abstracts import Abstract, abstracts_of, sha256_of
from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.judges.counterfactuals import CHANGES
from medbench.harness.judges.local.pairs import LEFT_OUT, OTHER, Pair, conclusions_of, pairs_of


@pytest.fixture(scope="module")
def abstracts(tmp_path_factory: pytest.TempPathFactory) -> list[Abstract]:
    return abstracts_of(str(abstracts_data(tmp_path_factory.mktemp("data"), 40)), "train")


@pytest.fixture(scope="module")
def pairs(abstracts: list[Abstract]) -> list[Pair]:
    return pairs_of(abstracts, seed=3)


def test_each_abstract_has_as_many_steps_of_each_verdict(pairs: list[Pair]) -> None:
    counts: dict[str, Counter[str]] = {}
    for pair in pairs:
        counts.setdefault(pair.abstract, Counter())[pair.verdict] += 1
    assert len(counts) == 40
    for found in counts.values():
        assert set(found) == set(VERDICTS)
        assert len({*found.values()}) == 1


def test_a_supported_step_is_of_its_source_or_of_its_authors_conclusion(
    abstracts: list[Abstract], pairs: list[Pair]
) -> None:
    by_id = {one.id: one for one in abstracts}
    supported = [pair for pair in pairs if pair.verdict == "supported"]
    assert {pair.form for pair in supported} == {"sentence", "conclusion"}
    for pair in supported:
        if pair.form == "sentence":
            assert pair.origin in set(by_id[pair.abstract].sentences())
            assert pair.origin in pair.source
        else:
            assert pair.origin in by_id[pair.abstract].conclusion
            assert pair.origin not in pair.source


def test_what_is_contradicted_differs_from_its_origin_which_the_source_supports(pairs: list[Pair]) -> None:
    contradicted = [pair for pair in pairs if pair.verdict == "contradicted"]
    assert {pair.kind for pair in contradicted} >= {"number", "direction", "negation", "population", "drug", "finding"}
    assert {pair.kind for pair in contradicted} <= set(CHANGES)
    for pair in contradicted:
        assert pair.step != pair.origin
        assert pair.form == "conclusion" or pair.origin in pair.source


def test_a_changed_number_is_not_in_the_source(pairs: list[Pair]) -> None:
    for pair in pairs:
        if pair.kind == "number":
            known = set(re.findall(r"\d+(?:\.\d+)?", f"{pair.source} {pair.origin}"))
            assert set(re.findall(r"\d+(?:\.\d+)?", pair.step)) - known


def test_what_is_not_covered_is_left_out_of_the_source_or_of_another_abstract(
    abstracts: list[Abstract], pairs: list[Pair]
) -> None:
    by_id = {one.id: one for one in abstracts}
    for pair in pairs:
        if pair.kind == LEFT_OUT:
            assert pair.origin in set(by_id[pair.abstract].sentences())
            assert pair.origin not in pair.source
        if pair.kind == OTHER:
            own = by_id[pair.abstract]
            assert pair.origin not in {*own.sentences(), *own.conclusion}


def test_steps_of_all_verdicts_are_reworded_and_framed(pairs: list[Pair]) -> None:
    for verdict in VERDICTS:
        steps = [pair.step for pair in pairs if pair.verdict == verdict]
        assert any(re.match(r"The (abstract|authors|study|text)", step) for step in steps)
        assert any(" percent" in step for step in steps)
    assert any(pair.step == pair.origin for pair in pairs)


def test_the_same_seed_makes_the_same_pairs_and_another_seed_others(abstracts: list[Abstract]) -> None:
    assert pairs_of(abstracts[:10], seed=3) == pairs_of(abstracts[:10], seed=3)
    assert pairs_of(abstracts[:10], seed=3) != pairs_of(abstracts[:10], seed=4)


def test_a_conclusion_that_advises_or_speaks_of_something_else_is_not_used() -> None:
    text = "Drug A lowered blood pressure of 30 patients with diabetes in the trial."
    abstract = Abstract(
        id="1",
        question="?",
        text=text,
        sections=((text,),),
        conclusion=(
            "Blood pressure of patients with diabetes was lowered.",
            "Blood pressure of patients with diabetes should be lowered.",
            "Economists disagree about inflation and the price of tea.",
        ),
        decision="yes",
    )
    assert conclusions_of(abstract) == ["Blood pressure of patients with diabetes was lowered."]


def test_the_hash_of_abstracts_is_of_their_contents_in_any_order(abstracts: list[Abstract]) -> None:
    assert sha256_of(abstracts) == sha256_of(abstracts[::-1])
    assert sha256_of(abstracts) != sha256_of(abstracts[1:])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "train.jsonl:1: "),
        ("[1]", "train.jsonl:1: expected a JSON object"),
        ('{"pubid": 1}', "train.jsonl:1: question: field required"),
        ('{"pubid": 1, "question": "?", "context": {"contexts": ["a"]}, "final_decision": "yes"}', "long_answer"),
        (
            '{"pubid": 1, "question": "?", "context": {"contexts": ["a"]}, "long_answer": "b", "final_decision": "si"}',
            "final_decision: input should be 'yes', 'no' or 'maybe'",
        ),
        (
            '{"pubid": 1, "question": "\\ud83d", "context": {"contexts": ["a"]}, "long_answer": "b", '
            '"final_decision": "no"}',
            "question: input should be a valid string",
        ),
        ("", "no abstracts in its split train"),
    ],
)
def test_a_faulty_row_is_one_line(tmp_path: Path, line: str, told: str) -> None:
    folder = abstracts_data(tmp_path)
    (folder / "pubmedqa" / "train.jsonl").write_text(line + "\n")
    with pytest.raises(MedbenchError) as caught:
        abstracts_of(str(folder), "train")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_twice_a_missing_folder_and_the_sample_are_refused(tmp_path: Path) -> None:
    folder = abstracts_data(tmp_path)
    file = folder / "pubmedqa" / "train.jsonl"
    file.write_text(file.read_text() * 2)
    with pytest.raises(MedbenchError, match="duplicate id 1; remove one"):
        abstracts_of(str(folder), "train")
    with pytest.raises(MedbenchError, match="does not exist: correct --data"):
        abstracts_of(str(tmp_path / "none"), "train")
    with pytest.raises(MedbenchError, match="sample has a few abstracts only"):
        abstracts_of("sample", "train")


@pytest.mark.data
def test_real_abstracts_give_balanced_pairs_of_every_kind(data_dir: Path) -> None:
    found = pairs_of(abstracts_of(str(data_dir), "test")[:120], seed=0)
    counts = Counter(pair.verdict for pair in found)
    assert len({*counts.values()}) == 1
    assert {pair.kind for pair in found} == {"", *CHANGES, LEFT_OUT, OTHER}
