"""YAML files to typed, frozen records; all faults of a file are reported at once, by key path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medbench.harness.contracts import MedbenchError
from medbench.harness.text import did_you_mean, one_line


class Record(BaseModel):
    """Frozen, and an unknown key is an error, so that a mistyped setting is never silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), strict=True)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a mapping."""

    path: tuple[str | int, ...]
    """Keys and list indices down to it; empty: the mapping itself."""
    message: str

    def below(self, *path: str | int) -> Fault:
        """The same fault, seen from the mapping that holds this one at `path`."""
        return Fault((*path, *self.path), self.message)

    def line(self, where: str) -> str:
        return f"{where}: {'.'.join(map(str, self.path)) or '(top)'}: {self.message}"


class UniqueKeyLoader(yaml.SafeLoader):
    """A duplicate key is an error; lm-eval's `!function a.b` is read as the string "a.b"."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


UniqueKeyLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore


R = TypeVar("R", bound=BaseModel)


def read_yaml(path: Path, model: type[R]) -> R:
    """Parse and validate `path`. Raises MedbenchError with all faults in one line."""
    record, faults = check_yaml(path, model)
    if record is None:
        raise MedbenchError("; ".join(faults))
    return record


def check_yaml(path: Path, model: type[R]) -> tuple[R | None, list[str]]:
    """(record, []) or (None, one line per fault: file, key path, what is wrong, how to fix it)."""
    content, faults = parse_yaml(path)
    return (None, faults) if faults else check_mapping(content, model, str(path))


def parse_yaml(path: Path) -> tuple[dict[Any, Any], list[str]]:
    """(keys and values, []) or ({}, [one line that says why the file cannot be read])."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        return {}, [f"{path}: no such file"]
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{path}: cannot be read ({one_line(error)})"]
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date or number
        return {}, [f"{path}: not YAML ({one_line(error)})"]
    if not isinstance(content, dict):
        return {}, [f"{path}: expected keys and values, found {type(content).__name__}"]
    return content, []


def check_mapping(content: dict[Any, Any], model: type[R], where: str) -> tuple[R | None, list[str]]:
    """As check_yaml, for parsed content; each line begins with `where`."""
    try:
        return model.model_validate(content), []
    except ValidationError as error:
        return None, [fault.line(where) for fault in faults_in(error, model)]


def faults_in(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """What `model` found wrong, worded for the author of the file."""
    return [Fault(fault["loc"], _message(fault, model)) for fault in error.errors(include_url=False)]


def _message(fault: Any, model: type[BaseModel]) -> str:
    if fault["type"] == "extra_forbidden":
        hint = did_you_mean(str(fault["loc"][-1]), _fields_at(model, fault["loc"][:-1]))
        return f"unknown key; {hint}"
    if fault["type"] == "missing":
        return "missing"
    return f"{fault['msg'][0].lower()}{fault['msg'][1:]} (found {_short(fault['input'])})"


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the record at `loc`, as far as the annotations tell."""
    for part in loc:
        if isinstance(part, int):
            continue  # an index into a list; its record type was reached in the step before
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if get_origin(inner) is list:
            (inner,) = get_args(inner)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
