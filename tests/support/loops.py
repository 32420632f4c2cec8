"""A made-up world for tests of the training loop: a trainer that writes numbers, and a judge that believes them.

    from support.loops import MadeUpTrainings, recipe_of, world
    ended = world(tmp_path, recipe_of([{"task": "medqa", "at_least": 0.6}]), MadeUpTrainings([[0.4, 0.5], [0.7]])).run()

A checkpoint is a folder with truth.json, its accuracy. Its answers are drawn from that, the same every time, and judged
by the real gates in the real order. Nothing here proves that an engine or a trainer works.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medbench.harness.contracts import Data, Question, Sample, Task
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.rules import GateFile
from medbench.harness.gates.verdict import Verdict, overall_of
from medbench.harness.training.checkpoint_folder import append_metrics, publish
from medbench.harness.training.contracts import Ruling
from medbench.harness.training.difficulty import Probe
from medbench.harness.training.journal import Journal
from medbench.harness.training.loop import Loop
from medbench.harness.training.recipe import Recipe, Stage
from medbench.harness.training.watchdogs import WatchdogConfig
from support.gate_driver import drive
from support.gate_runs import a_reference

LABELS = ("A", "B", "C", "D")


def made_up_task(partition: str, n: int) -> Task:
    questions = tuple(Question(f"{partition}-{at}", f"{partition}-{at}", "?", LABELS, LABELS, "A") for at in range(n))
    return Task("medqa", "1", "test", 0.25, questions, Data("local", "0" * 64, official=False))


def answers(task: Task, accuracy: float, seed: int, *, exact: bool) -> dict[str, Sample]:
    """One sample per question; `exact`: exactly this share of them is right, else each with this probability."""
    draw = random.Random(f"{seed} {task.questions[0].id}")
    if exact:
        right = set(draw.sample(range(len(task.questions)), int(accuracy * len(task.questions) + 1e-9)))
    else:
        right = {at for at in range(len(task.questions)) if draw.random() < accuracy}
    return {question.id: _sample(question, at in right) for at, question in enumerate(task.questions)}


def _sample(question: Question, right: bool) -> Sample:
    letter = "A" if right else "B"
    return Sample(
        question.id, question.cluster, "", letter, "stop", letter, "answered", None, "A", float(right), None, 10, 10, {}
    )


@dataclass(slots=True)
class MadeUpJudge:
    """A contracts.Judge without an engine."""

    folder: Path
    n: int = 200
    exact: bool = False
    judged: list[str] = field(default_factory=list)
    """Names of all judged checkpoints, in order."""
    runs: dict[str, dict[str, Sample]] = field(default_factory=dict)

    def judge(
        self, checkpoint: Path, rules: GateFile, *, name: str, seed: int, baseline: Path | None, alpha_fail: float
    ) -> Ruling:
        self.judged.append(name)
        task = made_up_task(rules.partition, self.n)
        samples = self._answers(checkpoint, task)
        reference = a_reference("start", {"medqa": self.runs[baseline.name]}) if baseline is not None else None
        gate = LiveGate(rules, [task], seed, reference, unit=100.0, alpha_fail=alpha_fail)
        drive(gate, {task.name: samples})
        results = gate.results()
        overall, why = overall_of(results)
        verdict = Verdict(
            overall=overall,
            why=why,
            alpha=rules.alpha,
            decide=rules.decide,
            partition=rules.partition,
            correction="",
            candidate=str(checkpoint),
            fingerprint="",
            baseline=None,
            protocol="cot-v2",
            gates=results,
        )
        asked = {id: samples[id] for id in gate.asked["medqa"]}
        self.runs[name] = asked
        return Ruling(verdict, self.folder / "runs" / name, 0.0, gate.used, {"medqa": list(asked.values())})

    def measure(self, checkpoint: Path, rules: GateFile, *, name: str, seed: int) -> Ruling:
        if not any(gate.paired for gate in rules.gates):
            return self.judge(checkpoint, rules, name=name, seed=seed, baseline=None, alpha_fail=rules.alpha)
        return self.answer(checkpoint, rules, name=name, seed=seed)

    def answer(self, checkpoint: Path, rules: GateFile, *, name: str, seed: int) -> Ruling:
        self.judged.append(name)
        self.runs[name] = self._answers(checkpoint, made_up_task(rules.partition, self.n))
        return Ruling(None, self.folder / "runs" / name, 0.0, self.n, {"medqa": list(self.runs[name].values())})

    def probe(self, checkpoint: Path, probe: Probe, *, name: str, seed: int) -> Sequence[Sample]:
        raise AssertionError("the trainer `command` asks nothing")

    def _answers(self, checkpoint: Path, task: Task) -> dict[str, Sample]:
        truth = json.loads((checkpoint / "truth.json").read_text())
        return answers(task, truth["accuracy"], truth["seed"], exact=self.exact)

    def promote(self, checkpoint: Path, target: Path) -> str:
        target.mkdir(exist_ok=True)
        (target / "truth.json").write_bytes((checkpoint / "truth.json").read_bytes())
        return self.fingerprint(target)

    def full(self, checkpoint: Path) -> Path:
        return checkpoint

    def fingerprint(self, checkpoint: Path) -> str:
        return (checkpoint / "truth.json").read_text()

    def unchanged(self, checkpoint: Path, start: Path) -> bool:
        return json.loads((checkpoint / "truth.json").read_text()) == json.loads((start / "truth.json").read_text())

    def samples(self, run: Path) -> Mapping[str, Sequence[Sample]]:
        return {"medqa": list(self.runs.get(run.name, {}).values())}

    def rest(self) -> None:
        pass


class Done:
    """A training that has ended when it starts."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def stop(self) -> None:
        pass


