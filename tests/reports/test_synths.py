"""Folders of `medbench synth` on the pages.

pytest tests/reports/test_synths.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lxml import html
from support.hostile import HOSTILE
from support.synth import recipe, write_one_wrong

from medbench.harness.cli.main import run
from medbench.harness.synth.synth import SynthOptions, synthesize
from medbench.reports.read.collect import collect
from medbench.reports.read.folders import signature
from medbench.reports.write.pages import index_page, synth_page


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one folder of synth, in which three of four replies passed."""
    write_one_wrong(tmp_path)
    (tmp_path / "runs").mkdir()
    synthesize(SynthOptions(recipe(tmp_path), tmp_path / "runs/mine"), lambda _: None)
    return tmp_path / "runs"


def test_the_first_page_lists_it_with_its_yield(runs: Path) -> None:
    tree = html.fromstring(index_page(collect([runs])))
    (row,) = tree.xpath("//section[@aria-labelledby='h-synths']//tbody/tr")
    cells = [" ".join(cell.text_content().split()) for cell in row]
    assert cells[1:6] == ["complete", "stored", "4", "4", "3"]
    assert cells[6].startswith("75.0 (")
    assert row.xpath(".//a/@href") == ["synths/mine/index.html"]


def test_its_page_has_the_counts_of_the_card(runs: Path) -> None:
    (one,) = collect([runs]).synths
    text = html.fromstring(synth_page(one)).text_content()
    assert "3 of 4 replies passed: 75.0 %" in text
    assert "answer not right" in text
    assert "The answer is (" in text  # of the rejected reply


def test_a_site_is_made_of_such_folders_alone_and_only_what_changed_is_written(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    assert run(["report", str(runs), "-o", str(site)]) == 0
    assert "1 folder of synthetic data" in capsys.readouterr().out
    assert (site / "synths/mine/index.html").exists()
    assert run(["report", str(runs), "-o", str(site)]) == 0
    assert " 0 files written" in capsys.readouterr().out


def test_a_change_is_seen_by_those_who_poll(runs: Path) -> None:
    before = signature([runs])
    (runs / "mine/synth.json").write_text((runs / "mine/synth.json").read_text() + " ")
    assert signature([runs]) != before


def test_one_that_is_not_finished_says_how_to_go_on(runs: Path) -> None:
    path = runs / "mine/synth.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "card": None, "status": "running"}))
    collection = collect([runs])
    assert "--resume" in synth_page(collection.synths[0])
    assert "running" in index_page(collection)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema_version": 99}', "null"])
def test_a_damaged_one_is_listed_with_its_reason(runs: Path, content: str) -> None:
    (runs / "mine/synth.json").write_text(content)
    (broken,) = collect([runs]).broken
    assert broken.name == "mine"
    assert broken.reason
    assert "mine" in index_page(collect([runs]))


@pytest.mark.parametrize("text", HOSTILE[::7])
def test_what_a_model_wrote_is_shown_and_never_run(runs: Path, text: str) -> None:
    path = runs / "mine/synth.json"
    record = json.loads(path.read_text())
    record["name"] = record["card"]["kinds"][0]["kind"] = text
    for example in record["card"]["examples"]:
        example.update(question=text, text=text, reason=text, kind=text)
    path.write_text(json.dumps(record))
    (one,) = collect([runs]).synths
    for page in (synth_page(one), index_page(collect([runs]))):
        tree = html.fromstring(page)
        assert not tree.xpath("//script[not(@src)]")
        assert not tree.xpath("//main//img | //main//iframe | //*[@onerror or @onload or @onclick]")
