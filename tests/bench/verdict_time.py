"""Time to a gate's verdict on a simulated GPU, as a share of the time of the whole run.

    MEDBENCH_DATA=... python tests/bench/verdict_time.py --seeds 12 --capacity 256      # about 10 minutes
    MEDBENCH_DATA=... python tests/bench/verdict_time.py             # 100 seeds per setting; some hours

The engine is a model of continuous batching: a step makes one token for each running reply and takes A + B x replies
milliseconds; requests beyond the capacity wait. The gate, its schedule and its tests are the real ones. Scores are
those of 28 real models on 818 questions (replay/mmlu_pro_health_correct.csv). Reply lengths, cut off at 2,048, are

- "lognormal": with a median of 500 tokens, 3 % cut off, whether right or wrong
- "longer if wrong": lognormal with a median of 350 tokens if right and of 900 if wrong
- "real": those of the stored replies of a real model, whose scores are then judged, and of which copies are made

Floors are set below and above each model's true accuracy, with 8 other models as control variates. Copies differ from
their baseline on 4 % of the questions, with no change or a loss of 4 points, and must not be worse by more than the
margin. Columns: with limits in tokens (gates/token_limits.py), which vLLM has; with whole replies only; and "blocks",
the rule for an engine that does not say how many places it has: 32 at a time, all waited for.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.gate_runs import a_reference, a_task, answer

from medbench.harness.contracts import Sample
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.schedule import Schedule
from medbench.harness.gates.token_limits import NO_LIMITS, Limits, limits_for
from medbench.harness.protocols.protocol import load_protocol

A, B = 9.0, 0.045
"""Milliseconds per step, and per running reply and step: assumed, in the range of an 8B model on one H100."""
MOST = 2048
"""The token limit."""
LIMITS = limits_for(load_protocol("cot-v2", max_new_tokens=MOST))
REAL = "Meta-Llama-3_1-8B-Instruct"
KINDS = ("lognormal", "longer if wrong", "real")


@dataclass
class Engine:
    """Yields ids as their replies finish; `clock` is in seconds."""

    lengths: Mapping[str, int]
    capacity: int
    clock: float = 0.0

    def generate(self, ids: Iterable[str | None], limits: Sequence[int] = ()) -> Iterator[tuple[str, int | None]]:
        """(id, None) of a reply that ended; (id, limit) of one that runs on beyond the limit."""
        source = iter(ids)
        waiting: deque[str] = deque()
        running: list[tuple[int, str, int]] = []
        """(step, id, limit passed at that step; 0: it ends)"""
        under_way = 0
        step = 0
        while True:
            while len(waiting) + under_way < 2 * self.capacity and (id := next(source, None)) is not None:
                waiting.append(id)
            while waiting and under_way < self.capacity:
                id, under_way = waiting.popleft(), under_way + 1
                length = max(1, self.lengths[id])
                heapq.heappush(running, (step + length, id, 0))
                for limit in limits:
                    if length > limit:
                        heapq.heappush(running, (step + limit + 1, id, limit))
            if not running:
                return
            ends = running[0][0]
            self.clock += (ends - step) * (A + B * under_way) / 1000
            step = ends
            told = []
            while running and running[0][0] == step:
                _, id, limit = heapq.heappop(running)
                told.append((id, limit or None))
            under_way -= sum(limit is None for _, limit in told)
            yield from told


def whole_seconds(engine: Engine, order: Sequence[str]) -> float:
    before = engine.clock
    for _ in engine.generate(order):
        pass
    return engine.clock - before


def verdict_seconds(gate: LiveGate, samples: Mapping[str, Sample], engine: Engine, places: int | None) -> float:
    schedule = Schedule(gate, {"health": {}}, places)
    before = engine.clock
    while not schedule.done:
        ids = (item and item[1] for item in schedule.to_send())
        with closing(engine.generate(ids, gate.limits.tokens)) as stream:
            for id, limit in stream:
                if limit is None:
                    schedule.arrived("health", samples[id], seconds=0.0)
                else:
                    schedule.passed("health", id, limit)
                if schedule.done:
                    break
    return engine.clock - before


@dataclass(frozen=True)
class Case:
    """One gate on one checkpoint."""

    rules: GateFile
    scores: np.ndarray
    baseline: np.ndarray | None
    controls: Sequence[np.ndarray]
    passes: bool
    """Whether the whole run passes."""


@dataclass(frozen=True)
class Measured:
    share: float
    """Time to verdict over the whole run's."""
    wrong: bool
    """The verdict is not the whole run's."""
    used: int
    """Questions that decided it."""


def as_samples(scores: np.ndarray, lengths: Mapping[str, int]) -> dict[str, Sample]:
    return {
        id: answer(id, float(score), completion_tokens=lengths[id]) for id, score in zip(lengths, scores, strict=True)
    }


def drawn(correct: np.ndarray, count: int, draw: random.Random, model: int | None) -> list[int]:
    """`count` models at random, the first of which is `model` if that is given."""
    if model is None:
        return draw.sample(range(correct.shape[1]), count)
    return [model, *draw.sample([one for one in range(correct.shape[1]) if one != model], count - 1)]


def floor_case(correct: np.ndarray, gap: float, draw: random.Random, judged: int | None) -> Case:
    """`gap`: the true accuracy minus the floor."""
    model, *others = drawn(correct, 9, draw, judged)
    floor = float(np.clip(correct[:, model].mean() - gap, 0.0, 1.0))
    rules = GateFile(gates=[Gate(task="health", at_least=floor)])
    return Case(rules, correct[:, model], None, [correct[:, other] for other in others], gap >= 0)


