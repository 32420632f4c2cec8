"""Loads tasks by name, through lm-eval's TaskManager.

medbench tasks medqa
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.lm_eval_tasks import (
    draw_examples,
    foreign_task,
    lm_eval_names,
    lm_eval_seeds,
    untested_lm_eval,
)
from medbench.harness.benchmarks.rows import (
    HUB,
    SAMPLE,
    example_split,
    question_of,
    rows_sha256,
)
from medbench.harness.benchmarks.task_folders import FoundTasks, TaskFile, core_tasks, find_tasks
from medbench.harness.contracts import Data, Examples, Flags, MedbenchError, Question, Task
from medbench.harness.hub.faults import explained, fault_of
from medbench.harness.hub.repository import MAIN, Repository, dataset_commit
from medbench.harness.text import did_you_mean, one_line


@dataclass(frozen=True, slots=True)
class TaskCard:
    """What a task's YAML says, known without loading a row."""

    name: str
    version: str
    label: str
    core: bool
    """Evaluated by default."""
    about: str
    n: int
    chance: float
    categories: tuple[str, ...]
    files: Mapping[str, list[str]]
    sha256: Mapping[str, str]
    hub: Mapping[str, Any]
    path: str
    flagged: Mapping[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class TaskLoader:
    """Loads medbench's tasks and those of plugins (see task_folders.py) and, under any other name, lm-eval's own.

    `data` is a folder, "sample", "hub", or None for MEDBENCH_DATA, or else the Hub, or else the sample with a warning.
    """

    def __init__(self, data: str | None = None, warn: Callable[[str], None] = lambda _: None) -> None:
        self._data = data or os.environ.get("MEDBENCH_DATA") or None
        self._warn = warn

    @cached_property
    def _found(self) -> FoundTasks:
        return find_tasks()

    @cached_property
    def cards(self) -> dict[str, TaskCard]:
        """The tasks of medbench and of plugins that can be used."""
        return {name: _card(task) for name, task in self._found.usable.items()}

    @property
    def names(self) -> list[str]:
        """All tasks of medbench and of plugins; loading one that cannot be used says why."""
        return [*self.cards, *self._found.refused, *self._found.broken]

    @property
    def faults(self) -> list[str]:
        """One line for each task or plugin that cannot be used."""
        return [*self._found.refused.values(), *self._found.broken.values()]

    def load(self, name: str, split: str = "test") -> Task:
        """Raises MedbenchError for an unknown name, a task that cannot be used, or faulty data."""
        if name in self._found.refused:
            raise MedbenchError(self._found.refused[name])
        if name not in self.cards:
            return self._load_foreign(name)
        card = self.cards[name]
        if split not in card.files:
            raise MedbenchError(f"task {name} has no split {split!r}; it has {', '.join(card.files)}")
        loaded, source, commit = self._loaded(card, split)
        docs = loaded.dataset[split]
        questions = tuple(_keep_categories(question_of(doc), card.categories) for doc in docs)
        sha256 = rows_sha256(questions)
        data = Data(source, sha256, official=sha256 == card.sha256.get(split), commit=commit)
        if source == SAMPLE:
            self._warn(f"{name}: the built-in sample, not the benchmark: its scores mean nothing")
        elif not data.official:
            self._warn(f"{name}: {_why_unofficial(card, split, len(questions), sha256)}: the run is marked unofficial")
        chance = sum(1 / len(question.labels) if question.labels else 0.0 for question in questions) / len(questions)
        examples = _examples_of(card, loaded, split)
        flags = _flags(card, questions)
        return Task(name, card.version, split, round(chance, 4), questions, data, examples=examples, flags=flags)

    def _loaded(self, card: TaskCard, split: str) -> tuple[Any, str, str | None]:
        """(lm-eval's task with rows of `split`, the source of the rows, the commit of a Hub data set)."""
        if self._data not in (None, HUB):
            source = SAMPLE if self._data == SAMPLE else "local"
            return self._load_rows(card, split, str(self._data), card.hub), source, None
        repository = Repository("dataset", card.hub["path"], card.hub.get("revision", MAIN))
        try:
            commit = dataset_commit(repository)
            rows = self._load_rows(card, split, HUB, {**card.hub, "revision": commit})
            return rows, f"hub:{repository.id}@{repository.revision}", commit
        except MedbenchError:
            raise
        except Exception as error:  # the Hub client and the network can raise anything
            fault = explained(error, repository)
            if self._data == HUB:
                raise type(fault)(f"{card.name}: {fault}; or name a folder with --data or MEDBENCH_DATA") from None
            self._warn(f"{card.name}: no --data, no MEDBENCH_DATA, and {fault}")
            return self._load_rows(card, split, SAMPLE, card.hub), SAMPLE, None

    def _load_rows(self, card: TaskCard, split: str, data: str, hub: Mapping[str, Any]) -> Any:
        _quiet()
        from lm_eval.tasks import TaskManager

        metadata: Any = {"data": data, "hub": dict(hub)}
        manager = TaskManager(include_path=Path(card.path).parent, include_defaults=False, metadata=metadata)
        try:
            loaded = manager.load(card.name)["tasks"][card.name]
        except MedbenchError:
            raise
        except Exception as error:  # a plugin's rows.py can raise anything
            if data == HUB:
                raise
            reason = f"{type(error).__name__}: {one_line(error)[:200]}"
            raise MedbenchError(f"task {card.name} ({card.path}) cannot be loaded: {reason}") from None
        if split not in loaded.dataset:
            raise MedbenchError(
                f"{card.name}: no rows of split {split!r} in {data}: add {' and '.join(card.files[split])}"
            )
        return loaded

    def _load_foreign(self, name: str) -> Task:
        if name in self._found.broken:
            raise MedbenchError(self._found.broken[name])
        for line in self._found.broken.values():  # the task may be one of theirs
            self._warn(line)
        named = lm_eval_names()
        if name not in named:
            raise MedbenchError(f"unknown task {name!r}; {_near(name, [*self.cards, *sorted(named)])}")
        manager = _lm_eval_tasks()
        if name not in manager.all_subtasks:
            raise MedbenchError(f"task {name!r} is a group: name its tasks one by one")
        for line in untested_lm_eval(version("lm_eval")):
            self._warn(line)
        try:
            with lm_eval_seeds():
                return foreign_task(name, manager.load(name)["tasks"][name])
        except MedbenchError:
            raise
        except Exception as error:  # lm-eval's task code and the Hub client can raise anything
            of_hub = fault_of(error, Repository("dataset", _dataset_path(manager, name)))
            if of_hub is not None:
                raise type(of_hub)(f"lm-eval task {name}: {of_hub}") from None
            reason = f"{type(error).__name__}: {one_line(error)[:200]}"
            raise MedbenchError(f"lm-eval task {name} cannot be loaded: {reason}") from None


def _why_unofficial(card: TaskCard, split: str, rows: int, sha256: str) -> str:
    if split in card.sha256:
        return f"the rows are not the pinned ones (sha256 {sha256[:12]})"
    number = f", and {rows} instead of {card.n}" if split == "test" and rows != card.n else ""
    return f"the task pins no rows, so these are unchecked (sha256 {sha256[:12]}){number}"


def _flags(card: TaskCard, questions: Sequence[Question]) -> Flags | None:
    """None also where some of the flagged questions are not there: these rows were not reviewed."""
    if card.flagged is None:
        return None
    path = Path(card.path).parent / card.flagged["file"]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MedbenchError(f"task {card.name}: {path}: cannot be read ({type(error).__name__}): restore it") from None
    ids = frozenset(filter(None, (line.partition("#")[0].strip() for line in lines)))
    return Flags(ids, card.flagged["about"]) if ids <= {question.id for question in questions} else None


def _examples_of(card: TaskCard, loaded: Any, asked: str) -> Examples:
    """Few-shot examples for the questions of the split `asked`, drawn when the first is needed."""
    split = example_split(loaded.dataset)
    pool = loaded.dataset[split]
    absent = [file for other, files in card.files.items() if other not in loaded.dataset for file in files]
    add = f"add {' and '.join(absent)}" if absent else f"add rows to {' and '.join(card.files[split])}"

    @cache
    def drawn(n: int) -> dict[str, Sequence[Any]]:
        try:
            return draw_examples(loaded, {doc["id"]: doc for doc in loaded.dataset[asked]}, n)
        except (ValueError, AssertionError):  # the samplers raise these where there are too few rows
            raise MedbenchError(
                f"{card.name}: {len(pool)} rows of split {split} are too few for {n} few-shot examples "
                f"(a random draw takes one to spare): lower --shots, or {add}"
            ) from None

    def draw(id: str, n: int) -> tuple[Question, ...]:
        return tuple(question_of(doc) for doc in drawn(n)[id])

    others = f"; {add} for others" if absent else ""
    note = (
        f"{card.name}: few-shot examples come from the evaluated split itself, "
        f"never the question or a duplicate of it{others}"
    )
    return Examples(split, rows_sha256(map(question_of, pool)), draw, note if split == asked else "")


@cache
def _lm_eval_tasks() -> Any:
    """lm-eval's index of its own tasks, which takes ten seconds to build."""
    _quiet()
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _dataset_path(manager: Any, name: str) -> str:
    """What its YAML says, or "of the task"."""
    return str((manager.task_index[name].cfg or {}).get("dataset_path") or "of the task")


def _card(task: TaskFile) -> TaskCard:
    metadata = task.metadata
    return TaskCard(
        name=task.name,
        version=str(metadata.version),
        label=metadata.label or task.name,
        core=task.name in core_tasks(),
        about=metadata.about,
        n=metadata.n,
        chance=metadata.chance,
        categories=tuple(metadata.categories),
        files=metadata.files,
        sha256=metadata.sha256,
        hub=metadata.hub.model_dump(exclude_none=True),
        path=str(task.path),
        flagged=metadata.flagged.model_dump() if metadata.flagged else None,
    )


def _keep_categories(question: Question, fields: tuple[str, ...]) -> Question:
    return replace(question, category={key: question.category[key] for key in fields if key in question.category})


def _near(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    if hint.startswith("did you mean"):
        return hint
    return "run `medbench tasks` for medbench's tasks, `lm_eval ls tasks` for lm-eval's"


def _quiet() -> None:
    # lm-eval warns at each load about what medbench does on purpose (a custom data set, overridden names)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
