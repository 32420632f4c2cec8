"""Training on easy rows first: an order by difficulty, in bands that open as the gate score rises.

    order: {by: difficulty, samples: 4, bands: 3, rise: 0.02, patience: 2}

Difficulty is the share of right replies among `samples` by the stage's start (harness/training/difficulty.py). The rows
are divided into `bands` of about equal size, the easiest first; rows of the same share are in the same band. Training
begins with the first, and a further one opens for each `rise` of the best score that the gates have given to a
checkpoint above the start's score; one opens, too, when `patience` checkpoints in a row have opened none, since a band
that is mastered teaches nothing and raises no score. Open bands stay open.

Rows are drawn in passes: all open rows in a random order, then again; a band that opens begins a new pass. The rows of
a step depend on the seed and on when bands opened, which is kept in ATTEMPT/curriculum.jsonl, so that a killed training
goes on with the same rows. A data loader fetches ahead: a band that opens when step N has been judged is drawn from at
step N + 2.

GRPO learns nothing from a group of completions that are all right or all wrong. Where the replies of the start were all
alike, a group's completions are likely to be: `skip` leaves these rows out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.files import write_atomically
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.difficulty import DIFFICULTY, Probe, read_shares
from medbench.trainers.data.conversations import Conversation
from medbench.trainers.data.questions import Row

OPENED = "curriculum.jsonl"


class OrderSettings(Record):
    """The `order:` of an sft or grpo stage. All defaults are medbench's own."""

    by: Literal["random", "difficulty"] = "random"
    samples: int = Field(4, ge=2, le=64)
    """Replies to each question, of which the right ones are counted."""
    temperature: float = Field(1.0, gt=0, le=10)
    """At which these are sampled."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Of each reply. None: rollout.max_completion_tokens in grpo, and the protocol's own limit in sft."""
    bands: int = Field(3, ge=1, le=20)
    rise: float = Field(0.02, gt=0, le=1)
    """Of the gate score, for each further band."""
    patience: int | None = Field(2, ge=1)
    """Checkpoints without a new band after which one opens anyway; null: never."""
    skip: bool | None = None
    """Leave out rows whose replies were all right or all wrong. None: in grpo, not in sft."""

    @model_validator(mode="after")
    def _only_with_difficulty(self) -> Self:
        given = [name for name, known in type(self).model_fields.items() if getattr(self, name) != known.default]
        if self.by == "random" and given:
            raise ValueError(f"{given[0]} belongs to by: difficulty")
        return self


def cost_in_words(probe: Probe) -> str:
    return (
        f"difficulty: before the first attempt the start answers {len(probe.questions)} questions, {probe.samples} "
        f"replies each of at most {probe.protocol.decoding.max_new_tokens} tokens"
    )


def probe_of(settings: OrderSettings, questions: Sequence[Question], protocol: Protocol, most: int | None) -> Probe:
    """What the start is asked. `most`: tokens of a reply where the settings say nothing."""
    limit = settings.max_new_tokens or most or protocol.decoding.max_new_tokens
    decoding = protocol.decoding.model_copy(update={"temperature": settings.temperature, "max_new_tokens": limit})
    unique = {one.id: one for one in questions}
    return Probe(tuple(unique.values()), protocol.model_copy(update={"decoding": decoding}), settings.samples)


def refuse_unscored(rows: Sequence[Row | Conversation]) -> None:
    """Raises MedbenchError for a row whose replies the evaluation could not score."""
    for row in rows:
        if not isinstance(row, Row) or not row.question.labels:
            raise MedbenchError(
                f"{row.where}: order.by: difficulty counts right replies, and this row has no options: leave `order` "
                f"out, or use rows with options and an answer"
            )


def bands_by_difficulty(settings: OrderSettings, questions: Sequence[Question], stage: Path, *, skip: bool) -> Bands:
    """Of rows with these questions, by what is known in the stage's folder. `skip`: where the settings say nothing."""
    shares = read_shares(stage)
    unknown = [one.id for one in questions if one.id not in shares]
    if unknown:
        raise MedbenchError(
            f"{stage / DIFFICULTY}: the rows have changed since difficulties were measured ({len(unknown)} are not in "
            f"it): delete it, and resume the training to measure them again"
        )
    found = [shares[one.id] for one in questions]
    return bands_of(found, settings.bands, skip=skip if settings.skip is None else settings.skip)


@dataclass(frozen=True, slots=True)
class Bands:
    """Indices of rows by difficulty."""

    rows: tuple[tuple[int, ...], ...]
    """The easiest band first; none is empty."""
    never: int = 0
    """Rows left out whose replies were all wrong."""
    always: int = 0
    """And all right."""

    def in_words(self) -> str:
        sizes = ", ".join(str(len(band)) for band in self.rows)
        left = f"; {self.never + self.always} left out ({self.never} never right, {self.always} always)"
        return f"order by difficulty: bands of {sizes} rows{left if self.never + self.always else ''}"


