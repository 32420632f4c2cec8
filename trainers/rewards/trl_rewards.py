"""The rewards as TRL's GRPOTrainer calls them: one callable per component, so that TRL logs each separately.

TRL is not imported. TRL 1.16 calls `f(prompts=, completions=, completion_ids=, **columns, log_metric=, ...)`, where the
columns are those of the dataset, repeated for every completion, and expects one number per completion. Weights go to
`GRPOConfig(reward_weights=config.weights.as_list())`. The callables can be pickled, like TRL's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.extraction.thinking import opens_reasoning
from medbench.trainers.rewards.rewards import COMPONENTS, RewardConfig, Rewards, fault_shares, rewards_of

COLUMNS = ("question", "options", "labels", "gold")
"""Columns that each row of the dataset must have besides its prompt; `context` is optional."""


class ComponentReward:
    """One reward component, computed for a batch."""

    def __init__(self, name: str, config: RewardConfig, *, opened: bool | None, eos_token_ids: frozenset[int]) -> None:
        self.__name__ = name  # TRL logs rewards/<name>/mean
        self._config = config
        self._opened = opened
        self._eos_token_ids = eos_token_ids

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        rows = _rows(columns, len(completions))
        judged = [
            self._judge(prompt, completion, ids, row)
            for prompt, completion, ids, row in zip(prompts, completions, completion_ids, rows, strict=True)
        ]
        if log_metric is not None and self.__name__ == "format":  # once per batch, not once per component
            for fault, share in fault_shares(judged).items():
                log_metric(f"format_faults/{fault}", share)
        return [float(getattr(rewards, self.__name__)) for rewards in judged]

    def _judge(self, prompt: Any, completion: Any, ids: Sequence[int], row: Mapping[str, Any]) -> Rewards:
        opened = self._opened if self._opened is not None else opens_reasoning(_text(prompt))
        ended = not self._eos_token_ids or (len(ids) > 0 and ids[-1] in self._eos_token_ids)
        return _rewards(
            _text(completion),
            row["question"],
            tuple(row["options"]),
            tuple(row["labels"]),
            row["gold"],
            row.get("context") or "",
            self._config,
            len(ids),
            "stop" if ended else "length",
            opened,
        )


def reward_functions(
    config: RewardConfig, *, opened: bool | None = None, eos_token_ids: Sequence[int] = ()
) -> list[ComponentReward]:
    """One callable per component, in the order of COMPONENTS and of `config.weights.as_list()`.

    `opened`: whether the chat template opens the think block in the prompt. None decides by the prompt if it is text;
    for conversational prompts TRL applies the template only after the rewards get them, so it cannot be seen there.
    `eos_token_ids`: the tokens that end a finished completion, including the padding token if that is another one;
    without them no completion counts as truncated, which is right only if TRL masks those anyway.
    """
    return [ComponentReward(name, config, opened=opened, eos_token_ids=frozenset(eos_token_ids)) for name in COMPONENTS]


def _rows(columns: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise MedbenchError(
            f"the training prompts have no column {', '.join(missing)}: rewards need {', '.join(COLUMNS)}; keep them "
            f"with remove_unused_columns=False"
        )
    names = [*COLUMNS, *(["context"] if "context" in columns else [])]
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
    """Five components ask for the same reply one after the other; it is judged once."""
    asked = Question("", "", question, options, labels, gold, context)
    return rewards_of(reply, asked, config, tokens=tokens, finish_reason=finish_reason, opened=opened)
