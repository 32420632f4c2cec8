"""Special tokens that mark a thought stay in a reply, all others are dropped, and a budget ends the thought by them:
real engines, a model that says them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.chain import build_chain_model

from medbench.harness.contracts import Completion, Request
from medbench.harness.engines.hf import HFEngine
from medbench.harness.engines.settings import EngineConfig
from medbench.harness.evaluation.runner import completions
from medbench.harness.extraction.answer import extract
from medbench.harness.protocols.protocol import Decoding, Protocol

MARKED = ("[THINK]", "[/THINK]", "<|im_sep|>")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "thinker"
    return build_chain_model(folder, ["Which?", "[THINK]", "A", "[/THINK]", "<|im_sep|>", "B"], special=MARKED)


def reply(engine: Any, *, new: int = 20, **given: Any) -> str:
    (completion,) = engine.generate([Request("1", (), "Which?", new, templated=True, **given)])
    return str(completion.text)


def check(engine: Any) -> None:
    assert reply(engine).replace(" ", "") == "[THINK]A[/THINK]B"
    assert extract(reply(engine), labels=("A", "B")).answer == "B"
    assert extract(reply(engine, new=2), labels=("A", "B"), finish_reason="length").answer is None
    assert budgeted(engine, 2) == ("[THINK]A\n[/THINK]<|im_sep|>B", 4)
    assert budgeted(engine, 3) == ("[THINK]A[/THINK]B", 6)


def budgeted(engine: Any, tokens: int) -> tuple[str, int]:
    """(text, tokens) of a reply under a budget."""
    protocol = Protocol(
        name="mine",
        about="mine",
        method="generate",
        prompt="{{ question }}",
        decoding=Decoding(max_new_tokens=20),
        answer_cue="<|im_sep|>",
        thinking_tokens=tokens,
    )
    request = Request("1", (), "Which?", tokens, templated=True)
    (completion,) = completions(iter([request]), protocol, engine)
    assert isinstance(completion, Completion)
    return completion.text.replace(" ", ""), completion.completion_tokens


def test_transformers(thinker: Path) -> None:
    engine = HFEngine(str(thinker), device="cpu")
    check(engine)
    engine.close()


@pytest.mark.engine
def test_vllm(thinker: Path) -> None:
    from medbench.harness.engines.vllm import VLLMEngine

    engine = VLLMEngine(str(thinker), EngineConfig(kv_cache_gib=1, max_model_len=128))
    check(engine)
    assert reply(engine, stop=("A",)).replace(" ", "") == "[THINK]A[/THINK]B"  # no stop inside the thought
    engine.close()
