"""Chats: rows with the turns of a system, a user and an assistant, whose replies are taught.

column         turns
messages       role (system, user, assistant) and content, as chat APIs have them
conversations  from (system, human, gpt) and value, as ShareGPT has them

Either column may have either kind of turns. A turn may have reasoning of its own (reasoning_content, reasoning or
thinking), or a <think> block at the start of its text. `weight: 0` or `train: false` leaves an assistant's turn out of
the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from medbench.harness.contracts import Message
from medbench.harness.text import foreign
from medbench.trainers.data import columns
from medbench.trainers.data.overlap import TrainingText

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython", "tool_call", "tool_response")
CALLS = ("tool_calls", "function_call")
KEYS = (("role", "content"), ("from", "value"))
REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a chat."""

    role: Role
    content: str
    """Without white space at its ends, and without reasoning."""
    reasoning: str = ""
    taught: bool = False
    """Whether there is a loss on it; only the assistant's turns can have one."""

    def message(self) -> Message:
        """The turn as later prompts have it. Templates that drop earlier reasoning look for the tags."""
        opening, closing = columns.TAGS
        thought = f"{opening}\n{self.reasoning}\n{closing}\n\n" if self.reasoning else ""
        return Message(self.role, f"{thought}{self.content}")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One chat to train on: perhaps a system turn, then user and assistant in turns."""

    where: str
    """File and line or row, for messages."""
    turns: tuple[Turn, ...]

    def screened(self, number: int) -> TrainingText:
        """What the contamination screening reads: all turns, also those that are not taught."""
        first, *later = [turn.content for turn in self.turns if turn.role == "user"]
        text = "\n".join(part for turn in self.turns for part in (turn.content, turn.reasoning) if part)
        return TrainingText(number, text, first, tuple(later))

    def with_system(self, system: str) -> Conversation:
        """The same, with a system turn if it has none."""
        if not system or self.turns[0].role == "system":
            return self
        return replace(self, turns=(Turn("system", system), *self.turns))

    def without_reasoning(self) -> Conversation:
        return replace(self, turns=tuple(replace(turn, reasoning="") for turn in self.turns))


def conversation(where: str, turns: Sequence[Turn], system: str = "") -> Conversation:
    """Raises ValueError for turns that are not in order, or of which none is taught. `system`: of a column."""
    first = 0 if system else 1
    if system:
        turns = [Turn("system", system), *turns]
    roles = [turn.role for turn in turns]
    if roles.count("system") > 1:
        raise ValueError("two system prompts: join them into one")
    if "system" in roles[1:]:
        raise ValueError("the system turn is not the first: put it first")
    spoken = [turn for turn in turns if turn.role != "system"]
    if "user" not in roles:
        raise ValueError("no user turn, so there is nothing to reply to: add it, or remove the row")
    if "assistant" not in roles:
        raise ValueError("no assistant turn, so there is nothing to teach: add it, or remove the row")
    if spoken[0].role == "assistant":
        raise ValueError("the first turn is the assistant's, a reply to nothing: remove it, or put a user turn first")
    for number, (one, other) in enumerate(pairwise(turns), first):
        if one.role == other.role:
            raise ValueError(f"turns {number} and {number + 1} are both of the {one.role}: join them into one")
    if not any(turn.taught for turn in turns):
        raise ValueError("all assistant turns have weight 0 or train false: give one a weight, or remove the row")
    return Conversation(where, tuple(turns))


def turns_of(given: Any, column: str, *, taught: bool = True) -> list[Turn]:
    """The turns in a column; `taught`: whether there is a loss on the assistant's. Raises ValueError."""
    if not isinstance(given, list | tuple):
        raise ValueError(f"{column}: expected a list of turns, found {type(given).__name__}")
    if not given:
        raise ValueError(f"{column}: no turns: remove the row")
    return [_turn(one, f"{column}, turn {number}", taught) for number, one in enumerate(given, 1)]


def _turn(given: Any, where: str, taught: bool) -> Turn:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected an object with role and content, found {type(given).__name__}")
    who, what = next((keys for keys in KEYS if given.get(keys[0]) is not None), KEYS[0])
    role = given.get(who)
    if role is None:
        raise ValueError(f"{where}: no role{columns.there(given)}: a turn has role and content, or from and value")
    if role in TOOL_ROLES or any(given.get(name) for name in CALLS):
        raise ValueError(f"{where}: calls of tools cannot be trained: remove the row, or write the call as text")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: unknown {who} {foreign(role, 80)!r}: write one of {', '.join(ROLES)}")
    content = given.get(what)
    if isinstance(content, list | tuple):
        raise ValueError(f"{where}: {what} is a list of parts: write it as one text")
    if content is None and what not in given:
        raise ValueError(f"{where}: no {what}{columns.there(given)}")
    if not isinstance(content, str):
        raise ValueError(f"{where}: {what}: expected text, found {type(content).__name__}")
    if not content.strip():
        raise ValueError(f"{where}: {what} is empty: write it, or remove the turn")
    if ROLES[role] != "assistant":
        return Turn(ROLES[role], content.strip())
    reasoning, answer = _reply(given, content, where)
    return Turn("assistant", answer, reasoning, taught and _is_taught(given, where))


def _reply(given: Mapping[str, Any], content: str, where: str) -> tuple[str, str]:
    inside, answer = columns.split_thought(content, where)
    try:
        beside = columns.optional_text(given, *REASONING)
        beside = columns.thought(beside) if beside else ""
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if inside and beside:
        raise ValueError(f"{where}: reasoning beside the text and in a <think> block: keep one")
    return beside or inside, answer


def _is_taught(given: Mapping[str, Any], where: str) -> bool:
    weight, train = given.get("weight"), given.get("train")
    if weight not in (None, 0, 1):
        raise ValueError(f"{where}: weight: {foreign(weight, 80)} is neither 0 nor 1")
    if train not in (None, True, False):
        raise ValueError(f"{where}: train: {foreign(train, 80)} is neither true nor false")
    return weight != 0 and (train is None or bool(train))
