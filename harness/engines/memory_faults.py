"""What to change when an engine has no memory, from what vLLM 0.31 and torch say of it.

advice("... ValueError: No available memory for the cache blocks. ...")  # "no memory is left for ...: raise ..."
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

HOST = re.compile(r"DefaultCPUAllocator: can't allocate memory|Cannot allocate memory|\bMemoryError\b")
DEVICE = re.compile(
    r"OutOfMemoryError|(?:CUDA|HIP|XPU) (?:error: )?out of memory|CUDA Error: out of memory", re.IGNORECASE
)


def advice(said: str) -> str | None:
    """The fault and its remedy in one line, from a message or a traceback; None where memory is not the fault."""
    for pattern, remedy in REMEDIES:
        if found := pattern.search(said):
            return remedy(found)
    return None


def _too_little_free(found: re.Match[str]) -> str:
    free, total, wanted = (float(found[name]) for name in ("free", "total", "wanted"))
    fits = math.floor(100 * free / total) / 100 - 0.01
    line = f"only {free:g} of {total:g} GiB are free, and {wanted:.0%} were asked for"
    if fits < 0.05:
        return f"{line}: end what else uses them (nvidia-smi)"
    return f"{line}: set engine_config.gpu_memory_utilization to {fits:.2f} or less, or end what else uses them"


def _too_long(found: re.Match[str]) -> str:
    fits = f"to {found['fits']} or less" if found["fits"] else "lower"
    return (
        f"the key-value cache has no room for a reply of {found['length']} tokens: set engine_config.max_model_len "
        f"{fits}, or raise engine_config.gpu_memory_utilization"
    )


def _says(line: str) -> Callable[[re.Match[str]], str]:
    return lambda _: line


REMEDIES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        # vllm/v1/worker/utils.py, request_memory; cpu_worker.py says "Available memory on node"
        re.compile(
            r"(?:Free memory on device|Available memory on node) \S+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on "
            r"startup is less than desired \w+ memory utilization \((?P<wanted>[\d.]+)"
        ),
        _too_little_free,
    ),
    (
        # vllm/v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory
        re.compile(
            r"To serve at least one request with the model's max seq len \((?P<length>\d+)\)"
            r"(?:.{0,300}?estimated maximum model length is (?P<fits>\d+))?",
            re.DOTALL,
        ),
        _too_long,
    ),
    (
        re.compile(r"No available memory for the cache blocks"),  # the same
        _says(
            "no memory is left for the key-value cache beside the weights: raise engine_config.gpu_memory_utilization, "
            "lower max_num_seqs or max_model_len, or split the model by tensor_parallel_size"
        ),
    ),
    (
        # vllm/v1/worker/gpu_model_runner.py, _dummy_sampler_run
        re.compile(r"out of memory occurred when warming up \w+ with (?P<seats>\d+) dummy requests"),
        lambda found: (
            f"out of GPU memory with {found['seats']} replies at once: lower engine_config.max_num_seqs or "
            f"gpu_memory_utilization"
        ),
    ),
    (
        # gpu_model_runner.py, load_model, which logs this beside torch's error
        re.compile(rf"Failed to load model - not enough GPU memory|in load_model\b(?:.|\n)*?(?:{DEVICE.pattern})"),
        _says(
            "the weights do not fit into the GPU's memory: split them by engine_config.tensor_parallel_size, use a "
            "quantised checkpoint, or end what else uses the GPU (nvidia-smi)"
        ),
    ),
    (
        DEVICE,
        _says("out of GPU memory: lower engine_config.gpu_memory_utilization, max_num_seqs or max_model_len"),
    ),
    (
        HOST,
        _says("the machine is out of memory: end other processes, or lower engine_config.kv_cache_gib on a CPU"),
    ),
)
"""(what is said, in which file of vLLM, and the line for it): the first that fits counts."""
