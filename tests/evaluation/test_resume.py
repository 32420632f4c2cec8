"""kill -9 at random moments of a real `medbench eval`: after resuming, the samples equal those of an uninterrupted run.

Each evaluation runs the command in its own process. For vLLM that process is forked from one that has already imported
vllm (12 s per import), before any thread has been started.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

KILLS = 20
ENGINE_KILLS = 5
"""Of an engine that takes seconds to start."""
Start = Callable[[Path], int]
"""Starts `medbench eval ... --resume --runs FOLDER --name r` and returns its process id."""


def sorted_samples(runs: Path) -> dict[str, list[bytes]]:
    files = sorted((runs / "r" / "samples").glob("*.jsonl"))
    return {path.name: sorted(path.read_bytes().splitlines()) for path in files}


def kill_and_resume(start: Start, root: Path, seed: int, times: int = KILLS) -> list[Path]:
    """Kill so many times, every fourth time during start-up; a run that finishes is followed by a fresh one.

    Returns the finished runs: "whole", never interrupted, first.
    """
    draw = random.Random(seed)
    startup, seconds, _ = _watch(start, root / "whole", lambda elapsed, grown: False)
    finished, current, kills = [root / "whole"], root / "killed-0", 0
    while kills < times:
        if kills % 4 == 0:
            moment = draw.uniform(0.02, startup)
            _, _, status = _watch(start, current, lambda elapsed, grown, moment=moment: elapsed > moment)
        else:
            pause = draw.uniform(0.0, (seconds - startup) / 5)
            _, _, status = _watch(start, current, lambda elapsed, grown, pause=pause: grown > pause)
        kills += status == signal.SIGKILL
        if status == 0:
            finished.append(current)
            current = root / f"killed-{len(finished)}"
    _, _, status = _watch(start, current, lambda elapsed, grown: False)
    assert status == 0
    return [*finished, current]


def _watch(start: Start, folder: Path, is_moment: Callable[..., bool]) -> tuple[float, float, int]:
    """(seconds until samples grew, seconds in all, exit status); killed at `is_moment(elapsed, since they grew)`."""
    before, started, grew = _size(folder), time.monotonic(), None
    pid = start(folder)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        elapsed = time.monotonic() - started
        if done:
            return grew or elapsed, elapsed, status
        if grew is None and _size(folder) > before:
            grew = elapsed
        if is_moment(elapsed, -1.0 if grew is None else elapsed - grew):
            os.kill(pid, signal.SIGKILL)
            return grew or elapsed, elapsed, os.waitpid(pid, 0)[1]
        time.sleep(0.003)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "r" / "samples").glob("*.jsonl"))


@pytest.mark.slow
def test_stored_replies_killed_twenty_times(tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "tasks" / "pubmedqa" / "sample" / "test.jsonl"
    rows = [json.loads(line) for line in sample.open()]
    replies = tmp_path / "replies.jsonl"
    with replies.open("w") as file:
        for row in rows:
            file.write(json.dumps({"id": row["pubid"], "output": f"The answer is ({row['final_decision']})."}) + "\n")
    (tmp_path / "slow.yaml").write_text("engine_config: {delay: 0.1}\n")

    def start(folder: Path) -> int:
        command = f"eval stored --replies {replies} --tasks pubmedqa --data sample --resume --quiet --name r"
        places = ["--config", str(tmp_path / "slow.yaml"), "--runs", str(folder)]
        null = subprocess.DEVNULL
        program = [sys.executable, "-m", "medbench.harness.cli", *command.split(), *places]
        return subprocess.Popen(program, stdout=null, stderr=null).pid

    whole, *killed = kill_and_resume(start, tmp_path, seed=1)
    assert len(sorted_samples(whole)["pubmedqa.jsonl"]) == len(rows)
    for runs in killed:
        assert sorted_samples(runs) == sorted_samples(whole)


def _kill_forks(model: str, root: Path) -> list[Path]:
    import transformers  # noqa: F401
    import vllm  # noqa: F401

    from medbench.harness.benchmarks import catalog  # noqa: F401
    from medbench.harness.cli.main import run
    from medbench.harness.evaluation import evaluate  # noqa: F401

    def start(folder: Path) -> int:
        command = "--data sample --tasks medqa,mmlu_pro_medical --max-new-tokens 400 --resume --quiet --name r"
        arguments = ["eval", model, *command.split(), "--config", str(root / "few.yaml"), "--runs", str(folder)]
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os._exit(run(arguments))
        return pid

    return kill_and_resume(start, root, seed=2, times=ENGINE_KILLS)


@pytest.mark.engine
def test_vllm_killed_five_times(tiny_model: Path, tmp_path: Path) -> None:
    # few at a time, so that there is much time between the first answer and the last
    (tmp_path / "few.yaml").write_text("engine_config: {max_num_seqs: 2, kv_cache_gib: 1}\n")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        whole, *killed = pool.apply(_kill_forks, (str(tiny_model), tmp_path))
    assert sorted(sorted_samples(whole)) == ["medqa.jsonl", "mmlu_pro_medical.jsonl"]
    for runs in killed:
        assert sorted_samples(runs) == sorted_samples(whole)
