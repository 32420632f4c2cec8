"""Rows to tokens: prompts as in `medbench eval`, replies that its extraction reads, and one end of turn.

pytest tests/trainers/test_rendering.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest

from medbench.harness.checkpoints.cache import cache_dir
from medbench.harness.checkpoints.resolve import SMOLLM2
from medbench.harness.contracts import Data, MedbenchError, Question, Task
from medbench.harness.engines.hf import HFEngine
from medbench.harness.evaluation.requests import build_request
from medbench.harness.extraction.answer import extract
from medbench.harness.extraction.thinking import split_reasoning
from medbench.harness.protocols.chat import encode, has_template, load_tokenizer, render_chat
from medbench.harness.protocols.protocol import load_protocol
from medbench.trainers.data.rendering import Rendered, Renderer, end_of_turn
from medbench.trainers.data.rows import Row, Source, load_rows

PROTOCOL = load_protocol("cot-v2")
LETTERED = Question("1", "1", "Which metal?", ("Iron", "Zinc"), ("A", "B"), "B")
WORDED = Question("2", "2", "Is it?", ("yes", "no", "maybe"), ("yes", "no", "maybe"), "maybe", context="A text.")
FREE = Question("3", "3", "A man coughs.", (), (), "Pneumonia.")


def row(question: Question, reasoning: str = "It is so.", answer: str = "") -> Row:
    return Row("rows.jsonl:1", question, reasoning, answer or ("" if question.labels else question.gold))


def with_template(base: Path, folder: Path, *, ending: str) -> Path:
    """A copy of `base` whose chat template writes `ending` at the start of the assistant's turn."""
    shutil.copytree(base, folder)
    file = folder / "chat_template.jinja"
    opening = "{{- '<|im_start|>assistant\\n' }}"
    assert opening in file.read_text()
    file.write_text(file.read_text().replace(opening, "{{- '<|im_start|>assistant\\n" + ending + "' }}"))
    return folder


@pytest.fixture(scope="session", params=["tiny", SMOLLM2])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Path:
    if request.param == "tiny":
        return tiny_model
    if not (cache_dir() / SMOLLM2).exists():
        pytest.skip(f"{SMOLLM2} is not in the cache")
    return cache_dir() / SMOLLM2


@pytest.mark.slow
@pytest.mark.parametrize("chat", ["auto", "never"])
def test_prompts_are_those_of_an_evaluation(model: Path, chat: Literal["auto", "never"]) -> None:
    """Text and tokens, compared with the evaluation's own request and engine."""
    protocol = PROTOCOL.model_copy(update={"chat": chat})
    engine, renderer = HFEngine(str(model)), Renderer(model, protocol)
    data = Data("local", "", False)
    for question in (LETTERED, WORDED):
        request = build_request(Task("t", "1", "test", 0.5, (question,), data), question, protocol, engine, 0)
        rendered = renderer.render(row(question))
        assert rendered.prompt == request.prompt
        assert rendered.prompt_ids == encode(load_tokenizer(str(model)), request.prompt, request.templated)
    engine.close()


def test_a_reply_ends_with_the_one_token_that_stops_generation(model: Path) -> None:
    from transformers import GenerationConfig

    renderer = Renderer(model, PROTOCOL)
    rendered = renderer.render(row(LETTERED))
    ends = GenerationConfig.from_pretrained(model).eos_token_id
    assert renderer.tokenizer.decode(rendered.reply_ids[-1]) == "<|im_end|>"
    assert [token for token in rendered.reply_ids if token == ends] == rendered.reply_ids[-1:]
    text = renderer.tokenizer.decode(rendered.prompt_ids + rendered.reply_ids)
    assert text == f"{rendered.prompt}{rendered.reply}<|im_end|>"
    assert text.startswith(
        "<|im_start|>system\n" if model.name == SMOLLM2 else "<|im_start|>user\n"
    )  # no BOS before it


def test_a_reply_is_the_reasoning_and_the_answer_in_the_protocols_form(tiny_model: Path) -> None:
    render = Renderer(tiny_model, PROTOCOL).render
    assert render(row(LETTERED)).reply == "<think>\nIt is so.\n</think>\n\nThe answer is (B)."
    assert render(row(WORDED)).reply == "<think>\nIt is so.\n</think>\n\nThe answer is (maybe)."
    assert render(row(LETTERED, reasoning="")).reply == "The answer is (B)."
    assert render(row(FREE)).reply == "<think>\nIt is so.\n</think>\n\nPneumonia."
    assert "A man coughs.<|im_end|>" in render(row(FREE)).prompt


