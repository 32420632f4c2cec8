"""Rows to tokens: the prompt of `medbench eval`, followed by the reply that training teaches.

Prompt and reply are encoded separately, as in generation: encoded together, a token could span the boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medbench.harness.checkpoints.weights import end_tokens
from medbench.harness.contracts import MedbenchError, Message, Question
from medbench.harness.extraction.published import EXTRACTORS
from medbench.harness.extraction.thinking import opens_reasoning
from medbench.harness.protocols.chat import Tokenizer, encode, has_template, load_tokenizer, plain_text, render_chat
from medbench.harness.protocols.protocol import Protocol
from medbench.trainers.data.rows import Row

OPEN, CLOSE = "<think>", "</think>"
PROBE = "medbench-reply"


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as training sees it."""

    row: Row
    prompt: str
    reply: str
    """Text, without the token that ends the turn."""
    prompt_ids: list[int]
    reply_ids: list[int]
    """Ends with that token, which occurs nowhere else."""

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


class Renderer:
    """Renders rows for the checkpoint in `start` under `protocol`."""

    def __init__(self, start: Path, protocol: Protocol) -> None:
        self.tokenizer = load_tokenizer(str(start))
        self.protocol = protocol
        self.end = end_of_turn(self.tokenizer, start)

    def render(self, row: Row) -> Rendered:
        """Raises MedbenchError if the reply would teach something other than the row's answer."""
        turns = messages(self.protocol, row.question)
        templated = is_templated(self.protocol, self.tokenizer)
        prompt = prompt_text(self.protocol, self.tokenizer, turns)
        reply = reply_text(row, self.protocol, prompt)
        _refuse_misread(row, reply, self.protocol, opened=opens_reasoning(prompt))
        if not templated:
            reply = f" {reply}"  # as chat.plain_text joins a question and its reply
        body = list(self.tokenizer.encode(reply, add_special_tokens=False))
        if self.end in body:
            raise MedbenchError(
                f"{row.where}: the reply contains {self.tokenizer.decode([self.end])}, which ends the "
                f"turn: remove it from the text"
            )
        return Rendered(row, prompt, reply, encode(self.tokenizer, prompt, templated), [*body, self.end])

    def fitting(self, rows: Iterable[Row], max_length: int) -> tuple[list[Rendered], int]:
        """(rows of at most `max_length` tokens, number of longer rows left out)."""
        rendered = [self.render(row) for row in rows]
        kept = [one for one in rendered if one.length <= max_length]
        return kept, len(rendered) - len(kept)


def is_templated(protocol: Protocol, tokenizer: Tokenizer) -> bool:
    """Whether prompts are rendered by the model's chat template, as in evaluation.requests.build_request."""
    return protocol.chat == "auto" and has_template(tokenizer)


def prompt_text(protocol: Protocol, tokenizer: Tokenizer, turns: Sequence[Message]) -> str:
    """The text that the evaluation sends to a local engine."""
    return render_chat(tokenizer, turns, protocol.thinking) if is_templated(protocol, tokenizer) else plain_text(turns)


def messages(protocol: Protocol, question: Question) -> tuple[Message, ...]:
    """The turns of `medbench eval`; a question without labels is asked as it is."""
    if question.labels:
        return protocol.messages(question)
    asked = f"{question.context}\n\n{question.question}" if question.context else question.question
    return (Message("user", asked),)


def reply_text(row: Row, protocol: Protocol, prompt: str) -> str:
    """The row's reasoning, if any, and the answer in the protocol's form. Reasoning that `prompt` has opened is not
    opened again. Raises MedbenchError if the prompt has closed it already."""
    answer = row.answer or protocol.reply(row.question)
    if opens_reasoning(prompt):
        gap = "" if prompt.endswith("\n") else "\n"
        return f"{gap}{row.reasoning}\n{CLOSE}\n\n{answer}"
    if not row.reasoning:
        return answer
    if prompt.rstrip().endswith(CLOSE):
        raise MedbenchError(
            f"{row.where}: the row has reasoning, but under protocol {protocol.name} the prompt has closed "
            f"it already: use a protocol with thinking"
        )
    return f"{OPEN}\n{row.reasoning}\n{CLOSE}\n\n{answer}"


def end_of_turn(tokenizer: Tokenizer, start: Path) -> int:
    """Id of the token that ends an assistant's turn and stops generation.

    It is the one that the chat template writes after a reply; the tokenizer's EOS may differ (in SmolLM2's GGUF it is
    the token that opens a turn). Raises MedbenchError if generation does not stop at that token.
    """
    stops = end_tokens(start) | ({tokenizer.eos_token_id} - {None})
    behind = _after_a_reply(tokenizer)
    if behind is not None and behind in stops:
        return behind
    if behind is None and tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    if behind is None:
        raise MedbenchError(f"{start}: its tokenizer has no EOS token, so a reply has no end: set eos_token")
    raise MedbenchError(
        f"{start}: its chat template ends a reply with {tokenizer.decode([behind])!r}, at which "
        f"generation does not stop: add its id to eos_token_id in generation_config.json"
    )


def _after_a_reply(tokenizer: Tokenizer) -> int | None:
    if not has_template(tokenizer):
        return None
    turns = [Message("user", "?"), Message("assistant", PROBE)]
    _, found, tail = render_chat(tokenizer, turns, None, opens_reply=False).rpartition(PROBE)
    ids = tokenizer.encode(tail, add_special_tokens=False) if found else []
    return int(ids[0]) if ids else None


def _refuse_misread(row: Row, reply: str, protocol: Protocol, *, opened: bool) -> None:
    question = row.question
    if not question.labels:
        return
    read = EXTRACTORS[protocol.extraction](reply, labels=question.labels, options=question.options, opened=opened)
    if read.answer != question.gold:
        raise MedbenchError(
            f"{row.where}: protocol {protocol.name} extracts {read.answer!r} from the reply, not the "
            f"gold {question.gold!r}: fix the row's options, or use another protocol"
        )
