"""The training loop: trains, gates, reruns, promotes, and journals each step when it is done.

    ended = Loop(folder, recipe, start, journal, judge, launch, say).run()

next_action.next_action decides what comes next, from the journal alone; this module carries it out. A kill loses
little: a half-judged checkpoint keeps its answers in its run folder, and a half-trained attempt resumes from its last
checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from medbench.harness.contracts import Say
from medbench.harness.gates.rules import GateFile
from medbench.harness.gates.verdict import Verdict, unchanged_weights
from medbench.harness.gates.wording import number
from medbench.harness.stats.spending import spent_alpha
from medbench.harness.training import next_action
from medbench.harness.training.checkpoint_folder import (
    LOG,
    MetricsReader,
    Published,
    checkpoints,
    last_lines,
    mark_judged,
)
from medbench.harness.training.contracts import Judge, Launcher, Process, Ruling
from medbench.harness.training.difficulty import in_words, write_shares
from medbench.harness.training.journal import (
    AlarmRaised,
    AttemptEnded,
    AttemptStarted,
    Confirmed,
    Event,
    Gated,
    Journal,
    Measured,
    Probed,
    Promoted,
    StageStarted,
    TrainingEnded,
)
from medbench.harness.training.prepare import data_folder_set
from medbench.harness.training.process import Finished
from medbench.harness.training.recipe import Recipe, Stage, read_config
from medbench.harness.training.state import (
    Attempt,
    StageState,
    best_of,
    ended,
    is_diverged,
    is_improving,
    is_rambling,
    regressed,
    stages_of,
    worth_of,
)
from medbench.harness.training.trainer_plugins import FailedAttempt, Trainer, adapt, find_trainer, probe
from medbench.harness.training.watchdogs import Alarm, AttemptWatch, WatchdogConfig, Watchdogs

POLL_SECONDS = 0.5
FINISHED = ".finished"
"""In an attempt's folder: its training ran to completion."""


