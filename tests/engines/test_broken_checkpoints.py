"""Checkpoints broken in any file: one line of MedbenchError, and a verdict where the files are at fault.

pytest tests/engines/test_broken_checkpoints.py
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import write_gates, write_medqa

from medbench.harness.checkpoints.architecture import refuse_other_shapes, refuse_unbuildable
from medbench.harness.checkpoints.faults import blame_checkpoint
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.cli.main import run
from medbench.harness.contracts import BrokenCheckpoint, MedbenchError, Message, Request
from medbench.harness.engines.hf import HFEngine
from medbench.harness.engines.plugins import find_engine
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.protocols.chat import load_tokenizer, render_chat

TURNS = (Message("user", "Which?"),)
ODD: tuple[Any, ...] = (None, True, -1, 0, 1.5, "", "x", [], [[]], {}, {"a": 1})


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny model to be damaged."""
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def broken_merges(folder: Path) -> None:
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["merges"][0] = ["no", "such"]
    path.write_text(json.dumps(whole))


def a_new_special_token(folder: Path) -> None:
    """One that the model has no embedding for, in every prompt."""
    edit("tokenizer_config.json", eos_token="<|new|>", pad_token="<|new|>")(folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "<|new|>")


BROKEN: dict[str, Callable[[Path], None]] = {
    "layers as text": edit("config.json", num_hidden_layers="two"),
    "heads as list": edit("config.json", num_attention_heads=[4]),
    "no heads": edit("config.json", num_attention_heads=0),
    "unknown dtype": edit("config.json", dtype="float33"),
    "unknown model type": edit("config.json", model_type="nothing-known"),
    "merges": broken_merges,
    "tokenizer is a list": lambda folder: (folder / "tokenizer.json").write_text("[]") and None,
    "end tokens as text": edit("generation_config.json", eos_token_id="two"),
    "a large end token": edit("generation_config.json", eos_token_id=10**30),
    "a token beyond the vocabulary": a_new_special_token,
}
TEMPLATES = {
    "division": "{{ 1/0 }}",
    "wrong types": "{{ 1 + 'a' }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nothing": "{# nothing #}",
    "syntax": "{% for %}",
    "escape": "{{ ''.__class__.__mro__ }}{{ cycler.__init__.__globals__.os.popen('id') }}",
}


def load_and_ask(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    engine = HFEngine(checkpoint.path, batch_size=2)
    prompt = engine.render(TURNS, None)
    list(engine.generate([Request("q", TURNS, prompt, 2, templated=True)]))
    engine.close()


@pytest.mark.engine
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_line(model: Path, name: str) -> None:
    BROKEN[name](model)
    with pytest.raises(BrokenCheckpoint) as caught:
        load_and_ask(model)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_cannot_be_rendered_is_one_line(model: Path, name: str) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATES[name])
    tokenizer = load_tokenizer(str(model))
    with pytest.raises(BrokenCheckpoint, match="chat template") as caught:
        render_chat(tokenizer, TURNS, None)
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_a_turn_is_no_broken_checkpoint(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ raise_exception('no system\nturns' + 'x' * 9000) }}")
    with pytest.raises(MedbenchError, match="refuses the turns user") as caught:
        render_chat(load_tokenizer(str(model)), TURNS, None)
    assert not isinstance(caught.value, BrokenCheckpoint)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (PermissionError(13, "Permission denied"), False),
        (OSError(28, "No space left on device"), False),
        (MemoryError(), False),
        (ImportError("sentencepiece"), False),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("No available memory for the cache blocks"), False),
        (ValueError("World size (2) is larger than the number of available GPUs (1) in this node."), False),
        (ValueError("Total number of attention heads (9) must be divisible by tensor parallel size (2)."), False),
        (RuntimeError("NCCL error: unhandled system error"), False),
        (OSError("Can't load the model"), True),
        (KeyError("model.embed_tokens"), True),
        (RecursionError(), True),
        (type("PanicException", (BaseException,), {})("no merge"), True),
    ],
    ids=repr,
)
def test_whose_fault_it_is(error: BaseException, broken: bool) -> None:
    with pytest.raises(MedbenchError) as caught, blame_checkpoint("x cannot load"):
        raise error
    assert isinstance(caught.value, BrokenCheckpoint) is broken


def test_an_interruption_is_nobodys_fault() -> None:
    with pytest.raises(KeyboardInterrupt), blame_checkpoint("x cannot load"):
        raise KeyboardInterrupt


