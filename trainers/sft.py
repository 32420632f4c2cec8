"""Supervised fine-tuning by TRL: an adapter (LoRA, (IA)3, ...) or all weights, loss on the replies only.

    medbench train trainers/recipes/smollm2_cpu.yaml

The prompts are byte for byte those of `medbench eval` under the same protocol, and those of chats what a server would
send for each of the assistant's turns (see data/rendering.py).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from medbench.harness.checkpoints.package_versions import refuse_other_versions
from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.protocols.protocol import DEFAULT, Protocol, load_protocol
from medbench.harness.training.difficulty import Probe
from medbench.harness.training.trainer_plugins import FailedAttempt
from medbench.trainers import curriculum
from medbench.trainers.curriculum import OrderSettings
from medbench.trainers.data.contamination import CONTAMINATION, ContaminationConfig, dropped_rows, screen
from medbench.trainers.data.conversations import Conversation
from medbench.trainers.data.questions import Row
from medbench.trainers.data.rendering import LOSS, Rendered, Renderer
from medbench.trainers.data.rows import Source, load_rows
from medbench.trainers.data.subset import nested_subset
from medbench.trainers.trl import adapters, run
from medbench.trainers.trl.adapters import AdapterSettings
from medbench.trainers.trl.lora import LoraSettings
from medbench.trainers.trl.memory import training_memory
from medbench.trainers.trl.optimizers import optimizer_fault
from medbench.trainers.trl.run import TrainingSettings, adapt_training

POOL = 16
"""Batches per pool within which rows are sorted by length: few enough to stay random, enough to save padding."""


class Config(Record):
    """The `config:` of an sft stage."""

    data: list[Source] = Field(min_length=1)
    training: TrainingSettings
    data_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the rows that is trained on, in the same proportions of answers; a smaller share is part of a larger
    one, see data/subset.py."""
    lora: LoraSettings | None = LoraSettings()
    """null trains all weights."""
    adapter: AdapterSettings | None = None
    """In place of `lora`: any kind of adapter, or which of the model's own weights."""
    protocol: str = DEFAULT
    """How rows with options are asked: use that of the gates, or training and evaluation differ."""
    thinking: bool | None = None
    """`enable_thinking` of the chat template; None leaves it to the protocol."""
    max_length: int = Field(2048, ge=16)
    """Tokens of a sequence: prompt and reply, or a chat; longer ones are left out, never truncated."""
    packing: bool = False
    """Several rows per sequence: needs a GPU and flash-attn, without which rows would attend to each other."""
    order: OrderSettings = OrderSettings()
    contamination: ContaminationConfig = ContaminationConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, content: Any) -> Any:
        if not isinstance(content, dict) or content.get("adapter") is None:
            return content
        if content.get("lora") is not None:
            raise ValueError("give either lora or adapter, which has the kinds lora, rslora and dora too")
        return {**content, "lora": None}

    @property
    def trained(self) -> adapters.Trained:
        """What is trained."""
        return adapters.trained_by(self.lora, self.adapter)

    @model_validator(mode="after")
    def _rows_stay_apart(self) -> Self:
        if self.packing and self.order.by == "difficulty":
            raise ValueError("packing mixes rows, so they cannot be ordered: leave order out, or set packing: false")
        return self


def prepare(config: Config, *, start: Path, folder: Path, benchmarks: Mapping[str, Sequence[Question]]) -> list[str]:
    """See trainer_plugins. Writes contamination.json into `folder`."""
    refuse_other_versions("trl", "transformers")
    protocol = _protocol(config)
    adapters.refuse_untrainable(config.trained, start, "adapter" if config.adapter else "lora")
    settings = config.training
    if fault := optimizer_fault(settings.optimizer) or _packing_fault(config) or run.reporting_fault(settings):
        raise MedbenchError(fault)
    rows = load_rows(config.data)
    source = _named(config)
    folder.mkdir(parents=True, exist_ok=True)
    screened = (row.screened(number) for number, row in enumerate(rows, 1))
    found = screen(screened, benchmarks, config.contamination, folder / CONTAMINATION, source)
    fitting, too_long = _fitting(config, Renderer(start, protocol), _without(rows, found.dropped), source)
    kept = _share_of(fitting, config.data_fraction)
    tokens = sum(one.taught for one in kept)
    longest = max(one.length for one in kept)
    return [
        f"{source}: {len(rows)} rows; {len(found.dropped)} overlap a benchmark, {too_long} longer than "
        f"{config.max_length} tokens, {_counted(kept, fitting)} trained on ({tokens:,} reply tokens, longest row "
        f"{longest})",
        _length_line(config, len(kept)),
        *_difficulty_lines(config, kept),
        *training_memory(start, config.training, config.trained, tokens=longest),
        *_split_chats(kept),
    ]


