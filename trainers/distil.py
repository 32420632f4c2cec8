"""The trainer `distil`: a student learns from a teacher, on its own replies or on the teacher's.

    mode: on_policy     the student answers, and at each token of its reply learns what the teacher would have said
                        there (arXiv 2306.13649), by TRL's DistillationTrainer; both must have the same tokens
    mode: sequence      the teacher answers, medbench synth filters the replies, and the student is fine-tuned on those
                        that are left (sft); the teacher may be any model, server or file of replies

    - {name: distil, trainer: distil, baseline: TEACHER, config: {...}, gates: {gates: [{task: medqa, margin: 0.03}]}}

`baseline` makes the gates' margin one from the teacher. A killed training resumes, on a CPU to the same bytes.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from medbench.harness.checkpoints.package_versions import refuse_other_versions
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.checkpoints.weights import weight_files
from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.protocols.chat import Tokenizer, load_tokenizer
from medbench.harness.protocols.protocol import DEFAULT
from medbench.harness.runs.synth_record import read_synth
from medbench.harness.text import escaped, foreign
from medbench.harness.training.trainer_plugins import FailedAttempt
from medbench.trainers import sft
from medbench.trainers.data.contamination import CONTAMINATION, ContaminationConfig, dropped_rows, screen
from medbench.trainers.data.files import expand
from medbench.trainers.data.prompts import Asker, Prompt, load_questions, prompt_order
from medbench.trainers.data.rows import Source
from medbench.trainers.rollout import (
    Rollout,
    asking_as_evaluated,
    engine_of,
    fitting_prompts,
    generating_protocol,
    refuse_without,
    rollout_arguments,
    untested_trl,
)
from medbench.trainers.trl.lora import LoraSettings, peft_config, refuse_unmatched
from medbench.trainers.trl.memory import training_memory
from medbench.trainers.trl.optimizers import optimizer_fault
from medbench.trainers.trl.run import (
    GIB,
    TrainingSettings,
    adapt_training,
    common_arguments,
    load_model,
    quiet,
    reporting_fault,
    run,
)

REPLIES = "teacher"
"""In a stage's folder: what `medbench synth` has made of the teacher's replies, for all attempts."""
POLL_SECONDS = 2.0


class Config(Record):
    """The `config:` of a distil stage. All defaults are medbench's own, but that of `beta`, which is TRL's."""

    mode: Literal["on_policy", "sequence"]
    teacher: str | None = Field(None, min_length=1)
    """on_policy: any MODEL that `medbench eval` takes. It is held in memory beside the student."""
    prompts: list[Source] = Field(default_factory=list)
    """on_policy: rows whose questions the student answers; only grpo's rewards would use their answers."""
    rollout: Rollout = Rollout()
    """on_policy."""
    beta: float = Field(1.0, ge=0, le=1)
    """on_policy: of the generalised Jensen-Shannon divergence. 0 is the KL divergence of the student from the teacher,
    KL(teacher || student), 1 the reverse."""
    contamination: ContaminationConfig = ContaminationConfig()
    """on_policy; in mode sequence the recipe of synth has its own."""
    synth: str | None = Field(None, min_length=1)
    """sequence: a recipe of `medbench synth`, whose generator is the teacher. May begin with $MEDBENCH_DATA or ~."""
    max_length: int = Field(2048, ge=16)
    """sequence: see sft."""
    protocol: str = DEFAULT
    """How questions are asked: use that of the gates."""
    thinking: bool | None = None
    """`enable_thinking` of the chat template; None leaves it to the protocol."""
    lora: LoraSettings | None = LoraSettings()
    """null trains all weights."""
    training: TrainingSettings

    @model_validator(mode="after")
    def _of_one_mode(self) -> Self:
        needed = ("teacher", "prompts") if self.mode == "on_policy" else ("synth",)
        if missing := [name for name in needed if not getattr(self, name)]:
            raise ValueError(f"mode: {self.mode} needs {missing[0]}")
        other = (
            ("synth", "max_length")
            if self.mode == "on_policy"
            else ("teacher", "prompts", "rollout", "beta", "contamination")
        )
        if given := [name for name in other if name in self.model_fields_set and self._is_set(name)]:
            raise ValueError(f"{given[0]} does not belong to mode: {self.mode}: leave it out")
        return self

    def _is_set(self, name: str) -> bool:
        """Whether it differs from its default: a config that comes back from JSON has all fields set."""
        return bool(getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True))

    @property
    def prompts_a_step(self) -> int:
        """Of one process."""
        return self.training.batch_size * self.training.gradient_accumulation


