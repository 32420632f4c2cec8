"""The records and Protocols that all other modules share; read this file first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

MOST_NEW_TOKENS = 2**31
"""Of a reply: no context is longer, and engines count in 32 bits."""

Say = Callable[[str], None]

FinishReason = Literal["stop", "length", "error"]
Outcome = Literal["answered", "unparsed", "ambiguous", "truncated", "empty", "refused", "error"]


class MedbenchError(Exception):
    """A user error: one line with what is wrong, where, and how to fix it. Exit status 2."""

    exit_code = 2

    def __init__(self, line: str = "", *details: str) -> None:
        """`details` are further lines, for faults of which each has its own, such as those of a file of replies."""
        super().__init__("\n".join((line, *details)))
        self.lines = (line, *details)


class BrokenCheckpoint(MedbenchError):
    """The content of a checkpoint's files is at fault, not the machine that reads them. Exit status 2."""


class Interrupted(MedbenchError):
    """Work stopped early, with everything finished so far on disk (Ctrl-C, disk full, no answer from the Hub). Exit
    status 4."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a task, in the same form for every data set."""

    id: str
    """Independent of the order of rows: the data set's own id, or a content hash."""
    cluster: str
    """The same for exact duplicates; confidence intervals are clustered by it."""
    question: str
    options: tuple[str, ...]
    """Option texts in label order; for yes/no/maybe tasks the labels themselves."""
    labels: tuple[str, ...]
    """The possible answers: ("A", "B", ...) or ("yes", "no", "maybe"); empty for free generation."""
    gold: str
    """The right one of `labels`; for lm-eval's own tasks, their target; of training rows in free text, the answer.

    Of other questions without labels, a quantity, and the limits within which an answer is right too: see
    extraction.quantity.
    """
    context: str = ""
    """Text to read before the question (PubMedQA's abstract), or empty."""
    category: Mapping[str, str] = field(default_factory=dict)
    """Breakdown field -> value, e.g. {"meta_info": "step1"}."""


@dataclass(frozen=True, slots=True)
class Data:
    """Where a task's rows came from, and whether they are the pinned ones."""

    source: str
    """"local", "hub:<data set>@<revision>" or "sample"."""
    sha256: str
    """Over the canonicalised rows, independent of their order."""
    official: bool
    """Whether `sha256` is the one that the task pins."""
    commit: str | None = None
    """Of the Hub's data set; None for rows of another source, and of lm-eval's own tasks."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The source of a task's few-shot examples, which never include the question itself or an exact duplicate."""

    split: str
    """The task's own `split` where the data has no other."""
    sha256: str
    """Over the rows of that split, as Data.sha256."""
    draw: Callable[[str, int], tuple[Question, ...]]
    """(question id, number) -> the examples lm-eval would show. Raises MedbenchError for too few rows."""
    note: str = ""
    """A caveat for readers of the score (the examples come from the evaluated split), or empty."""


@dataclass(frozen=True, slots=True)
class Flags:
    """Questions that reviewers found faulty."""

    ids: frozenset[str]
    about: str
    """Who flagged them and why, in a few words."""


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark: its questions and fixed properties."""

    name: str
    version: str
    split: str
    chance: float
    """Accuracy of guessing, 0..1 (mean of 1/number of options)."""
    questions: tuple[Question, ...]
    data: Data
    foreign: ForeignTask | None = None
    """Set for lm-eval's own tasks, which are asked and scored by lm-eval's rules."""
    examples: Examples | None = field(default=None, compare=False, repr=False)
    """For protocols with few-shot examples; a foreign task brings its own."""
    flags: Flags | None = field(default=None, compare=False, repr=False)
    """Set where the rows are those that were reviewed."""


class ForeignTask(Protocol):
    """One of lm-eval's own tasks, asked and scored as its YAML says."""

    def text(self, id: str, chat: Callable[[Sequence[Message]], str] | None) -> str:
        """The prompt for question `id`; `chat` applies a chat template."""
        ...

    def continuations(self, id: str) -> tuple[str, ...] | None:
        """Texts whose log-likelihoods are compared; None for a generative task."""

    def generation(self) -> Mapping[str, Any]:
        """{"stop": (...), "max_new_tokens": int, "temperature": float} of a generative task."""

    def score(self, id: str, output: str, logprobs: Mapping[str, float] | None) -> tuple[str | None, float]:
        """(extracted answer or None, score 0..1) by lm-eval's own filters and metric."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: Literal["system", "user", "assistant"]
    content: str


OWN_EXTRACTION = "medbench-v2"
"""Name of medbench's own extractor in extraction.published.EXTRACTORS."""
OPEN_EXTRACTION = "quantity-v1"
"""Name of medbench's extractor for questions without options."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for an engine."""

    id: str
    """Unique among the requests under way; the Completion has the same."""
    messages: tuple[Message, ...]
    """The chat turns; a server that applies its own template gets these."""
    prompt: str
    """The text the model sees, after the chat template; a local engine gets this."""
    max_new_tokens: int
    templated: bool = False
    """Whether `prompt` is the output of a chat template, which includes the special tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Stop strings; they never fire inside open reasoning."""
    choices: tuple[str, ...] | None = None
    """If set, nothing is generated: the engine returns the log-likelihood of each as a continuation of `prompt`."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; None leaves it out."""
    extraction: str = OWN_EXTRACTION
    """Which extractor reads the completion: a key of extraction.published.EXTRACTORS."""
    repeat: int = 0
    """Which of several repeats of the same question, from 0."""
    milestones: tuple[int, ...] = ()
    """Numbers of tokens, rising: an engine that can says when a running reply becomes longer than one (see Passed)."""
    adapter: str | None = None
    """Fingerprint of the adapter that answers, one of EngineChoice.adapters; None is the checkpoint itself."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A running reply has become longer than the highest milestone so far."""

    id: str
    tokens: int
    """That milestone."""