@dataclass(slots=True)
class MadeUpTrainings:
    """A contracts.Launcher: attempt k leaves checkpoints with the k-th accuracies, ten steps apart."""

    accuracies: Sequence[Sequence[float]]
    started: list[dict[str, Any]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    metrics: Callable[[int, int], Mapping[str, float]] = lambda attempt, step: {"loss": 1.0}
    codes: Sequence[int] = ()
    """Exit status of each attempt; 0 for attempts beyond its end."""

    def __call__(self, stage: Stage, config: Mapping[str, Any], *, start: Path, folder: Path, seed: int) -> Done:
        self.started.append({"stage": stage.name, "config": dict(config), "start": start, "seed": seed})
        assert (start / "truth.json").exists(), f"{start} is not a checkpoint"
        if folder not in self.folders:
            self.folders.append(folder)
        attempt = self.folders.index(folder)  # a resumed attempt is not a new one
        for number, accuracy in enumerate(self.accuracies[attempt], 1):
            step = 10 * number
            for at in range(step - 9, step + 1):
                append_metrics(folder, at, self.metrics(attempt, at))
            truth = json.dumps({"accuracy": accuracy, "seed": seed + number})
            publish(folder, step, lambda aside, truth=truth: (aside / "truth.json").write_text(truth))
        code = self.codes[attempt] if attempt < len(self.codes) else 0
        if code:
            (folder / "log.txt").write_text("Epoch 1\nRuntimeError: out of memory\n")
        return Done(code)


class Silent:
    """Watchdogs that never raise an alarm."""

    def step(self, step: int, metrics: Mapping[str, object]) -> list[Any]:
        return []

    def judged(self, step: int, samples: Mapping[str, Sequence[Sample]]) -> list[Any]:
        return []


def recipe_of(gates: Sequence[Mapping[str, Any]], *, attempts: int = 3, stages: int = 1, **budget: Any) -> Recipe:
    """A recipe with the `command` trainer; its program is never started here."""
    config = {"command": ["true"], "settings": {"learning_rate": 0.5}}
    rules = {"alpha": 0.05, "gates": [dict(gate) for gate in gates]}
    return Recipe.model_validate(
        {
            "name": "made-up",
            "start": "start",
            "budget": {"attempts": attempts, **budget},
            "stages": [
                {"name": f"stage{number}", "trainer": "command", "config": config, "gates": rules}
                for number in range(1, stages + 1)
            ],
        }
    )


def world(
    folder: Path,
    recipe: Recipe,
    trainings: Any,
    *,
    start: float = 0.3,
    n: int = 200,
    exact: bool = False,
    watch: Callable[[WatchdogConfig], Any] = lambda config: Silent(),
) -> Loop:
    """A loop in the made-up world of `folder`, new or resumed."""
    begin = folder / "start"
    begin.mkdir(parents=True, exist_ok=True)
    (begin / "truth.json").write_text(json.dumps({"accuracy": start, "seed": 0}))
    judge = MadeUpJudge(folder, n, exact)
    return Loop(
        folder, recipe, begin, Journal(folder), judge, trainings, lambda line: None, watch=watch, sleep=lambda _: None
    )
