"""judge.html: one file, its figures, and nothing of it from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re

from lxml import html

from medbench.harness.judges.local.report import Bin, Figures, Interval, KindReport, Report, Verdicts
from medbench.reports.write.pages import trained_judge_page


def figures(value: float | None) -> Figures:
    auroc = None if value is None else Interval(value=value, low=value - 0.02, high=value + 0.02)
    bins = [
        Bin(low=0.0, high=0.1, steps=40, probability=0.05, share=0.025),
        Bin(low=0.9, high=1.0, steps=60, probability=0.96, share=0.9),
    ]
    return Figures(auroc=auroc, ece=0.046, bins=bins)


def report(base: str = "smollm2-135m") -> Report:
    same = Interval(value=0.81, low=0.79, high=0.83)
    verdicts = Verdicts(same=same, kappa=None, sensitivity={"supported": 0.9, "contradicted": 0.8, "not covered": None})
    kinds = [("all", 0.93), ("number", 0.99), ("drug", 0.61), ("finding", None)]
    return Report(
        base=base,
        layers=20,
        abstracts={"trained": 400, "calibrated": 100, "tested": 250},
        pairs={"trained": 6600, "calibrated": 1600, "tested": 4000},
        seconds=1110.0,
        cores=2,
        torch="2.13.0",
        kinds=[
            KindReport(kind=kind, faulty=60, supported=40, judge=figures(value), baseline=figures(0.7))
            for kind, value in kinds
        ],
        judge=verdicts,
        baseline=verdicts,
    )


def test_the_page_has_each_kind_with_both_figures_and_names_what_is_not_found() -> None:
    tree = html.document_fromstring(trained_judge_page(report()))
    rows = {row.xpath("string(th)"): row.text_content() for row in tree.xpath("//section[1]//tbody/tr")}
    assert list(rows) == ["All faults", "Number", "Drug", "Finding"]
    assert "0.990" in rows["Number"]
    assert "0.700" in rows["Number"]
    assert "not defined" in rows["Finding"]
    assert "drug, finding" in tree.xpath("string(//p[@class='mark'])")
    assert "18.5 minutes on 2 cores" in tree.text_content()


def test_each_kind_has_a_calibration_plot_with_its_numbers() -> None:
    tree = html.document_fromstring(trained_judge_page(report()))
    plots = tree.xpath("//figure/svg")
    assert len(plots) == 4
    assert [len(plot.xpath(".//circle")) for plot in plots] == [4, 4, 4, 4]
    titles = plots[0].xpath(".//circle[@class='cal-judge']/title/text()")
    assert "Judge, 60 steps: probability 0.96, supported 0.90" in titles
    assert "0.960" in tree.xpath("string(//details)")


def test_the_page_is_one_file_and_its_policy_allows_its_own_style_only() -> None:
    page = trained_judge_page(report())
    tree = html.document_fromstring(page)
    assert not tree.xpath("//script | //link[@rel='stylesheet'] | //img | //*[@style]")
    (policy,) = tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy


def test_the_name_of_a_model_is_text() -> None:
    page = trained_judge_page(report("<script>alert(1)</script>"))
    assert "<script>" not in page
