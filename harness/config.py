"""YAML files to typed, frozen records; all faults of a file are reported at once, by key path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medbench.harness.contracts import MedbenchError
from medbench.harness.text import did_you_mean, foreign, one_line

LARGEST_FILE = 128 * 2**10
"""Bytes; about a second's parsing."""
LARGEST_CONTENT = 2**20
"""Characters, with every alias written out; each value counts as 8 more."""
DEEPEST = 50
"""Lists and mappings in one another."""
LONGEST_NUMBER = 100
"""Digits."""
TOO_DEEP = f"more than {DEEPEST} lists and keys deep: flatten it"
FAULTS_SHOWN = 20


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
        return f"{where}: {'.'.join(foreign(part, 80) for part in self.path) or '(top)'}: {self.message}"


class Loader(yaml.SafeLoader):
    """Plain values only; lm-eval's `!function a.b` is read as the string "a.b".

    In Python and not libyaml's, which nesting can crash.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise _TooMuch(TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore


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
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            return {}, [f"{path}: larger than {LARGEST_FILE >> 10} KiB: shorten it"]
        content = _content(text.decode("utf-8-sig"))
    except FileNotFoundError:
        return {}, [f"{path}: no such file"]
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{path}: cannot be read ({one_line(error)})"]
    except _TooMuch as error:
        return {}, [f"{path}: {error}"]
    except (yaml.YAMLError, ValueError, LookupError, TypeError) as error:
        # PyYAML's constructors raise whatever an impossible date, number or flag (!!float without a value) leads to
        return {}, [f"{path}: not YAML ({foreign(one_line(error), 300)})"]
    if not isinstance(content, dict):
        return {}, [f"{path}: expected keys and values, found {type(content).__name__}"]
    return content, []


class _TooMuch(Exception):
    """The file is YAML, and more than medbench reads."""


def _content(text: str) -> Any:
    loader = Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _Nodes().measure(root)
        return loader.construct_document(root)
    finally:
        loader.dispose()


class _Nodes:
    """One walk over a file's nodes before any value is made of them: a small file can describe a huge value."""

    def __init__(self) -> None:
        self._known: dict[yaml.Node, tuple[int, int] | None] = {}
        """None while the walk is inside the node."""

    def measure(self, node: yaml.Node) -> tuple[int, int]:
        """(characters, depth) with every alias written out. Raises _TooMuch, and YAMLError for a repeated key."""
        if node in self._known:
            known = self._known[node]
            if known is None:
                raise _TooMuch(f"line {node.start_mark.line + 1}: a value contains itself: remove the alias")
            return known
        self._known[node] = None
        size, depth = 8, 0
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
                raise _TooMuch(f"line {node.start_mark.line + 1}: a number of {len(node.value)} characters: shorten it")
            size += len(node.value)
        elif isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(node)
        for part in _parts(node):
            inner, below = self.measure(part)
            size, depth = size + inner, max(depth, below + 1)
        if size > LARGEST_CONTENT:
            raise _TooMuch(f"its aliases stand for more than {LARGEST_CONTENT >> 20} MiB: write out what is needed")
        if depth >= DEEPEST:
            raise _TooMuch(TOO_DEEP)
        self._known[node] = size, depth
        return size, depth


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (part for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                said = f"key {foreign(key.value, 80)!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            seen.add(key.value)


def check_mapping(content: dict[Any, Any], model: type[R], where: str) -> tuple[R | None, list[str]]:
    """As check_yaml, for parsed content; each line begins with `where`."""
    record, faults = validated(content, model)
    return record, [fault.line(where) for fault in first_of(faults)]


def validated(content: dict[Any, Any], model: type[R]) -> tuple[R | None, list[Fault]]:
    """(record, []) or (None, all its faults)."""
    try:
        return model.model_validate(content), []
    except ValidationError as error:
        return None, faults_in(error, model)


def faults_in(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """What `model` found wrong, worded for the author of the file."""
    found = error.errors(include_url=False)
    return [Fault(fault["loc"], _message(fault, model)) for fault in found]


def first_of(faults: list[Fault]) -> list[Fault]:
    """The first FAULTS_SHOWN, and how many more."""
    more = len(faults) - FAULTS_SHOWN
    return [*faults[:FAULTS_SHOWN], Fault((), f"and {more} more faults")] if more > 0 else faults


def _message(fault: Any, model: type[BaseModel]) -> str:
    if fault["type"] == "extra_forbidden":
        hint = did_you_mean(str(fault["loc"][-1])[:80], _fields_at(model, fault["loc"][:-1]))
        return f"unknown key; {hint}"
    if fault["type"] == "missing":
        return "missing"
    said = foreign(fault["msg"], 400)
    return f"{said[0].lower()}{said[1:]} (found {_short(fault['input'])})"


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the record at `loc`, as far as the annotations tell."""
    for part in loc:
        if isinstance(part, int):
            continue  # an index into a list; its record type was reached in the step before
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if get_origin(inner) is list:
            (inner,) = get_args(inner)
        records = [one for one in get_args(inner) if isinstance(one, type) and issubclass(one, BaseModel)]
        if len(records) == 1:  # of "Record | None"
            (inner,) = records
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _short(value: Any) -> str:
    return repr(value[:60]) + ("..." if len(value) > 60 else "") if isinstance(value, str) else foreign(value, 60)
