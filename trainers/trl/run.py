"""Shared by SFT and GRPO: settings, the arguments of TRL's configs, the model, and a run that publishes and resumes.

TRL's trainer keeps its state in FOLDER/.trainer/checkpoint-<step>. After each such save the weights are published as
FOLDER/step-<step> (checkpoint_folder.py). A state counts only once its checkpoint is published: after a kill, training
resumes from the last such state, and on a CPU ends with the same weights as an uninterrupted training.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from medbench.harness.checkpoints.fingerprint import TOKENIZER_FILES
from medbench.harness.checkpoints.weights import own_dtype, read_json_file
from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError
from medbench.harness.runs.provenance import peak_memory_gib
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.trainer_plugins import FailedAttempt
from medbench.trainers.trl.optimizers import optimizer_arguments, optimizer_class

STATE = ".trainer"
GIB = 1 << 30
UNORDERED = ("target_modules", "exclude_modules", "modules_to_save")
"""Sets in peft's config, whose order differs from process to process."""
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory", re.IGNORECASE)
FINAL = "train_runtime"
"""Marks the summary that transformers logs when training ends: it has times, not the metrics of a step."""


def _scientific(value: object) -> object:
    """YAML 1.1 reads 1e-4 as text and 1.0e-4 as a number; both mean the number."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


Number = Annotated[float, BeforeValidator(_scientific)]


class TrainingSettings(Record):
    """The `training:` section of a recipe's stage."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps; give either this or `epochs`."""
    epochs: float | None = Field(None, gt=0)
    learning_rate: Number = Field(1e-4, gt=0, lt=10)
    batch_size: int = Field(8, ge=1)
    """Per device: rows for SFT, completions for GRPO."""
    gradient_accumulation: int = Field(1, ge=1)
    max_grad_norm: float = Field(1.0, ge=0)
    """0 disables clipping."""
    warmup_steps: float = Field(0, ge=0)
    """Below 1: a share of all steps."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    optimizer: str = "adamw_torch"
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints; there is always one at the last step."""
    log_every: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    """Takes less memory, and is a fifth to a third slower."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU that supports it, else float32."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    """In addition to metrics.jsonl, which is always written."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


def reporting_fault(settings: TrainingSettings) -> str | None:
    """What is wrong with `report_to` on this machine, or None."""
    missing = [name for name in settings.report_to if find_spec(name) is None]
    if not missing:
        return None
    return f"training.report_to: {missing[0]} is not installed: pip install {missing[0]}, or leave it out"


def common_arguments(settings: TrainingSettings, *, folder: Path, seed: int) -> dict[str, Any]:
    """Keyword arguments for TRL's SFTConfig and GRPOConfig. Raises MedbenchError for an unknown optimizer."""
    import torch

    length = {"max_steps": settings.steps} if settings.steps else {"num_train_epochs": settings.epochs}
    return {
        **length,
        **optimizer_arguments(settings.optimizer),
        "output_dir": str(folder / STATE),
        "seed": seed,
        "data_seed": seed,
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "max_grad_norm": settings.max_grad_norm,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": settings.scheduler,
        "weight_decay": settings.weight_decay,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,  # the watchdogs need to see a NaN
        "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": is_bfloat16(settings),
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "disable_tqdm": True,
        "report_to": settings.report_to or "none",
    }


