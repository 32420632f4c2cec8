"""One model whose tasks are asked of adapters of their own: which adapter answers what, found and checked beforehand.

    experts = find_experts({"medqa": "adapters/medqa"}, base, choice, say)

vLLM serves plain LoRA and rsLoRA adapters beside their base, so that one engine answers for all of them in one stream.
Where one of them is of another kind, where another engine answers, or on a CPU, each is merged and they take turns in
the engine, so that all replies of a run are computed in the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.task_folders import core_tasks
from medbench.harness.checkpoints.adapters import AdapterFolder
from medbench.harness.checkpoints.resolve import Adapter, resolve_adapter
from medbench.harness.contracts import Checkpoint, Engine, MedbenchError, Say, Task
from medbench.harness.engines.plugins import takes_checkpoint
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.engines.settings import EngineChoice, ServedAdapter
from medbench.harness.engines.vllm import runs_on_cpu
from medbench.harness.evaluation.requests import Instance
from medbench.harness.protocols.chat import load_tokenizer
from medbench.harness.runs.records import AdapterRecord, ExpertsRecord, ModelRecord
from medbench.harness.text import did_you_mean, foreign

BESIDE = "enable_lora"
"""Of engine_config.vllm_args: whether vLLM serves adapters beside their base, where it can. By default not on a CPU."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A base and the adapters on it."""

    base: Checkpoint
    adapters: Mapping[str, Adapter]
    """Not empty. Target (see runs.experts) -> who answers it."""
    merged: Mapping[str, Checkpoint] | None = None
    """Adapter's fingerprint -> its merged checkpoint; None where vLLM serves them beside the base."""
    notes: tuple[str, ...] = ()
    """For readers of the run."""

    def checkpoint_of(self, adapter: str | None) -> Checkpoint:
        """What the engine serves while the adapter of that fingerprint is asked; None is the base."""
        return self.base if adapter is None or self.merged is None else self.merged[adapter]

    def in_turns(self, why: str, say: Say) -> Experts:
        """The same, merged: one takes the other's place in the engine. Raises MedbenchError where one cannot be.

        `why`: vLLM cannot serve them beside the base.
        """
        note = f"{why}: all adapters are merged, and take turns in the engine"
        merged = {one.fingerprint: one.merged(say) for one in self.adapters.values()}
        return replace(self, merged=merged, notes=(*self.notes, note))

    def choice(self, choice: EngineChoice) -> EngineChoice:
        """`choice` with the adapters that the engine has to serve."""
        if self.merged is not None:
            others = {name: value for name, value in choice.config.vllm_args.items() if name != BESIDE}
            return replace(choice, adapters=(), config=choice.config.model_copy(update={"vllm_args": others}))
        served = {one.fingerprint: one.folder for one in self.adapters.values()}
        adapters = (ServedAdapter(key, str(folder.path.resolve()), folder.rank) for key, folder in served.items())
        return replace(choice, adapters=tuple(adapters))

    def record(self) -> ModelRecord:
        """For run.json. The fingerprint depends on the base and on which adapter answers what, not on how."""
        merged = self.merged or {}
        adapters = {
            target: AdapterRecord(
                name=one.name,
                path=str(one.folder.path),
                fingerprint=one.fingerprint,
                tokenizer_sha256=one.tokenizer_sha256,
                rank=one.folder.rank,
                revision=one.revision,
                commit=one.commit,
                merge_deviation=merged[one.fingerprint].merge_deviation if merged else None,
            )
            for target, one in self.adapters.items()
        }
        experts = ExpertsRecord(base=self.base.fingerprint, served="merged" if merged else "lora", adapters=adapters)
        prints = {target: one.fingerprint for target, one in adapters.items()}
        tokenizers = {self.base.tokenizer_sha256, *(one.tokenizer_sha256 for one in adapters.values())}
        own = {one.fingerprint: one.folder.weight_bytes for one in self.adapters.values()}
        base = asdict(self.base)
        return ModelRecord(
            **base
            | {
                "name": f"{self.base.name} + {', '.join(_labels(list(self.adapters.values())))}",
                "kind": "experts",
                "fingerprint": _sha256([self.base.fingerprint, prints]),
                "tokenizer_sha256": tokenizers.pop() if len(tokenizers) == 1 else _sha256(sorted(tokenizers)),
                "base": self.base.name,
                "base_commit": self.base.commit,
                "revision": None,
                "commit": None,
                "weight_bytes": (self.base.weight_bytes or 0) + sum(own.values()),
                "experts": experts,
            }
        )


def tasks_of(adapters: Mapping[str, str]) -> tuple[str, ...]:
    """The tasks that the targets name, medbench's core tasks first."""
    named = list(dict.fromkeys(target.partition("/")[0] for target in adapters))
    core = core_tasks()
    return tuple(sorted(named, key=lambda name: core.index(name) if name in core else len(core)))


def find_experts(adapters: Mapping[str, str], base: Checkpoint, choice: EngineChoice, say: Say) -> Experts:
    """Every adapter found, checked against its base, and merged if it has to be.

    Raises MedbenchError for an adapter that cannot be used.
    """
    found: dict[str, Adapter] = {}
    known: dict[str, Adapter] = {}
    for target, name in adapters.items():
        try:
            found[target] = known[name] = known.get(name) or resolve_adapter(name, base, say)
        except MedbenchError as error:
            raise type(error)(f"--adapter {target}: {error}") from None
    experts = Experts(base, found)
    reason = _why_in_turns(experts, choice)
    return experts if reason is None else experts.in_turns(reason, say)