def copy_case(correct: np.ndarray, margin: float, loss: float, draw: random.Random, copied: int | None) -> Case:
    """A copy that differs on 4 % of the questions and is worse by `loss`."""
    base, *others = drawn(correct, 8, draw, copied)
    scores = correct[:, base].copy()
    flips, net = round(0.04 * len(scores)), round(loss * len(scores))
    lost = (flips + net) // 2
    right, wrong = np.flatnonzero(scores == 1), np.flatnonzero(scores == 0)
    scores[draw.sample(list(right), lost)] = 0
    scores[draw.sample(list(wrong), flips - lost)] = 1
    rules = GateFile(gates=[Gate(task="health", margin=margin)])
    return Case(rules, scores, correct[:, base], [correct[:, other] for other in others], loss <= margin)


CASES: dict[str, Callable[[np.ndarray, random.Random, int | None], Case]] = {
    **{
        f"floor, {100 * gap:+.0f} points": lambda correct, draw, model, gap=gap: floor_case(correct, gap, draw, model)
        for gap in (-0.10, -0.05, -0.03, -0.02, 0.02, 0.03, 0.05, 0.10)
    },
    **{
        f"copy, {'equal' if not loss else 'loses 4 points'}, margin {100 * margin:.0f}": (
            lambda correct, draw, model, margin=margin, loss=loss: copy_case(correct, margin, loss, draw, model)
        )
        for margin in (0.02, 0.03)
        for loss in (0.0, 0.04)
    },
}


def lognormal(medians: Sequence[float], draw: random.Random) -> dict[str, int]:
    return {
        f"q{number}": min(MOST, max(1, int(draw.lognormvariate(np.log(median), 0.75))))
        for number, median in enumerate(medians)
    }


def real_lengths(data: Path) -> list[int]:
    """Tokens of a real model's replies, in the questions' order."""
    from medbench.harness.checkpoints.resolve import resolve
    from medbench.harness.protocols.chat import encode, load_tokenizer

    tokenizer = load_tokenizer(resolve("smollm2-135m").path)
    replies = pd.read_json(data / "replay" / f"mmlu_pro_health_{REAL}.jsonl", lines=True)
    return [min(MOST, len(encode(tokenizer, text, templated=True))) for text in replies["output"]]


def measurer(case: Case, lengths: Mapping[str, int], capacity: int, seed: int) -> Callable[..., Measured]:
    """A function of the limits (and whether to ask in blocks) that measures one gate on the case."""
    task = a_task(list(lengths), "health")
    samples = as_samples(case.scores, lengths)
    reference = (
        a_reference("base", {"health": as_samples(case.baseline, lengths)}) if case.baseline is not None else None
    )
    controls = [a_reference(f"c{i}", {"health": as_samples(one, lengths)}) for i, one in enumerate(case.controls)]
    engine = Engine(lengths, capacity)

    def measure(limits: Limits, *, blocks: bool = False) -> Measured:
        gate = LiveGate(case.rules, [task], seed, reference, controls, limits=limits)
        whole = whole_seconds(engine, gate.orders["health"])
        took = verdict_seconds(gate, samples, engine, None if blocks else engine.capacity)
        (result,) = gate.results()
        return Measured(took / whole, (result.status == "pass") != case.passes, result.used)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--capacity", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--only", default="", help="cases whose kind and name contain this")
    asked = parser.parse_args()
    data = Path(os.environ.get("MEDBENCH_DATA") or sys.exit("set MEDBENCH_DATA to the folder of the benchmarks"))
    table = pd.read_csv(data / "replay" / "mmlu_pro_health_correct.csv", index_col=0)
    correct, model = table.to_numpy(dtype=float), list(table.columns).index(REAL)
    started = time.monotonic()
    print("| replies | capacity | case | limits: mean | 95th % | whole: mean | 95th % | blocks | questions % | wrong |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    real = real_lengths(data)
    for kind, capacity, name in itertools.product(KINDS, asked.capacity, CASES):
        if asked.only not in f"{kind}, {name}":
            continue
        found = []
        for seed in range(asked.seeds):
            draw = random.Random(f"{name} {seed}")
            case = CASES[name](correct, draw, model if kind == "real" else None)
            if kind == "real":
                lengths = {f"q{number}": length for number, length in enumerate(real)}
            else:
                medians = (
                    np.where(case.scores > 0, 350, 900) if kind == "longer if wrong" else np.full(len(correct), 500)
                )
                lengths = lognormal(medians, draw)
            measure = measurer(case, lengths, capacity, seed)
            limited, whole = measure(LIMITS), measure(NO_LIMITS)
            blocks = measure(NO_LIMITS, blocks=True).share if seed < asked.seeds // 4 else np.nan
            found.append((limited.share, whole.share, blocks, limited.used, limited.wrong))
        limited, whole, blocks, used, wrong = (np.array(column, dtype=float) for column in zip(*found, strict=True))
        shares = [
            limited.mean(),
            np.percentile(limited, 95),
            whole.mean(),
            np.percentile(whole, 95),
            np.nanmean(blocks),
        ]
        print(
            f"| {kind} | {capacity} | {name} | {' | '.join(f'{share:.2f}' for share in shares)} "
            f"| {100 * used.mean() / len(correct):.0f} | {int(wrong.sum())} |",
            flush=True,
        )
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
