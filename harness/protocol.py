"""How a question is asked and a reply read: protocols are data (YAML), and named in every result.

python -c "from medbench.harness.protocol import load_protocol; print(load_protocol('cot-v1').prompt)"
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, field_validator

from medbench.harness.config import Record, did_you_mean, read_yaml
from medbench.harness.contracts import MedbenchError, Message, Question

DEFAULT = "cot-v1"
FOREIGN = "lm-eval"
"""The protocol under which lm-eval's own tasks run: everything as the task's YAML says."""

BUILT_IN = Path(str(files("medbench.harness") / "protocols"))

_jinja = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class Decoding(Record):
    """How tokens are chosen."""

    temperature: float = Field(0.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: int = Field(2048, ge=1)


class Continuation(Record):
    """What is done with a reply that the token limit cut off inside its thought (m1's budget forcing)."""

    cue: str
    """Appended to the cut-off reply; the model goes on behind it."""
    max_new_tokens: int = Field(ge=1)
    """For what comes after the cue."""


class Protocol(Record):
    """One way to ask and to score. Results under different names are not comparable."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.+=_-]*$")
    about: str
    """One line for people."""
    method: Literal["generate", "loglikelihood"]
    chat: Literal["auto", "never"] = "auto"
    """auto: the model's own chat template where it has one."""
    system: str | None = None
    prompt: str
    """Jinja over context, question, options, labels, choices ([label, option] pairs), letters (bool)."""
    stop: list[str] = Field(default_factory=list)
    """Cut the reply here; only used where there is no chat template to end a turn, never inside a thought."""
    decoding: Decoding = Decoding()
    thinking: bool | None = None
    """`enable_thinking` of the chat template; None leaves it to the template."""
    shots: int = Field(0, ge=0)
    """Worked examples before the question, drawn as lm-eval draws them."""
    extraction: str = "medbench"
    """Who reads the reply: a name of readers.READERS."""
    continuation: Continuation | None = None
    denominator: str = "every question asked; a reply without an answer is wrong"
    """What the accuracy is a share of, in words."""
    sources: list[str] = Field(default_factory=list)
    """Where the protocol is laid down."""
    quirks: list[str] = Field(default_factory=list)
    """What a reader would not expect, a line each."""

    @field_validator("prompt")
    @classmethod
    def _prompt_renders(cls, prompt: str) -> str:
        for question in (
            Question("1", "1", "Which?", ("Iron", "Zinc"), ("A", "B"), "A"),
            Question("2", "2", "Is it?", ("yes", "no", "maybe"), ("yes", "no", "maybe"), "yes", context="Text."),
        ):
            try:
                _render(prompt, question)
            except Exception as error:  # a template can raise anything
                raise ValueError(f"does not render: {type(error).__name__}: {' '.join(str(error).split())}") from None
        return prompt

    def text(self, question: Question) -> str:
        """The user's turn for `question`."""
        return _render(self.prompt, question)

    def messages(self, question: Question) -> tuple[Message, ...]:
        """System turn (if any) and user turn."""
        system = (Message("system", self.system),) if self.system else ()
        return (*system, Message("user", self.text(question)))


def load_protocol(name: str, *, max_new_tokens: int | None = None, thinking: bool | None = None) -> Protocol:
    """The built-in protocol `name`, or the YAML file at that path, with overrides named in its name.

    Raises MedbenchError for an unknown name or a faulty file.
    """
    is_file = name.endswith((".yaml", ".yml"))
    if not is_file and name not in built_in_names():
        raise MedbenchError(f"unknown protocol {name[:80]!r}; {did_you_mean(name[:80], built_in_names())}")
    path = Path(name) if is_file else BUILT_IN / f"{name}.yaml"
    protocol = read_yaml(path, Protocol)
    overrides: dict[str, Any] = {}
    label = protocol.name
    if max_new_tokens is not None and max_new_tokens != protocol.decoding.max_new_tokens:
        overrides["decoding"] = protocol.decoding.model_copy(update={"max_new_tokens": max_new_tokens})
        label += f"+max_new_tokens={max_new_tokens}"
    if thinking is not None and thinking != protocol.thinking:
        overrides["thinking"] = thinking
        label += f"+thinking={'on' if thinking else 'off'}"
    return protocol.model_copy(update={**overrides, "name": label})


def built_in_names() -> list[str]:
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def lm_eval_text(doc: Mapping[str, Any]) -> str:
    """`doc_to_text` of our lm-eval YAML: the default protocol's user turn, so that both tools ask the same."""
    from medbench.harness.data import question_of

    return _default().text(question_of(doc))


@cache
def _default() -> Protocol:
    return load_protocol(DEFAULT)


def _render(prompt: str, question: Question) -> str:
    text: str = _template(prompt).render(
        context=question.context,
        question=question.question,
        options=question.options,
        labels=question.labels,
        choices=list(zip(question.labels, question.options, strict=True)),
        letters=question.labels != question.options,
    )
    return text.strip()


@cache
def _template(source: str) -> Any:
    return _jinja.from_string(source)