def prepare(config: Config, *, start: Path, folder: Path, benchmarks: Mapping[str, Sequence[Question]]) -> list[str]:
    """See trainer_plugins."""
    refuse_other_versions("trl", "transformers")
    if fault := optimizer_fault(config.training.optimizer) or reporting_fault(config.training):
        raise MedbenchError(fault)
    if config.lora is not None:
        refuse_unmatched(config.lora, start)
    if config.mode == "sequence":
        lines = _synth(config, "--dry-run").splitlines()
        return ["the teacher's replies are made before the first attempt, by medbench synth:", *lines[:3]]
    teacher = _teacher(config)
    _refuse_other_tokens(config, start, teacher)
    engine = engine_of(config.rollout)
    rows = load_questions(config.prompts)
    sources = ", ".join(source.name for source in config.prompts)
    folder.mkdir(parents=True, exist_ok=True)
    texts = (row.screened(number) for number, row in enumerate(rows, 1))
    dropped = screen(texts, benchmarks, config.contamination, folder / CONTAMINATION, sources).dropped
    prompts = fitting_prompts(config.rollout, rows, dropped, _asker(config, start), start)
    longest = max(prompt.tokens for prompt in prompts)
    steps = _steps(config, len(prompts), 1)
    held = sum(path.stat().st_size for path in weight_files(teacher)) / GIB
    return [
        f"teacher: {foreign(config.teacher, 200)}, {held:.2f} GiB of weights held beside the student's",
        f"prompts: {len(prompts)} of {len(rows)} rows of {sources}; {len(dropped)} overlap a benchmark, "
        f"{len(rows) - len(dropped) - len(prompts)} are too long; the longest has {longest} tokens",
        f"steps: {steps}, each of {config.prompts_a_step} prompts with a reply of at most "
        f"{config.rollout.max_completion_tokens} tokens per process; "
        f"{steps * config.prompts_a_step / len(prompts):.3g} passes over the prompts",
        f"generation: {engine}",
        *training_memory(start, config.training, config.lora, tokens=longest + config.rollout.max_completion_tokens),
        *untested_trl(version("trl"), "distil"),
    ]


def example(config: Config, *, start: Path, folder: Path) -> list[str]:
    """See trainer_plugins: the first prompt; in mode sequence the rows are not made yet."""
    if config.mode == "sequence":
        return []
    first = _prompts(config, start, folder)[0]
    return [f"first example, {first.tokens} tokens:", *map(escaped, first.text.split("\n"))]


def train(config: Config, *, start: Path, folder: Path, seed: int) -> None:
    """See trainer_plugins."""
    folder.mkdir(parents=True, exist_ok=True)
    if config.mode == "sequence":
        sft.train(_of_sft(config, _replies(config, folder.parent)), start=start, folder=folder, seed=seed)
    else:
        _train_on_policy(config, start, folder, seed)


def adapt(config: Config, verdict: FailedAttempt) -> Config:
    """Halve the learning rate after divergence."""
    return config.model_copy(update={"training": adapt_training(config.training, verdict)})


# --- on the student's replies


