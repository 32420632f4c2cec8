"""A gate in a vLLM server that goes on running, compared with one that starts its own engine; smollm2-135m.

    python tests/bench/served_swap.py        # about 4 minutes on 2 cores

Each gate is a process of its own, as in CI, and judges a checkpoint by 24 questions whose answer is one letter. Shown:
the seconds of each, and of them those of swap and verification.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import conftest  # noqa: F401  # sets environment variables for vLLM
from support.gate_runs import write_gates, write_medqa
from support.vllm_server import vllm_server

from medbench.harness.checkpoints.resolve import resolve

ROUNDS = 5


def gate(folder: Path, candidate: Path, *words: str) -> tuple[float, float | None]:
    """(seconds of the command, those of the swap)"""
    common = ["--gates", "gates.yaml", "--data", "data", "--runs", tempfile.mkdtemp(dir=folder), "--quiet"]
    command = [sys.executable, "-m", "medbench.harness.cli", "gate", str(candidate), *common, *words]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    swapped = re.search(r"swapped in after ([\d.]+) s", done.stderr)
    return seconds, float(swapped[1]) if swapped else None


def main() -> None:
    base = Path(resolve("smollm2-135m").path)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write_medqa(folder / "data", 24)
        write_gates(folder / "gates.yaml", "{task: medqa, at_least: 0.1}", protocol="direct-v1")
        candidate = shutil.copytree(base, folder / "candidate")
        gate(folder, candidate)  # files into the page cache
        own = [gate(folder, candidate)[0] for _ in range(ROUNDS)]
        print(f"with an engine of its own: median {statistics.median(own):.1f} s", flush=True)
        started = time.perf_counter()
        with vllm_server(base, folder, env={"VLLM_SERVER_DEV_MODE": "1", **os.environ}) as url:
            print(f"the server starts in {time.perf_counter() - started:.1f} s", flush=True)
            served = [gate(folder, candidate, "--swap", "--base-url", url) for _ in range(ROUNDS)]
        swaps = [swap for _, swap in served if swap is not None]
        print(
            f"in the server: median {statistics.median(one for one, _ in served):.1f} s, "
            f"of which swap and verification {statistics.median(swaps):.1f} s"
        )


if __name__ == "__main__":
    main()
