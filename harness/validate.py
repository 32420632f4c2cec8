"""Any YAML of ours, checked: what kind it is and every fault in it.

medbench validate harness/protocols/cot-v1.yaml tasks/medqa/medqa.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from medbench.harness.config import EvalConfig, Record, check_mapping, check_yaml
from medbench.harness.protocol import Protocol
from pydantic import Field


class Hub(Record):
    """The hub's data set behind a task."""

    path: str
    name: str | None = None
    revision: str | None = None
    splits: dict[str, str]


class TaskMetadata(Record):
    """`metadata` of a task's lm-eval YAML: what medbench knows of it beyond lm-eval's own keys."""

    version: int = Field(ge=1)
    about: str
    chance: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    categories: list[str]
    files: dict[str, list[str]]
    hub: Hub
    sha256: dict[str, str]


def faults_of(path: Path) -> tuple[str, list[str]]:
    """(kind of file, one line for every fault); no line means that it is sound."""
    try:
        # lm-eval's `!function a.b` tags are names to us: nothing is imported to check a file
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_NamesLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        content = None
    kind = _kind(content)
    if kind == "task":
        assert isinstance(content, dict)
        return kind, _task_faults(content, str(path))
    model: type[Record] = Protocol if kind == "protocol" else EvalConfig
    return kind, check_yaml(path, model)[1]


def _kind(content: Any) -> str:
    keys = content.keys() if isinstance(content, dict) else set()
    if "task" in keys and ("metadata" in keys or "include" in keys):
        return "task"
    return "protocol" if keys & {"prompt", "method", "decoding", "about"} else "eval config"


def _task_faults(content: dict[Any, Any], where: str) -> list[str]:
    faults = [f"{where}: {key}: missing" for key in ("include", "custom_dataset", "metadata") if key not in content]
    if not isinstance(content.get("task"), str):
        faults.append(f"{where}: task: must be a name")
    if not isinstance(content.get("metadata"), dict):
        return faults
    record, more = check_mapping(content["metadata"], TaskMetadata, f"{where}: metadata")
    unpinned = [split for split in content["metadata"].get("sha256") or {} if record and split not in record.files]
    return faults + more + [f"{where}: metadata.sha256.{split}: no such split in files" for split in unpinned]


class _NamesLoader(yaml.SafeLoader):
    pass


_NamesLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]
