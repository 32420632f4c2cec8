"""Sweeps on the pages.

pytest tests/reports/test_sweep_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lxml import html
from support.hostile import HOSTILE
from support.made_sweeps import a_cell, a_sweep

from medbench.harness.cli.main import run
from medbench.harness.sweeps.record import SWEEP, CellRecord, read_sweep, write_sweep
from medbench.reports.read.collect import collect
from medbench.reports.read.folders import signature
from medbench.reports.views.sweep_charts import HEIGHT, WIDTH, Given, chart
from medbench.reports.write.pages import index_page, sweep_page


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    a_sweep(tmp_path / "runs" / "sweep-methods")
    return tmp_path / "runs"


def texts(tree: Any, path: str) -> list[list[str]]:
    return [[" ".join(cell.text_content().split()) for cell in row] for row in tree.xpath(path)]


def test_the_first_page_lists_it_with_its_best_cell(runs: Path) -> None:
    tree = html.fromstring(index_page(collect([runs])))
    ((_, *cells),) = texts(tree, "//section[@aria-labelledby='h-sweeps']//tbody/tr")
    assert cells[:6] == ["complete", "kind, data fraction", "4", "4", "3", "kind-lora_data_fraction-1.0"]
    assert cells[6].startswith("60.0 % (")


def test_its_page_has_scores_costs_and_who_was_dropped_when(runs: Path) -> None:
    (one,) = collect([runs]).sweeps
    tree = html.fromstring(sweep_page(one, {}))
    rows = texts(tree, "//section[@aria-labelledby='h-cells']//tbody/tr")
    assert [row[0] for row in rows] == ["lora", "ia3", "lora", "ia3"]  # by score, what was dropped last
    assert rows[0][2].startswith("60.0 50.0–70.0128 of 128")
    assert rows[0][3] == "best"
    assert "dropped" in rows[-1][3]
    assert "after 21 questions" in rows[-1][3]
    assert rows[0][7:10] == ["4,884,480", "2.50", "3 min"]
    (first, _) = texts(tree, "//section[@aria-labelledby='h-rounds']//tbody/tr")
    assert first[:3] == ["1", "32", "3"]
    assert first[3].startswith("kind-ia3_data_fraction-0.1, after 21")
    said = tree.text_content()
    assert "dropped with probability at most 0.05" in said
    assert "is at level 0.017" in said
    assert "58.0 % (50.0–66.0)" in said  # on questions that nothing has looked at


def test_its_curves_join_the_shares_of_the_data_of_each_method(runs: Path) -> None:
    (one,) = collect([runs]).sweeps
    tree = html.fromstring(sweep_page(one, {}))
    titles = [" ".join(caption.text_content().split()) for caption in tree.xpath("//figure/figcaption")]
    assert titles == [
        "Score by share of the training data, %",
        "Score by trained parameters, %",
        "Score by time of training, %",
    ]  # all cells took the same memory
    curve, parameters, _ = tree.xpath("//figure/svg")
    assert len(curve.xpath(".//path[@class='curve']")) == 2
    assert len(parameters.xpath(".//path[@class='curve']")) == 0
    assert len(curve.xpath(".//g[contains(@class, 'dot')]")) == 4
    assert len(curve.xpath(".//g[contains(@class, 'gone')]")) == 1
    ticks = [text.text for text in curve.xpath("./text")]
    assert "10 %" in ticks
    assert "100 %" in ticks


def test_a_cells_training_is_linked_where_it_is_on_the_site(runs: Path) -> None:
    (one,) = collect([runs]).sweeps
    tree = html.fromstring(sweep_page(one, {"kind-ia3_data_fraction-1.0": "train-ia3"}))
    assert tree.xpath("//section[@aria-labelledby='h-cells']//a/@href") == ["../../trainings/train-ia3/index.html"]


def test_a_site_is_made_of_sweeps_alone_and_only_what_changed_is_written(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    assert run(["report", str(runs), "-o", str(site)]) == 0
    assert "1 sweep," in capsys.readouterr().out
    page = site / "sweeps/sweep-methods/index.html"
    first = page.stat().st_mtime_ns
    assert run(["report", str(runs), "-o", str(site), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["sweeps"], done["written"]) == (1, 0)
    assert page.stat().st_mtime_ns == first
    before = signature([runs])
    folder = runs / "sweep-methods"
    write_sweep(folder, read_sweep(folder).model_copy(update={"state": "comparing"}))
    assert signature([runs]) != before


def test_a_sweep_under_way_has_a_page(tmp_path: Path) -> None:
    cells = [CellRecord(name=f"seed-{at}", values={"seed": str(at)}) for at in (1, 2)]
    a_sweep(tmp_path / "runs/sweep-new", state="training", cells=cells, best=None, rounds=[], alpha_each=None)
    (one,) = collect([tmp_path / "runs"]).sweeps
    text = " ".join(html.fromstring(sweep_page(one, {})).text_content().split())
    assert "2 cells, 0 trained so far" in text
    assert not html.fromstring(sweep_page(one, {})).xpath("//figure")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"schema_version": 99}',
        b'{"schema_version": 1}',
        b'{"schema_version": 1, "name": NaN}',
    ],
)
def test_what_cannot_be_read_is_listed_with_its_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "runs/sweep-bad").mkdir(parents=True)
    (tmp_path / "runs/sweep-bad" / SWEEP).write_bytes(content)
    found = collect([tmp_path / "runs"])
    assert found.sweeps == ()
    (broken,) = found.broken
    assert broken.name == "sweep-bad"
    assert "\n" not in broken.reason


def test_figures_that_are_no_numbers_are_not_drawn(runs: Path) -> None:
    path = runs / "sweep-methods" / SWEEP
    path.write_text(path.read_text().replace('"log_e": 5.2', '"log_e": NaN'))
    assert "not a number" in collect([runs]).broken[0].reason


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    cells = [
        CellRecord(name=f"a{at}", values={"start": text}, training=a_cell("ia3", "1.0", 0.5).training)
        for at, text in enumerate(HOSTILE)
    ]
    a_sweep(tmp_path / "runs/sweep-x", name=HOSTILE[0], cells=cells, best=None, rounds=[])
    (one,) = collect([tmp_path / "runs"]).sweeps
    tree = html.fromstring(sweep_page(one, {}))
    assert not tree.xpath("//script[not(@src)]")
    assert not tree.xpath("//@onerror | //@onload | //@onclick")
    index_page(collect([tmp_path / "runs"]))


def test_every_mark_of_a_chart_is_inside_it() -> None:
    cells = [Given(f"c{at}", at % 5, 10.0**-at, 0.5, (0.0, 1.0), dropped=bool(at % 2)) for at in range(8)]
    for unit in ("share", "parameters", "number"):
        drawn = chart("x", "x", cells, unit, joined=unit == "share")
        assert drawn is not None
        for line in drawn.lines:
            for dot in line.dots:
                assert 0 < float(dot.x) < WIDTH
                assert all(0 < float(place) < HEIGHT for place in (dot.y, dot.low, dot.high))
        assert all(0 < float(tick.at) < WIDTH for tick in drawn.x_ticks)
        places = [float(tick.at) for tick in drawn.x_ticks]
        assert places == sorted(places)
        assert drawn.x_ticks


def test_cells_at_one_place_make_no_chart() -> None:
    assert chart("x", "x", [Given("a", 0, 1.0, 0.5, (0.4, 0.6), dropped=False)] * 2, "number") is None
