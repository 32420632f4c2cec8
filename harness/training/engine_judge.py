"""The loop's judge: gates a checkpoint in a live engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.checkpoints.fingerprint import fingerprint
from medbench.harness.checkpoints.merge import forget_merge
from medbench.harness.checkpoints.resolve import copy_weights, resolve
from medbench.harness.checkpoints.unchanged import is_unchanged
from medbench.harness.checkpoints.weights import weight_files
from medbench.harness.contracts import Sample, Say
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.evaluation.evaluate import answer_all
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.plan import plan_evaluation
from medbench.harness.gates.finished_run import gate_finished_run, protocol_of, samples_of
from medbench.harness.gates.judge import Asked, answer_whole, judge_checkpoint
from medbench.harness.gates.rules import GateFile
from medbench.harness.runs.run_folder import read_samples
from medbench.harness.training.contracts import Ruling
from medbench.harness.training.difficulty import Probe
from medbench.harness.training.prepare import Prepared


@dataclass(slots=True)
class EngineJudge:
    """contracts.Judge with a real engine."""

    folder: Path
    prepared: Prepared
    options: EvalOptions
    say: Say
    keeper: EngineKeeper

    def judge(
        self, checkpoint: Path, rules: GateFile, *, name: str, seed: int, baseline: Path | None, alpha_fail: float
    ) -> Ruling:
        asked = replace(self._asked(rules), baseline=baseline, alpha_fail=alpha_fail)
        judged = judge_checkpoint(self._options(checkpoint, name, seed), asked, self.keeper, self.say)
        if judged.verdict.overall != "pass" and judged.folder is not None:
            forget_merge(resolve(str(checkpoint)))
        samples = self.samples(judged.folder) if judged.folder is not None else {}
        asked_for = sum(map(len, samples.values()))
        return Ruling(judged.verdict, judged.folder, judged.seconds, asked_for, samples)

    def measure(self, checkpoint: Path, rules: GateFile, *, name: str, seed: int) -> Ruling:
        free = rules.model_copy(update={"gates": [gate for gate in rules.gates if not gate.paired]})
        if len(free.gates) == len(rules.gates):
            return self.judge(checkpoint, rules, name=name, seed=seed, baseline=None, alpha_fail=rules.alpha)
        whole = self.answer(checkpoint, rules, name=name, seed=seed)
        assert whole.run is not None, "it was answered"
        verdict = gate_finished_run(whole.run, free, None).verdict if free.tasks else None
        return replace(whole, verdict=verdict)

    def answer(self, checkpoint: Path, rules: GateFile, *, name: str, seed: int) -> Ruling:
        began = datetime.now(UTC)
        folder = answer_whole(self._options(checkpoint, name, seed), self._asked(rules), self.keeper, self.say)
        samples = self.samples(folder)
        seconds = (datetime.now(UTC) - began).total_seconds()
        return Ruling(None, folder, seconds, sum(map(len, samples.values())), samples)

    def probe(self, checkpoint: Path, probe: Probe, *, name: str, seed: int) -> Sequence[Sample]:
        task = probe.task()
        options = replace(self._options(checkpoint, name, seed), tasks=(task.name,), samples=probe.samples)
        plan = plan_evaluation(options, [task], probe.protocol, self.say)
        folder = answer_all(plan, self.say, self.keeper).folder
        return list(read_samples(folder, task.name))

    def promote(self, checkpoint: Path, target: Path) -> str:
        return copy_weights(self.full(checkpoint), target)

    def full(self, checkpoint: Path) -> Path:
        return Path(resolve(str(checkpoint), self.say).path)

    def fingerprint(self, checkpoint: Path) -> str:
        return fingerprint(weight_files(checkpoint))

    def unchanged(self, checkpoint: Path, start: Path) -> bool:
        return is_unchanged(checkpoint, self.full(start))

    def samples(self, run: Path) -> Mapping[str, Sequence[Sample]]:
        return {path.stem: list(read_samples(run, path.stem)) for path in sorted((run / "samples").glob("*.jsonl"))}

    def rest(self) -> None:
        if self.prepared.recipe.device == "shared":
            self.keeper.rest()

    def _options(self, checkpoint: Path, name: str, seed: int) -> EvalOptions:
        # by stage, attempt and step, so that a training can be repeated; the process that trains does not know the name
        return replace(self.options, model=str(checkpoint), name=name, seed=seed, order_seed=f"{seed} {name}")

    def _asked(self, rules: GateFile) -> Asked:
        tasks = [keep_partition(self.prepared.tasks[name], rules.partition) for name in rules.tasks]
        return Asked(rules, tasks, protocol_of(rules, None, tasks), samples_of(rules, None))
