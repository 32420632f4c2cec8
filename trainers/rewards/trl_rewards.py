"""The rewards as TRL's GRPOTrainer calls them: one callable per component, so that TRL logs each separately.

TRL is not imported. TRL 1.16 calls `f(prompts=, completions=, completion_ids=, **columns, log_metric=, ...)`, where the
columns are those of the dataset, repeated for every completion, and expects one number per completion, or None, which
it leaves out of the sum. Weights go to `GRPOConfig(reward_weights=config.component_weights)`. The callables can be
pickled, like TRL's own, but for the one with a judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.extraction.thinking import opens_reasoning
from medbench.harness.judges.contracts import VERDICTS, Item, Verdict, item_id
from medbench.harness.judges.steps import steps_in
from medbench.trainers.rewards.factuality import NAME as FACTUALITY
from medbench.trainers.rewards.factuality import FactualityConfig, factuality_of
from medbench.trainers.rewards.rewards import COMPONENTS, RewardConfig, Rewards, fault_shares, rewards_of
from medbench.trainers.rewards.step_checks import DISCOUNTS, Discount, discounts_of
from medbench.trainers.rewards.step_judge import StepJudge

COLUMNS = ("question", "options", "labels", "gold")
"""Columns that each row of the dataset must have besides its prompt."""
OPTIONAL = ("context", "source", "id")


class _Judged(NamedTuple):
    """A completion of a batch."""

    reply: str
    opened: bool
    row: Mapping[str, Any]
    rewards: Rewards


@dataclass(frozen=True, slots=True)
class _Reader:
    """Judges the completions of a batch by all that needs no judge."""

    config: RewardConfig
    opened: bool | None
    eos_token_ids: frozenset[int]

    def batch(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Any],
    ) -> list[_Judged]:
        rows = _rows(columns, len(completions))
        return [
            self._one(prompt, completion, ids, row)
            for prompt, completion, ids, row in zip(prompts, completions, completion_ids, rows, strict=True)
        ]

    def _one(self, prompt: Any, completion: Any, ids: Sequence[int], row: Mapping[str, Any]) -> _Judged:
        opened = self.opened if self.opened is not None else opens_reasoning(_text(prompt))
        ended = not self.eos_token_ids or (len(ids) > 0 and ids[-1] in self.eos_token_ids)
        reply = _text(completion)
        rewards = _rewards(
            reply,
            row["question"],
            tuple(row["options"]),
            tuple(row["labels"]),
            row["gold"],
            row.get("context") or "",
            self.config,
            len(ids),
            "stop" if ended else "length",
            opened,
        )
        return _Judged(reply, opened, row, rewards)


class ComponentReward:
    """One reward component, computed for a batch."""

    def __init__(self, name: str, reader: _Reader) -> None:
        self.__name__ = name  # TRL logs rewards/<name>/mean
        self._reader = reader

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        judged = [one.rewards for one in self._reader.batch(prompts, completions, completion_ids, columns)]
        if log_metric is not None and self.__name__ == "format":  # once per batch, not once per component
            for fault, share in fault_shares(judged).items():
                log_metric(f"format_faults/{fault}", share)
        return [float(getattr(rewards, self.__name__)) for rewards in judged]


class FactualityReward:
    """The component `factuality`: all steps of a batch are put to the judge at once."""

    def __init__(self, config: FactualityConfig, reader: _Reader, judge: StepJudge) -> None:
        self.__name__ = FACTUALITY
        self._config, self._reader, self._judge = config, reader, judge

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        batch = self._reader.batch(prompts, completions, completion_ids, columns)
        steps = [
            steps_in(one.reply, opened=one.opened) if one.row.get("source") and not one.rewards.faults else []
            for one in batch
        ]
        items = {
            item.id: (item, str(one.row.get("id") or ""))
            for one, own in zip(batch, steps, strict=True)
            for item in _items(own, one.row)
        }
        rulings = self._judge.rulings(items) if items else {}
        found: list[float | None] = []
        counts: Counter[str] = Counter()
        for one, own in zip(batch, steps, strict=True):
            verdicts = [rulings[item.id].verdict for item in _items(own, one.row)]
            discounts = discounts_of(own, _asked(one.row), one.row["source"]) if own else []
            counts.update(verdict or "failed" for verdict in verdicts)
            counts.update(why for why in discounts if why is not None)
            found.append(self._value(one, verdicts, discounts))
        if log_metric is not None:
            total = sum(len(own) for own in steps)
            for name in (*VERDICTS, "failed", *DISCOUNTS):
                log_metric(f"steps/{name.replace(' ', '_')}", counts[name] / total if total else 0.0)
            log_metric("steps/number", total / max(1, len(batch)))
        return found

    def _value(
        self, one: _Judged, verdicts: Sequence[Verdict | None], discounts: Sequence[Discount | None]
    ) -> float | None:
        if not one.row.get("source"):
            return None
        if one.rewards.faults:
            return 0.0
        return factuality_of(
            verdicts, discounts, least_steps=self._config.least_steps, least_share=self._config.least_share
        )


Reward = ComponentReward | FactualityReward


def reward_functions(
    config: RewardConfig,
    *,
    opened: bool | None = None,
    eos_token_ids: Sequence[int] = (),
    judge: StepJudge | None = None,
) -> list[Reward]:
    """One callable per component, in the order of `config.components` and `config.component_weights`.

    `opened`: whether the chat template opens the think block in the prompt. None decides by the prompt if it is text;
    for conversational prompts TRL applies the template only after the rewards get them, so it cannot be seen there.
    `eos_token_ids`: the tokens that end a finished completion, including the padding token if that is another one;
    without them no completion counts as truncated, which is right only if TRL masks those anyway.
    `judge`: where the config has one. The rows then have the column `source`, the text to judge by or "", and may have
    the question's `id`.
    """
    reader = _Reader(config.unjudged, opened, frozenset(eos_token_ids))
    found: list[Reward] = [ComponentReward(name, reader) for name in COMPONENTS]
    if config.factuality is not None:
        if judge is None:
            raise MedbenchError("rewards.factuality: no judge was started")
        found.append(FactualityReward(config.factuality, reader, judge))
    return found


def _items(steps: Sequence[str], row: Mapping[str, Any]) -> list[Item]:
    return [Item(item_id(step, row["source"]), step, row["source"]) for step in steps]


def _asked(row: Mapping[str, Any]) -> Question:
    return Question(
        str(row.get("id") or ""),
        "",
        row["question"],
        tuple(row["options"]),
        tuple(row["labels"]),
        row["gold"],
        row.get("context") or "",
    )


def _rows(columns: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise MedbenchError(
            f"the training prompts have no column {', '.join(missing)}: rewards need {', '.join(COLUMNS)}; keep them "
            f"with remove_unused_columns=False"
        )
    names = [*COLUMNS, *(name for name in OPTIONAL if name in columns)]
    return [{name: columns[name][at] for name in names} for at in range(n)]


def _text(turns: Any) -> str:
    """The text of a completion or prompt: itself, or the last of its messages."""
    if isinstance(turns, str):
        return turns
    message = turns[-1] if turns else {"content": ""}
    if message.get("reasoning_content") or message.get("thinking"):
        raise MedbenchError(
            "the tokenizer has removed the reasoning from the completion, so its format cannot be judged: set "
            "tokenizer.response_template and tokenizer.response_schema to None before training"
        )
    return str(message.get("content") or "")


@lru_cache(maxsize=2048)
def _rewards(
    reply: str,
    question: str,
    options: tuple[str, ...],
    labels: tuple[str, ...],
    gold: str,
    context: str,
    config: RewardConfig,
    tokens: int,
    finish_reason: str,
    opened: bool,
) -> Rewards:
    """The components ask for the same reply one after the other; it is judged once."""
    asked = Question("", "", question, options, labels, gold, context)
    return rewards_of(reply, asked, config, tokens=tokens, finish_reason=finish_reason, opened=opened)
