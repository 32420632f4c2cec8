"""The loop in a made-up world: what it does next, what it journals, and that a resumed loop repeats nothing.

pytest tests/training/test_loop.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.loops import Done, MadeUpTrainings, recipe_of, world

from medbench.harness.contracts import Sample
from medbench.harness.training.checkpoint_folder import publish
from medbench.harness.training.journal import (
    AlarmRaised,
    AttemptEnded,
    AttemptStarted,
    Confirmed,
    Event,
    Gated,
    Journal,
    Measured,
    Promoted,
    TrainingEnded,
    read_events,
)
from medbench.harness.training.loop import Loop
from medbench.harness.training.next_action import seed_of
from medbench.harness.training.recipe import Stage
from medbench.harness.training.watchdogs import Alarm, Watchdogs

FLOOR = {"task": "medqa", "at_least": 0.6}
NO_WORSE = {"task": "medqa", "margin": 0.05}


def finish(loop: Loop) -> list[Event]:
    with loop.journal:
        loop.run()
    return loop.journal.events


def of(kind: type[Any], events: Sequence[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_the_first_checkpoint_that_passes_is_confirmed_on_other_questions_and_promoted(tmp_path: Path) -> None:
    trainings = MadeUpTrainings([[0.4, 0.8, 0.9]])
    loop = world(tmp_path, recipe_of([FLOOR]), trainings)
    events = finish(loop)
    assert [(one.step, one.verdict.overall) for one in of(Gated, events)] == [(10, "fail"), (20, "pass")]
    (confirmed,) = of(Confirmed, events)
    assert (confirmed.step, confirmed.verdict.partition, confirmed.verdict.overall) == (20, "report", "pass")
    (promoted,) = of(Promoted, events)
    assert json.loads((tmp_path / promoted.checkpoint / "truth.json").read_text())["accuracy"] == 0.8
    assert events[-1].event == "training_ended"
    assert (events[-1].outcome, events[-1].checkpoint) == ("passed", promoted.checkpoint)


def test_a_failed_attempt_is_rerun_with_another_seed_and_less_alpha_until_one_passes(tmp_path: Path) -> None:
    trainings = MadeUpTrainings([[0.3], [0.35], [0.8]])
    recipe = recipe_of([FLOOR])
    events = finish(world(tmp_path, recipe, trainings))
    started = of(AttemptStarted, events)
    assert [one.attempt for one in started] == [1, 2, 3]
    assert [one.seed for one in started] == [seed_of(recipe, recipe.stages[0], number) for number in (1, 2, 3)]
    assert len({one.seed for one in started}) == 3
    assert started[0].alpha > started[1].alpha > started[2].alpha
    assert sum(one.alpha for one in started) < 0.05
    assert [one.outcome for one in of(AttemptEnded, events)] == ["failed", "failed", "passed"]


def test_the_alpha_spent_on_all_checkpoints_of_all_attempts_stays_below_alpha(tmp_path: Path) -> None:
    trainings = MadeUpTrainings([[0.3] * 6] * 5)
    events = finish(world(tmp_path, recipe_of([FLOOR], attempts=5), trainings))
    gated = of(Gated, events)
    assert len(gated) == 30
    assert sum(one.alpha for one in gated) < 0.05
    assert all(one.verdict.alpha == one.alpha for one in gated)


def test_when_attempts_run_out_the_best_checkpoint_and_the_reason_are_named(tmp_path: Path) -> None:
    trainings = MadeUpTrainings([[0.2, 0.45], [0.3, 0.25]])
    events = finish(world(tmp_path, recipe_of([FLOOR], attempts=2), trainings, exact=True))
    end = events[-1]
    assert isinstance(end, TrainingEnded)
    assert (end.outcome, end.checkpoint) == ("failed", "1-stage1/attempt-1/step-000020")
    assert "2 attempts failed" in end.reason
    assert "accuracy" in end.reason


def test_an_attempt_that_was_still_improving_is_continued_from_its_best_checkpoint(tmp_path: Path) -> None:
    trainings = MadeUpTrainings([[0.2, 0.3, 0.45], [0.45, 0.2], [0.8]])
    finish(world(tmp_path, recipe_of([FLOOR]), trainings, exact=True))
    starts = [one["start"] for one in trainings.started]
    assert starts == [tmp_path / "start", tmp_path / "1-stage1/attempt-1/step-000030", tmp_path / "start"]


def test_a_proven_regression_stops_the_attempt_early(tmp_path: Path) -> None:
    trainings = MadeUpTrainings([[0.2, 0.9], [0.75]])
    recipe = recipe_of([NO_WORSE])
    events = finish(world(tmp_path, recipe, trainings, start=0.7, exact=True))
    first, second = of(AttemptEnded, events)
    assert "is shown to fail" in first.reason
    assert "not worse than the baseline" in first.reason
    assert [(one.attempt, one.step) for one in of(Gated, events)] == [(1, 10), (2, 10)]  # step 20 was never judged
    assert second.outcome == "passed"
    assert [(one.partition, one.whole) for one in of(Measured, events)] == [("gate", True), ("report", True)]


def test_weights_that_training_left_unchanged_are_not_judged_and_not_promoted(tmp_path: Path) -> None:
    class NoUpdate(MadeUpTrainings):
        def __call__(self, stage: Stage, config: Mapping[str, Any], *, start: Path, folder: Path, seed: int) -> Done:
            publish(folder, 10, lambda aside: shutil.copy(start / "truth.json", aside))
            return Done()

    loop = world(tmp_path, recipe_of([{"task": "medqa", "at_least": 0.1}, NO_WORSE], attempts=1), NoUpdate([]))
    events = finish(loop)
    (gated,) = of(Gated, events)
    assert (gated.verdict.overall, gated.run, gated.questions) == ("fail", None, 0)
    assert gated.verdict.why.startswith("weights unchanged: every weight is that of the start")
    assert not of(Promoted, events)
    (ended,) = of(AttemptEnded, events)
    assert ended.reason.startswith("no checkpoint passed; the best, step 10: weights unchanged")
    assert not any("step" in name for name in loop.judge.judged)


def test_a_verdict_names_the_scores_of_the_start(tmp_path: Path) -> None:
    events = finish(world(tmp_path, recipe_of([FLOOR]), MadeUpTrainings([[0.9]])))
    (measured,), (gated,) = of(Measured, events)[:1], of(Gated, events)
    (start,) = measured.verdict.gates
    assert gated.verdict.why == f"the gate passes; the start: medqa accuracy {100 * start.estimate:.1f} %"


def test_a_margin_is_one_from_the_stages_baseline_and_the_start_is_measured_by_the_other_gates(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "truth.json").write_text(json.dumps({"accuracy": 0.8, "seed": 5}))
    recipe = recipe_of([{"task": "medqa", "margin": 0.1}, {"task": "medqa", "at_least": 0.1}], attempts=1)
    stages = [stage.model_copy(update={"baseline": str(teacher)}) for stage in recipe.stages]
    named = recipe.model_copy(update={"stages": stages})
    # better than the start by far, but worse than the teacher by more than the margin, then as good as it
    loop = world(tmp_path / "named", named, MadeUpTrainings([[0.55, 0.82]]), start=0.3, n=600)
    events = finish(loop)
    assert [(one.step, one.verdict.overall) for one in of(Gated, events)] == [(10, "fail"), (20, "pass")]
    gate, report = of(Measured, events)
    assert (gate.run, gate.baseline, gate.whole) == ("runs/stage1-start-gate", "runs/stage1-baseline-gate", False)
    assert [one.rule for one in gate.verdict.gates] == ["medqa accuracy >= 10.0 %"]
    assert report.baseline == "runs/stage1-baseline-report"
    assert of(Promoted, events)
    (first, *_) = of(Gated, events)
    (margin,) = [one for one in first.verdict.gates if one.kind == "margin"]
    assert margin.estimate == pytest.approx(-0.25, abs=0.1)


def test_the_next_stage_starts_from_the_promoted_checkpoint(tmp_path: Path) -> None:
    trainings = MadeUpTrainings([[0.8], [0.9]])
    events = finish(world(tmp_path, recipe_of([FLOOR], stages=2), trainings))
    assert [one["start"] for one in trainings.started] == [tmp_path / "start", tmp_path / "1-stage1/promoted"]
    assert [one.stage for one in of(Promoted, events)] == ["stage1", "stage2"]


def test_a_relative_runs_folder_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainings = MadeUpTrainings([[0.3, 0.4, 0.5], [0.8], [0.9]])
    events = finish(world(Path("runs/train-x"), recipe_of([FLOOR], stages=2), trainings, exact=True))
    assert events[-1].outcome == "passed"
    assert [one.start for one in of(AttemptStarted, events)][1:] == [
        "1-stage1/attempt-1/step-000030",
        "1-stage1/promoted",
    ]


def test_a_checkpoint_that_is_not_confirmed_is_not_promoted(tmp_path: Path) -> None:
    class Lucky(MadeUpTrainings):
        """Its first attempt is good only on the questions that the loop sees."""

    loop = world(tmp_path, recipe_of([FLOOR], attempts=2), Lucky([[0.9], [0.9]]))
    judge, judged = loop.judge, loop.judge.judge

    def unlucky(checkpoint: Path, rules: Any, *, name: str, **given: Any) -> Any:
        if name == "stage1-a1-step-000010-report":
            truth = checkpoint / "truth.json"
            kept = truth.read_text()
            truth.write_text(json.dumps({"accuracy": 0.3, "seed": 1}))
            try:
                return judged(checkpoint, rules, name=name, **given)
            finally:
                truth.write_text(kept)
        return judged(checkpoint, rules, name=name, **given)

    class Unlucky:
        def __getattr__(self, name: str) -> Any:
            return unlucky if name == "judge" else getattr(judge, name)

    loop.judge = Unlucky()
    events = finish(loop)
    ends = of(AttemptEnded, events)
    assert [one.outcome for one in ends] == ["failed", "passed"]
    assert "not confirmed" in ends[0].reason
    alphas = [one.alpha for one in of(Confirmed, events)]
    assert alphas[0] > alphas[1]
    assert sum(alphas) < 0.05


def test_a_crash_and_an_empty_attempt_end_with_the_last_lines(tmp_path: Path) -> None:
    trainings = MadeUpTrainings([[], [], [0.8]], codes=[1, 0])
    events = finish(world(tmp_path, recipe_of([FLOOR]), trainings))
    crashed, empty, passed = of(AttemptEnded, events)
    assert crashed.crashed
    assert "RuntimeError: out of memory" in crashed.reason
    assert "no checkpoint" in empty.reason
    assert passed.outcome == "passed"


def test_divergence_stops_the_attempt_and_halves_the_learning_rate(tmp_path: Path) -> None:
    def metrics(attempt: int, step: int) -> Mapping[str, float]:
        return {"loss": float("nan") if attempt == 0 and step > 4 else 1.0}

    trainings = MadeUpTrainings([[0.9], [0.9]], metrics=metrics)
    events = finish(world(tmp_path, recipe_of([FLOOR]), trainings, watch=Watchdogs))
    (alarm,) = of(AlarmRaised, events)
    assert (alarm.kind, alarm.step, alarm.stop) == ("not_finite", 5, True)
    ends = of(AttemptEnded, events)
    assert ends[0].diverged
    assert ends[0].reason.startswith("watchdog not_finite: loss is nan at step 5")
    assert [one.attempt for one in of(Gated, events)] == [2]  # checkpoints after the NaN are not worth judging
    rates = [one["config"]["settings"]["learning_rate"] for one in trainings.started]
    assert rates == [0.5, 0.25]


def test_questions_and_hours_run_out(tmp_path: Path) -> None:
    few = finish(world(tmp_path / "a", recipe_of([FLOOR], attempts=9, questions=120), MadeUpTrainings([[0.57]] * 9)))
    assert "the 120 questions are spent" in few[-1].reason
    short = recipe_of([FLOOR], attempts=9, hours=1e-9)
    none = finish(world(tmp_path / "b", short, MadeUpTrainings([[0.9]] * 9)))
    assert "hours are spent" in none[-1].reason
    assert of(AttemptStarted, none) == []


def test_a_larger_budget_lets_an_ended_training_continue(tmp_path: Path) -> None:
    trainings = MadeUpTrainings([[0.3], [0.8]])
    first = finish(world(tmp_path, recipe_of([FLOOR], attempts=1), trainings))
    assert first[-1].outcome == "failed"
    again = finish(world(tmp_path, recipe_of([FLOOR], attempts=1), trainings))
    assert again == first  # nothing was done, nothing was added
    more = finish(world(tmp_path, recipe_of([FLOOR], attempts=2), trainings))
    assert more[-1].outcome == "passed"
    assert len(trainings.started) == 2


class Killed(Exception):
    """Stands for kill -9: nothing after it runs in the session."""


@pytest.mark.slow
@pytest.mark.parametrize("after", range(1, 14))
def test_a_loop_killed_after_any_event_ends_as_if_it_was_not(tmp_path: Path, after: int) -> None:
    def play(folder: Path, kill_after: int | None) -> tuple[list[Event], list[str]]:
        asked: list[str] = []
        runs: dict[str, Any] = {}
        trainings = MadeUpTrainings([[0.3, 0.35], [0.8], [0.85]])
        recipe = recipe_of([FLOOR, NO_WORSE], stages=2)
        for session in range(2):
            loop = world(folder, recipe, trainings, start=0.2, exact=True)
            if kill_after is not None and session == 0:
                append = loop.journal.append

                def dies(event: Event, append: Any = append, journal: Journal = loop.journal) -> None:
                    append(event)
                    if len(journal.events) == kill_after:
                        raise Killed

                loop.journal.append = dies  # type: ignore[method-assign]
            loop.judge.runs = runs  # type: ignore[attr-defined]  # the runs of an earlier session are on disk
            try:
                with loop.journal:
                    loop.run()
            except Killed:
                pass
            asked += loop.judge.judged  # type: ignore[attr-defined]
        return list(read_events(folder)), asked

    whole, _ = play(tmp_path / "whole", None)
    torn, asked = play(tmp_path / "torn", after)
    assert [_told(event, tmp_path / "torn") for event in torn] == [_told(event, tmp_path / "whole") for event in whole]
    assert len(asked) == len(set(asked))  # nothing was judged twice


def _told(event: Event, folder: Path) -> dict[str, Any]:
    """The event without times and paths."""
    text = event.model_dump_json(exclude={"elapsed", "seconds", "training_seconds"})
    return json.loads(text.replace(str(folder), "."))


def test_watchdogs_are_fed_the_same_after_a_resume(tmp_path: Path) -> None:
    """Their alarms depend on all earlier steps, so a new session must feed them these first."""

    class Counting:
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def step(self, step: int, metrics: Mapping[str, object]) -> list[Alarm]:
            self.heard.append(step)
            return []

        def judged(self, step: int, samples: Mapping[str, Sequence[Sample]]) -> list[Alarm]:
            self.heard.append(("judged", step, len(samples["medqa"])))
            return []

    def heard(folder: Path, kill: bool) -> list[Any]:
        watches: list[Counting] = []
        trainings = MadeUpTrainings([[0.3, 0.31, 0.32]] * 2)
        runs: dict[str, Any] = {}
        for _ in range(2 if kill else 1):
            loop = world(folder, recipe_of([FLOOR], attempts=1), trainings, watch=lambda _: _kept(watches, Counting()))
            first = not runs
            loop.judge.runs = runs  # type: ignore[attr-defined]
            if kill and first:
                append = loop.journal.append

                def dies(event: Event, append: Any = append) -> None:
                    append(event)
                    if isinstance(event, Gated) and event.step == 20:
                        raise Killed

                loop.journal.append = dies  # type: ignore[method-assign]
            try:
                finish(loop)
            except Killed:
                continue
        return watches[-1].heard

    assert heard(tmp_path / "torn", kill=True) == heard(tmp_path / "whole", kill=False)


def _kept(watches: list[Any], watch: Any) -> Any:
    watches.append(watch)
    return watch
