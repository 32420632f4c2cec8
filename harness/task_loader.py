"""Tasks by name, through lm-eval's TaskManager; the only file that imports lm_eval.

medbench tasks medqa
"""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medbench.harness.contracts import Data, Examples, MedbenchError, Message, Question, Task
from medbench.harness.data import HUB, SAMPLE, cluster_id, content_id, example_split, question_of, rows_sha256
from medbench.harness.text import did_you_mean

SEED = 1234
"""lm-eval's own default: a question gets the same examples as under the lm_eval command."""


PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


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
        self._data = data or os.environ.get("MEDBENCH_DATA") or None
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
        loaded, source = self._loaded(card, split)
        docs = loaded.dataset[split]
        questions = tuple(_keep_categories(question_of(doc), card.categories) for doc in docs)
        sha256 = rows_sha256(questions)
        data = Data(source=source, sha256=sha256, official=sha256 == card.sha256.get(split))
        if source == SAMPLE:
            self._warn(f"{name}: the built-in sample, not the benchmark: its scores mean nothing")
        elif not data.official:
            self._warn(f"{name}: the rows are not the pinned ones (sha256 {sha256[:12]}): the run is marked unofficial")
        chance = sum(1 / len(question.labels) for question in questions) / len(questions)
        examples = _examples_of(card, loaded, split)
        return Task(name, card.version, split, round(chance, 4), questions, data, examples=examples)

    def _loaded(self, card: TaskCard, split: str) -> tuple[Any, str]:
        """(lm-eval's task with rows of `split`, where they are from)."""
        if self._data not in (None, HUB):
            source = SAMPLE if self._data == SAMPLE else "local"
            return self._load_rows(card, split, str(self._data)), source
        try:
            hub_answers()
            revision = card.hub.get("revision", "main")
            return self._load_rows(card, split, HUB), f"hub:{card.hub['path']}@{revision}"
        except MedbenchError:
            raise
        except Exception as error:  # whatever the hub client and the network can throw
            reason = f"{card.hub['path']} cannot be had from the hub ({type(error).__name__})"
            if self._data == HUB:
                raise MedbenchError(f"{card.name}: {reason}: name a folder with --data or MEDBENCH_DATA") from None
            self._warn(f"{card.name}: no --data, no MEDBENCH_DATA, and {reason}")
            return self._load_rows(card, split, SAMPLE), SAMPLE

    def _load_rows(self, card: TaskCard, split: str, data: str) -> Any:
        loaded = self._manager(data).load(card.name)["tasks"][card.name]
        if split not in loaded.dataset:
            raise MedbenchError(
                f"{card.name}: no rows of split {split!r} in {data}: add {' and '.join(card.files[split])}"
            )
        return loaded

    def _manager(self, data: str | None = None) -> Any:
        _quiet()
        from lm_eval.tasks import TaskManager

        metadata: Any = {"data": data} if data else None
        return TaskManager(include_path=self._folder, include_defaults=False, metadata=metadata)

    @cached_property
    def _lm_eval_tasks(self) -> Any:
        """lm-eval's own index; it takes seconds to build."""
        _quiet()
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=self._folder)

    def _load_foreign(self, name: str) -> Task:
        manager = self._lm_eval_tasks
        if name not in manager.all_subtasks:
            kind = "a group; name its tasks one by one" if name in manager.all_tasks else None
            known = list({**self.cards, **dict.fromkeys(manager.all_subtasks)})
            raise MedbenchError(f"task {name!r} is {kind}" if kind else f"unknown task {name!r}; {_near(name, known)}")
        _seed()
        try:
            return foreign_task(name, manager.load(name)["tasks"][name])
        except MedbenchError:
            raise
        except Exception as error:  # lm-eval's task code and the hub client raise whatever they like
            reason = " ".join(str(error).split())[:200]
            raise MedbenchError(f"lm-eval task {name} cannot be loaded: {type(error).__name__}: {reason}") from None


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
            # a reply that the task begins itself (gen_prefix) comes as a last turn, to be gone on with, not ended
            asked, begun = (turns, "") if add_generation_prompt else (turns[:-1], turns[-1]["content"])
            return chat([Message(turn["role"], turn["content"]) for turn in asked]) + begun  # type: ignore[arg-type]

        doc = self.docs[id]
        if self._examples:
            self.task.sampler = _Drawn(self._examples[id])
        return self.task.fewshot_context(  # type: ignore[no-any-return]
            doc,
            num_fewshot=self.task.config.num_fewshot or 0,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=chat is not None,
            chat_template=template if chat else None,
            gen_prefix=self.task.doc_to_prefix(doc),
        )

    @cached_property
    def _examples(self) -> Mapping[str, Sequence[Any]]:
        n = self.task.config.num_fewshot or 0
        return _drawn(self.task, self.docs, n) if n else {}

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
        extracted: Any = output
        nothing = []
        for ensemble in self.task._filters[:1]:
            responses: Any = [[output]]
            for step in ensemble.filters:
                applied = step()
                responses = applied.apply(responses, [doc])
                nothing += [applied.fallback] if hasattr(applied, "fallback") else []
            extracted = next(iter(responses))
        score = _metric(self.task, self.task.process_results(doc, [extracted]))
        return (None if extracted in nothing else str(extracted)), score


