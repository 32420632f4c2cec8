"""Rows to tokens: the prompt that `medbench eval` asks, and behind it the reply that training teaches.

    python -c "from medbench.trainers.data.rendering import Renderer; print(Renderer.__doc__)"

Prompt and reply are encoded apart, as they come at generation: encoded in one piece, tokens could melt at the border.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError, Message, Question
from medbench.harness.extraction.published import READERS
from medbench.harness.extraction.thinking import opens_thought
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
    """Without the token that ends the turn."""
    prompt_ids: list[int]
    reply_ids: list[int]
    """With that token, once, at the end."""

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


class Renderer:
    """Renders rows for the checkpoint in `start`, asked by `protocol`."""

    def __init__(self, start: Path, protocol: Protocol) -> None:
        self.tokenizer = load_tokenizer(str(start))
        self.protocol = protocol
        self.end = end_of_turn(self.tokenizer, start)

    def render(self, row: Row) -> Rendered:
        """Raises MedbenchError where the reply would teach something else than the row's answer."""
        turns = messages(self.protocol, row.question)
        templated = is_templated(self.protocol, self.tokenizer)
        prompt = prompt_text(self.protocol, self.tokenizer, turns)
        reply = reply_text(row, self.protocol, prompt)
        _refuse_misread(row, reply, self.protocol, opened=opens_thought(prompt))
        if not templated:
            reply = f" {reply}"  # as prompting.plain_text puts a reply behind its question
        body = list(self.tokenizer.encode(reply, add_special_tokens=False))
        if self.end in body:
            raise MedbenchError(
                f"{row.where}: the reply holds {self.tokenizer.decode([self.end])}, which ends the "
                f"turn: remove it from the text"
            )
        return Rendered(row, prompt, reply, encode(self.tokenizer, prompt, templated), [*body, self.end])

    def fitting(self, rows: Iterable[Row], max_length: int) -> tuple[list[Rendered], int]:
        """(rows of at most `max_length` tokens, how many were longer and are left out)."""
        rendered = [self.render(row) for row in rows]
        kept = [one for one in rendered if one.length <= max_length]
        return kept, len(rendered) - len(kept)


def is_templated(protocol: Protocol, tokenizer: Tokenizer) -> bool:
    """Whether prompts come out of the model's chat template, as evaluate.build_request decides it."""
    return protocol.chat == "auto" and has_template(tokenizer)


def prompt_text(protocol: Protocol, tokenizer: Tokenizer, turns: Sequence[Message]) -> str:
    """What the evaluation sends to a local engine."""
    return render_chat(tokenizer, turns, protocol.thinking) if is_templated(protocol, tokenizer) else plain_text(turns)


def messages(protocol: Protocol, question: Question) -> tuple[Message, ...]:
    """The turns of `medbench eval`; a question without labels is asked as it stands."""
    if question.labels:
        return protocol.messages(question)
    asked = f"{question.context}\n\n{question.question}" if question.context else question.question
    return (Message("user", asked),)


def reply_text(row: Row, protocol: Protocol, prompt: str) -> str:
    """The thought, if the row has one, and the answer in the protocol's form; a thought that `prompt` has opened goes
    on. Raises MedbenchError where the prompt has closed it already."""
    answer = row.answer or protocol.reply(row.question)
    if opens_thought(prompt):
        gap = "" if prompt.endswith("\n") else "\n"
        return f"{gap}{row.reasoning}\n{CLOSE}\n\n{answer}"
    if not row.reasoning:
        return answer
    if prompt.rstrip().endswith(CLOSE):
        raise MedbenchError(
            f"{row.where}: the row reasons, but under protocol {protocol.name} the prompt has closed "
            f"the thought: take a protocol that thinks"
        )
    return f"{OPEN}\n{row.reasoning}\n{CLOSE}\n\n{answer}"


def end_of_turn(tokenizer: Tokenizer, start: Path) -> int:
    """The token that ends an assistant's turn and at which generation stops.

    It is the one that the chat template writes behind a reply: a tokenizer's own EOS may be another (that of SmolLM2's
    GGUF is the token which opens a turn). Raises MedbenchError where the two do not agree on any token.
    """
    stops = _stops(start) | ({tokenizer.eos_token_id} - {None})
    behind = _behind_a_reply(tokenizer)
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


def _behind_a_reply(tokenizer: Tokenizer) -> int | None:
    if not has_template(tokenizer):
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    _, found, tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(PROBE)
    ids = tokenizer.encode(tail, add_special_tokens=False) if found else []
    return int(ids[0]) if ids else None


def _stops(start: Path) -> set[int]:
    """As generation reads them: generation_config.json, and config.json where that is missing."""
    for name in ("generation_config.json", "config.json"):
        try:
            content: dict[str, Any] = json.loads((start / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        listed = content.get("eos_token_id")
        return set(listed) if isinstance(listed, list) else set() if listed is None else {listed}
    return set()


def _refuse_misread(row: Row, reply: str, protocol: Protocol, *, opened: bool) -> None:
    question = row.question
    if not question.labels:
        return
    read = READERS[protocol.extraction](reply, labels=question.labels, options=question.options, opened=opened)
    if read.answer != question.gold:
        raise MedbenchError(
            f"{row.where}: protocol {protocol.name} reads the reply as {read.answer!r}, not as the "
            f"gold {question.gold!r}: mend the row's options, or take another protocol"
        )
