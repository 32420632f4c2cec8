"""Swapping checkpoints of smollm2-135m in a warm vLLM engine, compared with starting an engine for each.

    python tests/bench/swap.py            # about 3 minutes on 2 cores

Targets: swap and verification take at most 0.15 of an engine start in the same process; greedy replies to 32 prompts
equal those of a fresh engine; 20 swaps in a row grow the process by at most 5 %.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import psutil

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Engine, Message, Request
from medbench.harness.engines.hot_swap import WarmEngine
from medbench.harness.engines.settings import EngineConfig

SWAPS, PROMPTS, NEW_TOKENS = 20, 32, 32
CONFIG = EngineConfig(kv_cache_gib=2)


def perturbed(source: Path, target: Path) -> Path:
    """A checkpoint of the same shape that says other things: every second layer's output projection scaled."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    for name in weights:
        if name.endswith("o_proj.weight") and int(name.split(".")[2]) % 2:
            weights[name] = weights[name] * 0.6
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def greedy(engine: Engine) -> dict[str, str]:
    texts = [f"Name one drug for condition number {n} and say how it works." for n in range(PROMPTS)]
    requests = [
        Request(text, (), engine.render((Message("user", text),), None), NEW_TOKENS, templated=True) for text in texts
    ]
    return {completion.id: completion.text for completion in engine.generate(requests)}


def megabytes() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


def main() -> None:
    base = resolve("smollm2-135m")
    with tempfile.TemporaryDirectory() as root:
        other = resolve(str(perturbed(Path(base.path), Path(root) / "other")))
        fresh = {}
        starts = []
        for checkpoint in (base, other, base):  # the first start imports vLLM as well, and does not count
            started = time.perf_counter()
            warm = WarmEngine(checkpoint, CONFIG, print)
            starts.append(time.perf_counter() - started)
            fresh[checkpoint.name] = greedy(warm.engine)
            if len(starts) < 3:
                warm.close()
        start = statistics.median(starts[1:])
        print(
            f"engine starts: {', '.join(f'{seconds:.1f}' for seconds in starts)} s (the first with imports)", flush=True
        )
        swaps, memory = [], []
        for number in range(SWAPS):
            checkpoint = (other, base)[number % 2]
            report = warm.swap(checkpoint)
            swaps.append(report.seconds)
            memory.append(megabytes())
            if number < 2:
                replies = greedy(warm.engine)
                same = sum(replies[id] == text for id, text in fresh[checkpoint.name].items())
                print(f"{checkpoint.name}: {same} of {PROMPTS} greedy replies as a fresh engine's", flush=True)
        different = sum(fresh[base.name][id] != text for id, text in fresh[other.name].items())
        print(f"the two checkpoints differ on {different} of {PROMPTS} replies")
        print(
            f"swap and verification: median {statistics.median(swaps):.2f} s, most {max(swaps):.2f} s, "
            f"{statistics.median(swaps) / start:.3f} of an engine start (target at most 0.15)"
        )
        print(
            f"memory: {memory[1]:.0f} MB after 2 swaps, {memory[-1]:.0f} MB after {SWAPS}: "
            f"{100 * (memory[-1] / memory[1] - 1):+.1f} % (target at most +5 %)"
        )
        warm.close()


if __name__ == "__main__":
    main()
