"""Tasks by name, through lm-eval's TaskManager; the only file that imports lm_eval.

medbench tasks medqa
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medbench.harness.config import did_you_mean
from medbench.harness.contracts import Data, MedbenchError, Message, Question, Task
from medbench.harness.data import HUB, SAMPLE, content_id, question_of, rows_sha256


@dataclass(frozen=True, slots=True)
class TaskCard:
    """What a task's YAML says of it, known without loading a row."""

    name: str
    version: str
    about: str
    n: int
    chance: float
    categories: tuple[str, ...]
    files: Mapping[str, list[str]]
    sha256: Mapping[str, str]
    hub: Mapping[str, Any]
    path: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class TaskLoader:
    """Our tasks (the YAML under `folder`) and, by any other name, lm-eval's own.

    `data` is a folder, "sample", "hub", or None: MEDBENCH_DATA, else the hub, else the sample with a warning.
    """

    def __init__(self, folder: Path, data: str | None = None, warn: Callable[[str], None] = lambda _: None) -> None:
        self._folder = folder
        self._data = data or os.environ.get("MEDBENCH_DATA")
        self._warn = warn

    @cached_property
    def cards(self) -> dict[str, TaskCard]:
        return {name: _card(entry) for name, entry in self._manager().task_index.items()}

    def load(self, name: str, split: str = "test") -> Task:
        """Raises MedbenchError for an unknown name or faulty data."""
        if name not in self.cards:
            return self._load_foreign(name)
        card = self.cards[name]
        if split not in card.files:
            raise MedbenchError(f"task {name} has no split {split!r}; it has {', '.join(card.files)}")
        docs, source = self._docs(card, split)
        questions = tuple(_keep_categories(question_of(doc), card.categories) for doc in docs)
        sha256 = rows_sha256(questions)
        data = Data(source=source, sha256=sha256, official=sha256 == card.sha256.get(split))
        if not data.official and source != SAMPLE:
            self._warn(f"{name}: the rows are not the pinned ones (sha256 {sha256[:12]}): the run is marked unofficial")
        chance = sum(1 / len(question.labels) for question in questions) / len(questions)
        return Task(name, card.version, split, round(chance, 4), questions, data)

    def _docs(self, card: TaskCard, split: str) -> tuple[Any, str]:
        if self._data not in (None, HUB):
            source = SAMPLE if self._data == SAMPLE else "local"
            return self._rows(card, split, str(self._data)), source
        try:
            revision = card.hub.get("revision", "main")
            return self._rows(card, split, HUB), f"hub:{card.hub['path']}@{revision}"
        except MedbenchError:
            raise
        except Exception as error:  # whatever the hub client and the network can throw
            if self._data == HUB:
                raise MedbenchError(
                    f"{card.name}: {card.hub['path']} cannot be had from the hub ({type(error).__name__}): "
                    f"name a folder with --data or MEDBENCH_DATA"
                ) from None
            self._warn(
                f"{card.name}: no --data, no MEDBENCH_DATA, and the hub cannot be reached ({type(error).__name__}): "
                f"using the built-in sample, whose scores mean nothing"
            )
            return self._rows(card, split, SAMPLE), SAMPLE

    def _rows(self, card: TaskCard, split: str, data: str) -> Any:
        loaded = self._manager(data).load(card.name)["tasks"][card.name]
        if split not in loaded.dataset:
            raise MedbenchError(
                f"{card.name}: no rows of split {split!r} in {data}: add {' and '.join(card.files[split])}"
            )
        return loaded.dataset[split]

    def _manager(self, data: str | None = None) -> Any:
        _quiet()
        from lm_eval.tasks import TaskManager

        metadata: Any = {"data": data} if data else None
        return TaskManager(include_path=self._folder, include_defaults=False, metadata=metadata)

    def _load_foreign(self, name: str) -> Task:
        _quiet()
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=self._folder)
        if name not in manager.all_subtasks:
            kind = "a group; name its tasks one by one" if name in manager.all_tasks else None
            known = list(self.cards) + manager.all_subtasks
            raise MedbenchError(f"task {name!r} is {kind}" if kind else f"unknown task {name!r}; {_near(name, known)}")
        try:
            loaded = manager.load(name)["tasks"][name]
        except Exception as error:  # lm-eval's task code and the hub client raise whatever they like
            reason = " ".join(str(error).split())[:200]
            raise MedbenchError(f"lm-eval task {name} cannot be loaded: {type(error).__name__}: {reason}") from None
        return foreign_task(name, loaded)