def _train_on_policy(config: Config, start: Path, folder: Path, seed: int) -> None:
    import datasets
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    quiet()
    for line in untested_trl(version("trl"), "distil"):
        print(line, flush=True)
    refuse_without(DistillationTrainer, ("_tokenize_prompts", "_generate_single_turn"), "distil")
    tokenizer = load_tokenizer(str(start))
    prompts = _prompts(config, start, folder.parent)
    longest = max(prompt.tokens for prompt in prompts)
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate launch and torchrun
    steps = _steps(config, len(prompts), processes)
    order = prompt_order(len(prompts), steps * config.prompts_a_step * processes, seed)
    arguments = (
        common_arguments(config.training, folder=folder, seed=seed)
        | rollout_arguments(config.rollout, longest)
        | {"max_steps": steps, "shuffle_dataset": False, "remove_unused_columns": False, "beta": config.beta}
    )
    trainer = asking_as_evaluated(DistillationTrainer, _asker(config, start))(
        model=load_model(start, config.training, adapter=config.lora is not None),
        teacher_model=load_model(_teacher(config), config.training, adapter=True),
        args=DistillationConfig(**arguments),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{"prompt": prompts[at].text} for at in order]),
        peft_config=None if config.lora is None else peft_config(config.lora),
    )
    run(trainer, folder=folder, start=start)


def _prompts(config: Config, start: Path, stage: Path) -> list[Prompt]:
    rows = load_questions(config.prompts)
    dropped = dropped_rows(stage / CONTAMINATION, len(rows))
    return fitting_prompts(config.rollout, rows, dropped, _asker(config, start), start)


def _asker(config: Config, start: Path) -> Asker:
    return Asker(generating_protocol(config.protocol, config.thinking), load_tokenizer(str(start)))


def _steps(config: Config, prompts: int, processes: int) -> int:
    if config.training.steps is not None:
        return config.training.steps
    return max(1, math.ceil((config.training.epochs or 0) * prompts / (config.prompts_a_step * processes)))


def _teacher(config: Config) -> Path:
    return Path(resolve(str(config.teacher)).path)


def _refuse_other_tokens(config: Config, start: Path, teacher: Path) -> None:
    """The divergence is between distributions over the same tokens. Raises MedbenchError where these differ."""
    mine, its = (_tokens(load_tokenizer(str(folder))) for folder in (start, teacher))
    if mine == its:
        return
    other = sorted(token for token in mine.keys() | its.keys() if mine.get(token) != its.get(token))
    raise MedbenchError(
        f"teacher: {foreign(config.teacher, 200)} has other tokens than the student: {len(other)} differ, such as "
        f"{foreign(other[0], 40)!r}: use a teacher of the same family, or mode: sequence"
    )


def _tokens(tokenizer: Tokenizer) -> dict[str, int]:
    return dict(tokenizer.get_vocab())


# --- on the teacher's replies


def _of_sft(config: Config, rows: Sequence[Path]) -> sft.Config:
    return sft.Config(
        data=[Source(path=str(path)) for path in rows],
        training=config.training,
        lora=config.lora,
        protocol=config.protocol,
        thinking=config.thinking,
        max_length=config.max_length,
    )


def _replies(config: Config, stage: Path) -> list[Path]:
    """Files of rows that passed the filters; made by the first process, once for all attempts."""
    folder = stage / REPLIES
    if os.environ.get("RANK", "0") == "0":
        print(_synth(config, "--out", str(folder), "--resume"), flush=True)
    while not _is_complete(folder):
        time.sleep(POLL_SECONDS)
    card = read_synth(folder).card
    assert card is not None, "a complete record has its card"
    found = [folder / name for name, rows in sorted(card.files.items()) if rows and name.startswith("accepted/")]
    if not found:
        raise MedbenchError(
            f"{folder}: no reply of the teacher has passed the filters ({card.in_words}): see its README.md, and "
            f"change the filters or the teacher"
        )
    return found


def _is_complete(folder: Path) -> bool:
    try:
        return read_synth(folder).status == "complete"
    except MedbenchError:
        return False


def _synth(config: Config, *given: str) -> str:
    """What `medbench synth` prints: a process of its own, so that the teacher's memory is free when the student trains.

    Raises MedbenchError with its last line where it fails.
    """
    words = [sys.executable, "-m", "medbench.harness.cli", "synth", str(expand(str(config.synth))), *given]
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        words, env=own, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise MedbenchError(f"synth: {escaped(last[0].removeprefix('medbench: '))[:400]}")
    return done.stdout
