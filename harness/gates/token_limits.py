"""What a gate may conclude while long replies are still being generated: thresholds in tokens, fixed beforehand.

    gate = LiveGate(..., limits=limits_for(protocol))
    gate.observe_within("medqa", 1024, [Reply("q7", sample), Reply("q3", None)])   # q3 is longer, whatever it will say

The trap. With many replies under way the short ones finish first. Leaving out those that run, or counting them as wrong
only as long as they run, makes the verdict depend on the clock, and the clock depends on the lengths of replies later
in the order. tests/bench/stragglers.py shows how often such a rule passes wrongly.

The way out. For a limit of T tokens let

    x_i(T) = the score of question i if its reply ended within T tokens, else 0 for a pass and 1 for a fail.

1. x_i(T) depends on question i's own reply alone: not on the order, the batch or the clock. Like the score x_i itself
   it is a fixed number of a finite population, and it is known once the reply has ended or is longer than T.
2. x_i(T) <= x_i for a pass and >= x_i for a fail. So where the total of the x_i obeys the null hypothesis (too low for
   a pass, high enough for a fail), that of the x_i(T) obeys it too: a valid test of the latter tests the former.
3. So the wealth W_T of stats/sequential.py, betted on x(T) along the fixed order, is a nonnegative supermartingale
   under the null. What it bets at position q is planned from x(T) of earlier positions, which are part of the common
   past: the whole replies to the earlier questions. Given that past, each remaining question is equally likely to be
   next.
4. All wealths being supermartingales over one past, W(q) = sum of weight_T W_T(q) is one as well, as the weights are
   fixed beforehand and sum to 1 (the true scores are the last version, without a limit). By Ville's inequality it ever
   reaches 1 / alpha with a chance of at most alpha.
5. At any moment of a run, W_T is known up to a position q_T, which depends on the clock. The test decides when at some
   position q the sum over those T with q_T >= q reaches 1 / alpha. That sum is at most W(q), so a wrong decision
   implies that W reaches 1 / alpha. This event does not mention q_T: no clock, stopping rule, kill or restart can add
   to it. (A share of alpha for each T, taking the first that decides, would be valid too, by the union bound, but never
   decides earlier: where weight_T W_T(q) reaches 1 / alpha, the sum does.)

When which replies are known can change how soon a decision is noticed, and hence which of two contradicting ones is
noticed first: if pass and fail are both reached somewhere along the order, one of them is an error that alpha has paid
for. Otherwise the verdict is the same however fast replies come. A gate that was killed finds its finished replies with
their numbers of tokens, hence their x(T) for every T, and asks the others again: nothing of an unfinished reply is
stored.

Where a question has several samples, its score is their mean, and x_i(T) is the mean of theirs: each of 1 to 5 holds
of it as it stands.

A failed request counts as one that did not end. Once every reply is there, the gate compares two numbers as before.
"""

from __future__ import annotations

from dataclasses import dataclass

from medbench.harness.contracts import Sample, sample_key
from medbench.harness.protocols.protocol import Protocol


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as far as one limit asks."""

    id: str
    """The question's."""
    sample: Sample | None
    """None: not finished, but longer than the limit."""
    repeat: int = 0
    """See contracts.Sample."""

    @property
    def key(self) -> str:
        return sample_key(self.id, self.repeat)


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds in tokens and the weights of their tests."""

    tokens: tuple[int, ...] = ()
    """Rising."""
    weights: tuple[float, ...] = (1.0,)
    """One per limit, and the last of the test without a limit."""


NO_LIMITS = Limits()
"""For engines that do not report running replies, and for replies of a few tokens."""
SHARES = (1 / 8, 1 / 2, 3 / 4)
"""The limits, as shares of the most tokens that a reply may have."""
WEIGHTS = (0.15, 0.1, 0.15, 0.6)
FEWEST = 64
"""Most tokens of a reply below which limits are not worth their weights."""


def limits_for(protocol: Protocol) -> Limits:
    """A function of the protocol alone, which is fixed before the first question."""
    most = protocol.decoding.max_new_tokens
    if protocol.method != "generate" or most < FEWEST:
        return NO_LIMITS
    return Limits(tuple(int(share * most) for share in SHARES), WEIGHTS)
