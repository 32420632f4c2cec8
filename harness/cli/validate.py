"""Checks any of medbench's YAML files: finds out its kind and every fault in it.

medbench validate harness/protocols/cot-v2.yaml tasks/medqa/medqa.yaml gates.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.task_folders import TaskMetadata
from medbench.harness.config import Record, check_mapping, parse_yaml
from medbench.harness.evaluation.options import EvalConfig
from medbench.harness.gates.rules import GateFile
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.synth.prompts import FinishFile, KindFile, StrategiesFile
from medbench.harness.synth.recipe import SynthRecipe
from medbench.harness.training.recipe import check_recipe
from medbench.reports.read.references import References

MODELS: dict[str, type[Record]] = {
    "protocol": Protocol,
    "gate file": GateFile,
    "eval config": EvalConfig,
    "synth recipe": SynthRecipe,
    "prompt of synth": KindFile,
    "strategies of synth": StrategiesFile,
    "finish of synth": FinishFile,
    "file of references": References,
}
OF_SYNTH = {
    "generator": "synth recipe",
    "ask": "prompt of synth",
    "backtracking": "strategies of synth",
    "letters": "finish of synth",
}
"""Key that only such a file has -> kind."""


def faults_of(path: Path) -> tuple[str, list[str]]:
    """(kind of file, one line for every fault); no lines if the file is valid.

    Nothing that a file names is imported, except a recipe's trainers, which are installed plugins.
    """
    content, faults = parse_yaml(path)
    kind = _kind(content)
    if faults:
        return kind, faults
    if kind == "task":
        return kind, _task_faults(content, str(path))
    if kind == "recipe":
        return kind, check_recipe(path)
    return kind, check_mapping(content, MODELS[kind], str(path))[1]


def _kind(content: dict[Any, Any]) -> str:
    keys = content.keys()
    if "task" in keys and ("metadata" in keys or "include" in keys):
        return "task"
    if "stages" in keys:
        return "recipe"
    for key, kind in OF_SYNTH.items():
        if key in keys:
            return kind
    if "gates" in keys:
        return "gate file"
    if "references" in keys:
        return "file of references"
    return "protocol" if keys & {"prompt", "method", "decoding", "about"} else "eval config"


def _task_faults(content: dict[Any, Any], where: str) -> list[str]:
    faults = [f"{where}: {key}: missing" for key in ("include", "custom_dataset", "metadata") if key not in content]
    if not isinstance(content.get("task"), str):
        faults.append(f"{where}: task: must be a name")
    metadata = content.get("metadata", {})
    if not isinstance(metadata, dict):
        return [*faults, f"{where}: metadata: must be keys and values, found {type(metadata).__name__}"]
    if "metadata" not in content:
        return faults
    record, more = check_mapping(metadata, TaskMetadata, f"{where}: metadata")
    unpinned = [split for split in record.sha256 if split not in record.files] if record else []
    return faults + more + [f"{where}: metadata.sha256.{split}: no such split in files" for split in unpinned]
