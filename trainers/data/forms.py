"""The forms of rows that are known, by their columns; the column `format` of a source names one.

format              columns
structured_medical  case, reasoning, answer (TachyHealth/structured_medical: free text)
huatuo_o1           Question, Complex_CoT, Response (FreedomIntelligence/medical-o1-reasoning-SFT: free text),
                    or question, options, answer_idx, reasoning (its demo rows)
pubmedqa            question, context.contexts or context as text, final_decision, optionally long_answer
                    (qiaojin/PubMedQA)
multiple_choice     question, options (object or list), answer_idx or answer, optionally reasoning or explanation
messages            messages: a chat, see conversations.py; optionally system
sharegpt            conversations: likewise
prompt_completion   prompt, completion: text, or turns of a chat; optionally system, reasoning
alpaca              instruction, output, optionally input, history, system, reasoning
question_answer     question, answer (text or a number), optionally context, system, reasoning; the only free text that
                    grpo takes

A text that is taught may begin with a <think> block, which counts as its reasoning. pubmedqa, multiple_choice and
question_answer may have a text in `source` or `reference`, by which a judge reads replies (rewards.factuality of grpo).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from medbench.trainers.data import columns
from medbench.trainers.data.columns import Raw
from medbench.trainers.data.conversations import Conversation, Turn, conversation, turns_of
from medbench.trainers.data.questions import (
    Row,
    exchange,
    huatuo_o1,
    multiple_choice,
    pubmedqa,
    question_answer,
    structured_medical,
)

Format = Literal[
    "auto",
    "structured_medical",
    "huatuo_o1",
    "pubmedqa",
    "multiple_choice",
    "messages",
    "sharegpt",
    "prompt_completion",
    "alpaca",
    "question_answer",
]


def messages(where: str, raw: Raw) -> Conversation:
    return _chat(where, raw, "messages")


def sharegpt(where: str, raw: Raw) -> Conversation:
    return _chat(where, raw, "conversations")


def _chat(where: str, raw: Raw, column: str) -> Conversation:
    if column not in raw:
        raise ValueError(f"no column {column}{columns.there(raw)}")
    _refuse_tools(raw)
    turns = turns_of(columns.listed(raw, column), column)
    return conversation(where, turns, columns.optional_text(raw, "system"))


def _refuse_tools(raw: Raw) -> None:
    if columns.listed(raw, "tools"):
        raise ValueError("tools: calls of tools cannot be trained: remove the column, or the row")


def prompt_completion(where: str, raw: Raw) -> Row | Conversation:
    if not any(isinstance(raw.get(name), list) for name in ("prompt", "completion")):
        return exchange(where, raw, columns.text(raw, "prompt"), "completion")
    _refuse_tools(raw)
    before, after = raw.get("prompt"), raw.get("completion")
    asked = (
        turns_of(before, "prompt", taught=False)
        if isinstance(before, list)
        else [Turn("user", columns.text(raw, "prompt"))]
    )
    taught = turns_of(after, "completion") if isinstance(after, list) else [_taught(raw, "completion")]
    return conversation(where, [*asked, *taught], columns.optional_text(raw, "system"))


def alpaca(where: str, raw: Raw) -> Row | Conversation:
    instruction, given = columns.text(raw, "instruction"), columns.optional_text(raw, "input")
    history = columns.listed(raw, "history") or []
    if not isinstance(history, list):
        raise ValueError(f"history: expected a list of pairs, found {type(history).__name__}")
    if not history:
        return exchange(where, raw, given or instruction, "output", instruction if given else "")
    turns = []
    for number, pair in enumerate(history, 1):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ValueError(f"history: entry {number} is not a pair of an instruction and a reply")
        said = {"instruction": pair[0], "reply": pair[1]}
        try:
            turns += [Turn("user", columns.text(said, "instruction")), _taught(said, "reply")]
        except ValueError as error:
            raise ValueError(f"history, entry {number}: {error}") from None
    asked = Turn("user", f"{instruction}\n\n{given}".strip())
    return conversation(where, [*turns, asked, _taught(raw, "output")], columns.optional_text(raw, "system"))


def _taught(raw: Raw, column: str) -> Turn:
    reasoning, answer = columns.reply(raw, column)
    return Turn("assistant", answer, reasoning, taught=True)


Adapter = Callable[[str, Raw], Row | Conversation]
ADAPTERS: dict[str, Adapter] = {
    "structured_medical": structured_medical,
    "huatuo_o1": huatuo_o1,
    "pubmedqa": pubmedqa,
    "multiple_choice": multiple_choice,
    "messages": messages,
    "sharegpt": sharegpt,
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
    "question_answer": question_answer,
}
COLUMNS: dict[str, set[str]] = {
    "structured_medical": {"case", "reasoning", "answer"},
    "huatuo_o1": {"Question", "Complex_CoT", "Response"},
    "pubmedqa": {"question", "context", "final_decision"},
    "multiple_choice": {"question", "options"},
    "messages": {"messages"},
    "sharegpt": {"conversations"},
    "prompt_completion": {"prompt", "completion"},
    "alpaca": {"instruction", "output"},
    "question_answer": {"question", "answer"},
}
"""Columns by which a format is recognised."""
OPTIONAL = {
    "answer_idx",
    "explanation",
    "history",
    "input",
    "long_answer",
    "pubid",
    "reasoning",
    "reference",
    "source",
    "system",
}
"""Columns that formats use besides."""
OPTIONS_ELSEWHERE = ("choices", "choice_a", "option_a", "opa", "A")
"""Columns that multiple-choice data has instead of `options`: no plain question and answer."""
