"""Building a site: what is written, what is left alone, and that nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from support.gate_runs import answers, stored_run
from support.hostile import hostile_runs

from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.reports.read.collect import collect
from medbench.reports.write import manifest, site
from medbench.reports.write.manifest import ASIDE, LOCK, MARKER, Manifest, Writer
from medbench.reports.write.site import BuildReport, build

CORE = {"index.html", "runs.js", "leaderboard.json", "leaderboard.csv", "leaderboard.md", MARKER, LOCK}


def a_run(root: Path, name: str, right: int = 3, n: int = 5) -> Path:
    return stored_run(root, name, {"medqa": answers(right, n - right), "pubmedqa": answers(1, 1)})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b", "c")):
        a_run(tmp_path / "runs", name, number + 1)
    return tmp_path / "runs"


def made(runs: Path, folder: Path, **changes: Path) -> BuildReport:
    return build(collect([runs]), folder, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files(folder)}


def inodes(folder: Path) -> dict[str, int]:
    """A file that is written again, even with the same bytes, has another one."""
    return {path.relative_to(folder).as_posix(): path.stat().st_ino for path in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def rewritten(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in after if before.get(name) != after[name]} - {MARKER}


def test_all_pages_and_data_of_each_run_are_there(runs: Path, tmp_path: Path) -> None:
    report = made(runs, tmp_path / "site")
    names = set(contents(tmp_path / "site"))
    assert names >= CORE
    for name in ("a", "b", "c"):
        assert {f"runs/{name}/index.html", f"runs/{name}/viewer.html"} <= names
        for task in ("medqa", "pubmedqa"):
            assert {f"runs/{name}/data/{task}/{file}" for file in ("index.js", "0.js", "scores.json")} <= names
    assert {"compare/a--b.html", "compare/a--c.html", "compare/b--c.html"} <= names
    assert (report.runs, report.broken, report.skipped, report.removed) == (3, 0, 0, 0)
    assert report.written == len(names) - 2  # all but the marker and the lock
    assert not (tmp_path / "site" / ASIDE).exists()


def test_every_local_address_in_the_pages_leads_to_a_file(runs: Path, tmp_path: Path) -> None:
    from lxml import html

    made(runs, tmp_path / "site")
    seen = 0
    for page in (tmp_path / "site").rglob("*.html"):
        for _, kind, address, _ in html.fromstring(page.read_bytes()).iterlinks():
            local = address.partition("#")[0].partition("?")[0]
            if kind in ("href", "src") and local and not address.startswith(("https:", "data:")):
                assert (page.parent / local).is_file(), f"{page}: {address}"
                seen += 1
    assert seen > 20


def test_two_builds_of_the_same_runs_are_byte_identical(runs: Path, tmp_path: Path) -> None:
    made(runs, tmp_path / "one")
    made(runs, tmp_path / "two")
    first, second = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert first == second
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_a_site_built_step_by_step_is_the_one_built_at_once(runs: Path, tmp_path: Path) -> None:
    made(runs, tmp_path / "steps")
    a_run(runs, "d", 5)
    made(runs, tmp_path / "steps")
    shutil.rmtree(runs / "a")
    shutil.rmtree(runs / "b")
    a_run(runs, "b", 0)
    made(runs, tmp_path / "steps")
    made(runs, tmp_path / "once")
    assert contents(tmp_path / "steps") == contents(tmp_path / "once")


def test_other_processes_write_the_same_bytes(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(runs, tmp_path / "alone")
    for name in ("MOST_ALONE", "MANY_PAGES", "MANY_PAIRS"):
        monkeypatch.setattr(site, name, 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    made(runs, tmp_path / "together")
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")


def test_nothing_is_written_when_nothing_changed(runs: Path, tmp_path: Path) -> None:
    first = made(runs, tmp_path / "site")
    before = inodes(tmp_path / "site")
    report = made(runs, tmp_path / "site")
    assert rewritten(before, inodes(tmp_path / "site")) == set()
    assert (report.written, report.skipped) == (0, first.written)


def test_a_changed_run_is_written_anew_and_no_other(runs: Path, tmp_path: Path) -> None:
    made(runs, tmp_path / "site")
    before = inodes(tmp_path / "site")
    shutil.rmtree(runs / "b")
    a_run(runs, "b", 2, n=6)
    made(runs, tmp_path / "site")
    changed = rewritten(before, inodes(tmp_path / "site"))
    assert {name.split("/")[1] for name in changed if name.startswith("runs/")} == {"b"}
    assert {name for name in changed if name.startswith("compare/")} == {"compare/a--b.html", "compare/b--c.html"}
    assert "index.html" in changed
    assert not any(name.startswith("assets/") for name in changed)


def test_data_of_a_task_that_did_not_change_stay(runs: Path, tmp_path: Path) -> None:
    made(runs, tmp_path / "site")
    before = inodes(tmp_path / "site")
    path = runs / "b" / "samples" / "medqa.jsonl"
    path.write_bytes(path.read_bytes().replace(b"The answer is", b"It is"))
    made(runs, tmp_path / "site")
    changed = rewritten(before, inodes(tmp_path / "site"))
    assert {name for name in changed if "/data/" in name} == {
        f"runs/b/data/medqa/{file}" for file in ("index.js", "0.js", "scores.json")
    }
    assert b"It is" in (tmp_path / "site" / "runs/b/data/medqa/0.js").read_bytes()


def test_a_file_that_went_missing_is_written_again(runs: Path, tmp_path: Path) -> None:
    made(runs, tmp_path / "site")
    whole = contents(tmp_path / "site")
    for name in ("runs/b/index.html", "runs/a/data/medqa/0.js", "index.html"):
        (tmp_path / "site" / name).unlink()
    (tmp_path / "site" / "runs/c/data/medqa/scores.json").write_text("torn")
    made(runs, tmp_path / "site")
    assert contents(tmp_path / "site") == whole


def test_pages_are_written_anew_when_what_makes_them_changed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(runs, tmp_path / "site")
    before = inodes(tmp_path / "site")
    code = site.code
    monkeypatch.setattr(site, "code", lambda *modules: code(*modules) if modules else "another template")
    made(runs, tmp_path / "site")
    changed = rewritten(before, inodes(tmp_path / "site"))
    assert {"index.html", "runs/a/index.html", "runs/a/viewer.html", "compare/a--b.html"} <= changed
    assert not any("/data/" in name for name in changed)


def test_files_of_runs_that_are_gone_are_removed_and_others_stay(runs: Path, tmp_path: Path) -> None:
    made(runs, tmp_path / "site")
    (tmp_path / "site" / "CNAME").write_text("leaderboard.example.org")
    (tmp_path / "site" / "runs" / "a" / "mine.txt").write_text("kept")
    for name in ("a", "b"):
        shutil.rmtree(runs / name)
    report = made(runs, tmp_path / "site")
    names = set(contents(tmp_path / "site"))
    assert {name for name in names if name.startswith(("runs/a", "runs/b", "compare/"))} == {"runs/a/mine.txt"}
    assert "CNAME" in names
    assert not (tmp_path / "site" / "compare").exists()
    assert report.removed > 0


def test_references_of_the_users_are_shown_and_watched(runs: Path, tmp_path: Path) -> None:
    made(runs, tmp_path / "site")
    (tmp_path / "more.yaml").write_text(
        "references:\n  - {model: Our-Paper-9B, scores: {medqa: 61.25}, protocol: greedy, source: a paper, "
        "url: 'https://example.org/'}\n"
    )
    made(runs, tmp_path / "site", references=tmp_path / "more.yaml")
    page = (tmp_path / "site" / "index.html").read_text()
    assert "Our-Paper-9B" in page
    assert "61.25" in page


# --- whose folder it is ---


@pytest.mark.parametrize("name", ["index.html", ".git/config", "runs/x"])
def test_a_folder_that_holds_other_files_is_refused_and_left_alone(runs: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "site" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(MedbenchError, match="holds other files"):
        made(runs, tmp_path / "site")
    assert contents(tmp_path / "site") == {name: b"mine"}


def test_the_runs_themselves_are_refused_as_a_site(runs: Path) -> None:
    before = contents(runs)
    for folder in (runs, runs / "a"):
        with pytest.raises(MedbenchError, match="holds other files"):
            made(runs, folder)
    assert contents(runs) == before


def test_a_site_among_the_runs_is_no_run(runs: Path) -> None:
    made(runs, runs / "site")
    assert [run.id for run in collect([runs]).runs] == ["a", "b", "c"]


def test_an_empty_folder_and_a_new_one_deep_down_are_taken(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made(runs, tmp_path / "empty")
    made(runs, tmp_path / "new" / "deep" / "down")
    assert contents(tmp_path / "empty") == contents(tmp_path / "new" / "deep" / "down")


def test_a_file_is_no_site(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "site").write_text("mine")
    with pytest.raises(MedbenchError, match="correct -o"):
        made(runs, tmp_path / "site")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"schema_version": 2, "kind": "site", "units": {}}', "newer medbench"),
        ('{"schema_version": 1, "kind": "lm-eval", "units": {}}', "holds lm-eval files"),
        *(
            (
                json.dumps({"schema_version": 1, "kind": "site", "units": {"x": {"stamp": "", "files": [name]}}}),
                "lists files",
            )
            for name in ("../precious", "/etc/passwd", "a/../../precious", ".git/config", "", "a//b")
        ),
    ],
)
def test_a_marker_that_is_not_ours_is_refused(runs: Path, tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / MARKER).write_text(content)
    with pytest.raises(MedbenchError, match=fault):
        made(runs, tmp_path / "site")
    assert (tmp_path / "precious").read_text() == "mine"
    assert set(contents(tmp_path / "site")) <= {MARKER, LOCK}


def test_a_link_inside_the_site_is_not_written_through(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    made(runs, tmp_path / "site")
    shutil.rmtree(tmp_path / "site" / "runs")
    (tmp_path / "site" / "runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MedbenchError, match="a link"):
        made(runs, tmp_path / "site")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", ".hidden", "a//b", "", "a\nb", "a b"])
def test_a_writer_writes_under_its_folder_alone(tmp_path: Path, name: str) -> None:
    with Manifest(tmp_path / "site"), pytest.raises(ValueError, match="not a file name"):
        Writer(tmp_path / "site").put(name, b"")


def test_two_builds_at_once_are_refused(runs: Path, tmp_path: Path) -> None:
    made(runs, tmp_path / "site")
    with FileLock(tmp_path / "site" / LOCK), pytest.raises(MedbenchError, match="being built by another"):
        made(runs, tmp_path / "site")


# --- when it goes wrong half-way ---


def test_an_interrupted_build_is_mended_by_the_next(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(runs, tmp_path / "site")
    shutil.rmtree(runs / "a")
    a_run(runs, "b2", 4)
    put = Writer.put

    def full(self: Writer, name: str, content: bytes) -> None:
        if name.startswith("compare/"):
            raise Interrupted("disk full")
        put(self, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "put", full)
        with pytest.raises(Interrupted):
            made(runs, tmp_path / "site")
    made(runs, tmp_path / "site")
    made(runs, tmp_path / "once")
    assert contents(tmp_path / "site") == contents(tmp_path / "once")


def test_a_build_that_was_killed_leaves_nothing_that_stops_the_next(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    (folder / ASIDE).mkdir(parents=True)
    (folder / ASIDE / "4711").write_text("half a page")
    made(runs, folder)
    assert not (folder / ASIDE).exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_fault_in_one_line(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(MedbenchError, match="correct -o"):
        made(runs, tmp_path / "closed" / "site")


def test_a_run_under_way_is_shown_with_what_is_there(runs: Path, tmp_path: Path) -> None:
    with (runs / "a" / "samples" / "medqa.jsonl").open("ab") as file:
        file.write(b'{"id": "torn')
    shutil.rmtree(runs / "b" / "samples")
    assert made(runs, tmp_path / "site").runs == 3


def test_folders_whose_names_are_no_unicode_are_shown(runs: Path, tmp_path: Path) -> None:
    a_run(runs, "d").rename(os.fsdecode(os.fsencode(runs) + b"/odd \xff"))
    (runs / "a" / "run.json").write_text("{")
    (runs / "a").rename(os.fsdecode(os.fsencode(runs) + b"/torn \xff"))
    report = made(runs, tmp_path / "site")
    assert (report.runs, report.broken) == (3, 1)
    assert (tmp_path / "site" / "runs" / "odd" / "index.html").is_file()
    assert "torn ?" in (tmp_path / "site" / "leaderboard.json").read_text()


def test_no_runs_make_an_empty_site(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert made(tmp_path / "runs", tmp_path / "site").runs == 0


@pytest.mark.slow
def test_hostile_runs_write_nothing_outside_and_nothing_that_runs(tmp_path: Path) -> None:
    runs = hostile_runs(tmp_path / "x" / "runs", reply=100_000)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "x" / "site")}
    report = made(runs, tmp_path / "x" / "site")
    assert report.runs > 150
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "x" / "site")} == before
    names = set(contents(tmp_path / "x" / "site"))
    assert all(manifest.NAME.fullmatch(name) for name in names - {MARKER, LOCK})
    assert report.written == len(names) - 2
    for name, content in contents(tmp_path / "x" / "site").items():
        if name.endswith((".html", ".js", ".svg")):
            assert b"<script>window.hacked" not in content, name
