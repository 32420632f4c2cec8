"""How many of a model's answers change with batch size and with the order of questions, on this machine.

medbench doctor --determinism smollm2-135m --questions 16

Greedy decoding picks the most likely token, but a sum of floats depends on the order of its terms, and kernels choose
that order by the shape of the batch. Where two tokens are almost equally likely, completions can diverge.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median
from typing import Any, runtime_checkable
from typing import Protocol as TypingProtocol

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.benchmarks.rows import SAMPLE
from medbench.harness.benchmarks.task_folders import core_tasks
from medbench.harness.contracts import Engine, MedbenchError, Question, Request, Sample, Say, Task
from medbench.harness.engines.plugins import takes_checkpoint
from medbench.harness.engines.pool import describe_engine, opened_engine
from medbench.harness.engines.vllm import Probe
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.plan import find_model
from medbench.harness.evaluation.repeatability import Noise, answered_pairs, answers_to, compare, reply_text
from medbench.harness.evaluation.requests import build_request, permuted
from medbench.harness.protocols.chat import encode, load_tokenizer
from medbench.harness.protocols.protocol import DEFAULT, Protocol, load_protocol

QUESTIONS = 32
NEW_TOKENS = 128
SEED = 0

BATCH, ORDER, AGAIN = "batch size", "the order of questions", "repetition"

Tokens = Callable[[str], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of asking the same questions."""

    name: str
    varies: str
    """What differs from REFERENCE."""
    at_once: int | None
    """Number of questions that the engine gets at a time; None is all of them."""
    backwards: bool = False


REFERENCE = Setting("all at once", "", None)
SETTINGS = (
    Setting("one at a time", BATCH, 1),
    Setting("4 at a time", BATCH, 4),
    Setting("all at once, backwards", ORDER, None, backwards=True),
    Setting("all at once, again", AGAIN, None),
)


@runtime_checkable
class Probed(TypingProtocol):
    """An engine whose cache can be emptied and whose log-probabilities can be read, such as VLLMEngine."""

    def forget(self) -> None: ...
    def probe(self, *, through_cache: bool, beside: Sequence[Request] = ()) -> Probe: ...


@dataclass(frozen=True, slots=True)
class Pass:
    """The result of one setting."""

    samples: Mapping[str, Sample]
    """By question id."""
    probe: Sequence[float] | None
    """Log-probabilities (nats) of the engine's fixed probe, run together with the setting's first batch."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How one setting differs from REFERENCE."""

    setting: Setting
    noise: Noise
    parted_after: float | None
    """Median number of tokens before two different completions diverge; None where none differ."""
    probe_nats: float | None
    """Largest change of a log-probability of the probe, in nats; None for an engine without a probe."""

    def as_json(self) -> dict[str, Any]:
        return {
            "setting": self.setting.name,
            "varies": self.setting.varies,
            **self.noise.model_dump(),
            "parted_after": self.parted_after,
            "probe_nats": self.probe_nats,
        }


@dataclass(frozen=True, slots=True)
class Determinism:
    """The result of `medbench doctor --determinism`."""

    model: str
    fingerprint: str
    task: str
    source: str
    """Where the questions came from: see contracts.Data.source."""
    protocol: str
    engine: Mapping[str, Any]
    """Name and settings, as in run.json."""
    asked: int
    """Questions without an error in REFERENCE."""
    answered: int
    """Of those, completions from which an answer could be extracted."""
    differences: tuple[Difference, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("model", "fingerprint", "task", "source", "protocol", "engine")},
            "asked": self.asked,
            "answered": self.answered,
            "reference": REFERENCE.name,
            "differences": [one.as_json() for one in self.differences],
            "conclusion": conclude(self),
        }


def diagnose(options: EvalOptions, questions: int, say: Say) -> Determinism:
    """Start the engine of `options` and ask `questions` of one task in every setting; takes minutes on a CPU.

    Raises MedbenchError where the model or every task is unavailable, or every question fails.
    """
    if not takes_checkpoint(options.engine):
        raise MedbenchError(
            f"--determinism needs an engine in this process: --engine vllm or hf, not {options.engine.name}"
        )
    task = first_task(options.data, say)
    protocol = load_protocol(DEFAULT, max_new_tokens=NEW_TOKENS)
    model = find_model(options.engine, options.model, say)
    with opened_engine(options.engine, options.model, model.checkpoint) as engine:
        reference, passes = ask_all(task, protocol, engine, questions=questions, say=say)
        described = describe_engine(engine)
    tokenizer = load_tokenizer(str(model.record.path))
    scored = [sample for sample in reference.samples.values() if sample.error is None]
    return Determinism(
        model=model.record.name,
        fingerprint=model.record.fingerprint,
        task=task.name,
        source=task.data.source,
        protocol=protocol.name,
        engine=described,
        asked=len(scored),
        answered=sum(sample.extracted is not None for sample in scored),
        differences=differences(reference, passes, lambda text: encode(tokenizer, text, templated=True)),
    )