@dataclass(slots=True)
class Loop:
    """One training, from its journal's last event to its end."""

    folder: Path
    recipe: Recipe
    start: Path
    """Folder of the full checkpoint that the recipe starts from."""
    journal: Journal
    judge: Judge
    launch: Launcher
    say: Say
    prepared: Mapping[str, list[str]] = field(default_factory=dict)
    """Stage -> what its trainer reported about its data and memory."""
    data: Path | None = None
    """What $MEDBENCH_DATA stands for in the recipe; None leaves it to the environment."""
    watch: Callable[[WatchdogConfig], Watchdogs] = Watchdogs
    """Creates the watchdogs of one attempt."""
    sleep: Callable[[float], None] = time.sleep
    _began: float = field(default_factory=time.monotonic)
    _before: float = 0.0
    """Seconds of the sessions before this one."""

    def __post_init__(self) -> None:
        self._before = self.journal.events[-1].elapsed if self.journal.events else 0.0

    def run(self) -> TrainingEnded:
        """Until every stage is promoted, or the budget is spent."""
        while not isinstance(action := next_action.next_action(self.recipe, self.journal.events), next_action.End):
            self._perform(action)
        wanted = TrainingEnded(outcome=action.outcome, reason=action.reason, checkpoint=action.checkpoint)
        last = ended(self.journal.events)
        if last is None or (last.outcome, last.reason) != (wanted.outcome, wanted.reason):
            self._append(wanted)
        reached = ended(self.journal.events)
        assert reached is not None
        return reached

    def _perform(self, action: next_action.Action) -> None:
        match action:
            case next_action.BeginStage(index):
                self._begin_stage(index)
            case next_action.Measure(index, partition):
                self._measure(index, partition, self._current_stage())
            case next_action.BeginAttempt(index, number, start):
                self._begin_attempt(index, number, start, self._current_stage())
            case next_action.Train(index):
                self._train(index)
            case next_action.Confirm(index):
                self._confirm(index, self._current_stage())
            case next_action.Refuse():
                self._refuse(self._open_attempt())
            case next_action.Promote(index):
                self._promote(index, self._current_stage().attempts[-1])

    def _current_stage(self) -> StageState:
        """A snapshot: it does not change when an event is appended."""
        return stages_of(self.journal.events)[-1]

    def _open_attempt(self) -> Attempt:
        """A snapshot, like _current_stage."""
        return _open(self._current_stage())

    def _elapsed(self) -> float:
        """Seconds of work on this training, over all sessions."""
        return self._before + time.monotonic() - self._began

    def _append(self, event: Event) -> None:
        self.journal.append(event.model_copy(update={"elapsed": round(self._elapsed(), 3)}))

    def _relative(self, path: Path | None) -> str | None:
        return str(path.relative_to(self.folder)) if path is not None else None

    def _begin_stage(self, index: int) -> None:
        before = next((e for e in reversed(self.journal.events) if isinstance(e, Promoted)), None)
        start = before.checkpoint if before is not None else str(self.start.resolve())
        name = self.recipe.stages[index].name
        prepared = self.prepared.get(name, [])
        fingerprint = self.judge.fingerprint(self.folder / start)
        self._append(StageStarted(stage=name, start=start, fingerprint=fingerprint, prepared=prepared))
        self.say(f"stage {name}: from {start}")

    def _measure(self, index: int, partition: next_action.Partition, state: StageState) -> None:
        stage, named = state.started, self.recipe.stages[index].baseline
        rules = self._rules(index, partition, self.recipe.stages[index].gates.alpha)
        free = [gate for gate in rules.gates if not gate.paired]
        baseline = None
        if named is not None and len(free) < len(rules.gates):
            model = self.judge.full(Path(named))
            baseline = self.judge.answer(
                model, rules, name=f"{stage.stage}-baseline-{partition}", seed=self.recipe.seed
            )
            assert baseline.run is not None, "it was answered"
            self.say(f"stage {stage.stage}: {named} has answered {baseline.questions} {partition} questions")
            if free:  # the start is no baseline, so not every question needs to be asked
                rules = rules.model_copy(update={"gates": free})
        found = self.judge.measure(
            self.folder / stage.start, rules, name=f"{stage.stage}-start-{partition}", seed=self.recipe.seed
        )
        assert found.run is not None, "the start was resolved before"
        whole = any(gate.paired for gate in rules.gates)
        self._append(
            Measured(
                stage=stage.stage,
                partition=partition,
                verdict=found.verdict,
                run=str(found.run.relative_to(self.folder)),
                whole=whole,
                questions=found.questions + (baseline.questions if baseline is not None else 0),
                baseline=self._relative(baseline.run) if baseline is not None else None,
            )
        )
        why = found.verdict.why if found.verdict is not None else f"{found.questions} answered"
        self.say(f"stage {stage.stage}: its start on the {partition} questions: {why}")

    def _begin_attempt(self, index: int, number: int, start: str | None, state: StageState) -> None:
        stage = self.recipe.stages[index]
        trainer = find_trainer(stage.trainer)
        config = read_config(trainer.Config, stage.config, f"stage {stage.name}: config")
        self._probe(index, trainer, config, state)
        for attempt in state.attempts:
            assert attempt.ended is not None
            config = adapt(trainer, config, _failed(attempt, attempt.ended))
        alpha = spent_alpha(stage.gates.alpha, number)
        seed = next_action.seed_of(self.recipe, stage, number)
        self._append(
            AttemptStarted(
                stage=stage.name,
                attempt=number,
                seed=seed,
                start=start or state.started.start,
                config=config.model_dump(mode="json"),
                alpha=alpha,
            )
        )
        on = f", continuing from {start}" if start else ""
        self.say(f"stage {stage.name}, attempt {number} of {self.recipe.budget.attempts}: seed {seed}{on}")

    def _probe(self, index: int, trainer: Trainer, config: BaseModel, state: StageState) -> None:
        """Measure what the trainer wants to know of the stage's start, once."""
        if state.probed is not None:
            return
        folder, stage = stage_folder(self.folder, self.recipe, index), state.started.stage
        start = self.judge.full(self.folder / state.started.start)
        with data_folder_set(self.data):
            asked = probe(trainer, config, start=start, folder=folder)
        if asked is None:
            return
        began, name = self._elapsed(), f"{stage}-difficulty"
        self.say(f"stage {stage}: its start answers {len(asked.questions)} questions to train on")
        samples = self.judge.probe(start, asked, name=name, seed=self.recipe.seed)
        said = in_words(write_shares(folder, name, samples))
        self._append(
            Probed(
                stage=stage,
                run=f"runs/{name}",
                questions=len(asked.questions),
                said=said,
                seconds=round(self._elapsed() - began, 3),
            )
        )
        self.say(f"stage {stage}: {said}")

    def _train(self, index: int) -> None:
        """Train until a checkpoint passes or the attempt ends."""
        stage, state = self.recipe.stages[index], self._current_stage()
        attempt = _open(state)
        folder = stage_folder(self.folder, self.recipe, index) / f"attempt-{attempt.started.attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        mark_judged(folder, 0, _score_of_start(stage.gates, state.measured.get("gate")))
        watch = AttemptWatch(self.watch(self.recipe.watchdogs))
        logged = MetricsReader(folder)
        watch.catch_up(logged.read(), attempt.gated, lambda run: self.judge.samples(self.folder / run))
        with self._process(stage, attempt.started, folder) as process:
            while True:
                code = process.poll()  # before the folder is read: a process that has ended adds nothing to it
                metrics = logged.read()  # before the checkpoints, so that none is judged with steps later than its own
                state = self._current_stage()
                attempt = _open(state)
                judged = {one.step for one in attempt.gated}
                found = next((one for one in checkpoints(folder) if one.step not in judged), None)
                reason = self._journal(attempt, watch.steps(metrics, until=found.step if found is not None else None))
                if reason is None and found is not None:
                    passed, reason = self._gate(index, state, attempt, found, watch)
                    if passed:
                        return
                    mark_judged(folder, found.step, worth_of(self._open_attempt().gated[-1].verdict))
                elif reason is None and code is not None:
                    reason = _why_ended(attempt, folder, code)
                if reason is None:
                    reason = next_action.spent_budget(self.recipe.budget, self.journal.events, self._elapsed())
                if reason is not None:
                    crashed = code not in (None, 0) and found is None
                    self._end_attempt(self._open_attempt(), "failed", reason, crashed=crashed)
                    return
                if found is None:
                    self.sleep(POLL_SECONDS)

    @contextmanager
    def _process(self, stage: Stage, started: AttemptStarted, folder: Path) -> Iterator[Process]:
        if (folder / FINISHED).exists():
            yield Finished()
            return
        self.judge.rest()
        start = self.judge.full(self.folder / started.start)
        process = self.launch(stage, started.config, start=start, folder=folder, seed=started.seed)
        try:
            yield process
            if process.poll() == 0:
                (folder / FINISHED).touch()
        finally:
            process.stop()

    def _journal(self, attempt: Attempt, alarms: Sequence[Alarm]) -> str | None:
        """Journal the alarms that are new; the reason of the first that stops the attempt, or None."""
        known = {(alarm.kind, alarm.step, alarm.stop) for alarm in attempt.alarms}
        for alarm in alarms:
            if (alarm.kind, alarm.step, alarm.stop) not in known:
                self._append(
                    AlarmRaised(
                        stage=attempt.started.stage,
                        attempt=attempt.started.attempt,
                        step=alarm.step,
                        kind=alarm.kind,
                        reason=alarm.reason,
                        stop=alarm.stop,
                    )
                )
                self.say(f"{'stopped' if alarm.stop else 'watchdog'}: {alarm.reason}")
        return next((f"watchdog {alarm.kind}: {alarm.reason}" for alarm in alarms if alarm.stop), None)

    def _gate(
        self, index: int, state: StageState, attempt: Attempt, found: Published, watch: AttemptWatch
    ) -> tuple[bool, str | None]:
        """Judge a checkpoint on the gate questions: (whether it passed, why the attempt must stop or None)."""
        stage = self.recipe.stages[index]
        alpha = spent_alpha(attempt.started.alpha, len(attempt.gated) + 1)
        left = next_action.questions_left(self.recipe.budget, self.journal.events)
        rules = self._rules(index, "gate", alpha, left)
        measured = state.measured.get("gate")
        unchanged = self.judge.unchanged(found.path, self.folder / attempt.started.start)
        if unchanged:  # it would pass or fail as the start does
            ruling = Ruling(unchanged_weights(str(found.path), rules), None, 0.0, 0, {})
        else:
            ruling = self._ask(found.path, found.step, attempt.started, measured, rules, stage.gates.alpha)
            self.judge.rest()
        verdict = _beside_start(_verdict(ruling), measured)
        self._append(
            Gated(
                stage=stage.name,
                attempt=attempt.started.attempt,
                step=found.step,
                checkpoint=str(found.path.relative_to(self.folder)),
                verdict=verdict,
                alpha=alpha,
                run=self._relative(ruling.run),
                seconds=round(ruling.seconds, 3),
                questions=ruling.questions,
            )
        )
        self.say(f"step {found.step}: {verdict.overall}: {verdict.why}")
        reason = self._journal(attempt, watch.judged(found.step, ruling.samples))
        if verdict.overall == "pass":
            return True, None
        rule = None if unchanged else regressed(verdict, stage)
        return False, f"step {found.step} is shown to fail '{rule}'" if rule is not None else reason

    def _ask(
        self,
        checkpoint: Path,
        step: int,
        started: AttemptStarted,
        measured: Measured | None,
        rules: GateFile,
        alpha_fail: float,
    ) -> Ruling:
        return self.judge.judge(
            checkpoint,
            rules,
            name=f"{started.stage}-a{started.attempt}-step-{step:06d}-{rules.partition}",
            seed=started.seed,
            baseline=self.folder / measured.compared if measured is not None and measured.compared else None,
            alpha_fail=alpha_fail,
        )

    def _refuse(self, attempt: Attempt) -> None:
        assert attempt.confirmed is not None
        self._end_attempt(attempt, "failed", f"passed while training, not confirmed: {attempt.confirmed.verdict.why}")

    def _end_attempt(
        self, attempt: Attempt, outcome: Literal["passed", "failed"], reason: str, *, crashed: bool = False
    ) -> None:
        judging = sum(one.seconds for one in (*attempt.gated, *([attempt.confirmed] if attempt.confirmed else ())))
        best = best_of(attempt.gated)
        self._append(
            AttemptEnded(
                stage=attempt.started.stage,
                attempt=attempt.started.attempt,
                outcome=outcome,
                reason=reason,
                step=best.step if best is not None else None,
                improving=is_improving(attempt),
                diverged=is_diverged(attempt),
                rambling=is_rambling(attempt),
                crashed=crashed,
                training_seconds=round(max(0.0, self._elapsed() - attempt.started.elapsed - judging), 3),
            )
        )
        self.say(f"stage {attempt.started.stage}, attempt {attempt.started.attempt} {outcome}: {reason}")

    def _confirm(self, index: int, state: StageState) -> None:
        stage, attempt = self.recipe.stages[index], _open(state)
        passed = attempt.passed
        assert passed is not None
        alpha = spent_alpha(stage.gates.alpha, state.confirmations + 1)
        rules = self._rules(index, "report", alpha)
        checkpoint, measured = self.folder / passed.checkpoint, state.measured.get("report")
        ruling = self._ask(checkpoint, passed.step, attempt.started, measured, rules, stage.gates.alpha)
        verdict = _verdict(ruling)
        self._append(
            Confirmed(
                stage=stage.name,
                attempt=attempt.started.attempt,
                step=passed.step,
                verdict=verdict,
                alpha=alpha,
                run=self._relative(ruling.run),
                seconds=round(ruling.seconds, 3),
                questions=ruling.questions,
            )
        )
        self.say(f"step {passed.step} on the report questions: {verdict.overall}: {verdict.why}")

    def _promote(self, index: int, attempt: Attempt) -> None:
        passed, started = attempt.passed, attempt.started
        assert passed is not None
        target = stage_folder(self.folder, self.recipe, index) / "promoted"
        fingerprint = self.judge.promote(self.folder / passed.checkpoint, target)
        if attempt.ended is None:
            self._end_attempt(attempt, "passed", f"step {passed.step} passed and was confirmed")
        self._append(
            Promoted(
                stage=started.stage,
                attempt=started.attempt,
                step=passed.step,
                checkpoint=str(target.relative_to(self.folder)),
                fingerprint=fingerprint,
            )
        )
        self.say(f"stage {started.stage}: step {passed.step} promoted: {target}")

    def _rules(self, index: int, partition: str, alpha: float, questions: float = math.inf) -> GateFile:
        gates = self.recipe.stages[index].gates
        budget = min(gates.budget or math.inf, questions)
        changes = {"partition": partition, "alpha": alpha, "budget": None if math.isinf(budget) else int(budget)}
        return gates.model_copy(update=changes)


