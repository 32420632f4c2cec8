"""The reward `factuality`: what a judge says of the steps of a reply's thought, counted so that it cannot be gamed.

    rewards: {factuality: {judge: command, command: python my_judge.py, weight: 0.5}}

    factuality = S / (S + C)   if S >= least_steps and S >= least_share * N, else 0

    S   steps that the judge calls supported and that pass all checks of step_checks.py
    C   steps that it calls contradicted, whether they pass or not
    N   steps with a verdict, without those that follow the answer

Saying less earns nothing, because S has a lower bound; filler lowers S / N; a copy of the source, a repeated step and a
step beside the question are no part of S. A reply with a format fault earns 0. Steps on which the judge failed are
left out. Without a source, or where the judge failed on all steps, there is no value (None): TRL leaves it out of the
sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from medbench.harness.judges.contracts import Verdict
from medbench.harness.judges.settings import JudgeSettings
from medbench.trainers.rewards.step_checks import Discount

NAME = "factuality"
WHERE = "rewards.factuality"
"""Its place in a stage's config, for messages."""


class FactualityConfig(JudgeSettings):
    """The section `factuality` of a recipe's `rewards`. The defaults are medbench's own."""

    weight: float = Field(0.5, gt=0, le=100, allow_inf_nan=False)
    least_steps: int = Field(2, ge=1)
    """Supported steps below which nothing is paid: 95 % of honest replies of QwQ-32B have as many that could count."""
    least_share: float = Field(0.25, ge=0, le=1)
    """Of the steps with a verdict, the share that must be supported and count."""


def factuality_of(
    verdicts: Sequence[Verdict | None], discounts: Sequence[Discount | None], *, least_steps: int, least_share: float
) -> float | None:
    """0..1 by the formula above; None where there are steps and none has a verdict."""
    judged = [(verdict, why) for verdict, why in zip(verdicts, discounts, strict=True) if verdict is not None]
    if verdicts and not judged:
        return None
    supported = sum(verdict == "supported" and why is None for verdict, why in judged)
    contradicted = sum(verdict == "contradicted" for verdict, _ in judged)
    before_answer = sum(why != "after_answer" for _, why in judged)
    if supported < least_steps or supported < least_share * before_answer:
        return 0.0
    return supported / (supported + contradicted)
