"""Questions as claims, and PubMedQA's labels as a file for `judge check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.abstracts import abstracts_data

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.claims import claim_of
from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.judges.direct_check import read_labelled
from medbench.harness.judges.question_labels import write_labels


@pytest.mark.parametrize(
    ("question", "claim"),
    [
        (
            "Does diabetes mellitus influence the efficacy of PET?",
            "Diabetes mellitus does influence the efficacy of PET.",
        ),
        ("Is halofantrine ototoxic?", "Halofantrine is ototoxic."),
        ("Are many of the colorectal cancers due to missed adenomas?", None),
        (
            "Is primary angioplasty an acceptable alternative to thrombolysis?",
            "Primary angioplasty is an acceptable alternative to thrombolysis.",
        ),
        (
            "Double balloon enteroscopy: is it safe in a  community setting?",
            "Double balloon enteroscopy: it is safe in a community setting.",
        ),
        ("Is there a role for fondaparinux?", "There is a role for fondaparinux."),
        ("Can patients with diabetes predict their glucose?", "Patients with diabetes can predict their glucose."),
        ("Has survival of trauma patients improved?", "Survival of trauma patients has improved."),
        ("Sternal fracture in children: a rare fracture?", None),
        ("", None),
    ],
)
def test_a_question_is_a_claim_or_quoted_whole(question: str, claim: str | None) -> None:
    found = claim_of(question)
    assert found == (claim or found)
    if claim is None and question and not found.startswith("Many"):
        assert found == f'The answer to the question "{question}" is yes.'


@given(st.text(max_size=300))
def test_any_text_gives_one_line(text: str) -> None:
    assert claim_of(text).endswith(".")
    assert "\n" not in claim_of(text)


def test_the_labels_of_pubmedqa_are_a_file_that_check_reads(tmp_path: Path) -> None:
    data = abstracts_data(tmp_path / "data")
    assert write_labels(tmp_path / "labels.jsonl", str(data)) == 30
    labelled = read_labelled(tmp_path / "labels.jsonl")
    assert len(labelled) == 30
    assert {one.label for one in labelled} == set(VERDICTS)
    row = json.loads((data / "pubmedqa" / "test.jsonl").read_text().splitlines()[0])
    (own,) = [one for one in labelled if one.id == str(row["pubid"])]
    assert own.item.source == "\n".join(row["context"]["contexts"])
    assert own.label == {"yes": "supported", "no": "contradicted", "maybe": "not covered"}[row["final_decision"]]
    write_labels(tmp_path / "whole.jsonl", str(data), with_conclusion=True)
    assert all("Further research" in one.item.source for one in read_labelled(tmp_path / "whole.jsonl"))


def test_labels_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    data = abstracts_data(tmp_path / "data")
    with pytest.raises(MedbenchError, match="cannot be written"):
        write_labels(tmp_path / "none" / "labels.jsonl", str(data))
