"""How far replicas carry: the driver's completions per second, and the efficiency of many replicas.

    python tests/bench/replicas.py                        # about 5 minutes; needs Ray
    python tests/bench/replicas.py --only model           # without Ray: the simulated clock alone

Three measurements:

- "driver": real Ray and replicas whose engine answers at once, with replies of 500 tokens. CPU time of the driver's
  process per completion, in the engine alone and in a whole evaluation (prompts, extraction, scores, run folder); and
  the wall clock, which replicas on the same cores share
- "clock": real Ray and the step-time model of verdict_time.py, slowed down or sped up, in real time: what Ray, the
  dispatcher and the polling cost, on as many replicas as the cores can pretend to be
- "model": the same model on a simulated clock, the real dispatcher (engines/replicas/dispatch.py) and the real gate: a
  whole evaluation and a gate on 1, 2, 8 and 64 replicas. A completion costs the driver what "driver" measured, one
  after the other

Efficiency: the time on one replica, over the number of replicas times the time on all of them.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from support.gate_runs import a_task, answer, write_medqa
from verdict_time import LIMITS, A, B, lognormal, verdict_seconds

from medbench.harness.contracts import Checkpoint, Completion, Message, Passed, Request
from medbench.harness.engines.plugins import GROUP
from medbench.harness.engines.replicas.dispatch import Dispatcher
from medbench.harness.engines.replicas.engine import AHEAD, FEWEST_AHEAD
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.protocols.chat import plain_text

NEEDS: tuple[str, ...] = ()
TEXT = """patient pain chest left arm acute coronary syndrome history physical examination shows blood pressure normal
fever with without after before treatment therapy most likely diagnosis option because however therefore symptoms of the
in a and to is are has been this these studies laboratory findings consistent mechanism drug dose"""
WORDS = TEXT.split()
_draw = random.Random(0)
REPLIES = [
    " ".join(f"{' '.join(_draw.choices(WORDS, k=_draw.randrange(8, 25))).capitalize()}." for _ in range(20))
    for _ in range(64)
]
"""Sentences of a real reply's length, about 2,000 characters, that say nothing."""
SEATS = 256
DRIVER = 1 / 5000
"""Seconds of the driver for a completion in the model, unless --driver says otherwise."""


# --- as an engine plugin, in the replicas' processes -----------------------------------------------------------------


class StepEngine:
    """The step-time model in real time; `speed` times as fast, or without any time at all for 0."""

    name = "steps"
    chat_template = "none"
    reports_milestones = True
    places = SEATS

    def __init__(self, speed: float) -> None:
        self._speed = speed

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return plain_text(messages)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion | Passed]:
        source = iter(requests)
        running: list[tuple[int, int, Request]] = []
        numbers = itertools.count()
        step, clock = 0, time.monotonic()
        while True:
            while len(running) < self.places and (request := next(source, None)) is not None:
                length = random.Random(request.id).lognormvariate(np.log(500), 0.75) if self._speed else 0
                heapq.heappush(running, (step + min(2048, max(1, int(length))), next(numbers), request))
            if not running:
                return
            if self._speed:
                clock = max(clock, time.monotonic() - 0.05)
                clock += (running[0][0] - step) * (A + B * len(running)) / 1000 / self._speed
                time.sleep(max(0.0, clock - time.monotonic()))
            step, _, request = heapq.heappop(running)
            if request.choices is not None:
                yield Completion(request.id, "", "error", error="no probe")
                continue
            yield Completion(request.id, f"{REPLIES[step % len(REPLIES)]} The answer is (A).", "stop", 200, 500)

    def settings(self) -> Mapping[str, Any]:
        return {"speed": self._speed}

    def close(self) -> None: ...


def start(name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> StepEngine:
    return StepEngine(float(name.rpartition("x")[2]))


def installed() -> str:
    """A folder for PYTHONPATH that makes this file the plugin "steps"."""
    site = Path(tempfile.mkdtemp())
    info = site / "steps-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nsteps = replicas\n")
    return os.pathsep.join([str(site), str(Path(__file__).parent), str(Path(__file__).parent.parent)])


# --- driver ----------------------------------------------------------------------------------------------------------


def requests(count: int, prefix: str) -> list[Request]:
    prompt = "A 45-year-old man comes to the physician because of chest pain for three days. " * 12
    return [Request(f"toy/{prefix}{number}", (), prompt, 2048) for number in range(count)]