def refuse_adapters(choice: EngineChoice) -> None:
    """Raises MedbenchError for an engine that cannot be given adapters."""
    if choice.instance is not None:
        raise MedbenchError("adapters: the given engine answers by itself: name an engine, or leave them out")
    if not takes_checkpoint(choice):
        raise MedbenchError(
            f"--adapter: engine {choice.name} loads no adapter: evaluate each model that it knows by its own name"
        )
    if choice.config.base is not None:
        raise MedbenchError("--base: with --adapter, MODEL is the base: leave --base out")


def refuse_unknown_targets(adapters: Mapping[str, str], tasks: Sequence[Task]) -> None:
    """Raises MedbenchError for a target that no question has, or a question that two categories claim."""
    asked = {task.name: task for task in tasks}
    for target in adapters:
        name, slash, category = target.partition("/")
        if name not in asked:
            hint = did_you_mean(name, list(asked))
            raise MedbenchError(
                f"--adapter {foreign(target, 80)}: no such task among those asked: add it to --tasks; {hint}"
            )
        if slash and category not in (known := _categories(asked[name])):
            hint = did_you_mean(category, sorted(known)) if known else f"{name} has no categories"
            raise MedbenchError(f"--adapter {foreign(target, 80)}: no question of {name} is of that category; {hint}")
    for task in tasks:
        for question in task.questions:
            both = [one for one in _targets(task.name, question.category) if one in adapters]
            if len(both) > 1:
                raise MedbenchError(
                    f"--adapter: question {foreign(question.id, 60)} is of {' and of '.join(both)}: name one of them"
                )


def _targets(task: str, category: Mapping[str, str]) -> list[str]:
    return [f"{task}/{field}={value}" for field, value in category.items()]


def _categories(task: Task) -> set[str]:
    return {f"{field}={value}" for question in task.questions for field, value in question.category.items()}


def _why_in_turns(experts: Experts, choice: EngineChoice) -> str | None:
    """Why the adapters cannot be served beside their base; None where they can."""
    if choice.name != "vllm":
        return f"engine {choice.name} serves one checkpoint at a time"
    if choice.config.replicas is not None:
        return "replicas serve one checkpoint at a time"
    for adapter in experts.adapters.values():
        reason = adapter.why_merged or _own_prompts(adapter.folder, Path(experts.base.path))
        if reason is not None:
            return f"vLLM cannot serve {adapter.name} beside its base ({reason})"
    beside = choice.config.vllm_args.get(BESIDE)
    if beside is None and runs_on_cpu():
        return f"on a CPU vLLM serves adapters beside their base slowly (vllm_args: {{{BESIDE}: true}} has it do so)"
    return None if beside in (None, True) else f"vllm_args.{BESIDE} is {foreign(str(beside), 20)}"


def _own_prompts(adapter: AdapterFolder, base: Path) -> str | None:
    """Why prompts for the adapter are not those for its base: saved again, the same tokenizer has other files."""
    if not adapter.own_tokenizer:
        return None
    mine, its = (load_tokenizer(str(path)) for path in (adapter.path, base))
    if _template(mine) != _template(its):
        return "it has a chat template of its own"
    return None if _vocabulary(mine) == _vocabulary(its) else "it has a tokenizer of its own"


def _template(tokenizer: Any) -> str | None:
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def _vocabulary(tokenizer: Any) -> object:
    """All that turns text into tokens and back."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = {} if backend is None else json.loads(backend.to_str())
    whole = {key: value for key, value in whole.items() if key not in ("padding", "truncation")}  # of batches
    return tokenizer.get_vocab(), tokenizer.special_tokens_map, whole


def _labels(adapters: Sequence[Adapter]) -> list[str]:
    """A short name for each different adapter: its folder's, with the one above where two have the same."""
    parts = {one.fingerprint: [part for part in one.name.split("/") if part not in ("", ".", "..")] for one in adapters}
    for length in (1, 2, 3):
        found = {key: "/".join(some[-length:]) or key[:12] for key, some in parts.items()}
        if len(set(found.values())) == len(found):
            return list(found.values())
    return [f"{label} {key[:6]}" for key, label in found.items()]


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class EngineInTurns:
    """contracts.Engine for adapters that are merged: it serves one of them at a time, and is told which."""

    def __init__(self, experts: Experts, choice: EngineChoice, say: Say) -> None:
        self._experts, self._choice = experts, choice
        self._keeper = EngineKeeper(say)
        self._now: str | None = next(iter(experts.adapters.values())).fingerprint
        self._engine = self._serve()

    def turn_to(self, adapter: str | None) -> None:
        """Serve the adapter of that fingerprint from now on; None is the base. Nothing may be under way."""
        if adapter != self._now:
            self._now = adapter
            self._engine = self._serve()

    def close(self) -> None:
        self._keeper.close()

    def __getattr__(self, name: str) -> Any:
        """All that the engine has which serves now."""
        return getattr(self._engine, name)

    def _serve(self) -> Engine:
        checkpoint = self._experts.checkpoint_of(self._now)
        try:
            return self._keeper.serve(self._choice, checkpoint.name, checkpoint)
        except BaseException:
            self._keeper.close()
            raise


def turns(instances: Iterable[Instance]) -> Iterator[tuple[str | None, list[Instance]]]:
    """The questions of each adapter together, in the order in which the adapters first come."""
    every = list(instances)
    order = {adapter: at for at, adapter in enumerate(dict.fromkeys(one.adapter for one in every))}
    ordered = sorted(every, key=lambda one: order[one.adapter])
    for adapter, some in groupby(ordered, key=lambda one: one.adapter):
        yield adapter, list(some)
