"""The test of a mean over tasks: honest along any predictable path, exact at the end, cheaper than bounds per task."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medbench.harness.contracts import MedbenchError
from medbench.harness.stats import sequential, stratified
from medbench.harness.stats.sequential import Control, SequentialTest
from medbench.harness.stats.stratified import StratifiedTest, Stratum, path, positions

ALPHA = 0.05


def names(count: int) -> list[str]:
    return [f"q{number}" for number in range(count)]


def stratum(count: int, controls: Sequence[Sequence[float]] = (), resolution: int | None = 1) -> Stratum:
    ids = names(count)
    given = [Control(f"c{n}", dict(zip(ids, column, strict=True))) for n, column in enumerate(controls)]
    return Stratum(ids, given, resolution)


def mean_of(tasks: Sequence[Sequence[float]]) -> float:
    return math.fsum(math.fsum(scores) / len(scores) for scores in tasks) / len(tasks)


def begin(
    tasks: Sequence[Sequence[float]],
    above: float,
    alpha: float = ALPHA,
    controls: Sequence[Sequence[Sequence[float]]] | None = None,
    resolution: int | None = 1,
) -> StratifiedTest:
    columns = controls or [[] for _ in tasks]
    strata = [stratum(len(scores), columns[number], resolution) for number, scores in enumerate(tasks)]
    return StratifiedTest(strata, above=above, alpha=alpha)


def looks(test: StratifiedTest, tasks: Sequence[Sequence[float]]) -> list[float]:
    """Log evidence after each turn."""
    found, decide = [], test._decide

    def noted() -> None:
        decide()
        found.append(test.log_e)

    test._decide = noted  # type: ignore[method-assign]
    for number, scores in enumerate(tasks):
        test.observe(number, scores)
    return found


# ---- the promise


Path = Callable[[Sequence[int], list[StratifiedTest]], Iterator[tuple[int, int]]]


def one_after_the_other(totals: Sequence[int], tests: list[StratifiedTest]) -> Iterator[tuple[int, int]]:
    for task, total in enumerate(totals):
        yield from ((task, stop) for stop in range(1, total + 1))


def in_turn(totals: Sequence[int], tests: list[StratifiedTest]) -> Iterator[tuple[int, int]]:
    return path(totals)


def the_luckier_one(totals: Sequence[int], tests: list[StratifiedTest]) -> Iterator[tuple[int, int]]:
    """Adaptive: the task whose scores so far are better, decided by scores that are consumed."""
    done = [0] * len(totals)
    while open_ := [task for task, total in enumerate(totals) if done[task] < total]:
        parts = tests[0]._parts if tests else []
        task = max(open_, key=lambda one: parts[one].scores[: done[one]].mean() if done[one] else 0.5)
        done[task] += 1
        yield task, done[task]


def what_is_right_next(totals: Sequence[int], tests: list[StratifiedTest]) -> Iterator[tuple[int, int]]:
    """Not predictable: it looks at the score that it is about to consume, as completion order does."""
    if not tests:
        return
    done = [0] * len(totals)
    while open_ := [task for task, total in enumerate(totals) if done[task] < total]:
        task = max(open_, key=lambda one: tests[0]._parts[one].scores[done[one]])
        done[task] += 1
        yield task, done[task]


def mean_evidence(
    monkeypatch: pytest.MonkeyPatch, tasks: Sequence[Sequence[float]], way: Path, resolution: int | None
) -> np.ndarray:
    """Mean of the evidence against the truth after each turn, over all orders of all tasks; most of it per run."""
    tests: list[StratifiedTest] = []
    monkeypatch.setattr(sequential, "BLOCK", 2)
    monkeypatch.setattr(stratified, "BLOCK", 2)
    monkeypatch.setattr(stratified, "TURN", 1)
    monkeypatch.setattr(stratified, "path", lambda totals: way(totals, tests))
    controls = [[[0.7, 0.2, 0.9, 0.4][: len(scores)]] for scores in tasks]
    found = []
    for orders in itertools.product(*(itertools.permutations(range(len(scores))) for scores in tasks)):
        run = [[scores[at] for at in order] for scores, order in zip(tasks, orders, strict=True)]
        known = [[[c[at] for at in order] for c in one] for one, order in zip(controls, orders, strict=True)]
        tests[:] = []
        test = begin(run, mean_of(tasks) + 1e-12, 0.2, known, resolution)
        if way is not in_turn and way is not one_after_the_other:
            # every score is there before the first is consumed, and the path starts again with the test at hand
            tests.append(test)
            for part, scores in zip(test._parts, run, strict=True):
                part.scores = np.array(scores)
            test._path = way([len(scores) for scores in run], tests)
            test._next = next(test._path)
            found.append(looks(test, [[] for _ in run]))
        else:
            found.append(looks(test, run))
    return np.exp(np.array(found))


@pytest.mark.slow
@pytest.mark.parametrize("cells", [1000, 2])
@pytest.mark.parametrize("way", [in_turn, one_after_the_other, the_luckier_one])
@pytest.mark.parametrize(
    ("tasks", "resolution"),
    [
        (([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0]), 1),
        (([1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0]), 1),
        (([0.5, 1.0, 0.0, 0.5], [0.5, 0.5, 1.0]), 2),
        (([0.3, 1.0, 0.1, 0.5], [0.2, 0.6, 1.0]), None),
    ],
)
def test_the_evidence_averages_at_most_one_over_all_orders(monkeypatch, tasks, resolution, way, cells) -> None:
    """All 144 pairs of orders, where the null hypothesis just holds; and Ville's inequality, exactly."""
    monkeypatch.setattr(stratified, "CELLS", cells)
    found = mean_evidence(monkeypatch, tasks, way, resolution)
    assert found.shape == (144, 7)
    assert np.all(found.mean(axis=0) <= 1 + 1e-9)
    for wanted in (1.2, 1.5, 2.0, 3.0):
        assert (found.max(axis=1) >= wanted).mean() <= 1 / wanted + 1e-9


