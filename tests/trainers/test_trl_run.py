"""Shared by SFT and GRPO: settings, arguments, publishing, resuming. Whole trainings are in test_sft.py.

pytest tests/trainers/test_trl_run.py
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from medbench.harness.config import check_yaml
from medbench.harness.contracts import MedbenchError
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.trainer_plugins import FailedAttempt
from medbench.trainers.trl.run import (
    STATE,
    TrainingSettings,
    adapt_training,
    common_arguments,
    last_state,
    load_model,
    memory_faults_named,
    reporting_fault,
    run,
    write_checkpoint,
)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"steps": 1, "epochs": 1.0},
        {"steps": 0},
        {"epochs": 0.0},
        {"steps": 1, "learning_rate": 0},
        {"steps": 1, "learning_rate": "fast"},
        {"steps": 1, "batch_size": 0},
        {"steps": 1, "save_every": 0},
        {"steps": 1, "scheduler": "cosin"},
        {"steps": 1, "report_to": ["a pigeon"]},
        {"steps": 1, "precision": "fp8"},
    ],
)
def test_faulty_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingSettings(**given)


def test_a_learning_rate_may_be_written_as_people_write_it(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("steps: 3\nlearning_rate: 2e-4\nepochs: null\n")
    settings, faults = check_yaml(tmp_path / "t.yaml", TrainingSettings)
    assert faults == []
    assert settings is not None
    assert settings.learning_rate == 2e-4


def test_trl_accepts_the_arguments(tmp_path: Path) -> None:
    from trl import GRPOConfig, SFTConfig

    settings = TrainingSettings(
        steps=7,
        learning_rate=3e-4,
        batch_size=4,
        gradient_accumulation=2,
        warmup_steps=0.5,
        weight_decay=0.1,
        scheduler="linear",
        max_grad_norm=0.5,
        save_every=3,
        log_every=2,
        precision="float32",
    )
    for config in (SFTConfig, GRPOConfig):
        made = config(**common_arguments(settings, folder=tmp_path, seed=11))
        assert (made.max_steps, made.learning_rate, made.seed, made.data_seed) == (7, 3e-4, 11, 11)
        assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (4, 2)
        assert (made.get_warmup_steps(10), made.weight_decay, made.max_grad_norm) == (5, 0.1, 0.5)
        assert (made.save_steps, made.logging_steps, made.lr_scheduler_type) == (3, 2, "linear")
        assert (made.bf16, made.report_to, made.gradient_checkpointing) == (False, [], False)
        assert Path(made.output_dir) == tmp_path / STATE
    by_epochs = SFTConfig(**common_arguments(TrainingSettings(epochs=2.0), folder=tmp_path, seed=0))
    assert (by_epochs.max_steps, by_epochs.num_train_epochs) == (-1, 2.0)


def test_only_divergence_lowers_the_learning_rate() -> None:
    settings = TrainingSettings(steps=5, learning_rate=1e-3)
    assert adapt_training(settings, FailedAttempt("gate failed")) == settings
    assert adapt_training(settings, FailedAttempt("NaN", diverged=True)) == settings.model_copy(
        update={"learning_rate": 5e-4}
    )


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="the model cannot be loaded") as caught:
        load_model(tmp_path, TrainingSettings(steps=1), adapter=True)
    assert "\n" not in str(caught.value)


def state(folder: Path, step: int, *, published: bool, steps: int = 9) -> Path:
    path = folder / STATE / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": steps}))
    if published:
        checkpoint_folder.publish(folder, step, lambda aside: (aside / "x").touch())
    return path


def test_the_last_state_is_one_with_a_published_checkpoint(tmp_path: Path) -> None:
    assert last_state(tmp_path) is None
    state(tmp_path, 8, published=True)
    ten = state(tmp_path, 10, published=True)
    state(tmp_path, 12, published=False)
    checkpoint_folder.publish(tmp_path, 14, lambda aside: (aside / "x").touch())  # its state was lost
    assert last_state(tmp_path) == ten


class Recorder:
    """A trainer that records how it is started."""

    optimizer = None

    def __init__(self) -> None:
        from contextlib import nullcontext

        self.args = SimpleNamespace(optim_args=None, main_process_first=lambda local: nullcontext())
        self.started: list[str | None] = []

    def remove_callback(self, callback: Any) -> None: ...
    def add_callback(self, callback: Any) -> None: ...

    def is_world_process_zero(self) -> bool:
        return True

    def train(self, resume_from_checkpoint: str | None) -> None:
        self.started.append(resume_from_checkpoint)


def test_a_run_resumes_from_the_last_state_and_drops_later_metrics(tmp_path: Path) -> None:
    four = state(tmp_path, 4, published=True)
    cut_off = state(tmp_path, 6, published=False)
    for step in range(1, 8):
        checkpoint_folder.append_metrics(tmp_path, step, {"loss": 1.0})
    trainer = Recorder()
    run(trainer, folder=tmp_path, start=tmp_path)
    assert trainer.started == [str(four)]
    assert [line["step"] for line in checkpoint_folder.read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert not cut_off.exists()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    state(tmp_path, 9, published=True)
    trainer = Recorder()
    run(trainer, folder=tmp_path, start=tmp_path)
    assert trainer.started == []


def test_an_adapter_has_the_same_bytes_in_any_order_peft_writes(tmp_path: Path, tiny_model: Path) -> None:
    written = []
    for n, modules in enumerate((["v_proj", "q_proj"], ["q_proj", "v_proj"])):
        saved, target = tmp_path / f"saved-{n}", tmp_path / f"target-{n}"
        saved.mkdir()
        target.mkdir()
        config = {"target_modules": modules, "r": 4, "base_model_name_or_path": f"elsewhere-{n}"}
        (saved / "adapter_config.json").write_text(json.dumps(config if n else dict(reversed(config.items()))))
        (saved / "adapter_model.safetensors").write_bytes(b"weights")
        write_checkpoint(saved, target, tiny_model)
        written.append({path.name: path.read_bytes() for path in target.iterdir()})
    assert written[0] == written[1]
    assert json.loads(written[0]["adapter_config.json"])["base_model_name_or_path"] == str(tiny_model)
    assert written[0]["tokenizer.json"] == (tiny_model / "tokenizer.json").read_bytes()
    assert written[0]["adapter_model.safetensors"] == b"weights"


def test_a_state_without_complete_weights_is_one_line(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(MedbenchError, match=r"the trainer saved no .*: set fsdp_state_dict_type"):
        write_checkpoint(tmp_path, tmp_path, tiny_model)


def test_a_reporter_that_is_not_installed_is_named_before_any_training() -> None:
    missing = [name for name in ("wandb", "mlflow", "trackio", "tensorboard") if find_spec(name) is None]
    if not missing:
        pytest.skip("every reporter is installed here")
    fault = reporting_fault(TrainingSettings(steps=1, report_to=missing[:1]))
    assert fault == f"training.report_to: {missing[0]} is not installed: pip install {missing[0]}, or leave it out"
    assert reporting_fault(TrainingSettings(steps=1)) is None


OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"


@pytest.mark.parametrize(
    ("args", "said", "not_said"),
    [
        (
            {"per_device_train_batch_size": 8, "gradient_checkpointing": False, "max_length": 2048},
            ["lower training.batch_size (8)", "training.gradient_checkpointing: true", "lower max_length"],
            ["rollout"],
        ),
        (
            {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "use_vllm": True},
            ["rollout.max_completion_tokens", "rollout.vllm_gpu_memory_utilization"],
            ["batch_size", "gradient_checkpointing"],
        ),
    ],
    ids=["sft", "grpo"],
)
def test_a_lack_of_memory_is_told_with_the_settings_that_can_still_change(
    args: dict[str, Any], said: list[str], not_said: list[str]
) -> None:
    import torch

    with pytest.raises(MedbenchError) as caught, memory_faults_named(SimpleNamespace(**args)):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)
    line = str(caught.value)
    assert line.startswith(f"out of memory ({OUT_OF_MEMORY}): ")
    assert "\n" not in line
    assert all(word in line for word in said)
    assert not any(word in line for word in not_said)


def test_other_faults_of_a_training_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_faults_named(SimpleNamespace()):
        raise RuntimeError("shapes do not match")
