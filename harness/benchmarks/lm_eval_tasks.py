"""lm-eval's own tasks, with the prompts and scores of lm-eval."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.rows import cluster_id, content_id, rows_sha256
from medbench.harness.contracts import Data, MedbenchError, Message, Question, Task

TESTED = "0.4.13"
"""The lm-eval version with which lm-eval's own tasks are tested; pyproject.toml allows later ones."""
SEED = 1234
"""lm-eval's default seed, so that a question gets the same few-shot examples as with the lm_eval command."""


def foreign_task(name: str, loaded: Any) -> Task:
    """One of lm-eval's own tasks as a Task. Raises MedbenchError if it is not scored question by question."""
    if loaded.OUTPUT_TYPE not in ("multiple_choice", "generate_until") or loaded.multiple_input:
        raise MedbenchError(
            f"lm-eval task {name} is of type {loaded.OUTPUT_TYPE}: only generate_until and "
            f"multiple_choice with one context can be evaluated"
        )
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
            # a reply that the task begins (gen_prefix) is the last turn, which the model continues
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
        return draw_examples(self.task, self.docs, n) if n else {}

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
        nothing = []
        responses: Any = [[output]]
        for step in _first_filters(self.task):
            responses = step.apply(responses, [doc])
            nothing += [step.fallback] if hasattr(step, "fallback") else []
        extracted: Any = next(iter(responses))
        score = _metric(self.task, self.task.process_results(doc, [extracted]))
        return (None if extracted in nothing else str(extracted)), score


def _first_filters(task: Any) -> list[Any]:
    """The steps of the task's first filter pipeline, new, built from its config as ConfigurableTask builds them.

    lm-eval applies them only to all requests of an evaluation at once, by `task.apply_filters()`; how to score stored
    replies is asked in https://github.com/EleutherAI/lm-evaluation-harness/issues/2949.
    """
    from lm_eval.filters import build_filter_ensemble

    pipelines = task.config.filter_list or [{"name": "none", "filter": [{"function": "take_first"}]}]
    steps = [
        (step["function"], {key: value for key, value in step.items() if key != "function"})
        for step in pipelines[0]["filter"]
    ]
    return [make() for make in build_filter_ensemble(pipelines[0]["name"], steps).filters]


def draw_examples(task: Any, docs: Mapping[str, Any], n: int) -> dict[str, Sequence[Any]]:
    """The n few-shot examples for each of `docs`, drawn as lm-eval draws them: in document order from one generator.

    If they were drawn when a question is asked, they would change with the order of questions and when a run resumes.
    A seed for each document was proposed upstream, and closed:
    https://github.com/EleutherAI/lm-evaluation-harness/pull/1724.
    """
    task.set_fewshot_seed(SEED)
    own_split = task.fewshot_cfg.split == task.config.test_split
    return {id: task.sampler.sample(n, eval_doc=doc if own_split else None) for id, doc in docs.items()}


class _Drawn:
    """An lm-eval sampler that returns examples drawn earlier."""

    def __init__(self, examples: Sequence[Any]) -> None:
        self._examples = examples

    def sample(self, n: int, **_: Any) -> Sequence[Any]:
        return self._examples[:n]


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
        cluster=cluster_id(text, labels),  # in some tasks the choices hold the whole question
        question=text,
        options=labels,
        labels=labels,
        gold=str(target).strip(),
    )


@contextmanager
def lm_eval_seeds() -> Iterator[None]:
    """Python's and numpy's global generators, seeded as lm-eval's evaluator seeds them, and then as they were before.

    Some tasks shuffle their options with them as they load, such as GPQA:
    https://github.com/EleutherAI/lm-evaluation-harness/blob/v0.4.13/lm_eval/tasks/gpqa/zeroshot/utils.py
    (no issue was open on 2026-11-26; gpqa/n_shot has a generator of its own).
    """
    import numpy as np

    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


_NAME = re.compile(rb"""(?m)^[ -]*["']?(?:task|group|tag)["']? *: *["']?([^\s"'#!{\[][^\n"'#]*?)["']? *(?:#.*)?\r?$""")


@cache
def lm_eval_names() -> frozenset[str]:
    """Names of all of lm-eval's tasks and of most of its groups, found in half a second without reading its YAML."""
    spec = find_spec("lm_eval")
    assert spec is not None, "a dependency of medbench"
    assert spec.submodule_search_locations is not None
    files = (path for root in spec.submodule_search_locations for path in Path(root, "tasks").rglob("*.yaml"))
    return frozenset(name.decode(errors="replace") for path in files for name in _NAME.findall(path.read_bytes()))


def untested_lm_eval(installed: str) -> list[str]:
    """A warning unless `installed` is a version with which lm-eval's own tasks have been tested."""
    if f"{installed}.".startswith(f"{TESTED}."):
        return []
    return [
        f"lm-eval {installed} is untested, {TESTED} is tested: scores of lm-eval's own tasks may differ from those of "
        f"the lm_eval command: pip install 'lm-eval=={TESTED}.*'"
    ]
