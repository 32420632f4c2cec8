"""The trainer `grpo`: group relative policy optimisation by TRL on multiple-choice prompts, from a full checkpoint.

Each prompt gets several completions; those that earn more than their group's mean become more likely. The prompts are
byte for byte those of the evaluation, and the rewards extract answers as the evaluation does. Completions are generated
by transformers on a CPU, and by vLLM in the same process on a GPU.

A killed training resumes from its last checkpoint. On a CPU it ends with the same bytes as an uninterrupted one: the
order of the prompts is fixed in advance, and no checkpoint falls between a generation and the last step that uses it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.protocols.chat import Tokenizer, load_tokenizer
from medbench.harness.protocols.protocol import DEFAULT, Protocol, load_protocol
from medbench.harness.training.trainer_plugins import FailedAttempt
from medbench.trainers.data.contamination import CONTAMINATION, ContaminationConfig, dropped_rows, screen
from medbench.trainers.data.prompts import Asker, Prompt, load_questions, prompt_order
from medbench.trainers.data.rows import DECISIONS, Row, Source
from medbench.trainers.rewards.rewards import RewardConfig
from medbench.trainers.rewards.trl_rewards import reward_functions
from medbench.trainers.trl.lora import LoraSettings, peft_config, refuse_unmatched
from medbench.trainers.trl.memory import training_memory
from medbench.trainers.trl.optimizers import optimizer_fault
from medbench.trainers.trl.run import (
    TrainingSettings,
    adapt_training,
    common_arguments,
    load_model,
    quiet,
    reporting_fault,
    run,
)

TESTED_TRL = "1.16"


class RolloutSettings(Record):
    """How completions are generated. All defaults are medbench's own."""

    completions: int = Field(8, ge=2)
    """Per prompt: the group within which completions are compared."""
    max_completion_tokens: int = Field(2048, ge=1)
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longer prompts are left out, as are those that do not fit the model's context together with a completion."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Below 1 the completions of a group become similar, and similar completions teach nothing."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """0 is off."""
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """auto: vLLM in the training's own process if there is a CUDA GPU and vLLM is installed, else transformers."""
    vllm_gpu_memory_utilization: float = Field(0.3, gt=0, lt=1)
    """Share of the GPU's memory that vLLM takes while it generates; in between it sleeps and releases most of it."""


class LossSettings(Record):
    """The policy's loss, in TRL's terms. All defaults and their combination are medbench's own."""

    type: Literal["dapo", "dr_grpo"] = "dapo"
    """What a token's loss is divided by: the batch's completion tokens (dapo) or a constant (dr_grpo). Neither favours
    long wrong completions, unlike the mean over each completion."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the start; 0 saves the reference's forward pass, and `kl` is not logged."""
    epsilon: float = Field(0.2, gt=0, lt=1)
    epsilon_high: float = Field(0.28, gt=0)
    """Larger than `epsilon` (clip-higher), so that unlikely tokens can become likely."""
    mask_truncated: bool = True
    """Leave completions cut off by the token limit out of the loss; their rewards still count in the group's mean."""
    scale_rewards: Literal["group", "batch", "none"] | None = None
    """What advantages are divided by: the standard deviation of the group, of the batch, or nothing. None: group with
    dapo, none with dr_grpo."""
    num_iterations: int = Field(1, ge=1)
    """Number of steps on each batch of completions."""