def is_bfloat16(settings: TrainingSettings) -> bool:
    """Whether this machine trains `settings` in bfloat16."""
    import torch

    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def load_model(start: Path, settings: TrainingSettings, *, adapter: bool, **arguments: Any) -> Any:
    """The model in `start`. Under an adapter it is held in bfloat16 if training is. Without one it is held in float32,
    because small updates vanish in bfloat16's 8 bits of precision; its forward pass is still in bfloat16.

    Raises MedbenchError if it does not load.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if adapter and is_bfloat16(settings) else torch.float32
    try:
        return AutoModelForCausalLM.from_pretrained(
            start, dtype=dtype, trust_remote_code=False, use_safetensors=True, **arguments
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        if NO_MEMORY.search(reason):
            raise MedbenchError(
                f"{start}: no memory to load the model ({reason}): end what else uses it, or train fewer weights (lora)"
            ) from None
        raise MedbenchError(f"{start}: the model cannot be loaded ({reason}): copy the checkpoint again") from None


def quiet() -> None:
    """Disable progress bars: a training's log is read by people and quoted in messages."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def run(trainer: Any, *, folder: Path, start: Path, judged: Callable[[int], None] | None = None) -> None:
    """Train to the end, publishing to `folder`; after a kill, resume from the last published checkpoint.

    Published checkpoints get their config and tokenizer files from `start`. `judged` is called in every process with
    the step of each, once it has been waited for, and with that from which the training is resumed.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if trainer.optimizer is None and (offered := optimizer_class(trainer.args)):
        trainer.optimizer_cls_and_kwargs = offered
    found = last_state(folder)
    step = _step_of(found) if found else 0
    with trainer.args.main_process_first(local=False):
        if trainer.is_world_process_zero():
            checkpoint_folder.forget_metrics_after(folder, step)
            _drop_unpublished(folder)
    if found is not None:
        checkpoint_folder.wait_until_judged(folder, step)
        if _is_finished(found):
            return
        _restore_token_count(trainer, folder)
        if judged is not None:
            judged(step)
    trainer.add_callback(_publisher(trainer, folder, start, judged))
    with memory_faults_named(trainer.args):
        trainer.train(resume_from_checkpoint=str(found) if found else None)


@contextmanager
def memory_faults_named(args: Any) -> Iterator[None]:
    """Raises MedbenchError with the settings to change where training runs out of the GPU's memory, which another
    attempt with the same settings would too. `args`: of TRL's config."""
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        first = " ".join(str(error).split())
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not NO_MEMORY.search(first):
            raise
        batch = args.per_device_train_batch_size
        remedies = [
            f"lower training.batch_size ({batch}) and raise gradient_accumulation alike" if batch > 1 else "",
            "" if args.gradient_checkpointing else "set training.gradient_checkpointing: true",
            "lower max_length" if hasattr(args, "max_length") else "lower rollout.max_completion_tokens",
            "lower rollout.vllm_gpu_memory_utilization" if getattr(args, "use_vllm", False) else "",
            "choose a smaller optimizer, such as adamw_8bit",
            "lower engine.gpu_memory_utilization where the engine shares the GPU",
        ]
        raise MedbenchError(f"out of memory ({first[:200]}): {', '.join(filter(None, remedies))}") from None


def _restore_token_count(trainer: Any, folder: Path) -> None:
    """SFTTrainer counts from 0 again when it resumes, unlike GRPOTrainer (TRL 1.16; no issue found, 2026-11-26)."""
    counted = [line["num_tokens"] for line in checkpoint_folder.read_metrics(folder) if "num_tokens" in line]
    if counted and hasattr(trainer, "_total_train_tokens"):
        trainer._total_train_tokens = counted[-1]


def last_state(folder: Path) -> Path | None:
    """The trainer's last state whose checkpoint was published."""
    published = {checkpoint.step for checkpoint in checkpoint_folder.checkpoints(folder)}
    states = [path for path in _states(folder) if _step_of(path) in published]
    return max(states, key=_step_of, default=None)


