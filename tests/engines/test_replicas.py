"""Replicas on a real local Ray: loading, agreement, faults. Their engine makes replies up and fails on request."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from support import faulty_engine
from support.replicas import answered, answering, made_checkpoint, own_place, ray_processes, requests, wait_until

from medbench.harness.contracts import Checkpoint, Completion, Interrupted, MedbenchError, Passed, Request
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.engines.replicas.cluster import Cluster, connect
from medbench.harness.engines.replicas.engine import ReplicatedEngine
from medbench.harness.engines.settings import EngineChoice, EngineConfig

pytest.importorskip("ray", reason="Ray is not installed: pip install 'medbench[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One Ray for the module; engines that find this process connected use it, and leave it running."""
    site = faulty_engine.install(tmp_path_factory.mktemp("faulty") / "site")
    with own_place() as place, pytest.MonkeyPatch.context() as patch:
        paths = [str(site), str(Path(faulty_engine.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))  # the replicas' processes
        patch.setattr(sys, "path", [str(site), *sys.path])
        started = connect(None, cpus=8)
        yield started
        started.close()
        assert ray_processes(place) == []
        assert list(place.glob("medbench-ray-*")) == []


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return made_checkpoint(tmp_path / "one")


def choice(replicas: int = 2, **config: object) -> EngineChoice:
    return EngineChoice("faulty", EngineConfig.model_validate({"replicas": replicas, **config}))


@pytest.fixture
def engine(cluster: Cluster, checkpoint: Checkpoint) -> Iterator[ReplicatedEngine]:
    started = ReplicatedEngine(choice())
    started.load("one", checkpoint)
    yield started
    started.close()


def pids(engine: ReplicatedEngine) -> list[int]:
    return [member.serving.pid for member in engine._members if member.serving is not None]


def test_every_request_is_answered_once_and_by_all_replicas(engine: ReplicatedEngine) -> None:
    found = answered(engine, requests(500))
    assert all(one.text == f"The answer is (A). {id}" for id, one in found.items())
    assert engine.name == "faulty"
    assert engine.places == 8
    assert engine.settings()["replicas"] == 2
    assert engine.incidents == []


def test_milestones_come_through(engine: ReplicatedEngine) -> None:
    asked = [replace(one, milestones=(256, 512)) for one in requests(20)]
    found = list(engine.generate(asked))
    assert {one.id for one in found if isinstance(one, Passed)} == {one.id for one in asked}
    assert sum(isinstance(one, Completion) for one in found) == 20


def test_none_means_nothing_for_now(engine: ReplicatedEngine) -> None:
    """As a gate asks: a few, then more when an answer has come."""
    waiting, asked = requests(40), []

    def source() -> Iterator[Request | None]:
        while waiting:
            for _ in range(min(8 - (len(asked) - len(found)), len(waiting))):
                asked.append(waiting.pop())
                yield asked[-1]
            if waiting:
                yield None

    found: list[str] = []
    for one in engine.generate(source()):
        found.append(one.id)
    assert sorted(found) == sorted(one.id for one in asked)
    assert len(found) == 40


def test_a_stream_that_is_closed_early_leaves_nothing_for_the_next(engine: ReplicatedEngine) -> None:
    stream = engine.generate(requests(300))
    assert len(list(islice(stream, 10))) == 10
    stream.close()
    later = [replace(one, id=f"later{one.id}") for one in requests(50)]
    assert len(answered(engine, later)) == 50


def test_replicas_that_are_killed_at_random_moments_cost_no_answer(engine: ReplicatedEngine) -> None:
    draw, asked = random.Random(time.time_ns()), requests(400)
    moments = sorted(draw.sample(range(300), 5))
    found, killed = list[str](), list[int]()
    for one in engine.generate(asked):
        found.append(one.id)
        assert isinstance(one, Completion)
        assert one.error is None
        alive = [pid for pid in pids(engine) if pid not in killed]
        if moments and len(found) >= moments[0] and alive:
            moments.pop(0)
            killed.append(draw.choice(alive))
            os.kill(killed[-1], signal.SIGKILL)
    assert sorted(found) == sorted(one.id for one in asked)
    (told,) = engine.incidents
    assert f"{len(killed)} replicas were lost (its process is gone)" in told


def test_a_poison_request_is_given_up_after_two_replicas_with_its_id(engine: ReplicatedEngine) -> None:
    found = answered(engine, requests(120, poison=[37]))
    assert [id for id, one in found.items() if one.error is not None] == ["toy/q37"]
    assert "2 replicas in turn were lost" in (found["toy/q37"].error or "")
    (told,) = engine.incidents
    assert "2 replicas were lost (its process is gone)" in told
    assert "asked again" in told


def test_a_replica_whose_engine_fails_is_replaced(engine: ReplicatedEngine) -> None:
    found = answered(engine, requests(60, broken=[5]))
    assert [id for id, one in found.items() if one.error is not None] == ["toy/q5"]
    assert "the engine core is gone" in " ".join(engine.incidents)


def test_a_replica_that_hangs_is_given_up_after_the_stated_time(cluster: Cluster, checkpoint: Checkpoint) -> None:
    engine = ReplicatedEngine(choice(patience=4))
    try:
        engine.load("one", checkpoint)
        started = time.monotonic()
        found = answered(engine, requests(30, stuck=[3]))
        assert [id for id, one in found.items() if one.error is not None] == ["toy/q3"]
        assert time.monotonic() - started < 40
        assert "it has told nothing for 4 s" in " ".join(engine.incidents)
    finally:
        engine.close()


def test_when_all_replicas_are_gone_the_run_is_interrupted(engine: ReplicatedEngine) -> None:
    """Each request of this stream kills: what is lost is asked again, and no replica ever answers."""
    with pytest.raises(Interrupted, match=r"all replicas are gone.*--resume"):
        list(engine.generate(requests(40, poison=list(range(40)))))
    assert engine.settings()["replicas"] == 2  # for the run's record, which is written then


def test_a_frozen_replica_is_replaced(cluster: Cluster, checkpoint: Checkpoint) -> None:
    engine = ReplicatedEngine(choice(patience=4, delay=0.02))
    try:
        engine.load("one", checkpoint)
        stream, found = engine.generate(requests(100)), list[str]()
        for one in stream:
            if not found:
                os.kill(pids(engine)[0], signal.SIGSTOP)
            found.append(one.id)
        assert len(set(found)) == len(found) == 100
        assert "it has told nothing" in " ".join(engine.incidents)
    finally:
        engine.close()


# --- which weights -------------------------------------------------------------------------------------------------


def test_a_swap_reaches_all_replicas_in_the_same_processes(
    cluster: Cluster, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    keeper, said = EngineKeeper(print), made_checkpoint(tmp_path / "two", 1.0)
    try:
        first = keeper.serve(choice(), "one", checkpoint)
        assert isinstance(first, ReplicatedEngine)
        before = [member.serving for member in first._members]
        second = keeper.serve(choice(), "two", said)
        assert second is first
        after = [member.serving for member in first._members]
        for old, new in zip(before, after, strict=True):
            assert old is not None
            assert new is not None
            assert old.pid == new.pid
            assert old.probe != new.probe
        assert len(answered(second, requests(10))) == 10
    finally:
        keeper.close()


def test_a_replica_with_stale_weights_is_named_and_restarted(
    cluster: Cluster, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(checkpoint.path) / faulty_engine.STALE).touch()  # the first of the replicas serves something else
    engine = ReplicatedEngine(choice(3))
    try:
        with caplog.at_level("INFO", "medbench"):
            engine.load("one", checkpoint)
        assert len({member.serving.probe for member in engine._members if member.serving is not None}) == 1
        assert "its probe differs" in " ".join(engine.incidents)
    finally:
        engine.close()
    (line,) = [one for one in caplog.messages if "restarted" in one]
    assert "replica" in line
    assert "its probe differs by" in line


def test_a_checkpoint_that_cannot_be_loaded_is_told_once_and_the_next_one_is_served(
    cluster: Cluster, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    refused = made_checkpoint(tmp_path / "refused", 2.0)
    (Path(refused.path) / faulty_engine.REFUSED).touch()
    engine = ReplicatedEngine(choice())
    try:
        with pytest.raises(MedbenchError, match=r"refused: refused$"):
            engine.load("refused", refused)
        engine.load("one", checkpoint)
        assert len(answered(engine, requests(10))) == 10
    finally:
        engine.close()


def test_weights_that_changed_since_they_were_checked_are_refused(cluster: Cluster, checkpoint: Checkpoint) -> None:
    engine = ReplicatedEngine(choice())
    try:
        changed = threading.Event()
        original = engine._load

        def load(member: object) -> None:
            if not changed.is_set():
                changed.set()
                shutil.rmtree(checkpoint.path)
                made_checkpoint(Path(checkpoint.path), 7.0)
            original(member)  # type: ignore[arg-type]

        engine._load = load  # type: ignore[method-assign]
        with pytest.raises(MedbenchError, match="has other weights at"):
            engine.load("one", checkpoint)
    finally:
        engine.close()


# --- what cannot be started ----------------------------------------------------------------------------------------


def test_more_gpus_than_there_are(cluster: Cluster, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MedbenchError, match="Ray has no GPU and 8 CPUs on 1 node"):
        ReplicatedEngine(EngineChoice("hf", EngineConfig(replicas=9)))
    with pytest.raises(MedbenchError, match="needs 2 GPUs, and Ray has none"):
        ReplicatedEngine(EngineChoice("vllm", EngineConfig(replicas=1, tensor_parallel_size=2)))


def test_a_run_tells_what_happened_to_its_replicas(cluster: Cluster, tmp_path: Path) -> None:
    from support.gate_runs import write_medqa

    from medbench.harness import api

    checkpoint = made_checkpoint(tmp_path / "model")
    write_medqa(tmp_path / "data", 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medbench.harness.evaluation.plan.resolve", lambda *_, **__: checkpoint)
        killed = threading.Thread(target=_kill_one_when_there, daemon=True)
        killed.start()
        run = api.evaluate(
            "model", engine="faulty", engine_config={"replicas": 2, "delay": 0.1}, tasks="medqa",
            data=tmp_path / "data", runs=tmp_path / "runs", quiet=True,
        )  # fmt: skip
    killed.join()
    record = json.loads((run.folder / "run.json").read_text())
    assert record["engine"]["name"] == "faulty"
    assert record["engine"]["settings"]["replicas"] == 2
    assert record["totals"]["peak_memory_gib"] is None
    assert any("a replica was lost (its process is gone)" in note for note in record["notes"])
    samples = [json.loads(line) for line in (run.folder / "samples/medqa.jsonl").read_text().splitlines()]
    assert [one["error"] for one in samples] == [None] * 40


def _kill_one_when_there() -> None:
    place = Path(tempfile.gettempdir())
    if wait_until(lambda: answering(place), 30):
        os.kill(answering(place)[0], signal.SIGKILL)