def bands_of(shares: Sequence[float], count: int, *, skip: bool) -> Bands:
    """At most `count` bands of about equal size. `shares`: of right replies, by row.

    Raises MedbenchError where no row is left.
    """
    never, always = ([at for at, share in enumerate(shares) if share == bound] for bound in (0.0, 1.0))
    left_out = {*never, *always} if skip else set()
    kept = sorted((at for at in range(len(shares)) if at not in left_out), key=lambda at: (-shares[at], at))
    if not kept:
        raise MedbenchError(
            f"order.skip: all {len(shares)} rows are left out, {len(never)} never right and {len(always)} always: "
            f"raise order.samples, set order.skip: false, or use other rows"
        )
    bands: list[list[int]] = []
    for place, at in enumerate(kept):
        begins = place * count >= len(bands) * len(kept)
        if not bands or (begins and shares[at] != shares[bands[-1][-1]]):
            bands.append([])
        bands[-1].append(at)
    counted = (len(never), len(always)) if skip else (0, 0)
    return Bands(tuple(map(tuple, bands)), *counted)


def open_bands(scores: Mapping[int, float], step: int, settings: OrderSettings, count: int) -> int:
    """How many of `count` bands are open once the checkpoint of `step` is judged. `scores`: see
    checkpoint_folder.scores; without the start's, rises count from the first checkpoint's."""
    known = [score for at, score in sorted(scores.items()) if at <= step]
    opened, waited = 1, 0
    for number, best in enumerate(accumulate(known, max)):
        risen = 1 + int((best - known[0]) / settings.rise + 1e-9)
        waited += number > 0 or 0 not in scores
        patient = settings.patience is None or waited < settings.patience
        now = max(opened, risen if patient else max(risen, opened + 1))
        opened, waited = now, 0 if now > opened else waited
    return min(count, opened)


@dataclass(slots=True)
class Draws:
    """Which row is at which position of a training."""

    bands: Bands
    seed: int
    rows_a_batch: int
    steps_a_batch: int = 1
    """Optimizer steps on one batch of rows."""
    lengths: Sequence[int] | None = None
    """Of the rows: those of a batch are then sorted by length, to save padding."""
    opened: dict[int, int] = field(default_factory=dict)
    """Step -> bands open once its checkpoint was judged."""
    _drawn: list[int] = field(default_factory=list)
    _pass: list[int] = field(default_factory=list)
    """What is left of it."""
    _open: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def open_at(self, step: int) -> int:
        """Bands that step `step`, from 1, draws from."""
        return max((bands for judged, bands in self.opened.items() if judged + 2 <= step), default=1)

    def row(self, position: int) -> int:
        """Of the training's rows in order. Batches before it are drawn first, by the bands known now."""
        while len(self._drawn) <= position:
            batch = [self._next() for _ in range(self.rows_a_batch)]
            lengths = self.lengths
            self._drawn += batch if lengths is None else sorted(batch, key=lambda row: (lengths[row], row))
        return self._drawn[position]

    def _next(self) -> int:
        begun = len(self._drawn) // self.rows_a_batch
        open_now = self.open_at(begun * self.steps_a_batch + 1)
        if open_now != self._open or not self._pass:
            self._open = open_now
            rows = [row for band in self.bands.rows[:open_now] for row in band]
            self._pass = self._random.sample(rows, len(rows))
        return self._pass.pop()


def follow(
    trainer: Any, draws: Draws, folder: Path, *, positions: int, settings: OrderSettings
) -> Callable[[int], None]:
    """Let `trainer`, of TRL, train on the rows of its data set that are drawn, `positions` in all. `folder`: the
    attempt's. Returns what `run` calls when a checkpoint has been judged, which opens bands."""
    from accelerate.utils import broadcast_object_list
    from torch.utils.data import Dataset
    from transformers import TrainerCallback

    rows, path = trainer.train_dataset, folder / OPENED

    class Drawn(Dataset[Any]):
        def __len__(self) -> int:
            return positions

        def __getitem__(self, position: int) -> Any:
            if not 0 <= position < positions:
                raise IndexError(position)
            return rows[draws.row(position)]

    class Logger(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer._metrics["train"]["curriculum/open_bands"].append(draws.open_at(state.global_step))

    def judged(step: int) -> None:
        """The same in every process: without `device: shared` a score may come at any time."""
        draws.opened.update({before: bands for before, bands in _read(path) if before <= step})
        if step in draws.opened:  # a resumed training goes on as it was
            return
        first = trainer.is_world_process_zero()
        scores = checkpoint_folder.scores(folder) if first else {}
        found = [open_bands(scores, step, settings, len(draws.bands.rows))]
        broadcast_object_list(found)
        draws.opened[step] = found[0]
        if first:
            lines = [json.dumps({"step": step, "open": bands}) for step, bands in sorted(draws.opened.items())]
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode())

    trainer.train_dataset = Drawn()
    trainer.add_callback(Logger())
    return judged


def _read(path: Path) -> Iterator[tuple[int, int]]:
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                one = json.loads(line)
                yield int(one["step"]), int(one["open"])