def driver(count: int) -> None:
    """Prints a table; see the module."""
    from medbench.harness.engines.replicas.cluster import connect
    from medbench.harness.engines.replicas.engine import ReplicatedEngine

    cluster = connect(None, cpus=64)
    print("| driver, answers at once | replicas | completions | driver's CPU, us each | per s and core | wall, per s |")
    print("|---|---|---|---|---|---|")
    try:
        for replicas in (1, 2, 8):
            engine = ReplicatedEngine(EngineChoice("steps", EngineConfig(replicas=replicas)))
            engine.load("x0", None)
            list(engine.generate(requests(200 * replicas, "warm")))
            _row("engine alone", replicas, count, lambda engine=engine: list(engine.generate(requests(count, "q"))))
            engine.close()
        with tempfile.TemporaryDirectory() as folder:
            write_medqa(Path(folder) / "data", count)
            _row("whole evaluation", 2, count, lambda: evaluated(Path(folder), 2))
    finally:
        cluster.close()


def evaluated(folder: Path, replicas: int) -> None:
    from medbench.harness import api

    api.evaluate(
        "x0", engine="steps", engine_config={"replicas": replicas}, tasks="medqa", data=folder / "data",
        runs=folder / "runs", quiet=True,
    )  # fmt: skip


def _row(what: str, replicas: int, count: int, work: Any) -> None:
    wall, cpu = time.monotonic(), time.process_time()
    work()
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    print(
        f"| {what} | {replicas} | {count} | {1e6 * cpu / count:.0f} | {count / cpu:.0f} | {count / wall:.0f} |",
        flush=True,
    )


# --- clock -----------------------------------------------------------------------------------------------------------


def clock(counts: Sequence[int], each: int, speed: float) -> None:
    from medbench.harness.engines.replicas.cluster import connect
    from medbench.harness.engines.replicas.engine import ReplicatedEngine

    cluster = connect(None, cpus=64)
    print(f"| clock, {speed:g} x real time | replicas | questions | s | efficiency | efficiency, simulated |")
    print("|---|---|---|---|---|---|")
    alone = None
    try:
        for replicas in counts:
            engine = ReplicatedEngine(EngineChoice("steps", EngineConfig(replicas=replicas)))
            engine.load(f"x{speed}", None)
            asked = requests(each * max(counts), "q")
            started = time.monotonic()
            list(engine.generate(asked))
            took = time.monotonic() - started
            engine.close()
            alone = alone or took
            lengths = {one.id: length_of(one.id) for one in asked}
            model = whole(lengths, 1, 0.0) / (replicas * whole(lengths, replicas, 0.0))
            share = alone / (replicas * took)
            print(f"| whole run | {replicas} | {len(asked)} | {took:.1f} | {share:.3f} | {model:.3f} |", flush=True)
    finally:
        cluster.close()


def length_of(id: str) -> int:
    return min(2048, max(1, int(random.Random(id).lognormvariate(np.log(500), 0.75))))


# --- model -----------------------------------------------------------------------------------------------------------


@dataclass
class _Engine:
    """One replica on the simulated clock."""

    step: int = 0
    now: float = 0.0
    """When it reached that step."""
    running: list[tuple[int, str, int]] = field(default_factory=list)
    """(step, id, limit passed at that step; 0: it ends)"""
    under_way: int = 0
    waiting: deque[str] = field(default_factory=deque)

    def seat(self, at: float, lengths: Mapping[str, int], limits: Sequence[int]) -> None:
        """Seat what waits; `at` is now."""
        if not self.running:
            self.now = max(self.now, at)
        else:
            per_step = (A + B * self.under_way) / 1000
            steps = max(0, int((at - self.now) / per_step))
            self.step, self.now = self.step + steps, self.now + steps * per_step
        while self.waiting and self.under_way < SEATS:
            id, self.under_way = self.waiting.popleft(), self.under_way + 1
            heapq.heappush(self.running, (self.step + lengths[id], id, 0))
            for limit in limits:
                if lengths[id] > limit:
                    heapq.heappush(self.running, (self.step + limit + 1, id, limit))

    def next_at(self) -> float:
        return self.now + (self.running[0][0] - self.step) * (A + B * self.under_way) / 1000

    def advance(self) -> list[tuple[str, int]]:
        self.now, self.step = self.next_at(), self.running[0][0]
        told = []
        while self.running and self.running[0][0] == self.step:
            _, id, limit = heapq.heappop(self.running)
            told.append((id, limit))
        self.under_way -= sum(not limit for _, limit in told)
        return told