def _drawn(task: Any, docs: Mapping[str, Any], n: int) -> dict[str, Sequence[Any]]:
    """The n worked examples before each of `docs`: as lm-eval does, document by document from one generator.

    Drawn when a question is asked, they would change with the order of questions and with every resumption.
    """
    task.set_fewshot_seed(SEED)
    own_split = task.fewshot_cfg.split == task.config.test_split
    return {id: task.sampler.sample(n, eval_doc=doc if own_split else None) for id, doc in docs.items()}


def _examples_of(card: TaskCard, loaded: Any, asked: str) -> Examples:
    """Worked examples for the questions of the split `asked`, drawn when the first is wanted."""
    split = example_split(loaded.dataset)
    pool = loaded.dataset[split]
    absent = [file for other, files in card.files.items() if other not in loaded.dataset for file in files]
    add = f"add {' and '.join(absent)}" if absent else f"add rows to {' and '.join(card.files[split])}"

    @cache
    def drawn(n: int) -> dict[str, Sequence[Any]]:
        try:
            return _drawn(loaded, {doc["id"]: doc for doc in loaded.dataset[asked]}, n)
        except (ValueError, AssertionError):  # the samplers' ways of saying that there are too few
            raise MedbenchError(f"{card.name}: {len(pool)} rows of split {split} are too few for {n} worked examples "
                                f"(a random draw takes one to spare): lower --shots, or {add}") from None  # fmt: skip

    def draw(id: str, n: int) -> tuple[Question, ...]:
        return tuple(question_of(doc) for doc in drawn(n)[id])

    note = (f"{card.name}: worked examples come from the evaluated split itself, never the question or a duplicate of "
            f"it{f'; {add} for others' if absent else ''}")  # fmt: skip
    return Examples(split, rows_sha256(map(question_of, pool)), draw, note if split == asked else "")


class _Drawn:
    """An lm-eval sampler of examples that are drawn already."""

    def __init__(self, examples: Sequence[Any]) -> None:
        self._examples = examples

    def sample(self, n: int, **_: Any) -> Sequence[Any]:
        return self._examples[:n]


def hub_answers() -> None:
    """Raises OSError at once where the hub cannot be reached, which its client would find out in half a minute.

    Not asked behind a proxy, nor when HF_HUB_OFFLINE says that the client's cache is to be used.
    """
    if os.environ.get("HF_HUB_OFFLINE") or any(os.environ.get(name) for name in PROXIES):
        return
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()


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
        cluster=cluster_id(text, labels),  # some tasks put all of a question into its choices
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


def _seed() -> None:
    # some tasks shuffle their options as they load (GPQA), with the global generators; the seeds are lm-eval's own
    import numpy as np

    random.seed(0)
    np.random.seed(SEED)


def _quiet() -> None:
    # lm-eval warns at each load about what we set on purpose (a custom data set, overridden names)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
