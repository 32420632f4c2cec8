"""The transformers engine on a tiny real model: compared with plain transformers calls, and edge cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medbench.harness.contracts import Completion, Engine, MedbenchError, Message, Request
from medbench.harness.engines.hf import HFEngine

DRUGS = ("aspirin", "insulin", "heparin", "warfarin", "a very long-acting opioid that nobody has yet heard of", "zinc")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[HFEngine]:
    engine = HFEngine(str(tiny_model), device="cpu", batch_size=4)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(tiny_model: Path):
    """(model, tokenizer) without medbench in between."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


def ask(engine: Engine, text: str, *, id: str = "q", new: int = 24, **settings) -> Request:
    messages = (Message("user", text),)
    prompt = engine.render(messages, settings.get("thinking"))
    return Request(id, messages, prompt, max_new_tokens=new, templated=True, **settings)


def questions(engine: Engine, n: int = 12, **settings) -> list[Request]:
    """Prompts of very different lengths."""
    texts = [f"Patient {i}: " + "which dose? " * (i % 5 * 7) + DRUGS[i % len(DRUGS)] for i in range(n)]
    return [ask(engine, text, id=f"q{i}", **settings) for i, text in enumerate(texts)]


def answers(engine: Engine, requests: list[Request]) -> dict[str, Completion]:
    completions = list(engine.generate(requests))
    assert sorted(c.id for c in completions) == sorted(r.id for r in requests)
    return {completion.id: completion for completion in completions}


def test_it_is_an_engine(engine: HFEngine) -> None:
    assert isinstance(engine, Engine)
    assert engine.chat_template == "model"
    settings = json.loads(json.dumps(engine.settings()))
    assert (settings["dtype"], settings["device"], settings["max_model_len"]) == ("float32", "cpu", 2048)


@pytest.mark.slow
def test_greedy_replies_equal_plain_generate(engine: HFEngine, plain) -> None:
    model, tokenizer = plain
    got = answers(engine, questions(engine))
    for request in questions(engine):
        inputs = tokenizer(request.prompt, add_special_tokens=False, return_tensors="pt")
        reply = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs.input_ids.shape[1] :].tolist()
        ended = tokenizer.eos_token_id in reply
        assert got[request.id] == Completion(
            id=request.id,
            text=tokenizer.decode(reply, skip_special_tokens=True),
            finish_reason="stop" if ended else "length",
            prompt_tokens=inputs.input_ids.shape[1],
            completion_tokens=len(reply),
        )
    # otherwise half of this test proves nothing
    assert {completion.finish_reason for completion in got.values()} == {"stop", "length"}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_other_requests_in_the_batch_do_not_change_a_greedy_reply(
    engine: HFEngine, tiny_model: Path, batch_size: int
) -> None:
    other = HFEngine(str(tiny_model), device="cpu", batch_size=batch_size)
    requests = [*questions(engine), ask(engine, "Short?", id="short", new=9)]
    assert answers(engine, requests) == answers(other, list(reversed(requests)))


def test_the_thinking_flag_reaches_the_model(engine: HFEngine) -> None:
    on, off = ask(engine, "aspirin?", thinking=True), ask(engine, "aspirin?", thinking=False)
    assert off.prompt == on.prompt + "<think>\n\n</think>\n\n"
    got = answers(engine, [replace(on, id="on"), replace(off, id="off")])
    assert got["on"].text != got["off"].text
    assert got["off"].prompt_tokens > got["on"].prompt_tokens


def test_the_checkpoints_own_decoding_defaults_do_not_leak(engine: HFEngine, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "generation_config.json"
    defaults = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 3.0, "max_new_tokens": 3}
    file.write_text(json.dumps(json.loads(file.read_text()) | defaults))
    requests = questions(engine, 6)
    assert answers(HFEngine(str(folder), device="cpu"), requests) == answers(engine, requests)


def test_every_end_token_of_the_generation_config_ends_a_reply(
    engine: HFEngine, plain, tiny_model: Path, tmp_path: Path
) -> None:
    model, tokenizer = plain
    request = ask(engine, "zinc?", new=8)
    inputs = tokenizer(request.prompt, add_special_tokens=False, return_tensors="pt")
    reply = model.generate(**inputs, max_new_tokens=8)[0, inputs.input_ids.shape[1] :].tolist()
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "generation_config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"eos_token_id": [written["eos_token_id"], reply[2]]}))
    got = answers(HFEngine(str(folder), device="cpu"), [request])["q"]
    assert got.finish_reason == "stop"
    assert got.completion_tokens == reply.index(reply[2]) + 1 < len(reply)


