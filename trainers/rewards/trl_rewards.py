"""The rewards as TRL's GRPOTrainer calls them: one callable a component, so that TRL logs each by itself.

    python -c "from medbench.trainers.rewards.trl_rewards import reward_functions; print(reward_functions.__doc__)"

TRL is not imported. It calls (1.16) `f(prompts=, completions=, completion_ids=, **columns, log_metric=, ...)`, the
columns being the data set's own, repeated for every completion, and wants a number for each. Weights go to
`GRPOConfig(reward_weights=config.weights.as_list())`. The callables can be pickled, as TRL's own are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.extraction.thinking import opens_thought
from medbench.trainers.rewards.rewards import COMPONENTS, RewardConfig, Rewards, fault_shares, rewards_of

COLUMNS = ("question", "options", "labels", "gold")
"""What each row of the data set must have beside its prompt; `context` is read where it is there."""


class ComponentReward:
    """One component of the rewards of a batch."""

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
        if log_metric is not None and self.__name__ == "format":  # once a batch, not once a component
            for fault, share in fault_shares(judged).items():
                log_metric(f"format_faults/{fault}", share)
        return [float(getattr(rewards, self.__name__)) for rewards in judged]

    def _judge(self, prompt: Any, completion: Any, ids: Sequence[int], row: Mapping[str, Any]) -> Rewards:
        opened = self._opened if self._opened is not None else opens_thought(_text(prompt))
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
    """One callable a component, in the order of COMPONENTS and of `config.weights.as_list()`.

    `opened` says whether the chat template opens the thought in the prompt; None looks at prompts that are text (TRL
    applies the template to conversational ones only after the rewards have their prompts, so it cannot be seen there).
    `eos_token_ids` are the tokens that end a finished completion (its padding token as well, where that is another);
    without them no completion counts as cut off, which is right only where TRL masks those anyway.
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
            "the tokenizer has cut the thought out of the completion, so that its form cannot be judged: set "
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
    """Five components ask for the same reply in turn; it is judged once."""
    asked = Question("", "", question, options, labels, gold, context)
    return rewards_of(reply, asked, config, tokens=tokens, finish_reason=finish_reason, opened=opened)