def _publisher(trainer: Any, folder: Path, start: Path, judged: Callable[[int], None] | None) -> Any:
    import torch
    from transformers import TrainerCallback

    class Publisher(TrainerCallback):
        """Writes metrics.jsonl and step-<step>."""

        def __init__(self) -> None:
            self._began = 0.0
            self._step_times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self._step_times.append(time.perf_counter() - self._began)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.is_world_process_zero and logs and FINAL not in logs:
                # without `epoch`: SFT passes the data of the whole training as a single epoch
                metrics = {name: value for name, value in logs.items() if name != "epoch"}
                checkpoint_folder.append_metrics(folder, state.global_step, {**self._costs(), **metrics})

        def _costs(self) -> dict[str, float]:
            """Seconds a step since the last report; the most memory so far, on a GPU of tensors, else of the process;
            and how many parameters are trained."""
            times, self._step_times = self._step_times, []
            costs = {"step_time": statistics.fmean(times)} if times else {}
            on_gpu = torch.cuda.is_available()
            costs["peak_memory_gib"] = torch.cuda.max_memory_allocated() / GIB if on_gpu else peak_memory_gib()
            trained = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
            return costs | ({"trained_parameters": trained} if trained else {})  # ZeRO-3 leaves none to count here

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            trainer.accelerator.wait_for_everyone()  # each process has written its part of the state
            if state.is_world_process_zero:
                checkpoint_folder.publish(
                    folder, state.global_step, lambda partial: write_checkpoint(saved, partial, start)
                )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            checkpoint_folder.wait_until_judged(folder, state.global_step)
            trainer.accelerator.wait_for_everyone()
            if judged is not None:
                judged(state.global_step)

    return Publisher()


def write_checkpoint(saved: Path, target: Path, start: Path) -> None:
    """Write the weights that the trainer has `saved` as a checkpoint in `target`; every process writes the same."""
    adapter = saved / "adapter_config.json"
    if not any(saved.glob("*.safetensors")):
        raise MedbenchError(
            f"{saved}: the trainer saved no *.safetensors: set fsdp_state_dict_type to FULL_STATE_DICT under FSDP, and "
            f"stage3_gather_16bit_weights_on_model_save under DeepSpeed ZeRO-3"
        )
    if adapter.exists():
        content = json.loads(adapter.read_text(encoding="utf-8"))
        (target / adapter.name).write_text(_normal(content, start), encoding="utf-8")
        shutil.copy(saved / "adapter_model.safetensors", target)
    else:
        for path in (*start.glob("*config.json"), *saved.glob("*.safetensors.index.json")):
            shutil.copy(path, target)
        for path in saved.glob("*.safetensors"):
            _copy_as(path, target / path.name, _dtype(start))
    for path in sorted({path for pattern in TOKENIZER_FILES for path in start.glob(pattern) if path.is_file()}):
        shutil.copy(path, target)


def _normal(adapter: Mapping[str, Any], start: Path) -> str:
    ordered = {
        name: sorted(value) if name in UNORDERED and isinstance(value, list) else value
        for name, value in adapter.items()
    }
    return json.dumps({**ordered, "base_model_name_or_path": str(start)}, indent=2, sort_keys=True) + "\n"


def _copy_as(source: Path, target: Path, dtype: Any) -> None:
    """Copy in the start's dtype: training without an adapter holds its weights in float32."""
    from safetensors.torch import load_file, save_file

    weights = load_file(source)
    cast = {name: one.to(dtype) if one.is_floating_point() else one for name, one in weights.items()}
    save_file(cast, target, metadata={"format": "pt"})


def _dtype(start: Path) -> Any:
    import torch

    return getattr(torch, own_dtype(read_json_file(start / "config.json")) or "float32", torch.float32)


def _states(folder: Path) -> list[Path]:
    return [path for path in (folder / STATE).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _drop_unpublished(folder: Path) -> None:
    """Delete states that a kill cut off, or whose checkpoint was never published: they are created again."""
    published = {checkpoint.step for checkpoint in checkpoint_folder.checkpoints(folder)}
    for path in _states(folder):
        if _step_of(path) not in published:
            shutil.rmtree(path)


def _step_of(state: Path) -> int:
    return int(state.name.removeprefix("checkpoint-"))


def _is_finished(state: Path) -> bool:
    content = json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(content["global_step"] >= content["max_steps"])


def adapt_training(settings: TrainingSettings, verdict: FailedAttempt) -> TrainingSettings:
    """Halve the learning rate after divergence, else keep the settings."""
    if not verdict.diverged:
        return settings
    return settings.model_copy(update={"learning_rate": settings.learning_rate / 2})
