"""Published reference rows: the list that ships is sound, a user's file adds to it, faults are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from medbench.harness.contracts import MedbenchError
from medbench.reports.read.references import read_references

ENTRY = """
  - model: {model}
    scores: {{medqa: 88.5}}
    protocol: their own
    source: {source}
    url: {url}
"""


def write(path: Path, *entries: str) -> Path:
    path.write_text("references:" + "".join(entries), encoding="utf-8")
    return path


def entry(model: str = "Toy", source: str = "a paper", url: str = "https://example.org/paper") -> str:
    return ENTRY.format(model=model, source=source, url=url)


def test_what_ships_has_gazal_r1_and_a_dozen_others_each_with_protocol_and_source() -> None:
    known = {one.model: one for one in read_references()}
    assert known["Gazal-R1"].scores == {"medqa": 87.1, "mmlu_pro_medical": 81.6, "pubmedqa": 79.6}
    assert len(known) >= 13
    assert all(one.protocol and one.source and one.url.startswith("https://") for one in known.values())


def test_a_file_adds_to_what_ships(tmp_path: Path) -> None:
    found = read_references(write(tmp_path / "mine.yaml", entry("Toy")))
    assert [one.model for one in found[:-1]] == [one.model for one in read_references()]
    assert found[-1].model == "Toy"


def test_the_same_model_and_source_is_replaced(tmp_path: Path) -> None:
    shipped = read_references()[0]
    found = read_references(write(tmp_path / "mine.yaml", entry(shipped.model, source=f'"{shipped.source}"')))
    assert len(found) == len(read_references())
    assert found[0].scores == {"medqa": 88.5}


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "http://example.org", "https://a b", '"https://a\\nb"', "/etc/passwd"]
)
def test_an_address_that_is_no_https_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(MedbenchError, match="https"):
        read_references(write(tmp_path / "mine.yaml", entry(url=url)))


@pytest.mark.parametrize("score", ["187.1", "-1", "nan", ".inf", "'87.1'", "true"])
def test_a_score_that_is_no_percentage_is_refused(tmp_path: Path, score: str) -> None:
    text = entry().replace("88.5", score)
    with pytest.raises(MedbenchError, match=r"scores\.medqa"):
        read_references(write(tmp_path / "mine.yaml", text))


def test_all_faults_are_in_one_line(tmp_path: Path) -> None:
    broken = entry().replace("88.5", "200").replace("    source: a paper\n", "    sauce: a paper\n")
    with pytest.raises(MedbenchError) as error:
        read_references(write(tmp_path / "mine.yaml", broken))
    assert all(f"references.0.{key}" in str(error.value) for key in ("scores.medqa", "sauce", "source"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match=r"mine\.yaml"):
        read_references(tmp_path / "mine.yaml")
