"""Two replicas of a real vLLM: the same answers as one engine's, also while replicas are killed, and swaps in both."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.gate_runs import write_gates, write_medqa
from support.replicas import answering, own_place, ray_processes, wait_until
from support.tiny import build_tiny_model

from medbench.harness import api
from medbench.harness.contracts import Engine, Message, Request
from medbench.harness.engines.hf import HFEngine
from medbench.harness.runs.run_folder import read_samples

pytest.importorskip("ray", reason="Ray is not installed: pip install 'medbench[ray]'")
pytestmark = pytest.mark.engine

QUESTIONS = 300
KILLS = 10
TOKENS = 48
REPLICAS = {"replicas": 2, "kv_cache_gib": 1, "dtype": "float32", "max_num_seqs": 8}
"""Few places, so that answers come in many small groups, between which replicas are killed."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replicas")
    write_medqa(folder, QUESTIONS)
    return folder


@pytest.fixture(scope="module")
def alone(tiny_engine: Engine, tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The samples of one engine in this process, sorted."""
    run = api.evaluate(
        tiny_model, engine=tiny_engine, tasks="medqa", max_new_tokens=TOKENS, data=data,
        runs=tmp_path_factory.mktemp("alone"), quiet=True,
    )  # fmt: skip
    return sorted((run.folder / "samples/medqa.jsonl").read_bytes().splitlines())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tmp_path_factory.getbasetemp()  # not in there
    with own_place() as folder:
        yield folder


@pytest.fixture(autouse=True)
def nothing_is_left(place: Path) -> Iterator[None]:
    yield
    assert wait_until(lambda: not ray_processes(place), 20)


def evaluated(model: Path, data: Path, runs: Path) -> tuple[list[bytes], list[str]]:
    """(samples, sorted; notes of the run)"""
    run = api.evaluate(
        model, engine="vllm", engine_config=REPLICAS, tasks="medqa", max_new_tokens=TOKENS, data=data, runs=runs,
        quiet=True,
    )  # fmt: skip
    return sorted((run.folder / "samples/medqa.jsonl").read_bytes().splitlines()), run.record.notes


def test_two_replicas_answer_byte_for_byte_as_one_engine(
    alone: list[bytes], tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    samples, notes = evaluated(tiny_model, data, tmp_path)
    assert samples == alone
    assert not any("lost" in note for note in notes)


@pytest.mark.timeout(1800)  # ten starts of vLLM
def test_ten_kills_at_random_moments_lose_nothing_and_double_nothing(
    alone: list[bytes], tiny_model: Path, data: Path, tmp_path: Path, place: Path
) -> None:
    done = threading.Event()
    killed: list[int] = []

    def answers() -> int:
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*/samples/medqa.jsonl"))

    def kill() -> None:
        draw = random.Random(time.time_ns())
        known = -1
        while len(killed) < KILLS and not done.is_set():
            serving = [pid for pid in answering(place) if pid not in killed]
            # the next kill waits for an answer: a replica that is killed three times without one is not started again
            if not serving or answers() == known:
                time.sleep(0.02)
                continue
            time.sleep(draw.uniform(0.0, 0.2))
            known, victim = answers(), draw.choice(serving)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        samples, notes = evaluated(tiny_model, data, tmp_path)
    finally:
        done.set()
        thread.join()
    assert len(killed) == KILLS
    assert samples == alone
    (told,) = [note for note in notes if "lost" in note]
    assert "its process is gone" in told


def test_a_gate_swaps_two_checkpoints_into_both_replicas(
    tiny_model: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = [tiny_model, *(build_tiny_model(tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2))]
    rules = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.9}", partition="all", max_new_tokens=TOKENS)
    with caplog.at_level("INFO", "medbench"):
        judged = api.gate_all(
            models, rules, engine="vllm", engine_config=REPLICAS, data=data, runs=tmp_path / "runs", quiet=True
        )
    assert [one.verdict.overall for one in judged] == ["fail"] * 3
    for replica in (0, 1):
        swaps = [line for line in caplog.messages if line.startswith(f"replica {replica}: ") and "swapped in" in line]
        assert len(swaps) == 2
    for model, verdict in zip(models, judged, strict=True):
        assert verdict.folder is not None
        samples = list(read_samples(verdict.folder, "medqa"))[:6]
        engine = HFEngine(str(model), dtype="float32", device="cpu")
        asked = [
            Request(sample.id, (Message("user", ""),), sample.prompt, TOKENS, templated=True) for sample in samples
        ]
        expected = {found.id: found.text.rstrip("\ufffd") for found in engine.generate(asked)}
        assert {sample.id: sample.output for sample in samples} == expected