def example(config: Config, *, start: Path, folder: Path) -> list[str]:
    """See trainer_plugins: the first row that is trained on."""
    rows = load_rows(config.data)
    renderer = Renderer(start, _protocol(config))
    clean = _without(rows, dropped_rows(folder / CONTAMINATION, len(rows)))
    fitting = (one for row in clean for one in renderer.sequences(row) if one.length <= config.max_length)
    first = next(fitting) if config.data_fraction == 1 else _share_of(list(fitting), config.data_fraction)[0]
    return [
        f"first example, {first.row.where}: {first.length} tokens, {first.taught} with a loss (between {LOSS[0]} and "
        f"{LOSS[1]})",
        *renderer.shown(first),
    ]


def probe(config: Config, *, start: Path, folder: Path) -> Probe | None:
    """See trainer_plugins: the questions of the rows to train on, where their order depends on their difficulty."""
    if config.order.by != "difficulty":
        return None
    rows = load_rows(config.data)
    clean = _without(rows, dropped_rows(folder / CONTAMINATION, len(rows)))
    fitting, _ = _fitting(config, Renderer(start, _protocol(config)), clean, _named(config))
    return _probe(config, _share_of(fitting, config.data_fraction))


def train(config: Config, *, start: Path, folder: Path, seed: int) -> None:
    """See trainer_plugins."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    run.quiet()
    folder.mkdir(parents=True, exist_ok=True)
    renderer = Renderer(start, _protocol(config))
    rows = load_rows(config.data)
    clean = _without(rows, dropped_rows(folder.parent / CONTAMINATION, len(rows)))
    kept = _share_of(_fitting(config, renderer, clean, _named(config))[0], config.data_fraction)
    args = SFTConfig(
        **run.common_arguments(config.training, folder=folder, seed=seed),
        max_length=config.max_length,
        packing=config.packing,
        train_sampling_strategy="random" if config.packing else "sequential",
    )
    data, draws = tokenized(kept), None
    if not config.packing:
        lengths = [one.length for one in kept]
        rows_a_step = config.training.batch_size * config.training.gradient_accumulation * args.world_size
        args.max_steps = _steps(config.training, len(kept), rows_a_step)
        if config.order.by == "difficulty":
            bands = curriculum.bands_by_difficulty(config.order, _questions(kept), folder.parent, skip=False)
            print(bands.in_words(), flush=True)
            draws = curriculum.Draws(bands, seed, rows_a_step, lengths=lengths)
        else:
            data = data.select(in_order(lengths, rows_a_step, args.max_steps, seed))
    attention = {"attn_implementation": "flash_attention_2"} if config.packing else {}
    model = run.load_model(start, config.training, adapter=adapters.adds_weights(config.trained), **attention)
    adapters.freeze(model, config.trained)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=data,
        processing_class=renderer.tokenizer,
        peft_config=adapters.peft_config(config.trained, start),
    )
    judged = None
    if draws is not None:
        positions = args.max_steps * draws.rows_a_batch
        judged = curriculum.follow(trainer, draws, folder, positions=positions, settings=config.order)
    run.run(trainer, folder=folder, start=start, judged=judged)


def adapt(config: Config, verdict: FailedAttempt) -> Config:
    """Halve the learning rate after divergence."""
    return config.model_copy(update={"training": adapt_training(config.training, verdict)})


def in_order(lengths: Sequence[int], rows_a_step: int, steps: int, seed: int) -> list[int]:
    """The order of training: steps * rows_a_step row indices, one shuffled pass over all rows after the other.

    Rows of similar length share a step, to save padding. Fixed in advance rather than left to a transformers sampler,
    which draws from the global random state, so that a resumed training would see another order.
    """
    drawn = random.Random(seed)
    passes = math.ceil(steps * rows_a_step / len(lengths))
    stream = [row for _ in range(passes) for row in drawn.sample(range(len(lengths)), len(lengths))]
    stream = stream[: steps * rows_a_step]
    order: list[int] = []
    for begin in range(0, len(stream), POOL * rows_a_step):
        pool = sorted(stream[begin : begin + POOL * rows_a_step], key=lambda row: (lengths[row], row))
        batches = [pool[at : at + rows_a_step] for at in range(0, len(pool), rows_a_step)]
        drawn.shuffle(batches)
        order.extend(row for batch in batches for row in batch)
    return order


def _steps(settings: TrainingSettings, rows: int, rows_a_step: int) -> int:
    return settings.steps or max(1, math.ceil(rows * (settings.epochs or 1) / rows_a_step))


def tokenized(rendered: Sequence[Rendered]) -> Any:
    """A dataset of token ids and labels, NO_LOSS where none is computed. TRL leaves tokenized rows unchanged."""
    import datasets

    return datasets.Dataset.from_dict(
        {
            "input_ids": [one.input_ids for one in rendered],
            "labels": [one.labels for one in rendered],
        }
    )


def _protocol(config: Config) -> Protocol:
    protocol = load_protocol(config.protocol, thinking=config.thinking)
    if protocol.method != "generate" or protocol.shots or protocol.is_open:
        why = "asks for no option" if protocol.is_open else "generates nothing"
        why = "has few-shot examples" if protocol.shots else why
        raise MedbenchError(f"protocol {protocol.name}: it {why}, so there is no reply to train: use {DEFAULT}")
    return protocol


def _packing_fault(config: Config) -> str | None:
    if not config.packing:
        return None
    import torch

    if torch.cuda.is_available() and find_spec("flash_attn") is not None:
        return None
    return "packing: needs a GPU and the package flash-attn, else packed rows attend to each other: set packing: false"


def _named(config: Config) -> str:
    return ", ".join(source.name for source in config.data)


def _questions(kept: Sequence[Rendered]) -> list[Question]:
    return [one.row.question for one in kept if isinstance(one.row, Row)]


def _probe(config: Config, kept: Sequence[Rendered]) -> Probe:
    return curriculum.probe_of(config.order, _questions(kept), _protocol(config), None)


def _difficulty_lines(config: Config, kept: Sequence[Rendered]) -> list[str]:
    if config.order.by != "difficulty":
        return []
    curriculum.refuse_unscored([one.row for one in kept])
    return [curriculum.cost_in_words(_probe(config, kept))]


def _fitting(
    config: Config, renderer: Renderer, rows: Sequence[Row | Conversation], source: str
) -> tuple[list[Rendered], int]:
    kept, too_long = renderer.fitting(rows, config.max_length)
    if not kept:
        raise MedbenchError(
            f"{source}: none of {len(rows)} rows has at most {config.max_length} tokens: raise max_length"
        )
    return kept, too_long


def _share_of(fitting: Sequence[Rendered], fraction: float) -> list[Rendered]:
    """The sequences of a share of the rows; those of a row stay together."""
    rows = list({id(one.row): one.row for one in fitting}.values())
    kept = {id(rows[at]) for at in nested_subset(rows, fraction)}
    return [one for one in fitting if id(one.row) in kept]


def _counted(kept: Sequence[Rendered], fitting: Sequence[Rendered]) -> str:
    return f"{len(kept)}" if len(kept) == len(fitting) else f"{len(kept)} of {len(fitting)}"


def _without(rows: Sequence[Row | Conversation], dropped: frozenset[int]) -> list[Row | Conversation]:
    return [row for number, row in enumerate(rows, 1) if number not in dropped]


def _split_chats(kept: Sequence[Rendered]) -> list[str]:
    sequences = Counter(id(one.row) for one in kept)
    split = [n for n in sequences.values() if n > 1]
    if not split:
        return []
    return [
        f"{len(split)} of {len(sequences)} rows are chats that are trained as {sum(split)} sequences, each with a loss "
        f"on other turns: the model's chat template renders earlier turns differently (some drop their reasoning)"
    ]


def _length_line(config: Config, rows: int) -> str:
    settings = config.training
    rows_a_step = settings.batch_size * settings.gradient_accumulation
    if config.packing:
        return f"packed; {settings.steps or settings.epochs} {'steps' if settings.steps else 'epochs'}"
    steps = _steps(settings, rows, rows_a_step)
    checkpoints = math.ceil(steps / settings.save_every)
    return (
        f"{steps} steps of {rows_a_step} rows on one process ({steps * rows_a_step / rows:.1f} epochs), "
        f"{checkpoints} checkpoints"
    )