class Config(Record):
    """The `config:` of a grpo stage. `training.batch_size` counts completions."""

    prompts: list[Source] = Field(min_length=1)
    """Rows with options and an answer, as for sft; their reasoning is not used."""
    protocol: str = DEFAULT
    """How questions are asked: use that of the gates."""
    thinking: bool | None = None
    """`enable_thinking` of the chat template; None leaves it to the protocol."""
    lora: LoraSettings | None = LoraSettings()
    """null trains all weights."""
    training: TrainingSettings
    rollout: RolloutSettings = RolloutSettings()
    rewards: RewardConfig = RewardConfig()
    loss: LossSettings = LossSettings()
    contamination: ContaminationConfig = ContaminationConfig()

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self._completions_a_step % self.rollout.completions:
            raise ValueError(
                f"training.batch_size x training.gradient_accumulation ({self.training.batch_size} x "
                f"{self.training.gradient_accumulation}) must be a multiple of rollout.completions "
                f"({self.rollout.completions}), so that a step has complete groups"
            )
        return self

    @model_validator(mode="after")
    def _can_be_resumed(self) -> Self:
        if self.training.save_every % self.loss.num_iterations:
            raise ValueError(
                f"training.save_every ({self.training.save_every}) must be a multiple of loss.num_iterations "
                f"({self.loss.num_iterations}): a batch of completions is not kept across a restart"
            )
        return self

    @property
    def _completions_a_step(self) -> int:
        return self.training.batch_size * self.training.gradient_accumulation

    def prompts_a_step(self, processes: int = 1) -> int:
        return self._completions_a_step * processes // self.rollout.completions

    def steps(self, prompts: int, processes: int = 1) -> int:
        """Optimizer steps of a training on this number of prompts."""
        if self.training.steps is not None:
            return self.training.steps
        batches = int((self.training.epochs or 0) * prompts / self.prompts_a_step(processes))
        return max(1, batches) * self.loss.num_iterations


def prepare(config: Config, *, start: Path, folder: Path, benchmarks: Mapping[str, Sequence[Question]]) -> list[str]:
    """See trainer_plugins. Writes contamination.json into `folder`."""
    protocol = _protocol(config)
    engine = _engine(config.rollout)
    if fault := optimizer_fault(config.training.optimizer):
        raise MedbenchError(f"training.optimizer: {fault}")
    if fault := reporting_fault(config.training):
        raise MedbenchError(fault)
    if config.lora is not None:
        refuse_unmatched(config.lora, start)
    rows = load_questions(config.prompts)
    sources = ", ".join(source.name for source in config.prompts)
    texts = (row.screened(number) for number, row in enumerate(rows, 1))
    folder.mkdir(parents=True, exist_ok=True)
    dropped = screen(texts, benchmarks, config.contamination, folder / CONTAMINATION, sources).dropped
    prompts = _prompts(config, rows, dropped, Asker(protocol, load_tokenizer(str(start))), start)
    longest = max(prompt.tokens for prompt in prompts)
    steps, a_step = config.steps(len(prompts)), config.prompts_a_step()
    passes = math.ceil(steps / config.loss.num_iterations) * a_step / len(prompts)
    return [
        f"prompts: {len(prompts)} of {len(rows)} rows of {sources}; {len(dropped)} overlap a benchmark, "
        f"{len(rows) - len(dropped) - len(prompts)} are too long; the longest has {longest} tokens",
        f"steps: {steps}, each of {a_step} prompts x {config.rollout.completions} completions of at most "
        f"{config.rollout.max_completion_tokens} tokens per process; {passes:.3g} passes over the prompts",
        f"generation: {engine}",
        *training_memory(start, config.training, config.lora, tokens=longest + config.rollout.max_completion_tokens),
        *_untested_trl(version("trl")),
        *_hints(config, prompts),
    ]