def test_a_path_that_sees_the_next_scores_breaks_the_promise(monkeypatch) -> None:
    """Why scores wait for their turn instead of being consumed as they arrive."""
    found = mean_evidence(monkeypatch, ([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0]), what_is_right_next, 1)
    assert found.mean(axis=0).max() > 1.05


@pytest.mark.slow
@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("sizes", [(40, 90), (50, 50, 50)])
def test_wrong_decisions_at_the_boundary_stay_below_alpha(sizes, control) -> None:
    rng = np.random.default_rng(3)
    runs, wrong = 200, 0
    for _ in range(runs):
        tasks = [
            rng.permutation(np.arange(size) < round(share * size)) * 1.0
            for size, share in zip(sizes, (0.5, 0.8, 0.65), strict=False)
        ]
        copies = [[np.where(rng.random(len(one)) < 0.08, 1 - one, one)] if control else [] for one in tasks]
        test = begin(tasks, mean_of(tasks) + 1e-9, controls=copies)
        for number, scores in enumerate(tasks):
            test.observe(number, scores)
        wrong += test.decided_at is not None
    assert wrong / runs <= ALPHA + 2.6 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


# ---- the bound


def test_the_bound_is_below_the_least_evidence_of_all_splits_and_near_it() -> None:
    """Against every pair of totals that obeys the null hypothesis, one by one."""
    rng = np.random.default_rng(5)
    tight = []
    for number in range(12):
        tasks = [rng.permutation(np.arange(size) < share * size) * 1.0 for size, share in ((60, 0.8), (100, 0.6))]
        above = mean_of(tasks) - rng.uniform(0.02, 0.3)
        test = begin(tasks, above)
        for task, scores in enumerate(tasks):
            test.observe(task, scores[: 16 + 8 * (number % 4)])
        (first, a), (second, b) = (part.live() for part in test._parts)
        log_e = np.logaddexp.reduce(a[:, None] + b[None] + stratified.LOG_PRIOR, axis=2)
        least = log_e[first[:, None] + second[None] <= above].min()
        assert test.log_e <= least + 1e-9
        tight.append(least - test.log_e)
    assert np.median(tight) < 0.15


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), min_size=1, max_size=3), st.floats(-0.1, 1.1))
def test_it_decides_as_soon_as_the_rest_cannot_change_it(tasks, above) -> None:
    test = begin(tasks, above, alpha=1e-100)
    for number, scores in enumerate(tasks):
        test.observe(number, scores)
    done, expected = [0] * len(tasks), None
    for task, stop in itertools.chain([(0, 0)], path([len(scores) for scores in tasks])):
        done[task] = stop
        seen = math.fsum(sum(scores[:at]) / len(scores) for scores, at in zip(tasks, done, strict=True)) / len(tasks)
        if seen > above and expected is None:
            expected = sum(done)
    assert test.decided_at == expected
    assert test.certain == (mean_of(tasks) > above)
    assert test.consumed == sum(map(len, tasks))
    assert test.low == pytest.approx(mean_of(tasks))
    assert test.estimate == pytest.approx(mean_of(tasks))