def ask_all(
    task: Task, protocol: Protocol, engine: Engine, *, questions: int, say: Say = lambda _: None
) -> tuple[Pass, list[tuple[Setting, Pass]]]:
    """(REFERENCE, the other settings) for the first `questions` of the fixed order.

    Raises MedbenchError when every question fails.
    """
    by_id = {question.id: question for question in task.questions}
    chosen = [by_id[id] for id in permuted(by_id, seed=SEED, task=task.name)[:questions]]
    reference = _ask(REFERENCE, task, chosen, protocol, engine, say)
    faults = [sample.error for sample in reference.samples.values() if sample.error is not None]
    if len(faults) == len(chosen):
        raise MedbenchError(f"every question of {task.name} failed: {faults[0]}")
    return reference, [(setting, _ask(setting, task, chosen, protocol, engine, say)) for setting in SETTINGS]


def differences(reference: Pass, passes: Sequence[tuple[Setting, Pass]], tokens: Tokens) -> tuple[Difference, ...]:
    """Each setting compared with `reference`; `tokens` splits a completion into tokens."""
    return tuple(
        Difference(
            setting,
            compare(reference.samples, one.samples),
            _parted_after(reference.samples, one.samples, tokens),
            _distance(reference.probe, one.probe),
        )
        for setting, one in passes
    )


def conclude(found: Determinism) -> str:
    """One line: what changes, what that means for scores, and how to fix it."""
    changes = []
    for varies in (BATCH, ORDER, AGAIN):
        noises = [one.noise for one in found.differences if one.setting.varies == varies]
        replies, answers = max(noise.replies for noise in noises), max(noise.answers for noise in noises)
        if replies:
            changes.append(
                f"{replies} of {found.asked} replies ({answers} answer{'s' * (answers != 1)}) change with {varies}"
            )
    if not changes:
        asked = min(one.noise.asked for one in found.differences)
        return f"answers do not depend on batch size or order on this machine ({asked} questions)"
    share = max(one.noise.answers / max(one.noise.asked, 1) for one in found.differences)
    meaning = (
        f"differences of {100 * share:.1f} points or less are noise"
        if share
        else f"no answer changes ({found.answered} replies have one), so scores are unaffected"
    )
    return f"{', '.join(changes)}: {meaning}; {_remedy(found.engine)}"


def first_task(data: str | None, say: Say) -> Task:
    """The first of the default tasks that loads; without a data folder, from the built-in sample and not the Hub."""
    loader = TaskLoader(data or os.environ.get("MEDBENCH_DATA") or SAMPLE, say)
    faults: list[str] = []
    for name in core_tasks():
        try:
            task = loader.load(name)
        except MedbenchError as fault:
            faults.append(str(fault))
            continue
        for line in faults:
            say(f"{line}; using {name} instead")
        return task
    raise MedbenchError(faults[0])


def _ask(
    setting: Setting, task: Task, questions: Sequence[Question], protocol: Protocol, engine: Engine, say: Say
) -> Pass:
    """Run one setting from a clean state: no cached blocks and no batch left over from the setting before."""
    say(f"{setting.name}: {len(questions)} questions")
    order = list(reversed(questions)) if setting.backwards else list(questions)
    probed = engine if isinstance(engine, Probed) else None
    if probed is not None:
        probed.forget()
    samples = answers_to(task, order, protocol, engine, seed=SEED, at_once=setting.at_once)
    if probed is None:
        return Pass(samples, None)
    probed.forget()
    batch = order[: (setting.at_once or len(order)) - 1]
    beside = [build_request(task, question, protocol, engine, SEED) for question in batch]
    return Pass(samples, probed.probe(through_cache=False, beside=beside).logprobs)


def _parted_after(first: Mapping[str, Sample], second: Mapping[str, Sample], tokens: Tokens) -> float | None:
    lengths = []
    for a, b in answered_pairs(first, second):
        if reply_text(a) != reply_text(b):
            pairs = zip(tokens(reply_text(a)), tokens(reply_text(b)), strict=False)
            lengths.append(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return median(lengths) if lengths else None


def _distance(a: Sequence[float] | None, b: Sequence[float] | None) -> float | None:
    return None if a is None or b is None else max(abs(x - y) for x, y in zip(a, b, strict=True))


def _remedy(engine: Mapping[str, Any]) -> str:
    settings = engine["settings"]
    if engine["name"] == "hf":
        return (
            "compare only runs with the same batch_size"
            if settings.get("dtype") == "float32"
            else "dtype float32 makes them rare"
        )
    same = "compare only runs with the same max_num_seqs on the same machine"
    if settings.get("device") == "cpu" or settings.get("batch_invariant"):
        return same
    return f"set batch_invariant (an A100, H100 or later), or {same}"