def train(config: Config, *, start: Path, folder: Path, seed: int) -> None:
    """See trainer_plugins."""
    import datasets
    from trl.trainer.grpo_config import GRPOConfig

    quiet()
    for line in _untested_trl(version("trl")):
        print(line, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(str(start))
    # with either of these, TRL removes the reasoning from a completion before the rewards see it
    tokenizer.response_template = tokenizer.response_schema = None
    asker = Asker(_protocol(config), tokenizer)
    rows = load_questions(config.prompts)
    prompts = _prompts(config, rows, dropped_rows(folder.parent / CONTAMINATION, len(rows)), asker, start)
    longest = max(prompt.tokens for prompt in prompts)
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate launch and torchrun
    steps = config.steps(len(prompts), processes)
    batches = math.ceil(steps / config.loss.num_iterations)
    order = prompt_order(len(prompts), batches * config.prompts_a_step(processes), seed)
    arguments = (
        common_arguments(config.training, folder=folder, seed=seed)
        | _rollout_arguments(config.rollout, longest)
        | _loss_arguments(config.loss)
        | {"max_steps": steps, "shuffle_dataset": False, "remove_unused_columns": False}
    )
    model = load_model(start, config.training, adapter=config.lora is not None)
    trainer = _trainer_class(asker)(
        model=model,
        args=GRPOConfig(**arguments, reward_weights=config.rewards.weights.as_list()),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([prompts[at].columns() for at in order]),
        reward_funcs=reward_functions(config.rewards, eos_token_ids=_ends(model, tokenizer)),
        peft_config=None if config.lora is None else peft_config(config.lora),
    )
    run(trainer, folder=folder, start=start)


def adapt(config: Config, verdict: FailedAttempt) -> Config:
    """Halve the learning rate after divergence; lower the length reward's bounds by a quarter after rambling."""
    changes: dict[str, object] = {"training": adapt_training(config.training, verdict)}
    if verdict.rambling:
        short = config.rewards.short * 3 // 4
        bounds = {"short": short, "long": max(short + 1, config.rewards.long * 3 // 4)}
        changes["rewards"] = config.rewards.model_copy(update=bounds)
    return config.model_copy(update=changes)


def _protocol(config: Config) -> Protocol:
    protocol = load_protocol(config.protocol, thinking=config.thinking)
    if protocol.method != "generate" or protocol.shots or protocol.is_open:
        raise MedbenchError(
            f"protocol: {protocol.name} does not generate, has few-shot examples, or asks for no option: use "
            f"{DEFAULT}, or another that does none of these"
        )
    return protocol


def _engine(rollout: RolloutSettings) -> Literal["transformers", "vllm"]:
    """What generates on this machine. Raises MedbenchError if vLLM was asked for and cannot."""
    import torch

    is_gpu, is_installed = torch.cuda.is_available(), find_spec("vllm") is not None
    if rollout.engine == "vllm" and not is_gpu:
        raise MedbenchError(
            "rollout.engine: vllm needs a CUDA GPU here, because its CPU build cannot load new weights during "
            "training: set it to transformers or auto"
        )
    if rollout.engine == "vllm" and not is_installed:
        raise MedbenchError("rollout.engine: vllm is not installed: pip install 'medbench[vllm]', or set it to auto")
    return "vllm" if rollout.engine != "transformers" and is_gpu and is_installed else "transformers"


def _prompts(config: Config, rows: Sequence[Row], dropped: Set[int], asker: Asker, start: Path) -> list[Prompt]:
    """The prompts to train on: without rows that the contamination screening dropped, and without those too long."""
    clean = [row for number, row in enumerate(rows, 1) if number not in dropped]
    rollout = config.rollout
    context = _context(start)
    room = context - rollout.max_completion_tokens
    if room < 1:
        raise MedbenchError(
            f"rollout.max_completion_tokens ({rollout.max_completion_tokens}) leaves no room for a "
            f"prompt in the model's context of {context} tokens: lower it"
        )
    most = min(room, rollout.max_prompt_tokens or room)
    prompts = asker.fitting(clean, most)
    if not prompts:
        raise MedbenchError(
            f"prompts: none of {len(clean)} rows has at most {most} tokens, the room left by "
            f"rollout.max_completion_tokens ({rollout.max_completion_tokens}) or set by "
            f"rollout.max_prompt_tokens: change these, or use other rows"
        )
    return prompts


def _context(start: Path) -> int:
    """The model's context length in tokens, prompt and completion together."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(start, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MedbenchError(f"{start}: its config.json cannot be used ({reason}): copy the checkpoint again") from None
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)


def _hints(config: Config, prompts: Sequence[Prompt]) -> list[str]:
    found = []
    if config.rewards.long > config.rollout.max_completion_tokens:
        found.append(
            f"warning: rewards.long ({config.rewards.long}) is above rollout.max_completion_tokens "
            f"({config.rollout.max_completion_tokens}): the longest replies still earn a reward for length"
        )
    if config.rewards.least_steps > 1 and all(prompt.question.labels == DECISIONS for prompt in prompts):
        found.append(
            f"hint: all prompts are PubMedQA's, whose conclusions have one sentence; one sentence of reasoning earns "
            f"nothing with rewards.least_steps {config.rewards.least_steps}: set it to 1 if the start was trained on "
            f"such conclusions"
        )
    return found


def _rollout_arguments(rollout: RolloutSettings, longest: int) -> dict[str, Any]:
    return {
        "num_generations": rollout.completions,
        "max_completion_length": rollout.max_completion_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "use_vllm": _engine(rollout) == "vllm",
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": rollout.vllm_gpu_memory_utilization,
        "vllm_enable_sleep_mode": True,
        "vllm_max_model_length": longest + rollout.max_completion_tokens,
    }


def _loss_arguments(loss: LossSettings) -> dict[str, Any]:
    return {
        "loss_type": loss.type,
        "beta": loss.beta,
        "epsilon": loss.epsilon,
        "epsilon_high": loss.epsilon_high,
        "mask_truncated_completions": loss.mask_truncated,
        "scale_rewards": loss.scale_rewards or ("none" if loss.type == "dr_grpo" else "group"),
        "num_iterations": loss.num_iterations,
    }


def _ends(model: Any, tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens that end a completion for TRL: the model's EOS tokens, the tokenizer's, and padding."""
    listed = model.generation_config.eos_token_id
    ends = {*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id, tokenizer.pad_token_id}
    return sorted(end for end in ends if end is not None)


def _untested_trl(installed: str) -> list[str]:
    """A warning if _trainer_class was not tested with the `installed` TRL."""
    if installed.startswith(f"{TESTED_TRL}."):
        return []
    return [
        f"warning: TRL {installed} is untested, {TESTED_TRL}.* is tested: grpo overrides private methods of TRL, so "
        f"check a short training first, or pip install 'trl=={TESTED_TRL}.*'"
    ]


def _trainer_class(asker: Asker) -> type[Any]:
    """GRPOTrainer that asks and generates as the evaluation does. Raises MedbenchError if TRL lacks what it overrides.

    TRL has no public hook for either. tests/trainers/test_grpo.py fails when a new TRL makes an override unnecessary.
    """
    from peft.helpers import DoraCaching
    from trl.trainer.grpo_trainer import GRPOTrainer

    for name in ("_tokenize_prompts", "_generate_single_turn"):
        if not hasattr(GRPOTrainer, name):
            raise MedbenchError(
                f"TRL {version('trl')}: GRPOTrainer has no {name}, which grpo overrides: "
                f"pip install 'trl=={TESTED_TRL}.*'"
            )

    class Trainer(GRPOTrainer):
        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            # TRL encodes a prompt with the tokenizer's own special tokens, so with a second BOS if the chat template
            # has written one: https://github.com/huggingface/trl/issues/3853 (there with vLLM)
            return [asker.ids(prompt) for prompt in prompts], None, {}

        def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
            # TRL samples in train mode, on purpose: https://github.com/huggingface/trl/issues/3000. In eval mode there
            # is no dropout, and DoRA's weight norms, the same for every token, can be cached:
            # https://github.com/huggingface/peft/issues/2651
            model: Any = self.model
            model.eval()
            try:
                with DoraCaching():
                    return super()._generate_single_turn(*arguments, **named)  # type: ignore[no-untyped-call]
            finally:
                model.train()

    return Trainer
