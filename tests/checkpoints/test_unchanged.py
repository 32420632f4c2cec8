"""Checkpoints that training has left as they were."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from medbench.harness.checkpoints.unchanged import is_unchanged
from medbench.harness.contracts import BrokenCheckpoint


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "copy")


def change(file: Path, amount: float) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    last = sorted(weights)[-1]
    weights[last] = weights[last] + amount
    save_file(weights, file, metadata={"format": "pt"})


def adapter(base: Path, folder: Path, **settings: Any) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def test_a_copy_is_unchanged(tiny_model: Path, copy: Path) -> None:
    assert is_unchanged(copy, tiny_model)


def test_one_changed_weight_is_enough(tiny_model: Path, copy: Path) -> None:
    change(copy / "model.safetensors", 1e-3)
    assert not is_unchanged(copy, tiny_model)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_an_adapter_is_unchanged_until_its_first_update(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert is_unchanged(adapter(tiny_model, tmp_path / "new", **settings), tiny_model)
    trained = adapter(tiny_model, tmp_path / "trained", init_lora_weights=False, **settings)
    assert not is_unchanged(trained, tiny_model)


def test_modules_saved_whole_count_as_changed(tiny_model: Path, tmp_path: Path) -> None:
    assert not is_unchanged(adapter(tiny_model, tmp_path / "new", modules_to_save=["lm_head"]), tiny_model)


def test_weights_that_cannot_be_read_are_the_checkpoints_fault(tiny_model: Path, copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BrokenCheckpoint, match=r"model\.safetensors"):
        is_unchanged(copy, tiny_model)