def foreign_task(name: str, loaded: Any) -> Task:
    """One of lm-eval's own tasks as a Task. Raises MedbenchError if it is not scored question by question."""
    if loaded.OUTPUT_TYPE not in ("multiple_choice", "generate_until") or loaded.multiple_input:
        raise MedbenchError(f"lm-eval task {name} is of type {loaded.OUTPUT_TYPE}: only generate_until and "
                            f"multiple_choice with one context can be evaluated")  # fmt: skip
    docs = list(loaded.eval_docs)
    questions = tuple(_foreign_question(index, doc, loaded) for index, doc in enumerate(docs))
    source = f"hub:{loaded.DATASET_PATH}@main" if loaded.DATASET_PATH else "lm-eval"
    data = Data(source=source, sha256=rows_sha256(questions), official=False)
    chance = sum(1 / len(q.labels) if q.labels else 0.0 for q in questions) / len(questions)
    split = loaded.config.test_split or loaded.config.validation_split
    version = str((loaded.config.metadata or {}).get("version", "unversioned"))
    by_id = {question.id: doc for question, doc in zip(questions, docs, strict=True)}
    return Task(name, version, split, round(chance, 4), questions, data, foreign=_Foreign(loaded, by_id))


@dataclass(frozen=True)
class _Foreign:
    """contracts.ForeignTask over an lm-eval ConfigurableTask."""

    task: Any
    docs: Mapping[str, Any]

    def text(self, id: str, chat: Callable[[Sequence[Message]], str] | None) -> str:
        def template(turns: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            assert chat is not None
            return chat([Message(turn["role"], turn["content"]) for turn in turns])  # type: ignore[arg-type]

        return self.task.fewshot_context(  # type: ignore[no-any-return]
            self.docs[id],
            num_fewshot=self.task.config.num_fewshot or 0,
            apply_chat_template=chat is not None,
            chat_template=template if chat else None,
        )

    def continuations(self, id: str) -> tuple[str, ...] | None:
        if self.task.OUTPUT_TYPE != "multiple_choice":
            return None
        delimiter = self.task.config.target_delimiter
        return tuple(f"{delimiter}{choice}" for choice in self.task.doc_to_choice(self.docs[id]))

    def generation(self) -> Mapping[str, Any]:
        settings = self.task.config.generation_kwargs or {}
        until = settings.get("until") or []
        return {
            "stop": (until,) if isinstance(until, str) else tuple(until),
            "max_new_tokens": int(settings.get("max_gen_toks", 256)),
            "temperature": float(settings.get("temperature", 0.0)) if settings.get("do_sample", True) else 0.0,
        }

    def score(self, id: str, output: str, logprobs: Mapping[str, float] | None) -> tuple[str | None, float]:
        doc = self.docs[id]
        if logprobs is not None:
            best = max(logprobs, key=lambda choice: logprobs[choice])
            values = self.task.process_results(doc, [(logprobs[c], c == best) for c in self.continuations(id) or ()])
            return best.strip(), _metric(self.task, values)
        extracted = output
        for ensemble in self.task._filters[:1]:
            responses: Any = [[output]]
            for step in ensemble.filters:
                responses = step().apply(responses, [doc])
            extracted = next(iter(responses))
        return str(extracted), _metric(self.task, self.task.process_results(doc, [extracted]))


def _metric(task: Any, values: Mapping[str, Any]) -> float:
    """The task's first metric that is a number for one question."""
    for value in values.values():
        if isinstance(value, bool | int | float):
            return float(value)
    raise MedbenchError(f"lm-eval task {task.config.task}: none of its metrics is a number for one question")


def _foreign_question(index: int, doc: Any, task: Any) -> Question:
    target = task.doc_to_target(doc)
    labels: tuple[str, ...] = ()
    if task.OUTPUT_TYPE == "multiple_choice":
        labels = tuple(str(choice).strip() for choice in task.doc_to_choice(doc))
        target = labels[target] if isinstance(target, int) else target
    text = str(task.doc_to_text(doc))
    return Question(
        id=f"{index}-{content_id(text)}",
        cluster=content_id(text),
        question=text,
        options=labels,
        labels=labels,
        gold=str(target).strip(),
    )


def _card(entry: Any) -> TaskCard:
    from lm_eval.tasks._yaml_loader import load_yaml

    metadata = load_yaml(entry.yaml_path, resolve_func=False)["metadata"]
    return TaskCard(
        name=entry.name,
        version=str(metadata["version"]),
        about=metadata["about"],
        n=metadata["n"],
        chance=metadata["chance"],
        categories=tuple(metadata["categories"]),
        files=metadata["files"],
        sha256=metadata["sha256"],
        hub=metadata["hub"],
        path=str(entry.yaml_path),
    )


def _keep_categories(question: Question, fields: tuple[str, ...]) -> Question:
    return replace(question, category={key: question.category[key] for key in fields if key in question.category})


def _near(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    return (
        hint if hint.startswith("did you mean") else "run `medbench tasks` for ours, `lm_eval ls tasks` for lm-eval's"
    )


def _quiet() -> None:
    # lm-eval warns at each load about what we set on purpose (a custom data set, overridden names)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
