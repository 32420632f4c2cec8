"""How a question is asked and its completion read. Protocols are data (YAML) and are named in every result.

python -c "from medbench.harness.protocols.protocol import load_protocol; print(load_protocol('cot-v2').prompt)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from jinja2 import Template
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from medbench.harness.config import Record, read_yaml
from medbench.harness.contracts import (
    MOST_NEW_TOKENS,
    OPEN_EXTRACTION,
    OWN_EXTRACTION,
    MedbenchError,
    Message,
    Question,
)
from medbench.harness.extraction.published import EXTRACTORS
from medbench.harness.extraction.quantity import without_limits
from medbench.harness.protocols.templates import ENVIRONMENT, render_bounded
from medbench.harness.text import did_you_mean

DEFAULT = "cot-v2"
OPEN = "open-v1"
"""The default for tasks without options."""
FOREIGN = "lm-eval"
"""The protocol of lm-eval's own tasks: everything as the task's YAML says."""

BUILT_IN = Path(str(files("medbench.harness") / "protocols"))


class Decoding(Record):
    """How tokens are chosen."""

    temperature: float = Field(0.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: int = Field(2048, ge=1, le=MOST_NEW_TOKENS)


class Continuation(Record):
    """How a completion that the token limit cut off inside its reasoning is continued (m1's budget forcing)."""

    cue: str
    """Appended to the truncated completion; the model continues after it."""
    max_new_tokens: int = Field(ge=1, le=MOST_NEW_TOKENS)
    """Of the text after the cue."""


class Protocol(Record):
    """One way to ask and to score. Results of protocols with different names are not comparable."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.+=_-]*$")
    about: str
    """One line of description."""
    method: Literal["generate", "loglikelihood"]
    chat: Literal["auto", "never"] = "auto"
    """auto: the model's own chat template, if it has one."""
    system: str | None = None
    """Jinja as `prompt`; white space at its ends is kept."""
    prompt: str
    """Jinja over context, question, options, labels, choices ([label, option] pairs), letters (bool), category."""
    stop: list[str] = Field(default_factory=list)
    """Cut the completion here, but not inside reasoning; only used where no chat template ends the turn."""
    decoding: Decoding = Decoding()
    thinking: bool | None = None
    """`enable_thinking` of the chat template; None leaves it to the template."""
    shots: int = Field(0, ge=0)
    """Few-shot examples before the question, drawn as lm-eval draws them (see contracts.Examples)."""
    example_reply: str = "{{ gold }}"
    """The reply that a few-shot example shows; Jinja over gold and all that `prompt` has."""
    extraction: str = OWN_EXTRACTION
    """Which extractor reads the completion: a key of extraction.published.EXTRACTORS."""
    continuation: Continuation | None = None
    answer_cue: str | None = None
    """Begins the answer to a thought that `thinking_tokens` cut off; where there is a continuation, its cue does."""
    thinking_tokens: int | None = Field(None, ge=1, le=MOST_NEW_TOKENS)
    """Most tokens of a completion's reasoning: it is then closed by its own mark, and answered after the cue. A
    completion without marks counts as reasoning. None: all of max_new_tokens."""
    denominator: str = "every question asked; a reply without an answer is wrong"
    """In words, which questions the accuracy is a share of."""
    sources: list[str] = Field(default_factory=list)
    """Papers and code that define the protocol."""
    quirks: list[str] = Field(default_factory=list)
    """What one would not expect, one line each."""

    @model_serializer(mode="wrap")
    def _as_before_budgets(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what no budget uses, so that runs made before there were budgets can be resumed and compared."""
        content: dict[str, Any] = handler(self)
        if self.thinking_tokens is None:
            del content["thinking_tokens"], content["answer_cue"]
        return content

    @property
    def most_tokens(self) -> int:
        """Of a completion with its continuation."""
        return self.decoding.max_new_tokens + (self.continuation.max_new_tokens if self.continuation else 0)

    @property
    def continues(self) -> bool:
        """Whether a completion that is cut off may go on, which needs an engine that can continue a text."""
        return self.continuation is not None or self.thinking_tokens is not None

    @property
    def cue(self) -> str | None:
        """What begins the answer to a thought that is cut off."""
        return self.continuation.cue if self.continuation else self.answer_cue

    @property
    def is_sampled(self) -> bool:
        """Whether two replies to the same prompt differ."""
        return self.method == "generate" and self.decoding.temperature > 0

    @property
    def is_open(self) -> bool:
        """Whether it is for questions without options."""
        return self.extraction == OPEN_EXTRACTION

    @field_validator("system", "prompt", "example_reply")
    @classmethod
    def _renders(cls, template: str | None, info: ValidationInfo) -> str | None:
        for question in (
            Question("1", "1", "Which?", ("Iron", "Zinc"), ("A", "B"), "A"),
            Question("2", "2", "Is it?", ("yes", "no", "maybe"), ("yes", "no", "maybe"), "yes", context="Text."),
        ):
            try:
                more = {"gold": question.gold} if info.field_name == "example_reply" else {}
                _render(template or "", question, **more)
            except Exception as error:  # templates can raise anything
                raise ValueError(f"does not render: {type(error).__name__}: {' '.join(str(error).split())}") from None
        return template

    @field_validator("extraction")
    @classmethod
    def _is_an_extractor(cls, name: str) -> str:
        if name not in EXTRACTORS:
            raise ValueError(f"no such extraction; {did_you_mean(name, list(EXTRACTORS))}")
        return name

    @model_validator(mode="after")
    def _renders_without_options(self) -> Self:
        question = Question("3", "3", "How much?", (), (), "24 (22.8 to 25.2)", context="Text.")
        try:
            for template in (self.system or "", self.prompt, self.example_reply) if self.is_open else ():
                _render(template, question, gold="24")
        except Exception as error:  # templates can raise anything
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(f"does not render for a question without options: {found}") from None
        return self

    def text(self, question: Question) -> str:
        """The user's turn for `question`. Raises MedbenchError for one without options, unless `is_open`."""
        if not question.labels and not self.is_open:
            raise MedbenchError(
                f"protocol {self.name} asks for an option, and question {question.id[:40]!r} has none: use {OPEN}"
            )
        return _render(self.prompt, question)

    def reply(self, example: Question) -> str:
        """The assistant's turn of a few-shot example."""
        return _render(self.example_reply, example, gold=without_limits(example.gold))

    def messages(self, question: Question, examples: Sequence[Question] = ()) -> tuple[Message, ...]:
        """System turn (if any), user and assistant turn of each few-shot example, user turn."""
        system = [Message("system", _fill(self.system, question))] if self.system else []
        worked = [
            turn
            for example in examples
            for turn in (Message("user", self.text(example)), Message("assistant", self.reply(example)))
        ]
        return (*system, *worked, Message("user", self.text(question)))


def load_protocol(
    name: str,
    *,
    max_new_tokens: int | None = None,
    thinking: bool | None = None,
    temperature: float | None = None,
    shots: int | None = None,
    thinking_tokens: int | None = None,
) -> Protocol:
    """The built-in protocol `name`, or the YAML file at that path; overrides become part of its name.

    Raises MedbenchError for an unknown name, a faulty file or a budget that the protocol cannot have.
    """
    is_file = name.endswith((".yaml", ".yml"))
    if not is_file and name not in built_in_names():
        raise MedbenchError(f"unknown protocol {name[:80]!r}; {did_you_mean(name[:80], built_in_names())}")
    path = Path(name) if is_file else BUILT_IN / f"{name}.yaml"
    protocol = read_yaml(path, Protocol)
    overrides: dict[str, Any] = {}
    decoding: dict[str, Any] = {}
    label = protocol.name
    if max_new_tokens is not None and max_new_tokens != protocol.decoding.max_new_tokens:
        decoding["max_new_tokens"] = max_new_tokens
        label += f"+max_new_tokens={max_new_tokens}"
    if temperature is not None and temperature != protocol.decoding.temperature:
        decoding["temperature"] = temperature
        label += f"+temperature={temperature:g}"
    overrides["decoding"] = protocol.decoding.model_copy(update=decoding)
    if thinking is not None and thinking != protocol.thinking:
        overrides["thinking"] = thinking
        label += f"+thinking={'on' if thinking else 'off'}"
    if shots is not None and shots != protocol.shots:
        overrides["shots"] = shots
        label += f"+shots={shots}"
    if thinking_tokens is not None and thinking_tokens != protocol.thinking_tokens:
        overrides["thinking_tokens"] = thinking_tokens
        label += f"+thinking_tokens={thinking_tokens}"
    changed = protocol.model_copy(update={**overrides, "name": label})
    _refuse_budget(changed)
    return changed


def _refuse_budget(protocol: Protocol) -> None:
    """Raises MedbenchError for a budget of thinking tokens that the protocol cannot have."""
    budget = protocol.thinking_tokens
    if budget is None:
        return
    if protocol.cue is None:
        raise MedbenchError(
            f"protocol {protocol.name}: thinking_tokens needs an answer_cue, which begins the answer after a thought "
            f"that is cut off: use another protocol, or a file of your own with one"
        )
    if budget >= protocol.most_tokens:
        raise MedbenchError(
            f"protocol {protocol.name}: thinking_tokens {budget} leaves no token of {protocol.most_tokens} for the "
            f"answer: raise max_new_tokens or lower thinking_tokens"
        )


def built_in_names() -> list[str]:
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def lm_eval_text(doc: Mapping[str, Any]) -> str:
    """`doc_to_text` of medbench's lm-eval YAML: the default protocol's user turn, so that both tools ask the same."""
    from medbench.harness.benchmarks.rows import question_of

    question = question_of(doc)
    return _default(bool(question.labels)).text(question)


def lm_eval_target(doc: Mapping[str, Any]) -> str:
    """`doc_to_target` of medbench's lm-eval YAML: the reply in a few-shot example. Scoring does not use it."""
    from medbench.harness.benchmarks.rows import question_of

    question = question_of(doc)
    return _default(bool(question.labels)).reply(question)


@cache
def _default(has_options: bool) -> Protocol:
    return load_protocol(DEFAULT if has_options else OPEN)


def _render(template: str, question: Question, **more: str) -> str:
    return _fill(template, question, **more).strip()


def _fill(template: str, question: Question, **more: str) -> str:
    values: dict[str, Any] = dict(
        context=question.context,
        question=question.question,
        options=question.options,
        labels=question.labels,
        choices=list(zip(question.labels, question.options, strict=True)),
        letters=question.labels != question.options,
        category=question.category,
        **more,
    )
    return render_bounded(_template(template), values)


@cache
def _template(source: str) -> Template:
    return ENVIRONMENT.from_string(source)