@dataclass(frozen=True, slots=True)
class Completion:
    """An engine's output for one Request. With `error` set there is no answer, which is not a wrong answer."""

    id: str
    text: str
    finish_reason: FinishReason
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: Mapping[str, float] | None = None
    """choice -> natural log-likelihood, when the Request had choices."""
    error: str | None = None
    cued: bool = False
    """Whether its thought was cut off and the protocol's cue, which is part of `text`, made it answer."""


Note = Literal["went_on", "unmarked_thought", "cued"]
"""What is unusual about a completion: it answers and then asks itself another question (the first answer counts); it
looks like a thought whose marks are missing (its last paragraph is read); its thought was cut off, and it answers after
the protocol's cue."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """The extracted answer, or why there is none."""

    answer: str | None
    outcome: Outcome
    """"answered" exactly when `answer` is set."""
    span: tuple[int, int] | None = None
    """Where in the completion the answer was found, as [start, end) character offsets."""
    note: Note | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of samples/<task>.jsonl. Nothing in it depends on time or on the order of completion."""

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
    """Which of several repeats of the same question (sampled replies, shuffled options), from 0."""
    order: tuple[int, ...] | None = None
    """With shuffled options: position shown -> index in the question's own order.

    `gold` and `extracted` are letters of the positions shown.
    """
    note: Note | None = None

    @property
    def key(self) -> str:
        """Unique among the samples of one task."""
        return sample_key(self.id, self.repeat)


def sample_key(id: str, repeat: int) -> str:
    """One repeat of a question: the question's id, with the repeat's number from the second on."""
    return f"{id}#{repeat}" if repeat else id


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk, validated and fingerprinted. Made by checkpoints.resolve()."""

    name: str
    """What the user called it."""
    path: str
    """Folder that an engine can load; for an adapter, its merged weights."""
    kind: Literal["full", "adapter"]
    fingerprint: str
    """sha256 over the contents of the weights; for an adapter over base and adapter."""
    tokenizer_sha256: str
    """Over the tokenizer and chat template files: they shape every prompt."""
    config_sha256: str | None = None
    """Over what config.json and generation_config.json say of the network and of where a reply ends."""
    revision: str | None = None
    """Of a Hub model: the branch, tag or commit that was asked for."""
    commit: str | None = None
    """Of a Hub model: the commit that was read."""
    base: str | None = None
    base_commit: str | None = None
    """Of an adapter's base on the Hub."""
    merge_deviation: float | None = None
    """For an adapter: the largest change in a fixed probe's log-probabilities by merging and casting, in nats."""
    parameters: int | None = None
    """Number of parameters in its weight files, packed ones counted one by one."""
    weight_bytes: int | None = None
    """Of its weight files; for an adapter, of the merged ones."""
    quantization: str | None = None
    """Such as "gptq 4 bit"; None for weights in full precision."""


@runtime_checkable
class Engine(Protocol):
    """Something that answers requests. Long-lived; not thread-safe.

    engines.plugins says how to add one. Five attributes are optional. `fingerprint` (str) identifies the weights of an
    engine that a caller passes in, for run.json. `places` (int) is how many requests it can work on at once before
    they slow each other down; an engine without it gets its requests in blocks where a gate may stop early.
    `reports_milestones` (bool) says that it yields Passed; without it a gate waits for whole replies. `not_applied`
    (mapping) names the settings of requests that it could not apply, such as "temperature", each with a line for
    readers of the run. `incidents` (sequence of lines) tells them what happened to it meanwhile.
    """

    name: str

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        """The text the model will see: chat template applied where there is one (see `chat_template`)."""
        ...

    @property
    def chat_template(self) -> Literal["model", "server", "none"]:
        """What renders chat turns: the checkpoint's own template, the server, or nothing (plain text)."""
        ...

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion | Passed]:
        """One Completion per request, errors included, in the order in which they finish.

        Only for requests with milestones, there may be a Passed before it.
        Requests are taken from the iterable only as needed. Closing the iterator early aborts those under way.
        An engine with `places` may be given None for "no request for now": it goes on with those under way and takes
        the next item after it has yielded a completion. With none under way it ends.
        Raises Interrupted where no request can be answered any more for now, such as a server that is gone.
        """
        ...

    def settings(self) -> Mapping[str, Any]:
        """JSON-able settings that are needed to reproduce the run; never a key or a token."""
        ...

    def close(self) -> None: ...
