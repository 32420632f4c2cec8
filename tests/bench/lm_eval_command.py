"""Times the lm_eval command with vLLM and its best settings on a CPU; other benchmarks compare themselves with it.

from lm_eval_command import timed_lm_eval; seconds, shown = timed_lm_eval(model, root, ["--tasks", "medqa"])
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = "dtype=float32,enforce_eager=True,max_model_len=8192,enable_prefix_caching=True"


def cpu_environment() -> dict[str, str]:
    """This process's environment with what vLLM needs to be fast on a CPU."""
    return {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    }


def timed_lm_eval(model: str, root: Path, arguments: list[str], **environment: str) -> tuple[float, str]:
    """(seconds of the whole command, its standard output); if it fails, exits with the end of its error output."""
    # lm-eval's vLLM class needs a distribution named `vllm`, but the CPU build has another name: without this it fails.
    # vLLM itself looks for "cpu" in that version to find its platform.
    (root / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "_version = m.version\n"
        "m.version = lambda name: _version('vllm-cpu') + '+cpu' if name == 'vllm' else _version(name)\n"
    )
    words = f"-m lm_eval run --model vllm --model_args pretrained={model},{SETTINGS} --batch_size auto"
    program = [sys.executable, *words.split(), *arguments]
    started = time.perf_counter()
    done = subprocess.run(
        program, env={**cpu_environment(), "PYTHONPATH": str(root), **environment}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"lm_eval failed:\n{done.stderr[-3000:]}")
    return seconds, done.stdout
