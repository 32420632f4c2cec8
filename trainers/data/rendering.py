"""Rows to tokens: the prompt of `medbench eval`, followed by the reply that training teaches.

Prompt and reply are encoded separately, as in generation: encoded together, a token could span the boundary.

Each of the assistant's turns in a chat is taught behind exactly the prompt that a server would send there: the turns
before it, rendered by the model's own chat template. Where that prompt begins with the prompt and reply of the turn
before, token for token, both turns share a sequence. Where it does not, as with templates that drop earlier reasoning
(Qwen3, DeepSeek-R1) or move the system turn, each turn has a sequence of its own. So nothing depends on marks in the
template, and no template is refused for being unstable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from medbench.harness.checkpoints.weights import end_tokens
from medbench.harness.contracts import BrokenCheckpoint, MedbenchError, Message, Question
from medbench.harness.extraction.published import EXTRACTORS
from medbench.harness.extraction.thinking import opens_reasoning
from medbench.harness.protocols.chat import Tokenizer, encode, has_template, load_tokenizer, plain_text, render_chat
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.text import escaped
from medbench.trainers.data.conversations import Conversation
from medbench.trainers.data.questions import Row

OPEN, CLOSE = "<think>", "</think>"
PROBE = "medbench-reply"
NO_LOSS = -100
LOSS = (">>>", "<<<")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sequence as training sees it."""

    row: Row | Conversation
    prompt: str
    reply: str
    """Text, without the token that ends the turn."""
    prompt_ids: list[int]
    reply_ids: list[int]
    """Ends with that token, which occurs nowhere else."""
    earlier: tuple[tuple[int, int], ...] = ()
    """[start, end) in `prompt_ids` of each earlier reply that is taught too, end token included."""

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)

    @property
    def input_ids(self) -> list[int]:
        return self.prompt_ids + self.reply_ids

    @property
    def labels(self) -> list[int]:
        """`input_ids` where there is a loss, NO_LOSS elsewhere."""
        labels = [NO_LOSS] * len(self.prompt_ids) + self.reply_ids
        for start, end in self.earlier:
            labels[start:end] = self.prompt_ids[start:end]
        return labels

    @property
    def taught(self) -> int:
        """Number of tokens with a loss."""
        return len(self.reply_ids) + sum(end - start for start, end in self.earlier)


