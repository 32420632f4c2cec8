"""What was accepted is judged once, in order, also after a kill."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from medbench.harness.contracts import MedbenchError
from medbench.harness.verdict_server import queue as module
from medbench.harness.verdict_server.queue import FILE, Full, JudgingQueue

VERDICT = {"overall": "pass", "why": "the gate passes"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return made(tmp_path / "step-1")


def made(path: Path, content: str = "{}") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(content)
    return path


def reopened(queue: JudgingQueue, runs: Path) -> JudgingQueue:
    """The queue of a process that starts after the first was killed; a kill releases its lock."""
    queue.close()
    return JudgingQueue(runs, "rules")


def test_checkpoints_are_taken_in_the_order_in_which_they_were_accepted(tmp_path: Path) -> None:
    with JudgingQueue(tmp_path / "runs", "rules") as queue:
        names = ["step-2", "step-10", "step-1"]
        for name in names:
            queue.accept(made(tmp_path / name))
        taken = [queue.take(0) for _ in names]
        assert [Path(item.checkpoint).name for item in taken if item] == names
        assert queue.take(0) is None


def test_what_was_accepted_survives_a_kill_and_what_was_judged_is_not_judged_again(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    queue = JudgingQueue(runs, "rules")
    first, second, third = (queue.accept(made(tmp_path / name)) for name in ("a", "b", "c"))
    assert queue.take(0) == queue.find(first.id)
    queue.judged(first.id, 0, VERDICT)
    queue.take(0)  # the second is being judged when the kill comes
    queue = reopened(queue, runs)
    assert queue.find(first.id).status == "pass"
    assert [queue.take(0).id, queue.take(0).id, queue.take(0)] == [second.id, third.id, None]
    assert queue.accept(tmp_path / "a").state == "judged"
    queue.close()


def test_a_repeated_request_gives_the_same_item(tmp_path: Path, checkpoint: Path) -> None:
    with JudgingQueue(tmp_path / "runs", "rules") as queue:
        assert queue.accept(checkpoint) == queue.accept(checkpoint)
        assert len(queue.items()) == 1


def test_other_files_and_other_rules_make_another_item(tmp_path: Path, checkpoint: Path) -> None:
    with JudgingQueue(tmp_path / "runs", "rules") as queue:
        first = queue.accept(checkpoint)
        made(checkpoint, "{ }")
        assert queue.accept(checkpoint).id != first.id
    with JudgingQueue(tmp_path / "other", "other rules") as queue:
        made(checkpoint)
        assert queue.accept(checkpoint).id != first.id


def test_a_checkpoint_that_could_not_be_judged_is_tried_again_when_it_is_named_again(
    tmp_path: Path, checkpoint: Path
) -> None:
    runs = tmp_path / "runs"
    queue = JudgingQueue(runs, "rules")
    item = queue.accept(checkpoint)
    queue.take(0)
    assert queue.failed(item.id, 4, "no room on the disk").error == "no room on the disk"
    queue = reopened(queue, runs)
    assert queue.take(0) is None  # not by itself
    assert queue.find(item.id).exit == 4
    assert queue.accept(checkpoint).state == "queued"
    assert queue.take(0).id == item.id
    queue.close()


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path: Path, checkpoint: Path) -> None:
    runs = tmp_path / "runs"
    queue = JudgingQueue(runs, "rules")
    item = queue.accept(checkpoint)
    whole = (runs / FILE).read_bytes()
    for length in (1, len(whole) // 2, len(whole) - 1):
        (runs / FILE).write_bytes(whole + whole[:length])
        queue = reopened(queue, runs)
        assert (runs / FILE).read_bytes() == whole
        assert [one.id for one in queue.items()] == [item.id]
    queue.close()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for line in ("no JSON", '{"event": "accepted"}', json.dumps({"event": "other", "id": "0" * 16, "time": ""})):
        (runs / FILE).write_text(f"{line}\n")
        with pytest.raises(MedbenchError, match=rf"{FILE}:1: .*damaged"):
            JudgingQueue(runs, "rules")


def test_two_servers_do_not_share_a_queue(tmp_path: Path) -> None:
    with (
        JudgingQueue(tmp_path / "runs", "rules"),
        pytest.raises(MedbenchError, match="another medbench watch --serve"),
    ):
        JudgingQueue(tmp_path / "runs", "rules")


def test_a_full_queue_refuses_what_is_new_only(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 1)
    with JudgingQueue(tmp_path / "runs", "rules") as queue:
        item = queue.accept(checkpoint)
        assert queue.accept(checkpoint).id == item.id
        with pytest.raises(Full, match="1 checkpoints are waiting"):
            queue.accept(made(tmp_path / "step-2"))
        queue.take(0)
        queue.judged(item.id, 0, VERDICT)
        assert queue.accept(made(tmp_path / "step-2")).state == "queued"


def test_whoever_waits_gets_the_verdict(tmp_path: Path, checkpoint: Path) -> None:
    with JudgingQueue(tmp_path / "runs", "rules") as queue:
        item = queue.accept(checkpoint)
        found = []
        waiting = threading.Thread(target=lambda: found.append(queue.wait(item.id)))
        waiting.start()
        queue.take(0)
        queue.judged(item.id, 1, VERDICT | {"overall": "fail"})
        waiting.join(10)
        assert [one.status for one in found] == ["fail"]
