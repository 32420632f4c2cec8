"""Gates on a simulated batch of replies whose length depends on whether they are right: who waits for what, and errs.

from support.stragglers import RULES, replies, schedule_of
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medbench.harness.contracts import Sample
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.schedule import Schedule
from medbench.harness.gates.token_limits import Limits
from medbench.harness.stats.sequential import SequentialTest
from support.gate_runs import a_task, answer

LIMITS = Limits((256, 1024, 1536), (0.15, 0.1, 0.15, 0.6))
PLACES = 64
MOST = 2048


@dataclass(frozen=True)
class World:
    """Replies of which the long ones are mostly wrong, or mostly right."""

    long_are_right: bool
    accuracy: float = 0.6

    def replies(self, count: int, draw: random.Random) -> dict[str, Sample]:
        right = round(self.accuracy * count)
        found = {}
        for number in draw.sample(range(count), count):
            score = float(number < right)
            median = 1000 if bool(score) == self.long_are_right else 200
            tokens = min(MOST, max(1, int(draw.lognormvariate(0.0, 0.5) * median)))
            found[f"q{number}"] = answer(f"q{number}", score, completion_tokens=tokens)
        return found


def events(order: Sequence[str], samples: Mapping[str, Sample], limits: Sequence[int]) -> list[tuple[int, str, int]]:
    """(step, id, limit that it passes, or 0 where it ends), of an engine with PLACES kept full along the order."""
    free = [0] * PLACES
    found = []
    for id in order:
        start, tokens = heapq.heappop(free), samples[id].completion_tokens
        heapq.heappush(free, start + tokens)
        found += [(start + limit + 1, id, limit) for limit in limits if tokens > limit]
        found.append((start + tokens, id, 0))
    return sorted(found)


def leave_out(gate: LiveGate, samples: Mapping[str, Sample]) -> str | None:
    """The naive rule: whatever has finished is looked at, and stragglers come when they come."""
    order = gate.orders["toy"]
    (rule,) = gate.rules.gates
    assert rule.at_least is not None
    test = SequentialTest(
        order, at_least=rule.at_least, alpha_pass=gate.rules.alpha, alpha_fail=gate.rules.alpha, controls=[]
    )
    for _, id, _ in events(order, samples, ()):
        test.observe([samples[id].score or 0.0])
        if (decision := test.evidence().decision) is not None:
            return decision
    return None


def in_order(gate: LiveGate, samples: Mapping[str, Sample]) -> str | None:
    """The real gate, with the limits that it was made with."""
    schedule = Schedule(gate, {"toy": {}}, PLACES)
    for _, id, limit in events(gate.orders["toy"], samples, gate.limits.tokens):
        if limit:
            schedule.passed("toy", id, limit)
        else:
            schedule.arrived("toy", samples[id], seconds=0.0)
        if schedule.done:
            break
    (result,) = gate.results()
    return result.status


RULES: dict[str, tuple[Callable[[LiveGate, Mapping[str, Sample]], str | None], Limits]] = {
    "stragglers left out": (leave_out, Limits()),
    "in order, whole replies": (in_order, Limits()),
    "in order, limits in tokens": (in_order, LIMITS),
}


def wrong_share(rule: str, world: World, *, orders: int, count: int = 240, seed: int = 0) -> float:
    """Share of random orders in which a floor one question beyond the truth is judged wrongly before the end."""
    decide, limits = RULES[rule]
    wrong = 0
    for number in range(orders):
        draw = random.Random(f"{seed} {number}")
        samples = world.replies(count, draw)
        total = sum(sample.score or 0.0 for sample in samples.values())
        # long and wrong: too good at first, so a wrong pass; long and right: a wrong fail
        floor = (total + (0 if world.long_are_right else 1)) / count
        rules = GateFile(gates=[Gate(task="toy", at_least=floor)])
        gate = LiveGate(rules, [a_task(list(samples))], number, None, limits=limits)
        wrong += decide(gate, samples) == ("fail" if world.long_are_right else "pass")
    return wrong / orders