def stage_folder(folder: Path, recipe: Recipe, index: int) -> Path:
    """Folder of a stage's attempts."""
    return folder / f"{index + 1}-{recipe.stages[index].name}"


def _open(state: StageState) -> Attempt:
    attempt = state.open
    assert attempt is not None, "next_action asks for this only while an attempt is open"
    return attempt


def _why_ended(attempt: Attempt, folder: Path, code: int) -> str:
    """Why an attempt failed whose training ended with exit status `code` and left no checkpoint unjudged."""
    if code != 0:
        return f"training ended with {code}: {last_lines(folder / LOG)}"
    best = best_of(attempt.gated)
    if best is None:
        return f"training left no checkpoint: {last_lines(folder / LOG)}"
    return f"no checkpoint passed; the best, step {best.step}: {best.verdict.why}"


def _verdict(ruling: Ruling) -> Verdict:
    assert ruling.verdict is not None, "a judged checkpoint has a verdict"
    return ruling.verdict


def _score_of_start(rules: GateFile, measured: Measured | None) -> float | None:
    """The start's `worth_of` by the same gates, where a difference to itself is 0; None where it was not measured."""
    accuracy = [gate for gate in rules.gates if gate.metric == "accuracy"]
    if not accuracy:
        return None
    known = measured.verdict.gates if measured is not None and measured.verdict is not None else []
    found = [one.estimate for one in known if one.metric == "accuracy" and one.estimate is not None]
    missing = sum(not gate.paired for gate in accuracy) - len(found)
    return None if missing else math.fsum(found) / len(accuracy)


def _beside_start(verdict: Verdict, measured: Measured | None) -> Verdict:
    """The verdict, with the start's own scores in its reason; the results of paired gates are differences to them."""
    if measured is None or measured.verdict is None:
        return verdict
    scores = [
        f"{gate.task} {gate.metric} {number(gate.unit, gate.estimate)}"
        for gate in measured.verdict.gates
        if gate.estimate is not None
    ]
    return verdict.model_copy(update={"why": f"{verdict.why}; the start: {', '.join(scores)}"}) if scores else verdict


def _failed(attempt: Attempt, ended: AttemptEnded) -> FailedAttempt:
    return FailedAttempt(
        reason=ended.reason,
        diverged=ended.diverged,
        rambling=ended.rambling,
        improving=ended.improving,
        crashed=ended.crashed,
        verdict=attempt.gated[-1].verdict if attempt.gated else None,
    )
