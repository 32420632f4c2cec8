"""Trainings as the pages see them: what is found, what is read, and what of a broken one is still shown."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.gate_runs import answers, stored_run
from support.made_trainings import FLOOR, a_gate, a_training, a_verdict, begun, gated, log, two_stages

from medbench.harness.training.checkpoint_folder import METRICS, append_metrics, read_metrics
from medbench.harness.training.journal import AttemptEnded, AttemptStarted, Promoted, TrainingEnded
from medbench.reports.read.collect import collect
from medbench.reports.read.folders import signature
from medbench.reports.read.metrics import MOST_OTHERS, Series, read_series, words_for
from medbench.reports.read.trainings import TrainingView, last_event, read_trainings


def only(root: Path) -> TrainingView:
    found, faults = read_trainings([root])
    assert faults == []
    (training,) = found
    return training


# --- finding ---


def test_trainings_are_found_beside_runs_and_by_name_and_each_counts_once(tmp_path: Path) -> None:
    stored_run(tmp_path, "a-run", {"medqa": answers(3)})
    first, second = a_training(tmp_path, "train-2"), a_training(tmp_path, "train-10")
    found = collect([tmp_path, first])
    assert [one.id for one in found.trainings] == ["train-2", "train-10"]
    assert [one.id for one in found.runs] == ["a-run"]
    assert [one.id for one in collect([second]).trainings] == ["train-10"]


def test_runs_inside_a_training_are_rows_only_where_they_are_named(tmp_path: Path) -> None:
    folder = a_training(tmp_path)
    stored_run(folder / "runs", "sft-start-gate", {"medqa": answers(3)})
    assert collect([tmp_path]).runs == ()
    assert collect([folder]).runs == ()
    assert [one.id for one in collect([tmp_path, folder / "runs"]).runs] == ["sft-start-gate"]


def test_trainings_of_one_name_in_two_folders_have_pages_of_their_own(tmp_path: Path) -> None:
    for place in ("x", "y"):
        a_training(tmp_path / place, "train-mine", recipe_sha256=place)
    there, back = (collect([tmp_path / a, tmp_path / b]) for a, b in (("x", "y"), ("y", "x")))
    assert [one.id for one in there.trainings] == ["train-mine", "train-mine-2"]
    assert [one.folder for one in there.trainings] == [one.folder for one in back.trainings]


# --- states ---


def test_a_training_is_running_until_it_has_ended(tmp_path: Path) -> None:
    assert (only(a_training(tmp_path, "new")).state, last_event(only(tmp_path / "new"))) == ("running", "begun")
    under_way = only(a_training(tmp_path, "half", begun()))
    assert (under_way.state, last_event(under_way)) == ("running", "attempt 1 of sft begun")
    end = TrainingEnded(outcome="failed", reason="3 attempts failed", checkpoint=None, elapsed=60.0)
    over = only(a_training(tmp_path, "over", [*begun(), end]))
    assert (over.state, over.seconds, last_event(over)) == ("failed", 60.0, "failed: 3 attempts failed")


def test_a_training_that_went_on_after_its_end_is_running(tmp_path: Path) -> None:
    stage, attempt = begun()
    end = TrainingEnded(outcome="failed", reason="the questions are spent", checkpoint=None)
    assert only(a_training(tmp_path, "t", [stage, end, attempt])).state == "running"


def test_a_torn_last_line_is_a_training_under_way(tmp_path: Path) -> None:
    journal = a_training(tmp_path, "t", begun()) / "journal.jsonl"
    whole = only(tmp_path).events
    journal.write_bytes(journal.read_bytes() + b'{"event": "gated", "sta')
    assert only(tmp_path).events == whole


# --- broken ones ---


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b'{"schema_version": 1, "na', "not JSON"),
        (b"[]", "valid dictionary"),
        (b"[" * 100_000, "not JSON"),
        (b'{"schema_version": 99}', "newer than this medbench"),
        (b'{"schema_version": 1}', "field required"),
    ],
)
def test_a_broken_training_is_listed_and_the_others_are_shown(tmp_path: Path, content: bytes, reason: str) -> None:
    a_training(tmp_path, "sound")
    (a_training(tmp_path, "torn") / "training.json").write_bytes(content)
    found = collect([tmp_path])
    assert [one.id for one in found.trainings] == ["sound"]
    (broken,) = found.broken
    assert broken.name == "torn"
    assert reason in broken.reason
    assert str(tmp_path) not in broken.reason


def changed(line: str, **changes: object) -> str:
    return json.dumps(json.loads(line) | changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: "{",
        lambda line: "nonsense",
        lambda line: changed(line, event="abolished"),
        lambda line: changed(line, step="many"),
        lambda line: changed(line, step=-1),
        lambda line: changed(line, step=10**300),
        lambda line: changed(line, questions=2**60),
        lambda line: changed(line, seconds=float("nan")),
        lambda line: changed(line, stage="another"),
        lambda line: changed(line, attempt=2),
        lambda line: re.sub(r'"estimate": ?0.5', '"estimate": NaN', line),
        lambda line: re.sub(r'"estimate": ?0.5', '"estimate": 1e999', line),
    ],
)
def test_of_a_damaged_journal_the_events_before_the_damage_are_shown(
    tmp_path: Path, damage: Callable[[str], str]
) -> None:
    verdict = a_verdict("fail", a_gate(FLOOR, "fail", 0.5))
    judged = [gated("sft", 1, step, verdict) for step in (10, 20, 30)]
    journal = a_training(tmp_path, "t", [*begun(), *judged]) / "journal.jsonl"
    lines = journal.read_text().splitlines()
    assert damage(lines[3]) != lines[3]
    lines[3] = damage(lines[3])
    journal.write_text("\n".join(lines) + "\n")
    found = collect([tmp_path])
    (training,) = found.trainings
    assert len(training.events) == 3
    assert [one.step for one in training.stages[0].attempts[0].gated] == [10]
    (broken,) = found.broken
    assert broken.name == "t: journal.jsonl"
    assert broken.reason.startswith("journal.jsonl:4: ")


@pytest.mark.parametrize("place", [0, 1])
def test_events_without_their_stage_or_attempt_are_damage(tmp_path: Path, place: int) -> None:
    events = begun()
    del events[place]
    late = Promoted(stage="sft", attempt=1, step=3, checkpoint="c", fingerprint="f")
    found = collect([a_training(tmp_path, "t", [*events, late])])
    assert len(found.trainings[0].events) == place
    assert "was not begun" in found.broken[0].reason


def test_a_journal_that_is_no_file_or_lies_elsewhere_is_not_read(tmp_path: Path) -> None:
    secret = a_training(tmp_path / "elsewhere", "secret", begun()) / "journal.jsonl"
    for name, make in (("linked", lambda path: path.symlink_to(secret)), ("piped", os.mkfifo)):
        journal = a_training(tmp_path / "runs", name) / "journal.jsonl"
        journal.unlink(missing_ok=True)
        make(journal)
    found = collect([tmp_path / "runs"])
    assert found.trainings == ()
    assert [one.name for one in found.broken] == ["linked", "piped"]
    assert "leads out" in found.broken[0].reason


def test_a_training_behind_a_link_is_named_and_not_read(tmp_path: Path) -> None:
    a_training(tmp_path / "elsewhere", "secret")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "train-linked").symlink_to(tmp_path / "elsewhere" / "secret")
    found = collect([tmp_path / "runs"])
    assert found.trainings == ()
    assert "leads out" in found.broken[0].reason


# --- changes ---


def test_the_signature_changes_with_journal_and_metrics(tmp_path: Path) -> None:
    folder = a_training(tmp_path, "t", begun())
    seen = [signature([tmp_path])]
    log(folder / "1-sft" / "attempt-1", 3)
    seen.append(signature([tmp_path]))
    append_metrics(folder / "1-sft" / "attempt-1", 4, {"loss": 1.0})
    seen.append(signature([tmp_path]))
    with (folder / "journal.jsonl").open("a") as file:
        file.write('{"event":')
    seen.append(signature([tmp_path]))
    assert len(set(seen)) == 4
    assert signature([tmp_path]) == seen[-1]


def test_the_stamp_follows_what_the_page_shows(tmp_path: Path) -> None:
    folder = a_training(tmp_path, "t", begun())
    before = only(tmp_path)
    log(folder / "1-sft" / "attempt-1", 3)
    after = only(tmp_path)
    assert (before.contents, before.stamp != after.stamp) == (after.contents, True)


# --- metrics ---


def read(folder: Path, most: int = 1000) -> dict[str, Series]:
    return {one.name: one for one in read_series(folder.parent, folder / METRICS, most)}


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    return folder


def test_series_hold_what_read_metrics_reads(attempt: Path) -> None:
    log(attempt, 40, grpo=True)
    append_metrics(attempt, 7, {"loss": 9.5})  # logged again on resuming
    append_metrics(attempt, 50, {"eval_loss": 2, "flag": True, "kl": True})
    series = read(attempt)
    stored = read_metrics(attempt)
    for name, one in series.items():
        assert [(p.step, p.mean) for p in one.points] == [(row["step"], row[name]) for row in stored[:40]]
        assert one.n == 40
    assert series["loss"].points[6].mean == 9.5
    assert list(series) == ["loss", "reward", "rewards/correctness/mean", "rewards/format/mean", "rewards/length/mean",
                            "completions/mean_length", "entropy", "kl", "grad_norm", "learning_rate"]  # fmt: skip


def test_a_long_series_is_thinned_and_loses_no_extreme(attempt: Path) -> None:
    for step in range(1, 5001):
        append_metrics(attempt, step, {"loss": 1.0 + (step == 3210) * 40 - (step == 4000) * 7})
    (one,) = read(attempt, 100).values()
    assert (len(one.points), one.bucket, one.n) == (100, 50, 5000)
    assert max(point.high for point in one.points) == 41.0
    assert min(point.low for point in one.points) == -6.0
    assert sum(point.mean for point in one.points) / 100 == pytest.approx(1.0 + 33 / 5000)
    assert all(a.step < b.step for a, b in zip(one.points, one.points[1:], strict=False))


def test_values_that_are_not_finite_are_counted_and_not_drawn(attempt: Path) -> None:
    for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0, float("-inf")], 1):
        append_metrics(attempt, step, {"loss": value, "kl": float("nan")})
    (attempt / METRICS).open("a").write('{"step": 6, "loss": 1' + "0" * 400 + "}\n")
    series = read(attempt)
    loss, kl = series["loss"], series["kl"]
    assert ([point.mean for point in loss.points], loss.odd, loss.odd_from, loss.last) == ([1.0, 2.0], 4, 2, 2.0)
    assert (kl.points, kl.first, kl.low, kl.odd) == ((), None, None, 5)


def test_foreign_lines_are_passed_over(attempt: Path) -> None:
    lines = ["nonsense", "[1]", "[" * 5000, '{"loss": 1}', '{"step": true, "loss": 1}', '{"step": -1, "loss": 1}',
             '{"step": 1.5, "loss": 1}', '{"step": 99999999999999999999, "loss": 1}', '{"step": 3, "loss": "x"}',
             '{"step": 4, "loss": 2}', '{"step": 5, "pad": "' + "x" * 3_000_000 + '", "loss": 3}', "\udcff",
             '{"step": 6, "loss": 4}', '{"step": 7, "lo']  # fmt: skip
    (attempt / METRICS).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    assert [(point.step, point.mean) for point in read(attempt)["loss"].points] == [(4, 2), (6, 4)]


def test_only_known_metrics_are_shown_and_few_rewards(attempt: Path) -> None:
    append_metrics(attempt, 1, {f"rewards/r{n}/mean": n for n in range(50)} | {"rewards//mean": 1, "epoch": 2})
    assert len(read(attempt)) == MOST_OTHERS
    assert words_for("rewards/exact_answer/mean") == "Reward for exact answer"
    assert words_for("eval_loss") == ""


def test_metrics_that_lie_elsewhere_are_not_read(tmp_path: Path) -> None:
    from medbench.reports.views.trajectory_page import view_of
    from medbench.reports.write.pages import training_page

    ended = AttemptEnded(stage="sft", attempt=1, outcome="failed", reason="x", step=None)
    folder = a_training(tmp_path / "runs", "t", [*begun(), ended, *begun("../../x")])
    log(tmp_path / "secret", 3)
    (folder / "1-sft").mkdir()
    (folder / "1-sft" / "attempt-1").symlink_to(tmp_path / "secret")
    page = view_of(only(folder), {})
    assert [len(stage.attempts[0].series) for stage in page.stages] == [0, 0]
    assert "leads out" in page.stages[0].faults[0]
    assert "not a name" in page.stages[1].faults[0]
    assert "leads out" in training_page(page)


def test_a_hundred_thousand_steps_are_read_in_seconds(attempt: Path) -> None:
    import time

    line = '{"step": %d, "loss": 0.51, "grad_norm": 1.25, "learning_rate": 1e-05, "reward": 0.5, "kl": 0.01}\n'
    (attempt / METRICS).write_text("".join(line % step for step in range(100_000)))
    started = time.perf_counter()
    assert {one.n for one in read(attempt, 400).values()} == {100_000}
    assert time.perf_counter() - started < 10


def test_the_made_up_training_is_sound(tmp_path: Path) -> None:
    training = only(two_stages(tmp_path))
    assert [len(stage.attempts) for stage in training.stages] == [3, 1]
    assert isinstance(training.stages[0].attempts[0].started, AttemptStarted)
