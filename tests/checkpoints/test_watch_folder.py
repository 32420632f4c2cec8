"""Which folders count as checkpoints, and when; and the command with real checkpoints, one of them broken."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from medbench.harness.checkpoints.watch_folder import checkpoints_in
from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError
from medbench.harness.gates.judge import Gatekeeper
from medbench.harness.gates.verdict import Judged

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"


class Clock:
    """A clock that advances only in sleep, with events that happen meanwhile."""

    def __init__(self, events: dict[float, Path] | None = None) -> None:
        self.now = 1_000_000.0
        self._events = {self.now + after: path for after, path in (events or {}).items()}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in sorted(m for m in self._events if m <= self.now):
            make(self._events.pop(moment), moment)


def make(path: Path, moment: float, mark: str = "config.json") -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / mark).write_text("{}")
    (path / ("adapter_model.safetensors" if "adapter" in mark else "model.safetensors")).write_bytes(NO_TENSORS)
    touch(path, moment)


def touch(folder: Path, moment: float) -> None:
    for path in (*folder.iterdir(), folder):
        os.utime(path, (moment, moment))


def watched(folder: Path, clock: Clock, idle: float = 60.0) -> list[str]:
    found = checkpoints_in(folder, idle_seconds=idle, clock=clock, sleep=clock.sleep)
    return [path.name for path in found]


def test_checkpoints_come_oldest_first_and_once(tmp_path: Path) -> None:
    clock = Clock({20: tmp_path / "step-3", 40: tmp_path / "step-4"})
    make(tmp_path / "step-20", clock.now - 500)
    make(tmp_path / "step-100", clock.now - 100, "adapter_config.json")
    assert watched(tmp_path, clock) == ["step-20", "step-100", "step-3", "step-4"]


def test_a_checkpoint_that_is_being_written_is_left_alone_until_it_settles(tmp_path: Path) -> None:
    clock = Clock()
    make(tmp_path / "step-1", clock.now - 3)
    seen_at = [
        clock.now - 1_000_000.0 for _ in checkpoints_in(tmp_path, idle_seconds=30, clock=clock, sleep=clock.sleep)
    ]
    assert len(seen_at) == 1
    assert seen_at[0] >= 7


def test_a_checkpoint_from_the_future_is_taken_when_it_has_been_still(tmp_path: Path) -> None:
    clock = Clock()
    make(tmp_path / "step-1", clock.now + 1_000_000)
    found = checkpoints_in(tmp_path, idle_seconds=30, clock=clock, sleep=clock.sleep)
    assert next(found).name == "step-1"
    assert 10 <= clock.now - 1_000_000.0 <= 14


def test_a_checkpoint_that_is_rotated_away_is_no_error(tmp_path: Path) -> None:
    clock = Clock()
    for step in range(1, 4):
        make(tmp_path / f"step-{step}", clock.now - 500 + step)
    names = []
    for path in checkpoints_in(tmp_path, idle_seconds=30, clock=clock, sleep=clock.sleep):
        names.append(path.name)
        shutil.rmtree(tmp_path / "step-2", ignore_errors=True)
    assert names == ["step-1", "step-3"]


@pytest.mark.parametrize("missing", ["model.safetensors", "shard", "end"])
def test_a_checkpoint_that_another_program_writes_file_by_file_is_left_alone_until_it_is_whole(
    tmp_path: Path, missing: str
) -> None:
    """Some trainers write config.json first and gather the weights for minutes."""
    clock, said = Clock({200: tmp_path / "step-1"}), list[str]()
    make(tmp_path / "step-1", clock.now - 30)
    weights = tmp_path / "step-1" / "model.safetensors"
    if missing == "shard":
        (weights.parent / f"{weights.name}.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    elif missing == "end":
        weights.write_bytes(NO_TENSORS[:-1])
    else:
        weights.unlink()
    touch(weights.parent, clock.now - 30)
    found = checkpoints_in(tmp_path, idle_seconds=0, clock=clock, sleep=clock.sleep, say=said.append)
    assert next(found).name == "step-1"
    waited = clock.now - 1_000_000.0
    assert (800 <= waited <= 805) if missing == "shard" else (210 <= waited <= 215)  # the shard never comes
    (line,) = said
    assert line.startswith(str(tmp_path / "step-1"))
    assert line.endswith("; waiting, as it may still be written")


def test_hidden_and_other_folders_are_not_checkpoints(tmp_path: Path) -> None:
    clock = Clock()
    make(tmp_path / ".step-1.tmp", clock.now - 500)
    make(tmp_path / "tmp-checkpoint-2", clock.now - 500)
    (tmp_path / "logs").mkdir()
    assert watched(tmp_path, clock) == []


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="no such folder"):
        next(checkpoints_in(tmp_path / "none", idle_seconds=0))


@pytest.mark.engine
def test_a_broken_checkpoint_fails_and_the_watch_continues(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.tiny import build_tiny_model

    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints"
    shutil.copytree(tiny_model, folder / "step-1")
    shutil.copytree(tiny_model, folder / "step-2")
    os.truncate(folder / "step-2" / "model.safetensors", 50_000)
    build_tiny_model(folder / "step-3", seed=3)
    for age, name in ((800, "step-1"), (700, "step-2"), (100, "step-3")):
        for path in [*(folder / name).iterdir(), folder / name]:
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    # noise never gets anywhere near 90 %, so the two sound ones fail by their answers
    (tmp_path / "gates.yaml").write_text("max_new_tokens: 8\ngates: [{task: medqa, at_least: 0.9}]\n")
    arguments = ["watch", str(folder), "--gates", "gates.yaml", "--data", "sample", "--idle", "0", "--json", "--quiet"]
    assert run(arguments) == 1
    one, two, three = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert [Path(each["candidate"]).name for each in (one, two, three)] == ["step-1", "step-2", "step-3"]
    assert two["gates"][0]["rule"] == "invalid checkpoint"
    assert "truncated" in two["why"]
    for sound in (one, three):
        assert sound["overall"] == "fail"
        assert 0 < sound["gates"][0]["used"] <= 30
    assert one["fingerprint"] != three["fingerprint"]


def test_a_checkpoint_that_is_removed_while_it_is_judged_is_no_failure(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(tiny_model, folder / "step-1")
    (tmp_path / "gates.yaml").write_text("gates: [{task: medqa, at_least: 0.9}]\n")
    judge = Gatekeeper.judge

    def too_late(self: Gatekeeper, name: str) -> Judged:
        shutil.rmtree(name)
        return judge(self, name)

    monkeypatch.setattr(Gatekeeper, "judge", too_late)
    arguments = ["watch", str(folder), "--gates", str(tmp_path / "gates.yaml"), "--data", "sample", "--settled", "0"]
    assert run([*arguments, "--idle", "0", "--runs", str(tmp_path / "runs")]) == 3
    assert "step-1: removed while it was judged: no verdict" in capfd.readouterr().err


def test_a_watch_that_found_no_checkpoint_does_not_pass(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gates.yaml").write_text("gates: [{task: medqa, at_least: 0.9}]\n")
    (tmp_path / "empty").mkdir()
    arguments = ["watch", str(tmp_path / "empty"), "--gates", str(tmp_path / "gates.yaml"), "--data", "sample"]
    assert run([*arguments, "--idle", "0"]) == 3
    assert "no checkpoint appeared" in capfd.readouterr().err
