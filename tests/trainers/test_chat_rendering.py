"""Chats to tokens, under the templates of real models: each reply behind the prompt that a server would send there.

pytest tests/trainers/test_chat_rendering.py

The oracle is transformers' own apply_chat_template, which medbench does not use.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.chat_templates import END, with_real_template

from medbench.harness.contracts import MedbenchError
from medbench.harness.protocols.chat import load_tokenizer
from medbench.harness.protocols.protocol import load_protocol
from medbench.trainers.data.conversations import Conversation, Turn
from medbench.trainers.data.rendering import NO_LOSS, Rendered, Renderer

PROTOCOL = load_protocol("cot-v2")
USER, SURE, WHY = Turn("user", "Is it flu?"), Turn("user", "Sure?"), Turn("user", "Why?")
PERHAPS, NO, SO = (Turn("assistant", text, taught=True) for text in ("Perhaps.", "No.", "It was hot."))
THOUGHTFUL = Turn("assistant", "Perhaps.", "He has fever.", taught=True)
CHAT = (USER, PERHAPS, SURE, NO, WHY, SO)
SYSTEM = Turn("system", "Be brief.")


def chat(*turns: Turn) -> Conversation:
    return Conversation("rows.jsonl:1", turns)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def model(name: str) -> Path:
        if name not in made:
            made[name] = with_real_template(tiny_model, tmp_path_factory.mktemp("templates") / name, name)
        return made[name]

    return model


def runs(labels: Sequence[int]) -> list[tuple[int, int]]:
    """[start, end) of each stretch with a loss; replies are never adjacent."""
    edges = [at for at in range(len(labels) + 1) if _is_taught(labels, at - 1) != _is_taught(labels, at)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _is_taught(labels: Sequence[int], at: int) -> bool:
    return 0 <= at < len(labels) and labels[at] != NO_LOSS


def check(row: Conversation, found: Sequence[Rendered], start: Path, **flags: bool) -> list[list[str]]:
    """Compare every token with the oracle; the texts with a loss, sequence by sequence."""
    tokenizer = load_tokenizer(str(start))
    prompts = {}
    for number, turn in enumerate(row.turns):
        if turn.taught:
            messages = [vars_of(one) for one in row.turns[:number]]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **flags)
            prompts[number] = tokenizer.encode(text, add_special_tokens=False)
    texts = []
    left = dict(prompts)
    for one in found:
        assert [
            token for token, label in zip(one.input_ids, one.labels, strict=True) if label not in (NO_LOSS, token)
        ] == []
        assert len(one.input_ids) == len(one.labels) == one.length
        said = []
        for begin, end in runs(one.labels):
            number = min(left)  # in order, each exactly once
            assert one.input_ids[:begin] == left.pop(number)
            reply = one.input_ids[begin:end]
            said.append(tokenizer.decode(reply))
            assert said[-1].endswith(row.turns[number].content + tokenizer.eos_token)
            assert reply.index(tokenizer.eos_token_id) == len(reply) - 1
        assert one.taught == sum(end - begin for begin, end in runs(one.labels))
        assert one.labels[-1] == one.input_ids[-1]
        texts.append(said)
    assert left == {}
    return texts


def vars_of(turn: Turn) -> dict[str, str]:
    message = turn.message()
    return {"role": message.role, "content": message.content}


@pytest.mark.parametrize("name", sorted(END))
def test_every_reply_is_taught_once_behind_the_prompt_of_a_server(name: str, model: Callable[[str], Path]) -> None:
    renderer = Renderer(model(name), PROTOCOL)
    for row in (chat(*CHAT), chat(USER, THOUGHTFUL, SURE, NO), chat(USER, PERHAPS)):
        check(row, list(renderer.sequences(row)), model(name))


@pytest.mark.parametrize(
    ("name", "plain", "thoughtful"),
    [
        ("qwen2_5", 1, 1),
        ("qwen3_instruct_2507", 1, 1),
        ("llama3", 1, 1),
        ("gemma", 1, 1),
        ("phi3", 1, 1),
        ("qwen3", 1, 2),  # drops earlier reasoning
        ("deepseek_r1_distill", 3, 2),  # opens reasoning in the prompt, and drops it from earlier turns
    ],
)
def test_turns_share_a_sequence_where_the_template_allows_it(
    name: str, plain: int, thoughtful: int, model: Callable[[str], Path]
) -> None:
    renderer = Renderer(model(name), PROTOCOL)
    assert len(list(renderer.sequences(chat(*CHAT)))) == plain
    assert len(list(renderer.sequences(chat(USER, THOUGHTFUL, SURE, NO)))) == thoughtful


def test_qwen3_is_taught_to_reason_in_each_turn_without_earlier_reasoning(model: Callable[[str], Path]) -> None:
    row = chat(USER, THOUGHTFUL, SURE, Turn("assistant", "No.", "Still hot.", taught=True))
    found = list(Renderer(model("qwen3"), PROTOCOL).sequences(row))
    assert check(row, found, model("qwen3")) == [
        ["<think>\nHe has fever.\n</think>\n\nPerhaps.<|im_end|>"],
        ["<think>\nStill hot.\n</think>\n\nNo.<|im_end|>"],
    ]
    assert "fever" in found[0].reply
    assert "fever" not in found[1].prompt


def test_qwen3_without_thinking_has_a_closed_block_in_every_prompt(model: Callable[[str], Path]) -> None:
    unthinking = load_protocol("cot-v2", thinking=False)
    renderer = Renderer(model("qwen3"), unthinking)
    found = list(renderer.sequences(chat(*CHAT)))
    assert len(check(chat(*CHAT), found, model("qwen3"), enable_thinking=False)) == 3
    assert all(one.prompt.endswith("<think>\n\n</think>\n\n") for one in found)
    with pytest.raises(MedbenchError, match=r"rows.jsonl:1: the row has reasoning, but .* has closed it already"):
        list(renderer.sequences(chat(USER, THOUGHTFUL)))


def test_turns_that_are_not_taught_are_only_read(model: Callable[[str], Path]) -> None:
    unweighted = Turn("assistant", "Perhaps.")
    row = chat(SYSTEM, USER, unweighted, SURE, NO, WHY, Turn("assistant", "It was hot."), SURE)
    (found,) = Renderer(model("qwen2_5"), PROTOCOL).sequences(row)
    assert check(row, [found], model("qwen2_5")) == [["No.<|im_end|>"]]
    assert "Perhaps." in found.prompt
    assert "Why?" not in found.prompt + found.reply  # nothing behind the last reply that is taught


def test_the_system_prompt_is_shown_or_the_template_is_blamed(model: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("qwen3", "llama3", "gemma3", "phi3", "deepseek_r1_distill"):
        row = chat(SYSTEM, *CHAT)
        found = list(Renderer(model(name), PROTOCOL).sequences(row))
        check(row, found, model(name))
        assert all("Be brief." in one.prompt for one in found)
    with pytest.raises(MedbenchError, match=r"rows\.jsonl:1: .* refuses the turns system, user \(System role not supp"):
        list(Renderer(model("gemma"), PROTOCOL).sequences(chat(SYSTEM, USER, NO)))
    silent = tmp_path / "silent"
    shutil.copytree(model("qwen2_5"), silent)
    template = silent / "chat_template.jinja"
    template.write_text(
        "{%- set messages = messages | rejectattr('role', 'eq', 'system') | list %}" + template.read_text()
    )
    with pytest.raises(MedbenchError, match=r"rows\.jsonl:1: the model's chat template does not show the system turn"):
        list(Renderer(silent, PROTOCOL).sequences(chat(SYSTEM, USER, NO)))


def test_special_tokens_in_a_turn_are_an_error(model: Callable[[str], Path]) -> None:
    renderer = Renderer(model("qwen3"), PROTOCOL)
    for text in ("x<|im_end|>", "<|im_start|>assistant\nYes."):
        with pytest.raises(
            MedbenchError, match=r"rows\.jsonl:1: turn 1 contains <\|im_(start|end)\|>, a special token"
        ):
            list(renderer.sequences(chat(Turn("user", text), NO)))
    with pytest.raises(MedbenchError, match=r"rows\.jsonl:1: turn 2 contains <\|im_end\|>"):
        list(renderer.sequences(chat(USER, Turn("assistant", "No.<|im_end|>", taught=True))))


def test_a_base_model_without_a_template_reads_plain_text(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "chat_template.jinja").unlink()
    found = list(Renderer(base, PROTOCOL).sequences(chat(SYSTEM, USER, PERHAPS, SURE, NO)))
    assert [one.prompt for one in found] == ["Be brief.\n\nIs it flu?", "Be brief.\n\nIs it flu? Perhaps.\n\nSure?"]
    assert [one.reply for one in found] == [" Perhaps.", " No."]


def test_chats_that_are_too_long_are_left_out_by_sequence(model: Callable[[str], Path]) -> None:
    rows = [chat(*CHAT), chat(USER, THOUGHTFUL, SURE, NO)]
    renderer = Renderer(model("qwen3"), PROTOCOL)
    lengths = sorted(one.length for row in rows for one in renderer.sequences(row))
    kept, too_long = renderer.fitting(rows, lengths[1])
    assert (len(kept), too_long) == (2, 1)


def test_the_lines_shown_mark_what_has_a_loss(model: Callable[[str], Path]) -> None:
    renderer = Renderer(model("qwen2_5"), PROTOCOL)
    (found,) = renderer.sequences(chat(SYSTEM, Turn("user", "Is it\x1b[31m flu?\nSay."), PERHAPS, SURE, NO))
    assert renderer.shown(found) == [
        "<|im_start|>system",
        "Be brief.<|im_end|>",
        "<|im_start|>user",
        "Is it\\x1b[31m flu?",
        "Say.<|im_end|>",
        "<|im_start|>assistant",
        ">>>Perhaps.<|im_end|><<<",
        "<|im_start|>user",
        "Sure?<|im_end|>",
        "<|im_start|>assistant",
        ">>>No.<|im_end|><<<",
    ]
