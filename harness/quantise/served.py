"""Which schemes the installed vLLM serves on this machine: it is asked, by a tiny model of each.

    for name, found in served_schemes(print).items(): print(name, found.served, found.said)

What vLLM takes depends on its version, its build and the processor or GPU, so no table of ours would be right for long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from medbench.harness.contracts import MedbenchError, Say
from medbench.harness.engines.vllm import version
from medbench.harness.quantise.schemes import GROUP_SIZES, NOT_QUANTISED, SCHEMES, config_groups
from medbench.harness.text import escaped

SECONDS = 600
"""For one scheme; the first start of vLLM on a GPU compiles kernels."""


@dataclass(frozen=True, slots=True)
class Served:
    """vLLM's answer for one scheme."""

    served: bool
    said: str
    """Its kernels, or why not, in its own words."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def served_schemes(say: Say) -> dict[str, Served]:
    """Scheme -> vLLM's answer. Raises MedbenchError where vLLM is not installed."""
    if version() is None:
        raise MedbenchError("vLLM is not installed: pip install 'medbench[vllm]' (GPU) or 'medbench[cpu]'")
    found = {}
    for name in SCHEMES:
        say(f"asking vLLM {version()} to serve {name}")
        found[name] = ask_vllm(quantization_config(name, min(GROUP_SIZES)))
    return found


def quantization_config(scheme: str, group_size: int) -> dict[str, Any]:
    """As llm-compressor writes it into config.json."""
    groups = config_groups(scheme, group_size)
    for group in groups.values():
        group["format"] = SCHEMES[scheme].format
    return {
        "quant_method": "compressed-tensors",
        "format": SCHEMES[scheme].format,
        "quantization_status": "compressed",
        "ignore": list(NOT_QUANTISED),
        "config_groups": groups,
    }


def ask_vllm(config: dict[str, Any]) -> Served:
    """Whether vLLM serves a model with this `quantization_config`."""
    command = [sys.executable, "-P", "-m", "medbench.harness.engines.vllm_probe", json.dumps(config)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Served(False, f"no answer within {SECONDS} s")
    for line in reversed(told.stdout.splitlines()):
        try:
            content = json.loads(line)
            return Served(bool(content["served"]), escaped(str(content["said"])))
        except (ValueError, TypeError, KeyError):
            continue
    if told.returncode < 0:
        return Served(False, f"its process ended by signal {-told.returncode}")
    last = (told.stderr.strip().splitlines() or ["nothing"])[-1]
    return Served(False, f"its process ended with status {told.returncode}: {escaped(last)[:300]}")
