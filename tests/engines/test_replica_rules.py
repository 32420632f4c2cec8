"""What replicas get of a cluster, when they agree, and how one replica works inside: no Ray is started."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import faulty_engine
from support.replicas import made_checkpoint

from medbench.harness.checkpoints.packages import installed
from medbench.harness.contracts import BrokenCheckpoint, MedbenchError, Passed, Request
from medbench.harness.engines.hot_swap import StaleSwapError
from medbench.harness.engines.replicas import placement
from medbench.harness.engines.replicas.agreement import different, refuse_other_versions
from medbench.harness.engines.replicas.placement import Plan, environment, plan
from medbench.harness.engines.replicas.replica import (
    Failure,
    Replica,
    Serving,
    packed,
    packed_request,
    unpacked,
)
from medbench.harness.engines.settings import EngineChoice, EngineConfig


def nodes(*sizes: tuple[int, int]) -> list[dict[str, dict[str, float]]]:
    """(GPUs, CPUs) of each."""
    return [{"Resources": {"GPU": gpus, "CPU": cpus}} for gpus, cpus in sizes]


def planned(engine: str, sizes: list[tuple[int, int]], **config: object) -> Plan:
    wanted = EngineConfig.model_validate(config)
    return plan(EngineChoice(engine, EngineConfig()), wanted, nodes(*sizes))


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "runs_on_cpu", lambda: False)


@pytest.mark.usefixtures("on_gpus")
def test_each_replica_gets_its_gpus_on_one_node() -> None:
    assert planned("vllm", [(8, 64), (8, 64)], replicas=16).gpus == 1
    found = planned("vllm", [(8, 64), (8, 64)], replicas=4, tensor_parallel_size=4)
    assert (found.replicas, found.gpus) == (4, 4)
    assert found.threads is None
    assert planned("vllm", [(8, 64)], replicas=2, tensor_parallel_size=2, data_parallel_size=2).gpus == 4


@pytest.mark.usefixtures("on_gpus")
def test_all_means_as_many_as_fit() -> None:
    assert planned("vllm", [(8, 64), (6, 64)], replicas="all", tensor_parallel_size=4).replicas == 3
    assert planned("hf", [(8, 64)], replicas="all", tensor_parallel_size=4).replicas == 8
    assert planned("hf", [(0, 64)], replicas="all").replicas == 1


@pytest.mark.usefixtures("on_gpus")
@pytest.mark.parametrize(
    ("sizes", "config", "said"),
    [
        (
            [(4, 8), (2, 8)],
            {"replicas": 8},
            "of 1 GPU each: Ray has 6 GPUs on 2 nodes (4 on the largest)",
        ),
        ([(4, 8), (4, 8)], {"replicas": 1, "tensor_parallel_size": 8}, "Ray has 8 GPUs on 2 nodes (4 on the largest)"),
        ([(0, 8)], {"replicas": 2, "tensor_parallel_size": 2}, "a replica needs 2 GPUs, and Ray has none"),
        ([(0, 1)], {"replicas": 2}, "Ray has no GPU and 1 CPU on 1 node"),
    ],
)
def test_more_than_there_is_says_what_there_is(sizes: list[tuple[int, int]], config: dict[str, int], said: str) -> None:
    with pytest.raises(MedbenchError) as error:
        planned("vllm", sizes, **config)
    assert said in str(error.value)


def test_without_a_gpu_the_cpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert planned("hf", [(0, 16)], replicas=4).threads == 4
    assert planned("hf", [(0, 8), (0, 3)], replicas=3).cpus == 3
    assert planned("fake", [(0, 1)], replicas=8).cpus < 0.1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert planned("hf", [(0, 16)], replicas=4).threads == 2


def test_no_secret_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    for name in ("VLLM_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "s3cret-value")
    found = environment()
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert "s3cret-value" not in str(found)


# --- agreement -------------------------------------------------------------------------------------------------------


def serving(probe: float | None, device: str = "cpu", **versions: str) -> Serving:
    found = installed(("medbench",))
    found |= {"vllm": "0.31.0"} | versions
    return Serving(
        "node", 1, "vllm", {}, "model", 32, True, found, device, None if probe is None else (probe, -1.0), ()
    )


def test_a_replica_that_differs_from_most_is_named() -> None:
    assert different({0: serving(-2.0), 1: serving(-2.0 + 1e-4), 2: serving(-2.0)}) == {}
    found = different({0: serving(-2.0), 1: serving(-3.0), 2: serving(-2.0)})
    assert list(found) == [1]
    assert "1 nats" in found[1]


def test_two_that_differ_are_both_named() -> None:
    assert list(different({0: serving(-2.0), 1: serving(-2.5)})) == [0, 1]


def test_other_devices_may_differ_by_the_rounding_of_bfloat16() -> None:
    assert different({0: serving(-2.0, "H100"), 1: serving(-2.06, "A100")}) == {}
    assert list(different({0: serving(-2.0, "H100"), 1: serving(-2.06, "H100")})) == [0, 1]


def test_engines_without_a_probe_cannot_differ() -> None:
    assert different({0: serving(None), 1: serving(None)}) == {}


def test_other_versions_are_refused_with_the_node() -> None:
    refuse_other_versions({0: serving(0.0), 1: serving(0.0)})
    with pytest.raises(MedbenchError, match=r"replica 2 on node node has vLLM 0\.30\.0, others 0\.31\.0: install one"):
        refuse_other_versions({0: serving(0.0), 1: serving(0.0), 2: serving(0.0, vllm="0.30.0")})
    with pytest.raises(MedbenchError, match=r"replica 0 on node node has medbench 9\.9, this process"):
        refuse_other_versions({0: serving(0.0, medbench="9.9"), 1: serving(0.0, medbench="9.9")})


# --- inside a replica ------------------------------------------------------------------------------------------------


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(faulty_engine.install(tmp_path / "site")))
    return Replica(EngineChoice("faulty", EngineConfig(delay=0.01)))


def loaded(replica: Replica, folder: Path) -> Serving:
    checkpoint = made_checkpoint(folder)
    found = replica.serve("m", checkpoint, checkpoint.path, checkpoint.fingerprint)
    assert isinstance(found, Serving), found
    return found


def asked(count: int, **changes: object) -> list[tuple[object, ...]]:
    return [packed_request(replace(Request(f"toy/q{one}", (), "Q", 8), **changes)) for one in range(count)]  # type: ignore[arg-type]


def taken(replica: Replica, call: int, count: int) -> list[str]:
    found: list[str] = []
    until = time.monotonic() + 20
    while len(found) < count and time.monotonic() < until:
        found += [str(event[0]) for event in replica.take(call, (), 1.0, 0.0).events]
    return found


def test_a_replica_answers_what_it_is_given_in_pieces(replica: Replica, tmp_path: Path) -> None:
    assert loaded(replica, tmp_path / "m").places == 4
    replica.put(1, asked(6)[:2])
    replica.put(1, asked(6)[2:])
    assert sorted(taken(replica, 1, 6)) == [f"toy/q{one}" for one in range(6)]
    replica.close()


def test_a_later_call_ends_the_earlier_one(replica: Replica, tmp_path: Path) -> None:
    loaded(replica, tmp_path / "m")
    replica.put(1, asked(500))
    replica.put(2, asked(3))
    assert sorted(taken(replica, 2, 3)) == ["toy/q0", "toy/q1", "toy/q2"]
    assert replica.take(1, asked(1), 0.1, 0.0).events == ()
    assert replica.take(2, (), 0.2, 0.0).events == ()


def test_a_replica_with_nothing_to_tell_says_so_in_time(replica: Replica, tmp_path: Path) -> None:
    loaded(replica, tmp_path / "m")
    started = time.monotonic()
    assert replica.take(1, (), 0.3, 0.0).events == ()
    assert 0.2 < time.monotonic() - started < 5


def test_what_an_engine_raises_reaches_the_driver(replica: Replica, tmp_path: Path) -> None:
    loaded(replica, tmp_path / "m")
    report = replica.take(1, asked(1, prompt="broken"), 5.0, 0.0)
    assert report.failure is not None
    assert report.failure.why == "RuntimeError: the engine core is gone"


def test_a_checkpoint_that_is_not_there_is_told_with_the_node(replica: Replica, tmp_path: Path) -> None:
    checkpoint = made_checkpoint(tmp_path / "m")
    gone = replica.serve("m", checkpoint, str(tmp_path / "elsewhere"), checkpoint.fingerprint)
    assert isinstance(gone, Failure)
    assert "does not see" in gone.why
    other = replica.serve("m", checkpoint, checkpoint.path, "0" * 64)
    assert isinstance(other, Failure)
    assert "has other weights" in other.why
    assert replica.sees(checkpoint.path, checkpoint.fingerprint)


def test_errors_keep_their_kind_on_the_way() -> None:
    assert isinstance(Failure.of(BrokenCheckpoint("torn")).raised(), BrokenCheckpoint)
    assert Failure.of(MedbenchError("first", "second")).raised().lines == ("first", "second")
    assert Failure.of(StaleSwapError("stale")).kind == "fault"  # another start may cure it
    assert Failure.of(ValueError("two\nlines")).why == "ValueError: two lines"


def test_events_and_requests_survive_the_way() -> None:
    passed = Passed("q", 256)
    assert unpacked(packed(passed)) == passed
    request = Request("q", (), "Q", 8, stop=("a",), milestones=(1, 2), choices=(" A",))
    assert Request(*packed_request(request)) == request


def test_importing_an_engine_imports_no_ray() -> None:
    import subprocess

    code = "import sys, medbench.harness.engines.pool; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
