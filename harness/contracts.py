"""The records and Protocols that everything else speaks in; read this file first.

python -c "from medbench.harness.contracts import Question, Request, Completion, Sample"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Say = Callable[[str], None]

FinishReason = Literal["stop", "length", "error"]
Outcome = Literal["answered", "unparsed", "ambiguous", "truncated", "empty", "refused", "error"]


class MedbenchError(Exception):
    """A fault the user can mend: one line that says what, where and how. Exit status 2."""

    exit_code = 2


class Interrupted(MedbenchError):
    """Work stopped half-way with everything finished so far on disk (Ctrl-C, disk full). Exit status 4."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a task in canonical form, whatever its data set looked like."""

    id: str
    """Stable across file orders: the data set's own id, else a content hash."""
    cluster: str
    """Equal for exact duplicates; the unit that intervals are clustered by."""
    question: str
    options: tuple[str, ...]
    """Option texts in label order; for yes/no/maybe tasks the labels themselves."""
    labels: tuple[str, ...]
    """What may be answered: ("A", "B", ...) or ("yes", "no", "maybe"); empty for free generation."""
    gold: str
    """The right one of `labels`; for a foreign lm-eval task whatever its own target is."""
    context: str = ""
    """Text to read before the question (PubMedQA's abstract), else empty."""
    category: Mapping[str, str] = field(default_factory=dict)
    """Breakdown field -> value, e.g. {"meta_info": "step1"}."""


@dataclass(frozen=True, slots=True)
class Data:
    """Where a task's rows came from and whether they are the pinned ones."""

    source: str
    """"local", "hub:<data set>@<revision>" or "sample"."""
    sha256: str
    """Over the canonicalised rows, independent of file order."""
    official: bool
    """True when `sha256` is the one that the task pins."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Where a task's worked examples come from. Never a question itself, nor an exact duplicate of it."""

    split: str
    """The task's own `split` where the data holds no other."""
    sha256: str
    """Over the rows that are drawn from, as Data.sha256."""
    draw: Callable[[str, int], tuple[Question, ...]]
    """(question id, number) -> the examples lm-eval puts before it. Raises MedbenchError for too few rows."""
    note: str = ""
    """What a reader of the score should know: that they come from the evaluated split; else empty."""


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark: its questions and what is fixed about them."""

    name: str
    version: str
    split: str
    chance: float
    """Accuracy of guessing, 0..1 (mean of 1/number of options)."""
    questions: tuple[Question, ...]
    data: Data
    foreign: ForeignTask | None = None
    """Set for a task of lm-eval's own: it is asked and scored by lm-eval's rules."""
    examples: Examples | None = field(default=None, compare=False, repr=False)
    """For protocols with worked examples; a foreign task has its own."""


class ForeignTask(Protocol):
    """An lm-eval task that is not ours, asked and scored as its YAML says."""

    def text(self, id: str, chat: Callable[[Sequence[Message]], str] | None) -> str: ...
    def continuations(self, id: str) -> tuple[str, ...] | None:
        """Texts whose log-likelihoods are compared; None for a generating task."""

    def generation(self) -> Mapping[str, Any]:
        """{"stop": (...), "max_new_tokens": int, "temperature": float} of a generating task."""

    def score(self, id: str, output: str, logprobs: Mapping[str, float] | None) -> tuple[str | None, float]:
        """(extracted answer or None, score 0..1) by lm-eval's own filters and metric."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """One thing asked of an engine."""

    id: str
    """Unique among the requests under way; handed back on the Completion."""
    messages: tuple[Message, ...]
    """The chat turns; a server that applies its own template gets these."""
    prompt: str
    """The text the model sees, chat template applied; a local engine gets this."""
    max_new_tokens: int
    templated: bool = False
    """Whether `prompt` came out of a chat template, which writes the special tokens itself."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Stop strings; they never fire inside an open thought."""
    choices: tuple[str, ...] | None = None
    """Set: do not generate, return the log-likelihood of each as a continuation of `prompt`."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; None leaves it out."""
    extraction: str = "medbench"
    """Who reads the reply: a name of readers.READERS."""
    repeat: int = 0
    """Which of several askings of the same question, from 0."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine made of one Request. `error` set means no answer was got, which is not a wrong answer."""

    id: str
    text: str
    finish_reason: FinishReason
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: Mapping[str, float] | None = None
    """choice -> natural log-likelihood, when the Request had choices."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Extraction:
    """What a reply was taken to answer, and why if to nothing."""

    answer: str | None
    outcome: Outcome
    """"answered" exactly when `answer` is set."""
    span: tuple[int, int] | None = None
    """Where in the reply the answer was read, as [start, end) character offsets."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of samples/<task>.jsonl. Holds nothing that depends on time or completion order."""

    id: str
    cluster: str
    prompt: str
    output: str
    finish_reason: FinishReason
    extracted: str | None
    outcome: Outcome
    span: tuple[int, int] | None
    gold: str
    score: float | None
    """0..1; None when the engine failed on this question."""
    error: str | None
    prompt_tokens: int
    completion_tokens: int
    category: Mapping[str, str]
    logprobs: Mapping[str, float] | None = None
    repeat: int = 0
    """Which of several askings of the same question (sampled replies, shuffled options), from 0."""
    order: tuple[int, ...] | None = None
    """Shuffled options: place -> index in the question's own order, which `gold` and `extracted` are letters of."""

    @property
    def key(self) -> str:
        """What tells the lines of one task's samples apart."""
        return sample_key(self.id, self.repeat)


def sample_key(id: str, repeat: int) -> str:
    """One asking of a question: its id, with a number from the second asking on."""
    return f"{id}#{repeat}" if repeat else id


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk, validated and fingerprinted. Made by checkpoints.resolve()."""

    name: str
    """What the user called it."""
    path: str
    """Folder that an engine can load (an adapter's is its merged form)."""
    kind: Literal["full", "adapter"]
    fingerprint: str
    """sha256 over the contents of the weights; for an adapter over base and adapter."""
    tokenizer_sha256: str
    """Over the tokenizer and chat template files: they shape every prompt."""
    base: str | None = None
    merge_deviation: float | None = None
    """For an adapter: the most that merging and casting moved a log-probability of a fixed probe, in nats."""
    parameters: int | None = None
    """Numbers in its weight files."""


@runtime_checkable
class Engine(Protocol):
    """Something that answers. One long-lived object a process; not thread-safe."""

    name: str

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        """The text the model will see: chat template applied where there is one (see `chat_template`)."""
        ...

    @property
    def chat_template(self) -> Literal["model", "server", "none"]:
        """Who renders chat turns: the checkpoint's own template, the server, or nobody (plain text)."""
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in the order in which they finish, one a request, errors included.

        Closing the iterator early aborts what is under way.
        """
        ...

    def settings(self) -> Mapping[str, Any]:
        """JSON-able settings that a reader needs to reproduce the run; never a key or a token."""
        ...

    def close(self) -> None: ...
