"""Judged reasoning on the pages: what the judge said, where it said it, and how far it can be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lxml import html
from support.gate_runs import answer, stored_run
from support.hostile import HOSTILE
from support.judged_pages import as_judged, checked_by_people
from support.pages import shape

from medbench.harness.contracts import Sample
from medbench.harness.judges.scored import scored_path
from medbench.reports.read.collect import collect
from medbench.reports.read.flips import compared
from medbench.reports.read.folders import signature
from medbench.reports.read.judged import MOST_JUDGES
from medbench.reports.read.records import RunView
from medbench.reports.write.pages import compare_page, run_page
from medbench.reports.write.site import build
from medbench.reports.write.viewer_data import write_task

WORDS = {"s": "supported", "c": "contradicted", "n": "not covered", "-": None}


def reply(at: int, middle: str = "It fell by 5 \U0001d54f points.") -> str:
    return f"<think>\nDrug {at} lowers it. {middle} Is that so? I doubt it.\n</think>\n\nThe answer is (A)."


def a_run(root: Path, name: str = "run", outputs: list[str] | None = None, **changes: Any) -> Path:
    outputs = outputs if outputs is not None else [reply(at) for at in range(20)]
    samples: list[Sample] = [answer(f"q{at}", output=output) for at, output in enumerate(outputs)]
    return stored_run(root, name, {"medqa": samples}, **changes)


def view(root: Path, name: str = "run") -> RunView:
    return next(run for run in collect([root]).runs if run.id == name)


def page_of(root: Path, name: str = "run") -> Any:
    collection = collect([root])
    run = next(run for run in collection.runs if run.id == name)
    return html.document_fromstring(run_page(collection, run))


def text_of(page: Any) -> str:
    return " ".join(page.text_content().split())


def rows_of(folder: Path, judges: tuple[str, ...] = ("command",)) -> list[list[Any]]:
    """The viewer's rows, as a browser gets them."""
    files: dict[str, bytes] = {}
    write_task(folder, "medqa", "run", "slug", files.__setitem__, None, judges)
    found = []
    for number in range(sum(name[0].isdigit() for name in files)):
        text = files[f"{number}.js"].decode()
        assert "<" not in text
        found += json.loads(f"[{text.removeprefix('medbenchChunk(').removesuffix(');' + chr(10))}]")[3]
    return found


def utf16(text: str, start: int, end: int) -> str:
    return text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le")