@pytest.mark.parametrize(("ending", "gap"), [("<think>\\n", ""), ("<think>", "\n")])
def test_reasoning_that_the_template_opens_is_not_opened_twice(tiny_model, tmp_path, ending, gap) -> None:
    render = Renderer(with_template(tiny_model, tmp_path / "opens", ending=ending), PROTOCOL).render
    rendered = render(row(LETTERED))
    assert rendered.reply == f"{gap}It is so.\n</think>\n\nThe answer is (B)."
    assert (rendered.prompt + rendered.reply).count("<think>") == 1
    unreasoned = render(row(LETTERED, reasoning=""))
    assert split_reasoning(unreasoned.reply, opened=True).answer.strip() == "The answer is (B)."


def test_a_prompt_with_a_closed_think_block_refuses_reasoning(tiny_model: Path) -> None:
    unthinking = load_protocol("cot-v2", thinking=False)
    renderer = Renderer(tiny_model, unthinking)
    assert renderer.render(row(LETTERED, reasoning="")).prompt.endswith("</think>\n\n")
    with pytest.raises(MedbenchError, match=r"rows\.jsonl:1: the row has reasoning, but under protocol .* has closed"):
        renderer.render(row(LETTERED))


def test_a_base_model_without_a_template(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(str(base))
    assert not has_template(tokenizer)
    rendered = Renderer(base, PROTOCOL).render(row(LETTERED))
    assert rendered.prompt == render_chat(tokenizer, PROTOCOL.messages(LETTERED), None)
    assert rendered.reply.startswith(" <think>")
    assert rendered.reply_ids[-1] == tokenizer.eos_token_id


def test_text_that_would_end_the_turn_is_an_error(tiny_model: Path) -> None:
    with pytest.raises(MedbenchError, match=r"rows\.jsonl:1: the reply contains <\|im_end\|>, which ends the turn"):
        Renderer(tiny_model, PROTOCOL).render(row(LETTERED, reasoning="It is<|im_end|> so."))


def test_an_end_at_which_generation_does_not_stop_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(tiny_model, odd)
    template = odd / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<|im_start|>"))
    with pytest.raises(MedbenchError, match=r"ends a reply with '<\|im_start\|>', at which generation does not stop"):
        end_of_turn(load_tokenizer(str(odd)), odd)
    generation = json.loads((odd / "generation_config.json").read_text())
    start = load_tokenizer(str(odd)).convert_tokens_to_ids("<|im_start|>")
    (odd / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [start]}))
    assert end_of_turn(load_tokenizer(str(odd)), odd) == start


def test_a_reply_that_extraction_misreads_is_an_error(tiny_model: Path) -> None:
    twice = Question("4", "4", "Which?", ("The answer is (A)", "Iron"), ("A", "B"), "C")
    with pytest.raises(MedbenchError, match=r"extracts .* from the reply, not the gold 'C'"):
        Renderer(tiny_model, PROTOCOL).render(row(twice))


def test_longer_rows_are_left_out_and_counted_never_truncated(tiny_model: Path) -> None:
    renderer = Renderer(tiny_model, PROTOCOL)
    rows = [row(LETTERED), row(LETTERED, reasoning="It is so. " * 50)]
    short, long = (renderer.render(one).length for one in rows)
    assert [
        (len(kept), out) for kept, out in (renderer.fitting(rows, n) for n in (long, long - 1, short, short - 1))
    ] == [(2, 0), (1, 1), (1, 1), (0, 2)]


@pytest.mark.parametrize("name", ["pubmedqa/train", "train/medical_o1_demo_sft", "train/medmcqa_mcq"])
def test_extraction_finds_the_gold_in_every_reply_of_the_real_files(
    data_dir: Path, tiny_model: Path, name: str
) -> None:
    renderer = Renderer(tiny_model, PROTOCOL)
    rendered = [renderer.render(one) for one in load_rows([Source(path=str(data_dir / f"{name}.jsonl"))])]
    assert [one.row.where for one in rendered if _read(one) != one.row.question.gold] == []
    assert all(split_reasoning(one.reply).reasoning.count("<think>") == bool(one.row.reasoning) for one in rendered)


def _read(one: Rendered) -> str | None:
    return extract(one.reply, labels=one.row.question.labels, options=one.row.question.options).answer
