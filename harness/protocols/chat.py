"""Turns chat messages into the tokens that a local model sees.

The vLLM and the transformers engine share every step, so that their prompts cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError

from medbench.harness.checkpoints.faults import blame_checkpoint
from medbench.harness.checkpoints.vocabulary import refuse_huge_ids
from medbench.harness.contracts import BrokenCheckpoint, MedbenchError, Message
from medbench.harness.extraction.thinking import marks_reasoning
from medbench.harness.protocols.templates import BoundedEnvironment, render_bounded

Tokenizer = Any
"""A transformers tokenizer; importing its type would import transformers."""


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of the checkpoint in `path`; code in that folder is never run.

    Raises BrokenCheckpoint where its files are at fault.
    """
    from transformers import AutoTokenizer

    refuse_huge_ids(Path(path))
    with blame_checkpoint(f"{path}: no tokenizer loads from it", "copy the base model's files in"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        encode(tokenizer, "A patient", templated=False)  # a special token of a wrong type shows only here
        return tokenizer


def has_template(tokenizer: Tokenizer) -> bool:
    return bool(tokenizer.chat_template)


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], thinking: bool | None, *, opens_reply: bool = True
) -> str:
    """The prompt of a chat, by the checkpoint's own template or, without one, by `plain_text`.

    `thinking` is passed to the template as `enable_thinking`; None leaves it out, so the template's default applies.
    `opens_reply` is transformers' `add_generation_prompt`. Raises BrokenCheckpoint for a template that cannot be
    rendered within the limits of templates.py, and MedbenchError for one that refuses the turns.
    """
    if not has_template(tokenizer):
        return plain_text(messages)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    flags = {} if thinking is None else {"enable_thinking": thinking}
    # what transformers' apply_chat_template passes; a template may ask `tools is none` as well as `tools is defined`
    values = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": opens_reply}
    where = tokenizer.name_or_path
    with blame_checkpoint(f"{where}: its chat template cannot be rendered", "correct the template"):
        template = _bounded_template(tokenizer.get_chat_template())
        try:
            prompt = render_bounded(template, {**values, **tokenizer.special_tokens_map, **flags})
        except TemplateError as error:
            if type(error) is not TemplateError:
                raise
            # raise_exception in a template, which may refuse turns; Gemma's refuses a system turn
            roles, reason = ", ".join(message.role for message in messages), " ".join(str(error).split())[:300]
            raise MedbenchError(
                f"{where}: its chat template refuses the turns {roles} ({reason}): "
                f"change the protocol's turns or the template"
            ) from None
    if not prompt.strip():
        raise BrokenCheckpoint(f"{where}: its chat template renders nothing: correct the template")
    return prompt


@lru_cache(maxsize=8)  # compiling takes much longer than rendering, and every question is rendered
def _bounded_template(source: str) -> Template:
    """The template as transformers compiles it, but within limits: its own environment lets a template loop for ever.

    Raises what jinja raises for a template that does not compile, and TooMuch.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment  # not `source`: it would compute the constants in it, unlimited
    extensions = [type(one) for one in theirs.extensions.values()]
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.add(filters=theirs.filters, functions=theirs.globals)
    return environment.from_string(source)


def plain_text(messages: Sequence[Message]) -> str:
    """The turns without a template, joined as lm-eval joins them: a reply follows its question on the same line."""
    text = messages[0].content
    for message in messages[1:]:
        text += (" " if message.role == "assistant" else "\n\n") + message.content
    return text


def encode(tokenizer: Tokenizer, prompt: str, templated: bool) -> list[int]:
    """Token ids. A template writes special tokens such as BOS itself; a second BOS would silently lower scores."""
    begun = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    if templated or begun:
        return list(tokenizer.encode(prompt, add_special_tokens=False))
    return list(tokenizer.encode(prompt))


class ReplyDecoder:
    """Text of a reply's tokens: special tokens that mark reasoning are kept, all others are dropped.

    Without them the end of a thought cannot be seen ([THINK] of Mistral's, the channels of gpt-oss and Gemma).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        special = {str(token) for token in tokenizer.all_special_tokens}
        special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        marks = marks_reasoning(special)
        self.keeps_special = bool(marks)
        """Whether the engine must keep special tokens in its texts, for readable() to drop the others."""
        others = sorted(special - marks, key=len, reverse=True)
        self._others = re.compile("|".join(map(re.escape, others))) if marks and others else None

    def readable(self, text: str) -> str:
        """A text that was decoded with special tokens where `keeps_special`."""
        return self._others.sub("", text) if self._others else text

    def decode(self, ids: Sequence[int]) -> str:
        skip = not self.keeps_special
        text = self._tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        return self.readable(text)


def refuse_unknown_tokens(path: str, ids: Sequence[int], vocabulary: int) -> None:
    """Raises BrokenCheckpoint for a prompt that the model in `path`, with that many embeddings, cannot read."""
    if ids and max(ids) >= vocabulary:
        raise BrokenCheckpoint(
            f"{path}: its tokenizer gives token {max(ids)}, its model has {vocabulary} tokens: "
            f"copy the tokenizer that belongs to the model"
        )


def split_choice(tokenizer: Tokenizer, prompt: str, choice: str, templated: bool) -> tuple[list[int], list[int]]:
    """(context ids, continuation ids) of `prompt` + `choice`, split as lm-eval splits them (TemplateLM._encode_pair).

    If the prompt alone has n tokens, the continuation is the tokens of the whole text after the first n. White space at
    the end of the prompt belongs to it. It is empty where choice and prompt merge into one token: such a choice cannot
    be scored.
    """
    context = prompt.rstrip()
    if not context:
        return _after_nothing(tokenizer, prompt + choice)
    before = encode(tokenizer, context, templated)
    whole = encode(tokenizer, prompt + choice, templated)
    return before, whole[len(before) :]


def _after_nothing(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """A text without context is scored after BOS, or after EOS if the model has no BOS."""
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None or ids[:1] == [first]:
        return ids[:1], ids[1:]
    return [first], ids
