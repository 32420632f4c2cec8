"""Run folders as the pages see them: what is read, what is marked, and what cannot be shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import answers, stored_run
from support.hostile import hostile_runs

from medbench.harness.contracts import MedbenchError
from medbench.harness.gates.verdict import CORRECTION, Verdict
from medbench.reports.read.collect import collect, state_of
from medbench.reports.read.flips import compared
from medbench.reports.read.folders import signature, unique_slugs
from medbench.reports.read.pairs import MOST_RUNS, choose_pairs, kind_of, page_name
from medbench.reports.read.records import RunView


def a_run(root: Path, name: str, right: int = 3, **changes: Any) -> Path:
    return stored_run(root, name, {"medqa": answers(right, 5 - right)}, **changes)


def only(root: Path) -> RunView:
    (run,) = collect([root]).runs
    return run


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def verdict(**changes: Any) -> str:
    values: dict[str, Any] = {
        "overall": "pass", "why": "", "alpha": 0.05, "decide": "census", "partition": "all", "correction": CORRECTION,
        "candidate": "b", "fingerprint": "b", "baseline": "a", "protocol": "cot-v2", "gates": [],
    }  # fmt: skip
    return Verdict(**(values | changes)).model_dump_json()


def test_a_path_is_a_run_or_a_folder_of_runs_and_each_run_counts_once(tmp_path: Path) -> None:
    first, second = a_run(tmp_path, "first"), a_run(tmp_path, "second")
    (tmp_path / "notes").mkdir()
    assert [run.id for run in collect([tmp_path, first, second]).runs] == ["first", "second"]
    assert [run.id for run in collect([second]).runs] == ["second"]
    run = only(first)
    assert run.folder == first
    assert run.results["medqa"].accuracy == 0.6
    assert run.verdict is None
    assert run.slugs == {"medqa": "medqa"}


def test_a_path_that_is_no_folder_is_a_fault_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match=r"nowhere: no such folder: name"):
        collect([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("name", "content", "shown", "reason"),
    [
        ("run.json", "{", False, "cannot be read"),
        ("run.json", "[]", False, "expected a JSON object"),
        ("run.json", '{"schema_version": 99}', False, "newer"),
        ("run.json", "[" * 100_000, False, "cannot be read"),
        ("results/medqa.json", "{", True, "cannot be read"),
        ("results/medqa.json", '{"schema_version": 99}', True, "newer"),
        ("verdict.json", "{", True, "not a verdict"),
        ("verdict.json", '{"schema_version": 99}', True, "newer"),
    ],
)
def test_what_cannot_be_read_is_listed_and_the_rest_is_shown(
    tmp_path: Path, name: str, content: str, shown: bool, reason: str
) -> None:
    a_run(tmp_path, "sound")
    (a_run(tmp_path, "torn") / name).write_text(content)
    found = collect([tmp_path])
    assert [run.id for run in found.runs] == ["sound", "torn"][: 1 + shown]
    (broken,) = found.broken
    assert broken.name == ("torn" if name == "run.json" else f"torn: {name}")
    assert reason in broken.reason
    assert str(tmp_path) not in broken.reason


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_figure_that_is_no_number_is_not_drawn(tmp_path: Path, number: str) -> None:
    path = a_run(tmp_path, "run") / "results" / "medqa.json"
    path.write_text(path.read_text().replace('"accuracy": 0.6', f'"accuracy": {number}'))
    found = collect([tmp_path])
    assert dict(found.runs[0].results) == {}
    assert [one.name for one in found.broken] == ["run: results/medqa.json"]


def test_a_protocol_of_half_a_surrogate_pair_is_text_all_the_same(tmp_path: Path) -> None:
    edit(a_run(tmp_path, "run") / "run.json", protocol={"name": "half \ud800"})
    assert only(tmp_path).protocol == "half ?"


def test_a_sound_verdict_is_shown(tmp_path: Path) -> None:
    (a_run(tmp_path, "run") / "verdict.json").write_text(verdict())
    found = only(tmp_path).verdict
    assert found is not None
    assert found.overall == "pass"


def test_the_verdict_of_each_gate_file_is_shown_once_and_the_latest_first(tmp_path: Path) -> None:
    run = a_run(tmp_path, "run")
    (run / "verdicts").mkdir()
    for name, overall in (("a-1", "pass"), ("b-2", "fail")):
        content = verdict(overall=overall, gate_file=f"{name[0]}.yaml", rules=name)
        (run / "verdicts" / f"{name}.json").write_text(content)
    (run / "verdict.json").write_text(content)
    assert [one.gate_file for one in only(tmp_path).verdicts] == ["b.yaml", "a.yaml"]
    seen, pages = signature([tmp_path]), only(tmp_path).stamp
    (run / "verdicts" / "a-1.json").write_text(verdict(overall="undecided", rules="a-1"))
    assert signature([tmp_path]) != seen
    assert only(tmp_path).stamp != pages


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.write_text("{"), "not a verdict"),
        (lambda file: file.mkdir(), "not a plain file"),
        (lambda file: file.symlink_to(file), "back to itself"),
        (lambda file: file.symlink_to("/etc/hostname"), "out of its folder"),
    ],
)
def test_a_kept_verdict_that_cannot_be_read_is_listed(tmp_path: Path, spoil: Any, reason: str) -> None:
    run = a_run(tmp_path, "run")
    (run / "verdict.json").write_text(verdict())
    (run / "verdicts").mkdir()
    (run / "verdicts" / ".x.json.1.tmp").write_text("{")
    spoil(run / "verdicts" / "x.json")
    found = collect([tmp_path])
    assert len(found.runs[0].verdicts) == 1
    (broken,) = found.broken
    assert broken.name == "run: verdicts/x.json"
    assert reason in broken.reason


def test_a_verdicts_folder_that_leads_out_is_not_read(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs", "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.json").write_text(verdict())
    (run / "verdicts").symlink_to(tmp_path / "elsewhere")
    found = collect([tmp_path / "runs"])
    assert found.runs[0].verdicts == ()
    assert "out of its folder" in found.broken[0].reason


def test_a_file_too_large_for_medbench_is_not_read(tmp_path: Path) -> None:
    with (a_run(tmp_path, "run") / "run.json").open("ab") as file:
        file.truncate(1 << 30)
    (broken,) = collect([tmp_path]).broken
    assert "larger than 16 MiB" in broken.reason


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "runs", tmp_path / "outside"
    a_run(outside, "secret")
    run = a_run(inside, "run")
    (run / "results" / "medqa.json").unlink()
    (run / "results" / "medqa.json").symlink_to(outside / "secret" / "results" / "medqa.json")
    (inside / "linked").symlink_to(outside / "secret")
    found = collect([inside])
    assert [run.id for run in found.runs] == ["run"]
    assert dict(found.runs[0].results) == {}
    assert [one.name for one in found.broken] == ["linked", "run: results/medqa.json"]
    assert all("leads out" in one.reason for one in found.broken)
    assert [run.id for run in collect([inside / "linked"]).runs] == ["secret"]  # named by the user, so meant


def test_tasks_whose_names_are_no_file_names_reach_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs", "run")
    (tmp_path / "climbed.json").write_text((run / "results" / "medqa.json").read_text())
    record = json.loads((run / "run.json").read_text())
    names = ["../../../climbed", "/etc/passwd", "..", "", "nul\0", "x" * 300, "half \ud800"]
    record["tasks"] |= dict.fromkeys(names[:-1], record["tasks"]["medqa"])
    (run / "run.json").write_text(json.dumps(record))
    found = collect([tmp_path / "runs"])
    assert list(found.runs[0].results) == ["medqa"]
    assert len(found.broken) == len(names) - 1
    assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz-.0123456789") for slug in found.runs[0].slugs.values())


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, ""),
        ({"status": "running"}, "running"),
        ({"status": "failed"}, "failed"),
        ({"limit": 64}, "first 64 questions only"),
        ({"partition": "gate"}, "gate half of the questions"),
        ({"shuffle_options": 5}, "5 orders of the options"),
        ({"described": {"source": "sample", "official": False}}, "built-in sample"),
        ({"described": {"official": False}, "limit": 3}, "first 3 questions only, unofficial rows"),
    ],
)
def test_the_state_says_what_to_know_before_the_scores(tmp_path: Path, changes: dict[str, Any], state: str) -> None:
    a_run(tmp_path, "run", **changes)
    assert state_of(only(tmp_path)) == state


def test_a_complete_run_without_a_result_is_marked(tmp_path: Path) -> None:
    (a_run(tmp_path, "run") / "results" / "medqa.json").unlink()
    assert state_of(only(tmp_path)) == "no result of medqa"


def test_ids_are_safe_and_unique_and_in_natural_order(tmp_path: Path) -> None:
    for name in ("step 10", "step 9", "q 1", "q∕1", "Q 1", "a--b", "…"):
        a_run(tmp_path, name)
    ids = [run.id for run in collect([tmp_path]).runs]
    assert len({id.lower() for id in ids}) == 7
    assert all(set(id) <= set("abcdefghijklmnopqrstuvwxyzQ0123456789-") and "--" not in id for id in ids)
    assert ids.index("step-9") < ids.index("step-10")


def test_runs_of_one_name_keep_their_ids_wherever_they_lie(tmp_path: Path) -> None:
    one, two = a_run(tmp_path / "x", "run", 1), a_run(tmp_path / "y", "run", 2)
    there = {run.id: run.results["medqa"].accuracy for run in collect([one, two]).runs}
    one.rename(tmp_path / "z")
    (tmp_path / "y").rename(tmp_path / "a")
    moved = (tmp_path / "b" / "run").parent
    moved.mkdir()
    (tmp_path / "z").rename(moved / "run")
    here = {run.id: run.results["medqa"].accuracy for run in collect([tmp_path / "a", moved]).runs}
    assert here == there
    assert sorted(there) == ["run", "run-2"]
    assert two.name == "run"


def test_unique_slugs_never_meet() -> None:
    assert unique_slugs(["a", "A", "a-2", "a", ""]) == ["a", "A-2", "a-2-2", "a-3", "run"]


@pytest.mark.parametrize("file", ["run.json", "results/medqa.json", "samples/medqa.jsonl", "verdict.json"])
def test_stamp_and_signature_change_with_every_file(tmp_path: Path, file: str) -> None:
    path = a_run(tmp_path, "run") / file
    stamp, seen = only(tmp_path).stamp, signature([tmp_path])
    assert (only(tmp_path).stamp, signature([tmp_path])) == (stamp, seen)
    if file == "verdict.json":
        path.write_text(verdict())
    elif file == "samples/medqa.jsonl":
        os.utime(path, ns=(1, 1))
    else:
        path.write_text(path.read_text() + " ")
    assert only(tmp_path).stamp != stamp
    assert signature([tmp_path]) != seen


# --- pairs ---


def test_a_gated_run_is_compared_with_its_baseline_whatever_the_scores(tmp_path: Path) -> None:
    a_run(tmp_path, "a", 4)
    (a_run(tmp_path, "b", 2) / "verdict.json").write_text(verdict(baseline="a"))
    assert collect([tmp_path]).pairs == (("a", "b"),)


def test_a_run_is_compared_with_the_baseline_of_each_of_its_gate_files(tmp_path: Path) -> None:
    for name in ("a", "c"):
        a_run(tmp_path, name, 4, described={"version": name})
    run = a_run(tmp_path, "b", 2)
    (run / "verdicts").mkdir()
    for name in ("a", "c"):
        (run / "verdicts" / f"{name}.json").write_text(verdict(baseline=name, rules=name))
    assert collect([tmp_path]).pairs == (("a", "b"), ("c", "b"))


def test_the_best_runs_of_a_kind_are_compared_each_with_each(tmp_path: Path) -> None:
    for number in range(MOST_RUNS + 2):
        stored_run(tmp_path, f"run{number}", {"medqa": answers(number, 20 - number)})
    a_run(tmp_path, "other", described={"version": "2"})
    pairs = choose_pairs(collect([tmp_path]).runs)
    assert len(pairs) == MOST_RUNS * (MOST_RUNS - 1) // 2
    assert ("run9", "run10") in pairs  # the worse one first
    assert not {"run0", "run1", "other"} & {id for pair in pairs for id in pair}


def test_page_names_tell_pairs_apart() -> None:
    assert len({page_name(a, b) for a, b in [("x-y", "z"), ("x", "y-z"), ("x", "y")]}) == 3


def test_kinds_keep_protocols_versions_and_partitions_apart(tmp_path: Path) -> None:
    a_run(tmp_path, "a")
    a_run(tmp_path, "b", seed=3)
    a_run(tmp_path, "c", described={"version": "2"})
    a_run(tmp_path, "d", partition="report")
    a_run(tmp_path, "e", protocol={"name": "cot-v2", "changed": True})
    a, b, *others = collect([tmp_path]).runs
    assert kind_of(a) == kind_of(b)
    assert len({kind_of(run) for run in (a, *others)}) == 4


def test_compared_shows_the_flips_both_ways(tmp_path: Path) -> None:
    first, second = answers(30, 30), [*answers(0, 40), *answers(60)[40:]]
    stored_run(tmp_path, "a", {"medqa": first})
    stored_run(tmp_path, "b", {"medqa": second})
    a, b = collect([tmp_path]).runs
    found = compared(a, b)
    (one,) = found.comparisons
    assert (one.overall.lost, one.overall.gained) == (30, 20)
    flips = found.flips["medqa"]
    assert [flip.id for flip in flips] == [f"q{n}" for n in range(15)] + [f"q{n}" for n in range(40, 55)]
    assert [flip.gained for flip in flips] == [False] * 15 + [True] * 15
    assert flips[0].a.output == "The answer is (A)."
    assert not found.fault


def test_runs_that_were_asked_differently_are_not_compared(tmp_path: Path) -> None:
    a_run(tmp_path, "a")
    a_run(tmp_path, "b", described={"version": "2"})
    a, b = collect([tmp_path]).runs
    assert "not comparable" in compared(a, b).fault


@pytest.mark.parametrize("content", [b"{\n", b'{"id": 1}\n', b"\xff\n", b"[" * 100_000 + b"\n"])
def test_a_damaged_line_is_named_where_runs_are_compared(tmp_path: Path, content: bytes) -> None:
    a_run(tmp_path, "a", 2)
    samples = a_run(tmp_path, "b", 3) / "samples" / "medqa.jsonl"
    samples.write_bytes(content + samples.read_bytes())
    a, b = collect([tmp_path]).runs
    assert "samples/medqa.jsonl: line 1: not a sample" in compared(a, b).fault
    assert str(tmp_path) not in compared(a, b).fault


@pytest.mark.slow
def test_hostile_runs_are_all_read(tmp_path: Path) -> None:
    found = collect([hostile_runs(tmp_path / "runs", reply=1000)])
    folders = sum(1 for _ in (tmp_path / "runs").iterdir())
    assert len(found.runs) == folders
    assert {one.name.partition(":")[0] for one in found.broken} == {"climbing", "names-of-tasks"}
    assert ("pair-a", "pair-b") in found.pairs