@pytest.mark.slow
def test_sampling_follows_the_seed(engine: HFEngine) -> None:
    hot = {"temperature": 1.5, "top_p": 0.95, "top_k": 50}
    first = answers(engine, questions(engine, seed=1, **hot))
    assert first == answers(engine, questions(engine, seed=1, **hot))
    assert first != answers(engine, questions(engine, seed=2, **hot))


def test_top_k_of_one_is_greedy_and_zero_is_off(engine: HFEngine) -> None:
    greedy = answers(engine, questions(engine))
    assert answers(engine, questions(engine, temperature=1.0, top_k=1)) == greedy
    assert answers(engine, questions(engine, temperature=1.0, top_k=0)) != greedy


def test_a_stop_string_cuts_the_reply(engine: HFEngine) -> None:
    request = ask(engine, "Patient 3: " + "which dose? " * 21 + "warfarin", new=24)
    whole = answers(engine, [request])["q"].text
    stop = whole[4:7]
    cut = answers(engine, [replace(request, stop=("never there", stop))])["q"]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize("opening", ["<think>", "<think>\n"])
def test_a_stop_string_inside_reasoning_does_not_fire(engine: HFEngine, opening: str) -> None:
    request = ask(engine, "Patient 3: warfarin?", new=24)
    request = replace(request, prompt=request.prompt + opening)
    whole = answers(engine, [request])["q"]
    assert len(whole.text) > 4
    assert answers(engine, [replace(request, stop=(whole.text[2],))])["q"] == whole


def test_log_likelihoods_equal_those_by_hand(engine: HFEngine, plain) -> None:
    import torch

    model, tokenizer = plain
    choices = (" A", " the patient takes aspirin", " é", " no")
    requests = [
        Request(f"q{i}", (), f"Question {i}: is it {drug}? Answer:", max_new_tokens=1, choices=choices)
        for i, drug in enumerate(DRUGS)
    ]
    got = answers(engine, requests)
    for request in requests:
        context = tokenizer.encode(request.prompt)
        logprobs = got[request.id].logprobs
        assert logprobs is not None
        assert list(logprobs) == list(choices)
        for choice in choices:
            ids = tokenizer.encode(request.prompt + choice)
            with torch.no_grad():
                scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            by_hand = sum(scores[at - 1, ids[at]].item() for at in range(len(context), len(ids)))
            assert logprobs[choice] == pytest.approx(by_hand, abs=1e-4)
        assert got[request.id].prompt_tokens == len(context)


def test_a_request_with_choices_that_cannot_be_scored_is_an_error(engine: HFEngine) -> None:
    base = Request("none", (), "Answer:", max_new_tokens=1, choices=())
    got = answers(
        engine, [base, replace(base, id="empty", choices=("", " A")), replace(base, id="ok", choices=(" A", " A"))]
    )
    assert got["none"].error is not None
    assert got["empty"].error is not None
    assert got["ok"].error is None


def test_a_prompt_that_is_too_long_is_only_that_samples_error(engine: HFEngine) -> None:
    long = ask(engine, "x" * 3000, id="long")
    scored = replace(long, id="scored", choices=(" A", " B"))
    got = answers(engine, [long, *questions(engine, 3), scored])
    tokens = len(engine._tokenizer.encode(long.prompt))
    for id in ("long", "scored"):
        assert (got[id].text, got[id].finish_reason, got[id].logprobs) == ("", "error", None)
        assert "2048" in got[id].error
    assert str(tokens) in got["long"].error
    assert all(got[f"q{i}"].error is None for i in range(3))


def test_a_reply_ends_at_the_end_of_the_context(engine: HFEngine) -> None:
    request = ask(engine, "x" * 2030, new=500)
    room = 2048 - len(engine._tokenizer.encode(request.prompt))
    assert 0 < room < 20
    got = answers(engine, [request])["q"]
    assert got.completion_tokens <= room
    assert got.finish_reason == "length" if got.completion_tokens == room else "stop"


def test_requests_are_pulled_only_as_needed(engine: HFEngine) -> None:
    pulled: list[str] = []

    def stream() -> Iterator[Request]:
        for request in questions(engine, 200):
            pulled.append(request.id)
            yield request

    completions = engine.generate(stream())
    next(completions)
    assert len(pulled) < 100
    completions.close()
    assert answers(engine, questions(engine, 2))


def test_a_model_without_a_template_gets_plain_text(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    engine = HFEngine(str(folder), device="cpu")
    assert engine.chat_template == "none"
    assert engine.render([Message("system", "A"), Message("user", "B")], thinking=None) == "A\n\nB"


def test_a_checkpoint_that_does_not_load_is_a_user_error(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(MedbenchError, match="not a safetensors file") as fault:
        HFEngine(str(folder), device="cpu")
    assert "\n" not in str(fault.value)


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(MedbenchError, match="safetensors"):
        HFEngine(str(folder), device="cpu")
