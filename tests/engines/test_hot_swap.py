"""Swapping checkpoints in a running vLLM engine: the right weights answer, and planted faults are caught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny import build_tiny_lora, build_tiny_model

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Checkpoint, Engine, Message, Request
from medbench.harness.engines.hf import HFEngine
from medbench.harness.engines.hot_swap import StaleSwapError, WarmEngine
from medbench.harness.engines.settings import EngineConfig

pytestmark = pytest.mark.engine

PROMPTS = [f"Which drug is number {n}?" for n in range(32)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("swap")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDBENCH_CACHE", str(root / "cache"))
        one, two = build_tiny_model(root / "one", seed=0), build_tiny_model(root / "two", seed=1)
        dora = build_tiny_lora(one, root / "dora", use_dora=True, use_rslora=False)
        rslora = build_tiny_lora(one, root / "rslora", use_dora=False, use_rslora=True)
        return {path.name: resolve(str(path)) for path in (one, two, dora, rslora)}


@pytest.fixture
def warm(checkpoints: dict[str, Checkpoint]) -> Iterator[WarmEngine]:
    """An engine for one test only: it closes itself when it catches a fault."""
    engine = WarmEngine(checkpoints["one"], EngineConfig(kv_cache_gib=1), print)
    yield engine
    engine.close()


def greedy(engine: Engine) -> dict[str, str]:
    requests = [
        Request(text, (), engine.render((Message("user", text),), None), 16, templated=True) for text in PROMPTS
    ]
    # vLLM omits a character whose bytes are incomplete at the end, transformers shows it as U+FFFD
    return {completion.id: completion.text.rstrip("\ufffd") for completion in engine.generate(requests)}


def test_each_swap_answers_as_a_fresh_engine_would(warm: WarmEngine, checkpoints: dict[str, Checkpoint]) -> None:
    first = greedy(warm.engine)
    for name in ("two", "dora", "rslora", "one"):
        report = warm.swap(checkpoints[name])
        assert report.restarted is None
        assert report.moved > 1e-3
        assert greedy(warm.engine) == greedy(HFEngine(checkpoints[name].path, device="cpu"))
    assert greedy(warm.engine) == first
    assert warm.swap(checkpoints["one"]).seconds == 0.0  # already there


def test_a_different_architecture_restarts_the_engine_and_says_so(
    warm: WarmEngine, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    deeper = tmp_path / "deeper"
    shutil.copytree(checkpoints["one"].path, deeper)
    described = Qwen3Config.from_pretrained(deeper).to_dict()
    described.update(num_hidden_layers=3, layer_types=["full_attention"] * 3)
    Qwen3ForCausalLM(Qwen3Config(**described)).save_pretrained(deeper)
    report = warm.swap(resolve(str(deeper)))
    assert "num_hidden_layers" in (report.restarted or "")
    assert greedy(warm.engine) == greedy(HFEngine(str(deeper), device="cpu"))


def changed_copy(checkpoint: Checkpoint, target: Path, file: str, **changes: object) -> Checkpoint:
    """The same weights with another value in one of the JSON files."""
    shutil.copytree(checkpoint.path, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | changes))
    return resolve(str(target))


def test_the_same_weights_with_another_template_or_config_are_another_checkpoint(
    warm: WarmEngine, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    one = checkpoints["one"]
    (templated := tmp_path / "templated").mkdir()
    shutil.copytree(one.path, templated, dirs_exist_ok=True)
    template = templated / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "doctor"))
    other = resolve(str(templated))
    assert other.fingerprint == one.fingerprint
    assert "chat template" in (warm.swap(other).restarted or "")
    assert "<|im_start|>doctor" in warm.engine.render((Message("user", "Hello"),), None)

    scaled = changed_copy(other, tmp_path / "scaled", "config.json", rms_norm_eps=0.5)
    assert "rms_norm_eps" in (warm.swap(scaled).restarted or "")
    assert greedy(warm.engine) == greedy(HFEngine(scaled.path, device="cpu"))

    endless = changed_copy(scaled, tmp_path / "endless", "generation_config.json", eos_token_id=5)
    assert "eos_token_id" in (warm.swap(endless).restarted or "")
    assert warm.swap(endless).restarted is None


def test_a_merged_adapter_and_its_copy_are_the_same_weights_under_two_names(
    warm: WarmEngine, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """As when training promotes one: the adapter's fingerprint covers its parts, the copy's its files."""
    warm.swap(checkpoints["dora"])
    before = greedy(warm.engine)
    copy = shutil.copytree(checkpoints["dora"].path, tmp_path / "promoted")
    promoted = resolve(str(copy))
    assert promoted.fingerprint != checkpoints["dora"].fingerprint
    assert warm.swap(promoted).moved == 0
    assert greedy(warm.engine) == before


def test_a_reload_that_does_nothing_is_caught(
    warm: WarmEngine, checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm.engine, "reload", lambda path: warm.engine.forget())
    with pytest.raises(StaleSwapError, match="did not move"):
        warm.swap(checkpoints["two"])


def test_a_cached_prefix_of_the_old_weights_is_caught(
    warm: WarmEngine, checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm.engine.llm, "reset_prefix_cache", lambda: True)  # reports success without doing it
    with pytest.raises(StaleSwapError, match="prefix cache"):
        warm.swap(checkpoints["two"])


def test_different_weights_under_a_known_fingerprint_are_caught(
    warm: WarmEngine, checkpoints: dict[str, Checkpoint]
) -> None:
    first = checkpoints["one"].fingerprint
    warm.swap(checkpoints["two"])
    with pytest.raises(StaleSwapError, match="the same weights"):
        warm.swap(replace(checkpoints["dora"], fingerprint=first))
