"""Models in medbench's cache: what a killed process leaves behind.

pytest tests/checkpoints/test_cached_models.py
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medbench.harness.checkpoints.cached_models import cached_model

WRITER = """
import sys, time
from medbench.harness.checkpoints.cache import cache_dir
from medbench.harness.checkpoints.cached_models import cached_model

def fill(folder):
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)

cached_model(cache_dir() / "merged" / sys.argv[1], fill, print)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def a_writer(name: str) -> subprocess.Popen[str]:
    """A process that is in the middle of writing a model."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, name], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def in_progress(cache: Path) -> list[str]:
    return sorted(path.name.split(".")[1] for path in (cache / "merged").glob(".*.tmp"))


def test_what_a_killed_process_wrote_is_removed_and_what_a_live_one_writes_is_kept(cache: Path) -> None:
    killed, alive = a_writer("killed"), a_writer("alive")
    try:
        kill(killed)
        assert in_progress(cache) == ["alive", "killed"]
        cached_model(cache / "merged" / "other", lambda folder: (folder / "whole").write_text("x"), print)
        assert in_progress(cache) == ["alive"]
        assert (cache / "merged" / "other" / "whole").exists()
    finally:
        kill(alive)


def test_a_model_whose_writer_was_killed_is_made(cache: Path) -> None:
    kill(a_writer("killed"))
    folder = cached_model(cache / "merged" / "killed", lambda folder: (folder / "whole").write_text("x"), print)
    assert (folder / "whole").exists()
    assert not (folder / "half").exists()
    assert in_progress(cache) == []
