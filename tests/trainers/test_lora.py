"""The adapter's settings: bad ones are refused before any training, and peft trains what they say.

pytest tests/trainers/test_lora.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medbench.harness.contracts import MedbenchError
from medbench.trainers.trl.lora import LoraSettings, parameters, peft_config, refuse_unmatched, targeted


@pytest.mark.parametrize(
    "given",
    [
        {"rank": 0},
        {"alpha": 0},
        {"dropout": 1.0},
        {"targets": []},
        {"targets": ""},
        {"targets": ["q_proj", ""]},
        {"targets": "("},
        {"rnak": 4},
    ],
)
def test_faulty_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoraSettings(**given)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_proj", "v_porj"], "'v_porj' matches no linear layer of .*; did you mean v_proj"),
        (["norm"], "'norm' matches no linear layer"),
        (["lm_head"], "'lm_head' matches lm_head, on which an adapter is never trained; known: down_proj"),
        (["embed_tokens"], "on which an adapter is never trained"),
        (r".*\.q_porj", "matches no linear layer"),
    ],
)
def test_a_target_that_matches_nothing_is_an_error(tiny_model: Path, targets: Any, says: str) -> None:
    with pytest.raises(MedbenchError, match=says):
        refuse_unmatched(LoraSettings(targets=targets), tiny_model)


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], r".*\.1\.mlp\.(up|down)_proj"])
def test_peft_adapts_the_modules_and_parameters_that_were_counted(
    tiny_model: Path, targets: Any, use_dora: bool
) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    settings = LoraSettings(rank=4, targets=targets, use_dora=use_dora)
    refuse_unmatched(settings, tiny_model)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), peft_config(settings))
    adapted = {name.split("base_model.model.")[1] for name, one in model.named_modules() if hasattr(one, "lora_A")}
    assert adapted == set(targeted(settings, tiny_model))
    assert model.get_nb_trainable_parameters()[0] == parameters(settings, tiny_model)


def test_every_setting_reaches_peft() -> None:
    config = peft_config(LoraSettings(rank=3, alpha=5.0, dropout=0.1, use_dora=False, use_rslora=True, targets=["a"]))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5.0, 0.1)
    assert (config.use_dora, config.use_rslora, config.target_modules) == (False, True, {"a"})
    assert config.task_type == "CAUSAL_LM"