@dataclass
class Simulated:
    """Replicas with the real dispatcher, and a driver that takes `driver` seconds for each completion."""

    lengths: Mapping[str, int]
    replicas: int
    driver: float
    clock: float = 0.0
    """Of the driver."""

    @property
    def places(self) -> int:
        return SEATS * self.replicas

    def generate(self, ids: Iterable[str | None], limits: Sequence[int] = ()) -> Iterator[tuple[str, int | None]]:
        dispatcher, engines, source = Dispatcher(), [_Engine(now=self.clock) for _ in range(self.replicas)], iter(ids)
        for index in range(self.replicas):
            dispatcher.join(index, max(FEWEST_AHEAD, AHEAD * SEATS))
        due: list[tuple[float, int, int]] = []
        versions = [0] * self.replicas

        def schedule(index: int) -> None:
            versions[index] += 1
            if engines[index].running:
                heapq.heappush(due, (engines[index].next_at(), index, versions[index]))

        while True:
            while dispatcher.has_room() and (id := next(source, None)) is not None:
                dispatcher.accept(Request(id, (), "", 1))
            for index, some in dispatcher.deal().items():
                engines[index].waiting.extend(one.id for one in some)
                engines[index].seat(self.clock, self.lengths, limits)
                schedule(index)
            if not due:
                return
            at, index, version = heapq.heappop(due)
            if version != versions[index]:
                continue
            told = engines[index].advance()
            engines[index].seat(at, self.lengths, limits)
            schedule(index)
            self.clock = max(self.clock, at)
            for id, limit in told:
                self.clock += self.driver
                if not limit:
                    dispatcher.finished(index, Completion(id, "", "stop"))
                yield id, limit or None


def whole(lengths: Mapping[str, int], replicas: int, seconds: float) -> float:
    engine = Simulated(lengths, replicas, seconds)
    for _ in engine.generate(lengths):
        pass
    return engine.clock


def gate_seconds(
    lengths: Mapping[str, int], scores: Sequence[float], floor: float, replicas: int, seconds: float
) -> tuple[float, int]:
    """(time to the verdict, questions that decided it)"""
    samples = {id: answer(id, score, completion_tokens=lengths[id]) for id, score in zip(lengths, scores, strict=True)}
    rules = GateFile(gates=[Gate(task="health", at_least=floor)])
    gate = LiveGate(rules, [a_task(list(lengths), "health")], 0, None, [], limits=LIMITS)
    engine = Simulated(lengths, replicas, seconds)
    took = verdict_seconds(gate, samples, engine, engine.places)
    (result,) = gate.results()
    return took, result.used


def model(seconds: float, seeds: int) -> None:
    print(
        f"\n| model: {SEATS} seats, {1e6 * seconds:.0f} us of the driver per completion | questions | 1: s "
        f"| 2: efficiency | 8: s | 8: efficiency | 64: s | 64: efficiency |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for questions in (1_273, 5_000, 20_000, 100_000):
        lengths = lognormal([500] * questions, random.Random(questions))
        took = {replicas: whole(lengths, replicas, seconds) for replicas in (1, 2, 8, 64)}
        _print_model("whole run", questions, took)
    for gap, questions in itertools.product((-0.05, -0.10, 0.05, 0.10), (1_273,)):
        times: dict[int, list[float]] = {replicas: [] for replicas in (1, 2, 8, 64)}
        used = []
        for seed in range(seeds):
            draw = random.Random(f"{gap} {seed}")
            lengths = lognormal([500] * questions, draw)
            scores = [float(draw.random() < 0.6) for _ in lengths]
            for replicas, found in times.items():
                took_here, count = gate_seconds(lengths, scores, 0.6 - gap, replicas, seconds)
                found.append(took_here)
            used.append(count)
        name = f"gate {100 * gap:+.0f} points, decided by {np.mean(used):.0f}"
        _print_model(name, questions, {replicas: float(np.mean(found)) for replicas, found in times.items()})


def _print_model(name: str, questions: int, took: Mapping[int, float]) -> None:
    share = {replicas: took[1] / (replicas * seconds) for replicas, seconds in took.items()}
    print(
        f"| {name} | {questions} | {took[1]:.0f} | {share[2]:.2f} | {took[8]:.0f} | {share[8]:.2f} "
        f"| {took[64]:.0f} | {share[64]:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["driver", "clock", "model"])
    parser.add_argument("--count", type=int, default=20_000, help="completions, for `driver`")
    parser.add_argument("--each", type=int, default=2_000, help="questions for each replica, for `clock`")
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 8], help="for `clock`")
    parser.add_argument("--speed", type=float, default=1.0, help="for `clock`")
    parser.add_argument("--driver", type=float, default=DRIVER, help="seconds per completion, for `model`")
    parser.add_argument("--seeds", type=int, default=10, help="gates of each kind, for `model`")
    asked = parser.parse_args()
    if asked.only != "model":
        paths = installed()
        sys.path[:0] = paths.split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [paths, os.environ.get("PYTHONPATH", "")]))
    if asked.only in (None, "driver"):
        driver(asked.count)
    if asked.only in (None, "clock"):
        clock(asked.replicas, asked.each, asked.speed)
    if asked.only in (None, "model"):
        model(asked.driver, asked.seeds)


if __name__ == "__main__":
    main()
