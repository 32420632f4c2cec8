"""What all tests share: the environment that vLLM needs on a CPU, timeouts, a tiny model, the real benchmark files.

    pytest -m "not engine and not browser and not slow"      # make test-fast

MEDBENCH_DATA names the folder of real benchmark files; tests that need them are skipped without it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# vLLM reads these when it is imported, so they are set before any test module is imported; child processes inherit
# them. Without them the CPU engine takes 47 s to start instead of 10 s, and runs at half its speed.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("OMP_NUM_THREADS", str(CORES))
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# with a salt of their own the runs folders would give each run of the tests other orders of questions
os.environ.setdefault("MEDBENCH_ORDER_SALT", "the tests")
# on a busy machine any example can take longer than the 200 ms that hypothesis allows; pytest's timeouts remain
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")
# a shell starts what it runs in the background with SIGINT ignored, and child processes would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that start an engine last, and give tests that take long a longer timeout than pyproject.toml does.

    Those that share the session's engine come before those that start and close others: vLLM has one set of process
    groups for all engines of a process, and the first that is closed takes it down. For the same reason pytest-xdist
    must not run them in an order of its own.
    """
    items.sort(key=lambda item: (item.get_closest_marker("engine") is not None, not _shares_the_engine(item)))
    for item in items:
        if item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.timeout(600))
        elif item.get_closest_marker("slow") or item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.timeout(300))


def _shares_the_engine(item: pytest.Item) -> bool:
    return "tiny_engine" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint folder of a tiny random Qwen3 (seed 0). Shared by the whole session: do not write to it."""
    from support.tiny import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_engine(tiny_model: Path) -> Iterator[Any]:
    """The session's only vLLM engine, running the tiny model in this process."""
    from medbench.harness.engines.settings import EngineConfig
    from medbench.harness.engines.vllm import VLLMEngine

    engine = VLLMEngine(str(tiny_model), EngineConfig(kv_cache_gib=1))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real benchmark files, one subfolder per task family."""
    named = os.environ.get("MEDBENCH_DATA", "")
    if not named:
        pytest.skip("MEDBENCH_DATA is not set: point it at the folder of real benchmark files")
    folder = Path(named)
    if not folder.is_dir():
        pytest.skip(f"MEDBENCH_DATA names {named}, which is not a folder")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted folder of 128 KiB, which fills up quickly."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root; test_a_file_size_limit_is_a_full_disk covers much of this")
    yield disk
    subprocess.run(["umount", disk], check=True)