@pytest.mark.engine
def test_a_keeper_forgets_an_engine_that_did_not_start(model: Path, tiny_model: Path) -> None:
    keeper = EngineKeeper(lambda _: None)
    choice = EngineChoice("hf")
    sound = resolve(str(tiny_model))
    keeper.serve(choice, "sound", sound)
    edit("config.json", num_attention_heads=[4])(model)
    with pytest.raises(BrokenCheckpoint):
        keeper.serve(choice, "broken", resolve(str(model)))
    keeper.close()
    keeper.close()
    assert keeper.serve(choice, "sound", sound).name == "hf"
    keeper.close()


@pytest.mark.engine
def test_a_checkpoint_that_only_the_engine_finds_broken_fails_and_the_gate_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)
    breaks: dict[str, Callable[[Path], object]] = {
        "config": BROKEN["heads as list"],
        "merges": broken_merges,
        "template": lambda folder: (folder / "chat_template.jinja").write_text("{{ 1/0 }}"),
        "sound": lambda folder: None,
    }
    for name, damage in breaks.items():
        damage(shutil.copytree(tiny_model, tmp_path / name))
    write_medqa(tmp_path / "data", 6)
    gates = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.99}")
    arguments = ["--gates", str(gates), "--engine", "hf", "--data", str(tmp_path / "data"), "--quiet", "--json"]
    assert run(["gate", *(f"./{name}" for name in breaks), *arguments]) in (1, 3)
    verdicts = json.loads(capfd.readouterr().out)["verdicts"]
    rules = [verdict["gates"][0]["rule"] for verdict in verdicts]
    assert rules[:3] == ["invalid checkpoint"] * 3
    assert rules[3] != "invalid checkpoint"


@pytest.mark.slow
@pytest.mark.engine
def test_a_checkpoint_that_breaks_an_engine_in_another_process_fails(model: Path, tmp_path: Path) -> None:
    """As on a GPU: vLLM's own process prints its reason, and the caller only hears that it failed."""
    edit("config.json", num_attention_heads=0)(model)
    write_medqa(tmp_path / "data", 6)
    gates = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.99}")
    command = [
        sys.executable,
        "-m",
        "medbench.harness.cli.main",
        "gate",
        "./model",
        "--gates",
        str(gates),
        "--data",
        "data",
        "--json",
    ]
    apart = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=apart, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr[-3000:]
    (verdict,) = json.loads(done.stdout)["verdicts"]
    assert verdict["gates"][0]["rule"] == "invalid checkpoint"


MISFITS = {
    "fewer rows": ({"intermediate_size": 128}, r"gate_proj\.weight|down_proj\.weight"),
    "fewer layers": (
        {"num_hidden_layers": 1, "layer_types": None},
        r"layers\.1\..* a layer that config",
    ),
    "a smaller vocabulary": ({"vocab_size": 512, "pad_token_id": None}, "739 x 128, config.json wants 512 x 128"),
    "more rows": ({"intermediate_size": 512}, "config.json wants 512 x 128|config.json wants 128 x 512"),
}


@pytest.mark.engine
@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_a_config_of_another_model_is_refused(model: Path, name: str, engine: str) -> None:
    changes, said = MISFITS[name]
    edit("config.json", **changes)(model)
    with pytest.raises(BrokenCheckpoint, match=said):
        find_engine(engine).start(engine, resolve(str(model)), EngineChoice(engine))


@pytest.mark.engine
def test_more_layers_than_weights_are_refused(model: Path) -> None:
    """transformers would fill the third layer with random numbers."""
    edit("config.json", num_hidden_layers=3, layer_types=None)(model)
    with pytest.raises(BrokenCheckpoint, match=r"tensors are missing, such as model\.layers\.2\."):
        HFEngine(str(model))


def test_a_sound_checkpoint_fits_itself(tiny_model: Path) -> None:
    refuse_other_shapes(tiny_model)
    refuse_unbuildable(tiny_model)


@pytest.mark.slow
@pytest.mark.engine
def test_no_mutant_of_a_checkpoint_ends_in_a_traceback(tiny_model: Path, model: Path) -> None:
    rng = random.Random(12)
    files = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for index in range(50):
        file = files[index % len(files)]
        whole = (tiny_model / file).read_text()
        (model / file).write_text(mutant(whole, rng))
        with suppress(MedbenchError):
            load_and_ask(model)
        (model / file).write_text(whole)


def mutant(text: str, rng: random.Random) -> str:
    """A value of another type in a JSON object, or else a few letters lost."""
    if text.startswith("{") and not text.startswith(("{%", "{{", "{#")):
        whole = json.loads(text)
        inner = whole["model"] if isinstance(whole.get("model"), dict) and rng.random() < 0.5 else whole
        inner[rng.choice(sorted(inner))] = rng.choice(ODD)
        return json.dumps(whole)
    at = rng.randrange(len(text))
    return text[:at] + text[at + rng.randrange(1, 9) :]
