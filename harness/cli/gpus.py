"""The GPUs that nvidia-smi lists: names, memory and who holds it, and what that means for an engine.

nvidia-smi comes with the driver, so it is there wherever a GPU works. It needs no package and, unlike torch.cuda, takes
no memory on the card that it reports on.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

GIB = 1 << 30
VLLM_SHARE = 0.92
"""Of a GPU's memory that vLLM 0.31 asks for unless gpu_memory_utilization is set (vllm/config/cache.py)."""
LEAST_SHARE = 0.1
"""Below this, lowering it further is no remedy."""
BATCH_INVARIANT_FROM = 8.0
NAMED = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
DETAILS = ("nvidia-smi", "--query-gpu=index,uuid,memory.total,memory.free,compute_cap", "--format=csv,noheader,nounits")
HOLDERS = (
    "nvidia-smi",
    "--query-compute-apps=gpu_uuid,pid,process_name,used_memory",
    "--format=csv,noheader,nounits",
)


def list_gpus() -> tuple[list[dict[str, Any]], str | None]:
    """(GPUs, nvidia-smi's error); without nvidia-smi there are no GPUs and no error.

    Each has `name`, `memory` and `driver` as nvidia-smi words them and, as far as it says, `index`, `total` and `free`
    (bytes), `capability`, `cuda` (the newest version that the driver supports) and `holders` (pid, name, bytes).
    """
    try:
        done = _run(NAMED)
    except FileNotFoundError:
        return [], None
    except (OSError, subprocess.SubprocessError) as error:
        return [], type(error).__name__
    if done.returncode:
        return [], " ".join((done.stdout + done.stderr).split())[:200] or f"exit status {done.returncode}"
    rows = [line.rsplit(", ", 2) for line in done.stdout.splitlines()]
    gpus: list[dict[str, Any]] = [
        dict(zip(("name", "memory", "driver"), row, strict=True)) for row in rows if len(row) == 3
    ]
    cuda = re.search(r"CUDA Version:\s*(\d+\.\d+)", _answer(("nvidia-smi",)))
    for gpu, details in zip(gpus, _details(), strict=False):
        gpu.update(details | ({"cuda": cuda[1]} if cuda else {}))
    return gpus, None


def described(gpu: Mapping[str, Any]) -> str:
    """One GPU in a line."""
    parts = [gpu["name"], gpu["memory"]]
    if "free" in gpu:
        parts[1] += f" ({gpu['free'] / GIB:.1f} GiB free)"
    if "capability" in gpu:
        parts.append(f"compute capability {gpu['capability']}")
    parts.append(f"driver {gpu['driver']}" + (f" (CUDA {gpu['cuda']})" if "cuda" in gpu else ""))
    return ", ".join(parts)


def held(gpu: Mapping[str, Any]) -> list[str]:
    """Who holds its memory, a line for each."""
    return [f"  {one['name']} (pid {one['pid']}) holds {one['bytes'] / GIB:.1f} GiB" for one in gpu.get("holders", ())]


def on_gpus(findings: Mapping[str, Any]) -> Iterator[str]:
    """Advice: what keeps an engine from starting on the GPUs, or from a mode that is asked for."""
    for gpu in visible(findings["gpus"], findings["settings"].get("CUDA_VISIBLE_DEVICES")):
        yield from _on_memory(gpu)
        capability = gpu.get("capability")
        invariant = findings["settings"].get("VLLM_BATCH_INVARIANT", "0") != "0"
        if capability is not None and float(capability) < BATCH_INVARIANT_FROM and invariant:
            yield (
                f"VLLM_BATCH_INVARIANT needs compute capability {BATCH_INVARIANT_FROM} or higher (A100, H100), and "
                f"{gpu['name']} has {capability}: unset it"
            )
    wanted = re.search(r"\+cu(\d+)(\d)$", findings["packages"].get("torch", ""))
    cuda = next((gpu["cuda"] for gpu in findings["gpus"] if "cuda" in gpu), None)
    if wanted and cuda and int(cuda.split(".")[0]) < int(wanted[1]):
        yield (
            f"torch is built for CUDA {wanted[1]}.{wanted[2]}, and the driver supports CUDA {cuda}, so no GPU is used: "
            f"update the NVIDIA driver, or install a torch for CUDA {cuda.split('.')[0]}"
        )


def visible(gpus: Sequence[Mapping[str, Any]], chosen: str | None) -> list[Mapping[str, Any]]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; all where it names them by anything but their numbers."""
    numbers = (chosen or "").split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        return list(gpus)
    wanted = {int(number) for number in numbers}
    return [gpu for at, gpu in enumerate(gpus) if gpu.get("index", at) in wanted]


def _on_memory(gpu: Mapping[str, Any]) -> Iterator[str]:
    if "free" not in gpu or gpu["free"] >= VLLM_SHARE * gpu["total"]:
        return
    holders = sorted(gpu.get("holders", ()), key=lambda one: -one["bytes"])[:3]
    who = ", ".join(f"{one['name']} (pid {one['pid']}) holds {one['bytes'] / GIB:.1f}" for one in holders)
    room = f"{gpu['free'] / GIB:.1f} of {gpu['total'] / GIB:.1f} GiB are free{f' ({who})' if who else ''}"
    line = f"GPU {gpu['index']}: {room}; vLLM asks for {VLLM_SHARE:.0%} and does not start"
    fits = math.floor(100 * gpu["free"] / gpu["total"]) / 100 - 0.01
    if fits < LEAST_SHARE:
        yield f"{line}: end what holds it"
    else:
        yield f"{line}: end what holds it, or set engine_config.gpu_memory_utilization to {fits:.2f}"


def _details() -> list[dict[str, Any]]:
    """In the order of the GPUs; nothing is known from a driver without these fields."""
    holders: dict[str, list[dict[str, Any]]] = {}
    for line in _answer(HOLDERS).splitlines():
        uuid, pid, *name, used = [part.strip() for part in line.split(", ")] if line.count(", ") >= 3 else [""] * 4
        if pid.isdecimal() and used.isdecimal():
            entry = {"pid": int(pid), "name": Path(", ".join(name).split(" ")[0]).name, "bytes": int(used) << 20}
            holders.setdefault(uuid, []).append(entry)
    found = []
    for line in _answer(DETAILS).splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 5 or not all(part.isdecimal() for part in (parts[0], parts[2], parts[3])):
            return []
        index, uuid, total, free, capability = parts
        details = {"index": int(index), "total": int(total) << 20, "free": int(free) << 20}
        known = {"capability": capability} if re.fullmatch(r"\d+\.\d+", capability) else {}
        found.append(details | known | {"holders": holders.get(uuid, [])})
    return found


def _answer(command: Sequence[str]) -> str:
    """What the program prints; "" if it fails."""
    try:
        done = _run(command)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=False)
