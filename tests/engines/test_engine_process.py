"""vLLM's engine in a process of its own: its faults in one line, and its end with that of medbench."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from medbench.harness.contracts import BrokenCheckpoint, Interrupted, MedbenchError
from medbench.harness.engines.engine_process import EngineProcess
from medbench.harness.engines.memory_faults import advice

ROOT = Path(__file__).parents[2]
FAILED = (
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"  # engine/utils.py
)
STARTER = """
import os, subprocess, sys, time
from pathlib import Path
from medbench.harness.engines.engine_process import EngineProcess

rest = "import time; time.sleep(600)"
nest = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {rest!r}])"
before = subprocess.Popen([sys.executable, "-c", rest])
with EngineProcess(own=True).starting(Path("model")):
    code = f"{nest}; open(sys.argv[1], 'w').write(str(p.pid)); {rest}"
    engine = subprocess.Popen([sys.executable, "-c", code, sys.argv[1]])
    while not Path(sys.argv[1]).exists() or not Path(sys.argv[1]).read_text():
        time.sleep(0.05)
    time.sleep(float(sys.argv[2]))
print(before.pid, engine.pid, Path(sys.argv[1]).read_text(), flush=True)
time.sleep(600)
"""


# what is said, in the words of vLLM 0.31 and torch 2.13


@pytest.mark.parametrize(
    ("said", "fault", "remedy"),
    [
        (  # vllm/v1/worker/utils.py, request_memory
            "ValueError: Free memory on device cuda:0 (38.5/79.11 GiB) on startup is less than desired GPU memory "
            "utilization (0.92, 72.78 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
            "processes.",
            "only 38.5 of 79.11 GiB are free, and 92% were asked for",
            "set engine_config.gpu_memory_utilization to 0.47 or less",
        ),
        (
            "ValueError: Free memory on device cuda:0 (1.2/79.11 GiB) on startup is less than desired GPU memory "
            "utilization (0.92, 72.78 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
            "processes.",
            "only 1.2 of 79.11 GiB are free",
            "end what else uses them (nvidia-smi)",
        ),
        (  # vllm/v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            "initializing the engine (this flag also controls CPU memory reservation on the CPU backend, despite its "
            "name).",
            "no memory is left for the key-value cache beside the weights",
            "raise engine_config.gpu_memory_utilization",
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (40960), (5.62 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (2.1 GiB). Based on the available memory, the "
            "estimated maximum model length is 15296. Try increasing `gpu_memory_utilization`",
            "no room for a reply of 40960 tokens",
            "set engine_config.max_model_len to 15296 or less",
        ),
        (  # vllm/v1/worker/gpu_model_runner.py, _dummy_sampler_run
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try "
            "lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
            "out of GPU memory with 1024 replies at once",
            "lower engine_config.max_num_seqs",
        ),
        (  # the same, load_model
            "Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization to free memory for "
            "weights, increasing --tensor-parallel-size, or using --quantization. (original error: CUDA out of memory. "
            "Tried to allocate 250.00 MiB.)",
            "the weights do not fit into the GPU's memory",
            "tensor_parallel_size",
        ),
        (
            '  File "gpu_model_runner.py", line 5343, in load_model\n    self.model = loader.load_model(...)\n'
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 250.00 MiB. GPU 0 has a total capacity of",
            "the weights do not fit into the GPU's memory",
            "quantised checkpoint",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of "
            "79.11 GiB of which 10.12 MiB is free.",
            "out of GPU memory",
            "lower engine_config.gpu_memory_utilization, max_num_seqs or max_model_len",
        ),
        (  # vllm's cumem_allocator.cpp, when a sleeping engine wakes
            "RuntimeError: CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62",
            "out of GPU memory",
            "lower engine_config.gpu_memory_utilization",
        ),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)",
            "the machine is out of memory",
            "kv_cache_gib",
        ),
    ],
    ids=["in use", "all in use", "cache", "length", "seats", "weights, logged", "weights", "other", "waking", "host"],
)
def test_a_lack_of_memory_is_told_with_the_setting_to_change(said: str, fault: str, remedy: str) -> None:
    line = advice(said)
    assert line is not None
    assert fault in line
    assert remedy in line
    assert "\n" not in line
    with pytest.raises(MedbenchError) as caught, EngineProcess(own=False).starting(Path("step-800")):
        raise RuntimeError(said)
    assert str(caught.value) == f"vLLM cannot start with step-800: {line}"
    assert not isinstance(caught.value, BrokenCheckpoint)


@pytest.mark.parametrize("said", ["KeyError: 'lm_head.weight'", "ValueError: memory of an elephant"])
def test_other_faults_are_left_as_they_are(said: str) -> None:
    assert advice(said) is None
    with pytest.raises(RuntimeError), EngineProcess(own=False).starting(Path("step-800")):
        raise RuntimeError(said)


def test_a_lack_of_memory_in_mid_run_can_be_resumed() -> None:
    import torch

    with pytest.raises(Interrupted, match=r"max_num_seqs.*--resume"), EngineProcess(own=False).faults_in_one_line():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


# in a process of its own


def said_by_engine(text: str) -> None:
    """As a child writes it, that has inherited the descriptor of the standard output."""
    subprocess.run([sys.executable, "-c", f"print({text!r})"], check=True)


def fail(process: EngineProcess, model: Path, said: str) -> None:
    with process.starting(model):
        said_by_engine(said)
        raise RuntimeError(FAILED)


def test_a_fault_that_only_the_engine_s_process_knows_is_told_and_its_words_are_kept(
    capfd: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    with pytest.raises(MedbenchError) as caught:
        fail(
            EngineProcess(own=True),
            tiny_model,
            "(EngineCore pid=77) ERROR 11-28 02:10:11 [core.py:1433] EngineCore failed to start.\n"
            "(EngineCore pid=77) ERROR 11-28 02:10:11 [core.py:1433] Traceback (most recent call last):\n"
            "(EngineCore pid=77) ERROR 11-28 02:10:11 [core.py:1433] ValueError: FlashInfer has no kernel for this\n"
            "(EngineCore pid=77) Process EngineCore:\n"
            "(EngineCore pid=77) ValueError: FlashInfer has no kernel for this",
        )
    line, _, log = str(caught.value).partition("; what it wrote is in ")
    assert line == (
        f"vLLM cannot start with {tiny_model} (ValueError: FlashInfer has no kernel for this): the machine or the "
        f"settings are at fault: fix that and run again"
    )
    assert "EngineCore failed to start" in Path(log).read_text()
    Path(log).unlink()
    assert "EngineCore" not in "".join(capfd.readouterr())


def test_a_lack_of_memory_in_the_engine_s_process_needs_no_log(tiny_model: Path) -> None:
    process = EngineProcess(own=True)
    with pytest.raises(MedbenchError, match="no memory is left for the key-value cache") as caught:
        fail(process, tiny_model, "(EngineCore pid=77) ValueError: No available memory for the cache blocks. Try")
    assert "what it wrote" not in str(caught.value)
    assert process._log is None


def test_what_medbench_prints_comes_out_before_and_after_the_start(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    process = EngineProcess(own=True)
    with process.starting(Path("model")):
        said_by_engine("INFO loading weights")
    print("after")
    process.close()
    assert capfd.readouterr().out.split() == ["before", "after"]


def test_a_user_who_asks_vllm_to_log_sees_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    process = EngineProcess(own=True)
    with process.starting(Path("model")):
        said_by_engine("INFO loading weights")
    process.close()
    assert "INFO loading weights" in capfd.readouterr().out


def waiting() -> None:
    time.sleep(600)


@pytest.fixture
def killed_engine() -> Iterator[tuple[EngineProcess, Any]]:
    """An engine whose process is killed while somebody waits for it, as the kernel does when memory runs out."""
    child = get_context("spawn").Process(target=waiting)
    child.start()
    client = SimpleNamespace(
        resources=SimpleNamespace(engine_manager=SimpleNamespace(processes=[child])),
        outputs_queue=Queue[Any](),
        utility_results={1: Future[Any]()},
    )
    process = EngineProcess(own=True)
    process.watch(client)
    threading.Timer(0.2, child.kill).start()
    yield process, client
    child.join()
    process.close()


def test_a_killed_engine_ends_the_wait_for_its_replies(killed_engine: tuple[EngineProcess, Any]) -> None:
    process, client = killed_engine
    with pytest.raises(Interrupted) as caught, process.faults_in_one_line():
        raise client.outputs_queue.get(timeout=30)
    assert str(caught.value) == (
        "vLLM's engine process ended (it was killed, perhaps for lack of memory): go on by --resume"
    )


def test_a_killed_engine_ends_the_wait_for_an_order(killed_engine: tuple[EngineProcess, Any]) -> None:
    process, client = killed_engine
    with pytest.raises(Interrupted, match="go on by --resume"), process.faults_in_one_line():
        client.utility_results[1].result(timeout=30)


@pytest.mark.parametrize("when", ["while it starts", "afterwards"])
def test_no_process_of_the_engine_outlives_medbench(tmp_path: Path, when: str) -> None:
    """kill -9 of medbench: vLLM's own engine process would go on holding the GPU."""
    seconds = "600" if when == "while it starts" else "0"
    command = [sys.executable, "-c", STARTER, str(tmp_path / "nested"), seconds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True) as starter:
        assert starter.stdout is not None
        if when == "afterwards":
            before, *started = map(int, starter.stdout.readline().split())
        else:
            until(lambda: (tmp_path / "nested").exists() and (tmp_path / "nested").read_text())
            time.sleep(4)  # the guard looks every half a second
            nested = psutil.Process(int((tmp_path / "nested").read_text()))
            started = [nested.pid, nested.ppid()]
            others = [one.pid for one in psutil.Process(starter.pid).children() if one.pid not in started]
            before = next(pid for pid in others if "guard.py" not in " ".join(psutil.Process(pid).cmdline()))
        os.kill(starter.pid, signal.SIGKILL)
    try:
        until(lambda: not any(map(alive, started)))
        assert alive(before), "what was there before the engine is none of its processes"
    finally:
        for pid in (before, *started):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(true: Any, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
