"""Prompts as versioned files: one per kind of question, the strategies for a second try, and how a reply is to end.

    python -c "from medbench.harness.synth.prompts import *; print(load_kind('diagnosis').ask)"

A file is never changed once replies have been made with it: another wording is another version. A kind named without a
version is the newest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import Field

from medbench.harness.config import Record, check_yaml, read_yaml
from medbench.harness.contracts import Message, Question
from medbench.harness.text import did_you_mean, foreign

AUTO = "auto"
GENERAL, RESEARCH = "general", "research"
KINDS = ("diagnosis", "decision", "treatment", "prognosis", RESEARCH, GENERAL)
NEWEST = {kind: f"{kind}-v1" for kind in KINDS}
BY_RULES = ("decision", "prognosis", "treatment", "diagnosis")
"""The order in which the kinds' own rules are tried: "treatment" is a frequent word, "next step" is not."""
STRATEGIES, FINISH = "strategies-v1", "finish-v1"
TOLD = "told_answer"
FIRST = "first"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class KindFile(Record):
    """A kind's prompt."""

    about: str
    matches: list[str] = Field(default_factory=list)
    """Regular expressions: questions of this kind contain one of them."""
    ask: str = Field(min_length=1)
    """With {task} and {finish}."""
    system: str = ""


class StrategiesFile(Record):
    """What is asked after a wrong answer, with {task}, {finish}, {earlier} and {gold}."""

    backtracking: str
    new_path: str
    verification: str
    correction: str
    told_answer: str


class FinishFile(Record):
    """How a reply is to end, by what its answer is."""

    letters: str
    words: str
    short: str
    free: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of question, ready to be asked."""

    name: str
    """With its version, such as diagnosis-v1; of a file of the user's, its path as given."""
    about: str
    ask: str
    system: str
    matches: tuple[re.Pattern[str], ...]
    sha256: str
    """Of the file and those of the strategies and the finish."""


def checked_kind(name: str) -> None:
    """Raises ValueError for a kind that is unknown, and for a prompt that cannot be used."""
    if not _is_file(name):
        if name not in NEWEST and name not in _built_in():
            known = sorted([*NEWEST, AUTO, *_built_in()])
            raise ValueError(f"no such kind; {did_you_mean(foreign(name, 60), known)}, or name a YAML file")
        return
    record, faults = check_yaml(Path(name), KindFile)
    if record is None:
        raise ValueError("; ".join(faults))
    missing = [part for part in ("{task}", "{finish}") if part not in record.ask]
    if missing:
        raise ValueError(f"{name}: ask: must contain {' and '.join(missing)}")


@cache
def load_kind(name: str) -> Kind:
    """A checked kind."""
    full = name if _is_file(name) else NEWEST.get(name, name)
    path = Path(full) if _is_file(name) else _folder() / f"{full}.yaml"
    record = read_yaml(path, KindFile)
    digest = hashlib.sha256()
    for part in (path, *(_folder() / f"{one}.yaml" for one in (STRATEGIES, FINISH))):
        digest.update(part.read_bytes() + b"\0")
    patterns = tuple(re.compile(one, re.IGNORECASE) for one in record.matches)
    return Kind(full, record.about, record.ask, record.system, patterns, digest.hexdigest())


def kind_by_rules(question: Question) -> str:
    """The kind of a question by the rules that come with the kinds."""
    if question.context and question.labels and question.options == question.labels:
        return RESEARCH
    for name in BY_RULES:
        if any(pattern.search(question.question) for pattern in load_kind(name).matches):
            return name
    return GENERAL


def messages_of(
    kind: Kind,
    question: Question,
    *,
    strategy: str,
    earlier: Sequence[str] = (),
    verifiable: bool,
    system: str = "",
) -> tuple[Message, ...]:
    """The turns that ask `question`; `earlier` are the replies before this one, of which the last was wrong."""
    template = kind.ask if strategy == FIRST else getattr(_strategies(), strategy)
    shown = earlier if strategy == "backtracking" else earlier[-1:]
    values = {
        "task": _task(question),
        "finish": _finish(question, verifiable),
        "earlier": "\n\n---\n\n".join(one.strip() or "(nothing)" for one in shown),
        "gold": _gold(question),
    }
    asked = _filled(template, values)
    turn = "\n\n".join(part for part in (system, kind.system) if part)
    return (*([Message("system", turn)] if turn else []), Message("user", asked))


def _filled(template: str, values: dict[str, str]) -> str:
    """Only the template's own placeholders: a question may contain braces."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def _task(question: Question) -> str:
    lines = [question.question.strip()]
    if question.options != question.labels:
        lines += [f"{label}. {option}" for label, option in zip(question.labels, question.options, strict=True)]
    return "\n\n".join(part for part in (question.context.strip(), "\n".join(lines)) if part)


def _gold(question: Question) -> str:
    if question.labels and question.options != question.labels:
        return f"({question.gold}) {question.options[question.labels.index(question.gold)]}"
    return question.gold


def _finish(question: Question, verifiable: bool) -> str:
    texts = _finishes()
    if question.labels and question.options != question.labels:
        return _filled(texts.letters, {"first": question.labels[0], "last": question.labels[-1]})
    if question.labels:
        return _filled(texts.words, {"labels": f"{', '.join(question.labels[:-1])} or {question.labels[-1]}"})
    return texts.short if verifiable else texts.free


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _folder() -> Path:
    return Path(str(files("medbench.harness.synth") / "prompts"))


@cache
def _built_in() -> tuple[str, ...]:
    return tuple(path.stem for path in sorted(_folder().glob("*.yaml")) if path.stem not in (STRATEGIES, FINISH))


@cache
def _strategies() -> StrategiesFile:
    return read_yaml(_folder() / f"{STRATEGIES}.yaml", StrategiesFile)


@cache
def _finishes() -> FinishFile:
    return read_yaml(_folder() / f"{FINISH}.yaml", FinishFile)
