"""Kinds of adapters: what is counted is what is trained, what a kind lacks is refused, and each ends as a checkpoint.

pytest tests/trainers/test_adapters.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.tiny import build_tiny_model

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import MedbenchError
from medbench.trainers import sft
from medbench.trainers.trl import adapters
from medbench.trainers.trl.adapters import AdapterSettings
from medbench.trainers.trl.lora import LoraSettings

DATA = [{"path": "train.jsonl"}]
TRAINING = {"steps": 2, "batch_size": 2, "learning_rate": 1e-2, "save_every": 2}


def config(**given: Any) -> sft.Config:
    return sft.Config.model_validate_json(json.dumps({"data": DATA, "training": TRAINING, **given}))


def with_biases(folder: Path) -> Path:
    """The tiny model with biases of queries, keys, values and outputs."""
    from transformers import AutoModelForCausalLM

    build_tiny_model(folder)
    settings = json.loads((folder / "config.json").read_text()) | {"attention_bias": True}
    (folder / "config.json").write_text(json.dumps(settings))
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "lroa"}, "should be 'lora'"),
        ({"kind": "ia3", "rank": 8}, "rank: ia3 has none, only lora, rslora, dora, dora-rslora, vera, loha"),
        ({"kind": "ln", "targets": ["input_layernorm"]}, "targets: ln has none"),
        ({"kind": "full", "dropout": 0.1}, "dropout: full has none"),
        ({"kind": "vera", "alpha": 8.0}, "alpha: vera has none, only lora, rslora, dora, dora-rslora, loha"),
        ({"kind": "ia3", "targets": ".*proj"}, "ia3 takes a list of module names"),
        ({"kind": "lora", "targets": []}, "names no module"),
        ({}, "kind"),
    ],
)
def test_what_a_kind_does_not_have_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AdapterSettings(**given)


def test_a_recipe_gives_lora_or_adapter_and_earlier_recipes_read_as_before() -> None:
    assert config().trained == LoraSettings()
    assert config(lora={"rank": 4}).trained == LoraSettings(rank=4)
    assert config(lora=None).trained is None
    with pytest.raises(ValidationError, match="give either lora or adapter"):
        config(lora={"rank": 4}, adapter={"kind": "ia3"})


def test_a_config_reads_back_as_it_was_written() -> None:
    for given in ({}, {"lora": None}, {"adapter": {"kind": "ia3"}}, {"adapter": {"kind": "dora", "rank": 4}}):
        written = config(**given)
        assert sft.Config.model_validate_json(json.dumps(written.model_dump(mode="json"))) == written


@pytest.mark.parametrize(
    ("kind", "dora", "rslora"),
    [("lora", False, False), ("rslora", False, True), ("dora", True, False), ("dora-rslora", True, True)],
)
def test_the_variants_of_lora_are_those_of_the_lora_section(kind: str, dora: bool, rslora: bool) -> None:
    found = config(adapter={"kind": kind, "rank": 4, "alpha": 8.0, "targets": ["q_proj"]}).trained
    assert found == LoraSettings(rank=4, alpha=8.0, targets=["q_proj"], use_dora=dora, use_rslora=rslora)


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "lora", "rank": 4},
        {"kind": "dora"},
        {"kind": "vera", "rank": 32},
        {"kind": "vera", "targets": ["q_proj", "o_proj"]},
        {"kind": "loha", "rank": 4, "targets": ["q_proj", "down_proj"]},
        {"kind": "ia3"},
        {"kind": "ia3", "targets": ["q_proj", "down_proj"]},
        {"kind": "ia3", "targets": "all-linear"},
        {"kind": "ln"},
    ],
)
def test_peft_trains_as_many_parameters_as_were_counted(tiny_model: Path, given: dict[str, Any]) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    trained = adapters.trained_by(None, AdapterSettings(**given))
    adapters.refuse_untrainable(trained, tiny_model, "adapter")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), adapters.peft_config(trained, tiny_model))
    assert model.get_nb_trainable_parameters()[0] == adapters.parameters(trained, tiny_model)


def test_bitfit_trains_the_biases_and_nothing_else(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    start = with_biases(tmp_path / "model")
    trained = AdapterSettings(kind="bitfit")
    model = AutoModelForCausalLM.from_pretrained(start)
    adapters.freeze(model, trained)
    counted = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert counted == adapters.parameters(trained, start) > 0
    assert adapters.peft_config(trained, start) is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "bitfit"}, "bitfit trains biases, and .* has none: use ln"),
        ({"kind": "vera", "targets": ["q_porj"]}, r"adapter.targets: 'q_porj' matches no linear layer .*q_proj"),
        ({"kind": "ia3", "targets": ["lm_head"]}, "adapter.targets: 'lm_head' matches lm_head"),
        ({"kind": "lora", "targets": ["q_porj"]}, "adapter.targets: 'q_porj'"),
    ],
)
def test_what_the_model_does_not_have_is_refused(tiny_model: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(MedbenchError, match=says):
        adapters.refuse_untrainable(adapters.trained_by(None, AdapterSettings(**given)), tiny_model, "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rslora", "vera", "loha", "ia3", "ln", "bitfit", "full"])
def test_a_short_training_of_each_kind_ends_as_a_plain_checkpoint_with_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from safetensors.torch import load_file
    from support.tiny_training import write_questions

    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    write_questions(tmp_path / "train.jsonl", 8, first=1, seed=0)
    start = with_biases(tmp_path / "model")
    given = config(data=[{"path": str(tmp_path / "train.jsonl")}], adapter={"kind": kind}, max_length=1000)
    sft.train(given, start=start, folder=tmp_path / "stage" / "attempt-1", seed=0)
    found = Path(resolve(str(tmp_path / "stage" / "attempt-1" / "step-000002")).path)
    before, after = load_file(start / "model.safetensors"), load_file(found / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, one in after.items() if not one.equal(before[name])}
    assert changed
    if kind == "ln":
        assert all("norm" in name for name in changed)
    if kind == "bitfit":
        assert all(name.endswith("bias") for name in changed)
