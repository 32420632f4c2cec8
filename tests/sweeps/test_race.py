"""The comparison of a sweep's checkpoints, with an engine whose answers are known: order, drops, resumption.

pytest tests/sweeps/test_race.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.loops import made_up_task

from medbench.harness.contracts import Completion, Request
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.run_folder import read_run, read_samples
from medbench.harness.sweeps.halving import Halving
from medbench.harness.sweeps.race import Race, best_of, drop_of, order_seed_of, scores_of

N = 128
TASK = made_up_task("gate", N)
"""Its right answers are all A."""


class Engine(FakeEngine):
    """Answers right on the first questions of the task, as many as the cell whose turn it is knows."""

    def __init__(self, knows: Mapping[str, int], stop_after: int | None = None, fails: str | None = None) -> None:
        super().__init__({})
        self.knows, self.stop_after, self.fails = knows, stop_after, fails
        self.cell = ""
        self.asked: list[tuple[str, str]] = []

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in requests:
            if request is None:
                return
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            id = request.id.partition("/")[2]
            self.asked.append((self.cell, id))
            if self.cell == self.fails:
                yield Completion(request.id, "", "error", error="no answer")
                continue
            letter = "A" if int(id.rpartition("-")[2]) < self.knows[self.cell] else "B"
            yield Completion(request.id, f"the answer is ({letter})", "stop", completion_tokens=5)


class Keeper:
    """An EngineKeeper that tells the engine whose turn it is."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def serve(self, choice: EngineChoice, name: str, checkpoint: Any) -> Engine:
        self.engine.cell = Path(name).name
        return self.engine

    def pause(self) -> None: ...


@pytest.fixture(autouse=True)
def outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each run would ask git for its commit."""
    monkeypatch.chdir(tmp_path)


def race(folder: Path, engine: Engine, *, most: int = N, seed: str = "0 abc") -> Race:
    return Race(
        task=TASK,
        protocol=load_protocol("cot-v2"),
        samples=1,
        checkpoints={cell: Path("checkpoints") / cell for cell in engine.knows},
        options=EvalOptions(
            "",
            tasks=(TASK.name,),
            partition="gate",
            runs=folder,
            resume=True,
            quiet=True,
            engine=EngineChoice(instance=engine),
        ),
        order_seed=seed,
        alpha=0.05,
        most=most,
    )


def run(folder: Path, engine: Engine, **options: Any) -> Halving:
    return race(folder, engine, **options).run(Keeper(engine), lambda line: None)  # type: ignore[arg-type]


KNOWS = {"good": 120, "fair": 112, "bad": 20, "worst": 0}


def test_all_cells_are_asked_the_same_questions_until_they_are_dropped(tmp_path: Path) -> None:
    engine = Engine(KNOWS)
    rule = run(tmp_path, engine)
    assert {drop.cell for drop in rule.dropped} >= {"bad", "worst"}
    order = race(tmp_path, engine).order
    for cell in KNOWS:
        asked = {id for own, id in engine.asked if own == cell}
        assert asked == set(order[: len(asked)]), "a beginning of the one order"
        assert len(asked) == len(rule.scores[cell])
    assert len(rule.scores["worst"]) == 32
    assert "good" in rule.left
    record = read_run(tmp_path / "good")
    assert (record.order_seed, record.partition) == ("0 abc", "gate")


def test_a_comparison_that_is_interrupted_anywhere_comes_to_the_same_and_asks_nothing_twice(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", Engine(KNOWS))
    for stop_after in (0, 1, 31, 32, 100, 150, 200):
        folder = tmp_path / str(stop_after)
        first = Engine(KNOWS, stop_after)
        with pytest.raises(KeyboardInterrupt):
            run(folder, first)
        second = Engine(KNOWS)
        rule = run(folder, second)
        assert (rule.dropped, rule.left, rule.scores) == (whole.dropped, whole.left, whole.scores)
        assert len({*first.asked, *second.asked}) == len(first.asked) + len(second.asked)


def test_a_finished_comparison_asks_nothing_when_it_is_repeated(tmp_path: Path) -> None:
    first = run(tmp_path, Engine(KNOWS))
    again = Engine(KNOWS)
    assert run(tmp_path, again).dropped == first.dropped
    assert again.asked == []


def test_no_cell_is_asked_more_than_the_recipe_says(tmp_path: Path) -> None:
    rule = run(tmp_path, Engine({"a": 64, "b": 63}), most=40)
    assert {len(scores) for scores in rule.scores.values()} == {40}
    assert rule.left == ["a", "b"]
    assert len(list(read_samples(tmp_path / "a", TASK.name))) == 40


def test_a_single_cell_is_asked_everything_and_is_the_best(tmp_path: Path) -> None:
    rule = run(tmp_path, Engine({"only": 96}))
    assert best_of(rule, {}) == "only"
    (score,) = scores_of(rule, TASK, "only").values()
    assert (score.asked, score.score, score.to_best) == (N, 0.75, None)
    assert score.of_new_questions
    assert score.interval[0] < 0.75 < score.interval[1]
    assert read_run(tmp_path / "only").status == "complete"


def test_a_cell_whose_requests_fail_is_not_dropped_for_that(tmp_path: Path) -> None:
    rule = run(tmp_path, Engine({"a": 64, "broken": 64}, fails="broken"))
    assert "broken" in rule.left
    score = scores_of(rule, TASK, "a")["broken"]
    assert (score.failed, score.score) == (N, None)
    assert score.interval == (0.0, 1.0)


def test_scores_have_intervals_and_paired_differences_to_the_best(tmp_path: Path) -> None:
    rule = run(tmp_path, Engine(KNOWS))
    found = scores_of(rule, TASK, "good")
    assert found["good"].to_best is None
    assert not found["worst"].of_new_questions
    low, high = found["worst"].interval
    assert low == 0.0
    assert 0.0 < high < 0.4
    assert found["worst"].to_best_interval is None
    assert found["worst"].to_best is not None
    assert found["worst"].to_best > 0.8


def test_of_equal_cells_the_one_with_fewer_trained_parameters_is_the_best(tmp_path: Path) -> None:
    rule = run(tmp_path, Engine({"large": 64, "small": 64}))
    assert rule.left == ["large", "small"]
    assert best_of(rule, {"large": 1000, "small": 10}) == "small"


def test_infinite_evidence_can_be_stored(tmp_path: Path) -> None:
    rule = run(tmp_path, Engine({"all": N, "none": 0}))
    drop = drop_of(rule, "none")
    assert drop is not None
    assert 0 < drop.log_e <= 1e9
    assert drop_of(rule, "all") is None


def test_the_order_depends_on_all_weights_and_not_on_their_order() -> None:
    assert order_seed_of(0, ["a", "b"]) == order_seed_of(0, ["b", "a"])
    assert len({order_seed_of(seed, names) for seed in (0, 1) for names in (["a"], ["a", "b"], ["a", "c"])}) == 6