def test_marked_steps_in_the_viewer_are_those_of_the_judgements(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    said = as_judged(folder, "medqa")
    marked = [
        (row[0], " ".join(utf16(row[3], start, end).split()), WORDS[letter])
        for row in rows_of(folder)
        for start, end, letter in row[16][0][1]
    ]
    assert sorted(marked, key=str) == sorted(((one.id, one.step, one.verdict) for one in said), key=str)
    assert len(marked) == 80


def test_a_reply_that_was_not_judged_has_no_marks_and_neither_has_one_that_changed(tmp_path: Path) -> None:
    folder = a_run(tmp_path, outputs=[reply(0), reply(1)])
    as_judged(folder, "medqa")
    samples = folder / "samples" / "medqa.jsonl"
    first, second = (json.loads(line) for line in samples.read_text().splitlines())
    samples.write_text(f"{json.dumps(first | {'id': 'new'})}\n{json.dumps(second | {'output': 'short'})}\n")
    assert {row[0]: row[16] for row in rows_of(folder)} == {"new": None, second["id"]: [["command", [], 4, None]]}


def test_the_run_page_has_shares_scores_and_their_intervals_and_says_that_nobody_has_checked(tmp_path: Path) -> None:
    as_judged(a_run(tmp_path), "medqa")
    page = page_of(tmp_path)
    text = text_of(page)
    assert "Reasoning as judged by command" in text
    assert "Agreement with people is not known." in text
    assert "Corrected" not in text
    assert "Too many steps have no verdict." in text
    cells = {
        row.xpath("string(th)"): row.xpath("string(td)").split()[0]
        for row in page.xpath("//table[caption[contains(., 'clustered by question')]]/tbody/tr")
    }
    assert (cells["supports the step"], cells["contradicts it"], cells["does not cover it"]) == ("50.0", "25.0", "25.0")
    assert {"factuality", "effectiveness", "completeness"} <= cells.keys()


def test_kappa_and_corrected_shares_are_shown_also_from_labels_of_another_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        as_judged(a_run(tmp_path, name), "medqa")
    checked_by_people(tmp_path / "one", "medqa")
    own, other = (text_of(page_of(tmp_path, name)) for name in ("one", "two"))
    assert "Agreement with people: kappa 0.61 (0.52 to 0.70) on 30 steps of 12 questions." in own
    assert "on 30 steps of 12 questions of run one." in other
    for text in (own, other):
        assert "Corrected by error rates" in text
        assert "not known" not in text


def test_a_check_changes_the_pages_that_it_matters_to_and_no_others(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        as_judged(a_run(tmp_path / "runs", name), "medqa", fingerprint="b2" if name == "three" else "a1b2c3d4e5f60718")
    before = signature([tmp_path / "runs"])
    build(collect([tmp_path / "runs"]), tmp_path / "site")
    pages = {name: (tmp_path / f"site/runs/{name}/index.html").read_bytes() for name in ("one", "two", "three")}
    again = build(collect([tmp_path / "runs"]), tmp_path / "site")
    assert again.written == 0
    checked_by_people(tmp_path / "runs" / "one", "medqa")
    assert signature([tmp_path / "runs"]) != before
    build(collect([tmp_path / "runs"]), tmp_path / "site")
    changed = [name for name, old in pages.items() if (tmp_path / f"site/runs/{name}/index.html").read_bytes() != old]
    assert changed == ["one", "two"]


def test_judging_again_rewrites_the_viewers_data(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "runs")
    build(collect([tmp_path / "runs"]), tmp_path / "site")
    data = tmp_path / "site/runs/run/data/medqa/0.js"
    before = data.read_bytes()
    as_judged(folder, "medqa")
    build(collect([tmp_path / "runs"]), tmp_path / "site")
    assert data.read_bytes() != before


def test_the_compare_page_has_paired_differences_or_says_why_not(tmp_path: Path) -> None:
    as_judged(a_run(tmp_path, "a"), "medqa")
    as_judged(a_run(tmp_path, "b"), "medqa", start=1)
    as_judged(a_run(tmp_path, "c"), "medqa", fingerprint="ffff")

    def page(one: str, two: str) -> str:
        a, b = view(tmp_path, one), view(tmp_path, two)
        found = compared(a, b)
        made = compare_page(a, b, found.comparisons, found.flips, found.fault, found.judged)
        return text_of(html.document_fromstring(made))

    assert "MedQA, judged by command a1b2c3d4e5f6" in page("a", "b")
    assert "effectiveness" in page("a", "b")
    assert "not compared, B was judged by another version of command" in page("a", "c")


def test_hostile_steps_and_faults_are_text_on_every_page(tmp_path: Path) -> None:
    words = [" ".join(text.split()) for text in HOSTILE]
    for name, outputs in (("plain", [reply(at) for at in range(len(words))]), ("odd", [reply(0, w) for w in words])):
        as_judged(a_run(tmp_path, name, outputs), "medqa")
    path = scored_path(tmp_path / "odd", "medqa", "command")
    content = json.loads(path.read_bytes())
    (old,) = content["faults"]
    content["faults"] = {"<script>alert(1)</script>": content["faults"][old]}
    path.write_text(json.dumps(content))
    collection = collect([tmp_path])
    made = [run_page(collection, run) for run in collection.runs]
    assert all("<script>alert" not in page for page in made)
    assert shape(made[0]) == shape(made[1])
    assert len(rows_of(tmp_path / "odd")) == len(words)


@pytest.mark.parametrize("content", ["{", "[]", '{"task": "medqa"}', "null", "\0"])
def test_damaged_files_are_listed_and_the_rest_is_shown(tmp_path: Path, content: str) -> None:
    folder = a_run(tmp_path)
    as_judged(folder, "medqa", "other")
    for name in ("medqa.command.scores.json", "medqa.other.agreement.json"):
        (folder / "judgements" / name).write_text(content)
    collection = collect([tmp_path])
    assert [judge.judge for judge in collection.runs[0].judged["medqa"]] == ["other"]
    assert sorted(one.reason.partition(":")[0] for one in collection.broken) == [
        "judgements/medqa.command.scores.json",
        "judgements/medqa.other.agreement.json",
    ]
    build(collection, tmp_path / "site")


def test_a_file_of_scores_that_leads_elsewhere_is_not_read(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "runs")
    as_judged(folder, "medqa")
    path = scored_path(folder, "medqa", "command")
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    collection = collect([tmp_path / "runs"])
    assert collection.runs[0].judged == {}
    assert "a link that leads out of its folder" in collection.broken[0].reason


def test_only_a_few_judges_of_a_task_are_shown(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    for at in range(MOST_JUDGES + 2):
        as_judged(folder, "medqa", f"judge{at}")
    assert len(view(tmp_path).judged["medqa"]) == MOST_JUDGES