class Renderer:
    """Renders rows for the checkpoint in `start` under `protocol`."""

    def __init__(self, start: Path, protocol: Protocol) -> None:
        self.tokenizer = load_tokenizer(str(start))
        self.protocol = protocol
        self.end = end_of_turn(self.tokenizer, start)
        added = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        self._special = (added | {*self.tokenizer.all_special_ids, self.end}) - {self.tokenizer.unk_token_id}

    def render(self, row: Row) -> Rendered:
        """Raises MedbenchError if the reply would teach something other than the row's answer."""
        turns = messages(self.protocol, row.question, row.system)
        prompt = prompt_text(self.protocol, self.tokenizer, turns)
        answer = row.answer or self.protocol.reply(row.question)
        reply = reply_text(row.where, self.protocol, prompt, row.reasoning, answer)
        _refuse_misread(row, reply, self.protocol, opened=opens_reasoning(prompt))
        return self._encoded(row, prompt, reply)

    def sequences(self, row: Row | Conversation) -> Iterator[Rendered]:
        """One for a question; for a chat as few as its template allows. Raises MedbenchError."""
        if isinstance(row, Row):
            yield self.render(row)
            return
        self._refuse_special(row)
        taken: Rendered | None = None
        for number, turn in enumerate(row.turns):
            if not turn.taught:
                continue
            prompt = self._chat_prompt(row, number)
            reply = reply_text(row.where, self.protocol, prompt, turn.reasoning, turn.content)
            found = self._encoded(row, prompt, reply)
            if taken is not None and found.prompt_ids[: taken.length] == taken.input_ids:
                found = replace(found, earlier=(*taken.earlier, (len(taken.prompt_ids), taken.length)))
            elif taken is not None:
                yield taken
            taken = found
        if taken is not None:
            yield taken

    def fitting(self, rows: Iterable[Row | Conversation], max_length: int) -> tuple[list[Rendered], int]:
        """(sequences of at most `max_length` tokens, number of longer ones left out)."""
        rendered = [one for row in rows for one in self.sequences(row)]
        kept = [one for one in rendered if one.length <= max_length]
        return kept, len(rendered) - len(kept)

    def shown(self, rendered: Rendered) -> list[str]:
        """The lines of a sequence as the model sees it, with the text that has a loss between LOSS marks."""
        parts = groupby(zip(rendered.input_ids, rendered.labels, strict=True), key=lambda pair: pair[1] != NO_LOSS)
        text = ""
        for is_taught, pairs in parts:
            part = self.tokenizer.decode([token for token, _ in pairs], clean_up_tokenization_spaces=False)
            text += f"{LOSS[0]}{part}{LOSS[1]}" if is_taught else part
        return [escaped(line) for line in text.split("\n")]

    def _chat_prompt(self, row: Conversation, number: int) -> str:
        """The prompt behind which turn `number` is the reply."""
        before = row.turns[:number]
        try:
            prompt = prompt_text(self.protocol, self.tokenizer, [turn.message() for turn in before])
        except BrokenCheckpoint:
            raise
        except MedbenchError as error:
            raise MedbenchError(f"{row.where}: {error}") from None
        missing = next((turn.role for turn in before if turn.role != "assistant" and turn.content not in prompt), None)
        if missing is not None:
            raise MedbenchError(
                f"{row.where}: the model's chat template does not show the {missing} turn as it is: change the turn, "
                f"or the template"
            )
        return prompt

    def _refuse_special(self, row: Conversation) -> None:
        for number, turn in enumerate(row.turns, 1):
            found = self._special.intersection(self.tokenizer.encode(turn.content, add_special_tokens=False))
            if found:
                raise MedbenchError(
                    f"{row.where}: turn {number} contains {self.tokenizer.decode([min(found)])}, a special token of "
                    f"the model: remove it from the text"
                )

    def _encoded(self, row: Row | Conversation, prompt: str, reply: str) -> Rendered:
        templated = is_templated(self.protocol, self.tokenizer)
        if not templated:
            reply = f" {reply}"  # as chat.plain_text joins a question and its reply
        body = list(self.tokenizer.encode(reply, add_special_tokens=False))
        if self.end in body:
            raise MedbenchError(
                f"{row.where}: the reply contains {self.tokenizer.decode([self.end])}, which ends the "
                f"turn: remove it from the text"
            )
        return Rendered(row, prompt, reply, encode(self.tokenizer, prompt, templated), [*body, self.end])


def is_templated(protocol: Protocol, tokenizer: Tokenizer) -> bool:
    """Whether prompts are rendered by the model's chat template, as in evaluation.requests.build_request."""
    return protocol.chat == "auto" and has_template(tokenizer)


def prompt_text(protocol: Protocol, tokenizer: Tokenizer, turns: Sequence[Message]) -> str:
    """The text that the evaluation sends to a local engine."""
    return render_chat(tokenizer, turns, protocol.thinking) if is_templated(protocol, tokenizer) else plain_text(turns)


def messages(protocol: Protocol, question: Question, system: str = "") -> tuple[Message, ...]:
    """The turns of `medbench eval`; a question without labels is asked as it is, behind its own system prompt."""
    return protocol.messages(question) if question.labels else free_turns(question, system)


def free_turns(question: Question, system: str, *more: str) -> tuple[Message, ...]:
    """The turns that ask a question without labels; `more` follows it."""
    asked = "\n\n".join(part for part in (question.context, question.question, *more) if part)
    return (*([Message("system", system)] if system else []), Message("user", asked))


def reply_text(where: str, protocol: Protocol, prompt: str, reasoning: str, answer: str) -> str:
    """The reasoning, if any, and the answer. Reasoning that `prompt` has opened is not opened again. Raises
    MedbenchError if the prompt has closed it already."""
    if opens_reasoning(prompt):
        gap = "" if prompt.endswith("\n") else "\n"
        return f"{gap}{reasoning}\n{CLOSE}\n\n{answer}"
    if not reasoning:
        return answer
    if prompt.rstrip().endswith(CLOSE):
        raise MedbenchError(
            f"{where}: the row has reasoning, but under protocol {protocol.name} the prompt has closed "
            f"it already: use a protocol with thinking"
        )
    return f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}"


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