def test_the_lower_bound_and_the_decision_agree() -> None:
    rng = np.random.default_rng(7)
    tasks = [rng.permutation(np.arange(size) < 0.8 * size) * 1.0 for size in (200, 300)]
    test = begin(tasks, 0.65)
    for task, stop in path([200, 300]):
        test.observe(task, tasks[task][len(test._parts[task].scores) : stop])
        assert (test.decided_at is not None) == (test.low >= 0.65)
        assert test.low <= 0.8
        if test.decided_at is not None:
            break
    assert test.decided_at == test.consumed < 300


def test_how_scores_are_handed_over_changes_nothing() -> None:
    rng = np.random.default_rng(9)
    tasks = [rng.integers(0, 2, size).astype(float) for size in (70, 45, 90)]
    copies = [[np.where(rng.random(len(one)) < 0.1, 1 - one, one)] for one in tasks]
    found = []
    for sizes in (1, 8, 100):
        test, done = begin(tasks, 0.4, controls=copies), [0, 0, 0]
        while any(at < len(scores) for at, scores in zip(done, tasks, strict=True)):
            task = int(rng.integers(3))
            test.observe(task, tasks[task][done[task] : done[task] + sizes])
            done[task] += sizes
        found.append((test.low, test.log_e, test.decided_at, test.estimate))
    assert found[0] == found[1] == found[2]


def test_scores_of_one_task_wait_for_the_other() -> None:
    test = begin([[0.0] * 100, [0.0] * 50], 0.5)
    test.observe(0, [1.0] * 100)
    assert test.consumed == stratified.TURN
    test.observe(1, [1.0] * 20)
    assert test.consumed == 3 * stratified.TURN + 2 * stratified.TURN
    assert test.started


def test_the_path_asks_all_tasks_alike_until_one_is_used_up() -> None:
    assert positions([100, 20], 0) == [0, 0]
    assert positions([100, 20], 30) == [16, 16]
    assert positions([100, 20], 70) == [56, 20]
    assert positions([100, 20], 999) == [100, 20]


def test_coarse_cells_only_lose_evidence(monkeypatch) -> None:
    rng = np.random.default_rng(4)
    tasks = [rng.permutation(np.arange(400) < 320) * 1.0 for _ in range(2)]
    lows = []
    for cells in (1000, 100):
        monkeypatch.setattr(stratified, "CELLS", cells)
        test = begin(tasks, 0.7)
        for number, scores in enumerate(tasks):
            test.observe(number, scores[:120])
        lows.append(test.low)
    assert 0.6 < lows[1] <= lows[0] < 0.8


# ---- its price


@pytest.mark.slow
def test_it_needs_fewer_questions_than_bounds_per_task() -> None:
    """Three tasks of 250 questions, 6 points above the threshold, with a control that differs on 4 %."""
    rng = np.random.default_rng(11)
    ours, bounds = [], []
    for _ in range(6):
        tasks = [rng.permutation(np.arange(250) < share * 250) * 1.0 for share in (0.6, 0.7, 0.8)]
        copies = [[np.where(rng.random(250) < 0.04, 1 - one, one)] for one in tasks]
        test = begin(tasks, 0.64, controls=copies)
        each = [
            SequentialTest(
                names(250),
                at_least=0.64,
                alpha_pass=ALPHA / 3,
                alpha_fail=ALPHA / 3,
                controls=stratum(250, copy).controls,
            )
            for copy in copies
        ]
        for used, (task, stop) in enumerate(path([250] * 3), 1):
            piece = tasks[task][stop - (stop % stratified.TURN or stratified.TURN) : stop].tolist()
            test.observe(task, piece)
            each[task].observe(piece)
            if test.decided_at is not None and len(ours) == len(bounds):
                ours.append(used)
            if np.mean([one.evidence().interval[0] for one in each]) >= 0.64:
                bounds.append(used)
                break
    assert np.mean(ours) < 0.6 * np.mean(bounds)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: StratifiedTest([], above=0.5, alpha=0.05), "at least one task"),
        (lambda: StratifiedTest([Stratum([])], above=0.5, alpha=0.05), "at least one question"),
        (lambda: begin([[1.0]], 0.5, alpha=1.5), "alpha must lie between 0 and 1"),
        (lambda: begin([[1.0]], 0.5).observe(0, [1.5]), "numbers from 0 to 1"),
        (lambda: begin([[1.0]], 0.5).observe(0, [0.5]), "multiples of 1/1"),
        (lambda: begin([[1.0]], 0.5).observe(0, [1.0, 1.0]), "2 scores for 1 questions"),
    ],
)
def test_wrong_settings_are_named_in_one_line(build, says) -> None:
    with pytest.raises(MedbenchError) as caught:
        build()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
