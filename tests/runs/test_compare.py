"""Paired comparison of two runs: closed forms, clusters, flips in both directions, categories, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, multinomial
from statsmodels.stats.contingency_tables import mcnemar
from support.gate_runs import answer, answers, stored_run

from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.compare import TaskComparison, compare_runs, compare_task

Pairs = list[tuple[bool, bool, int]]
"""(right in A, right in B, cluster) of each question."""

pairs = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 20)), min_size=1, max_size=60)


def samples(scores: Sequence[float], clusters: Sequence[int]) -> list[Sample]:
    return [answer(f"q{i}", float(s), cluster=f"c{c}") for i, (s, c) in enumerate(zip(scores, clusters, strict=True))]


def compared(found: Pairs) -> TaskComparison:
    clusters = [cluster for _, _, cluster in found]
    return compare_task("toy", samples([a for a, _, _ in found], clusters), samples([b for _, b, _ in found], clusters))


def apart(found: Pairs) -> Pairs:
    """The same answers, no question a duplicate of another."""
    return [(a, b, number) for number, (a, b, _) in enumerate(found)]


@given(pairs)
def test_without_duplicates_p_is_that_of_mcnemars_test(found: Pairs) -> None:
    result = compared(apart(found)).overall
    lost = sum(a and not b for a, b, _ in found)
    gained = sum(b and not a for a, b, _ in found)
    assert (result.lost, result.gained) == (lost, gained)
    expected = mcnemar([[0, lost], [gained, 0]], exact=False, correction=False).pvalue if lost + gained else 1
    assert result.p_value == pytest.approx(expected)


@given(pairs)
def test_p_is_below_5_percent_where_the_interval_leaves_out_0(found: Pairs) -> None:
    for some in (found, apart(found)):
        result = compared(some).overall
        low, high = result.interval
        assert (result.p_value < 0.05) is (low > 0 or high < 0)
        assert low - 1e-9 <= result.difference <= high + 1e-9


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40))
def test_the_mean_scores_of_repeats_have_such_an_interval_too(found: list[tuple[int, int, int]]) -> None:
    clusters = [cluster for _, _, cluster in found]
    before, after = ([score / 3 for score in scores] for scores in list(zip(*found, strict=True))[:2])
    result = compare_task("toy", samples(before, clusters), samples(after, clusters)).overall
    low, high = result.interval
    assert (result.p_value < 0.05) is (low > 0 or high < 0)
    assert low - 1e-9 <= result.difference <= high + 1e-9


def coverage(n: int, losses: float, gains: float) -> float:
    """How often the interval holds the true difference: exact, over every number of losses and gains."""
    covered = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost if gains else 1):
            chance = float(multinomial.pmf([lost, gained, n - lost - gained], n, [losses, gains, 1 - losses - gains]))
            if chance > 1e-5:
                kinds = [(True, False)] * lost + [(False, True)] * gained + [(True, True)] * (n - lost - gained)
                low, high = compared([(a, b, i) for i, (a, b) in enumerate(kinds)]).overall.interval
                covered += chance * (low <= gains - losses <= high)
    return covered


@pytest.mark.parametrize(
    ("n", "losses", "gains"), [(46, 0.02, 0.0), (79, 0.02, 0.0), (250, 0.02, 0.0), (46, 0.02, 0.02), (60, 0.05, 0.02)]
)
def test_the_interval_covers_the_truth_where_few_answers_flip(n: int, losses: float, gains: float) -> None:
    found = coverage(n, losses, gains)
    print(f"{n} questions, {losses} lost, {gains} gained: covers {found:.3f}")
    assert found >= 0.935


def test_the_interval_covers_the_truth_where_questions_have_duplicates() -> None:
    """60 questions asked twice: 4 % lost and 2 % gained, both copies alike nine times out of ten."""
    draw = random.Random(3)
    runs = covered = 600
    for _ in range(runs):
        found: Pairs = []
        for cluster in range(60):
            kinds = draw.choices([(True, False), (False, True), (True, True)], [0.04, 0.02, 0.94], k=2)
            found += [(*kinds[0], cluster), (*kinds[draw.random() < 0.1], cluster)]
        low, high = compared(found).overall.interval
        covered -= not low <= -0.02 <= high
    print(f"covers {covered / runs:.3f}")
    assert covered / runs >= 0.93


def test_a_category_without_flips_has_an_interval_with_a_width() -> None:
    same = [answer(f"q{i}", float(i % 2), category={"step": "1"}) for i in range(46)]
    found = compare_task("toy", same, same).categories["step"]["1"]
    assert found.interval == pytest.approx((-0.077, 0.077), abs=1e-3)  # 3.84 / (46 + 3.84)
    assert found.p_value == 1.0


def test_duplicates_widen_the_interval_and_change_nothing_else() -> None:
    apart = compared([(i % 3 > 0, i % 4 > 0, i) for i in range(60)]).overall
    twice = compared([(i % 3 > 0, i % 4 > 0, i) for i in range(60)] * 2).overall
    assert twice.difference == pytest.approx(apart.difference)
    assert twice.interval == pytest.approx(apart.interval)
    assert twice.n == 2 * apart.n


@given(pairs)
def test_exchanging_the_runs_changes_only_the_sign(found: Pairs) -> None:
    there, back = compared(found), compared([(b, a, cluster) for a, b, cluster in found])
    one, two = there.overall, back.overall
    assert two.difference == pytest.approx(-one.difference)
    assert two.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert two.p_value == pytest.approx(one.p_value)
    assert (two.n, two.a, two.b) == (one.n, one.b, one.a)
    assert (two.lost, two.gained) == (one.gained, one.lost)
    assert (back.lost_ids, back.gained_ids) == (there.gained_ids, there.lost_ids)


@given(pairs)
def test_a_run_compared_with_itself_has_no_difference(found: Pairs) -> None:
    result = compared([(a, a, cluster) for a, _, cluster in found])
    assert (result.overall.difference, result.overall.p_value) == (0.0, 1.0)
    low, high = result.overall.interval
    assert -1 < low < 0 < high < 1
    assert low == pytest.approx(-high)
    assert result.lost_ids == result.gained_ids == ()


def test_flips_are_named_both_ways() -> None:
    before = [answer("both"), answer("lost"), answer("gained", 0.0), answer("neither", 0.0)]
    after = [answer("gained"), answer("neither", 0.0), answer("both"), answer("lost", 0.0)]
    result = compare_task("toy", before, after)
    assert (result.lost_ids, result.gained_ids) == (("lost",), ("gained",))
    assert (result.overall.a, result.overall.b, result.overall.n) == (0.5, 0.5, 4)


def test_each_category_is_compared_separately() -> None:
    def some(right: dict[str, float]) -> list[Sample]:
        return [answer(id, score, category={"step": id[0], "all": "x"}) for id, score in right.items()]

    result = compare_task("toy", some({"1a": 1, "1b": 1, "2a": 0}), some({"1a": 0, "1b": 1, "2a": 1}))
    steps = result.categories["step"]
    assert (steps["1"].n, steps["1"].difference, steps["1"].lost) == (2, -0.5, 1)
    assert (steps["2"].n, steps["2"].difference, steps["2"].gained) == (1, 1.0, 1)
    assert result.categories["all"]["x"].n == 3


def test_p_of_categories_is_corrected_for_their_number() -> None:
    """Holm: the smallest p times the number of categories, the next times one less, never falling."""

    def some(lost: dict[str, int]) -> list[Sample]:
        return [
            answer(f"{name}{i}", float(i >= count), category={"step": name})
            for name, count in lost.items()
            for i in range(100)
        ]

    result = compare_task("toy", some(dict.fromkeys("abc", 0)), some({"a": 9, "b": 5, "c": 4}))
    assert result.overall.p_holm is None
    a, b, c = (result.categories["step"][name] for name in "abc")
    assert a.p_holm == pytest.approx(3 * a.p_value)
    assert b.p_holm == pytest.approx(2 * b.p_value)
    assert c.p_holm == pytest.approx(b.p_holm)  # its own p is 0.0455
    assert c.p_value < 0.05 < b.p_holm


def test_questions_that_one_run_lacks_are_counted_separately() -> None:
    before = [answer("a"), answer("b"), answer("failed", None)]
    result = compare_task("toy", before, [answer("a", 0.0), answer("failed"), answer("only here")])
    assert (result.overall.n, result.overall.lost, result.unpaired) == (1, 1, 3)


def test_runs_without_common_questions_are_refused() -> None:
    with pytest.raises(MedbenchError, match="no question was answered by both"):
        compare_task("toy", answers(2), [answer("q0", None), answer("other")])


DIRECT = load_protocol("direct-v1").model_dump(mode="json")
REFUSED = {
    "protocol": ({"protocol": DIRECT}, "protocol cot-v2 and direct-v1"),
    "prompt": (
        {"protocol": load_protocol("cot-v2").model_dump(mode="json") | {"prompt": "Say A."}},
        "two versions of protocol cot-v2",
    ),
    "version": ({"described": {"version": "2"}}, "toy version 1 and 2"),
    "split": ({"described": {"split": "dev"}}, "toy split test and dev"),
    "data": ({"described": {"sha256": "1" * 64}}, "toy sha256"),
    "partition": ({"partition": "gate"}, "partition all and gate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_runs_that_were_asked_differently_are_refused(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, says = REFUSED[name]
    a = stored_run(tmp_path, "a", {"toy": answers(3, 2)})
    b = stored_run(tmp_path, "b", {"toy": answers(3, 2)}, **changes)
    assert run(["compare", str(a), str(b)]) == 2
    printed = capfd.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == ""
    assert says in line
    assert "a and b are not comparable" in line


def test_runs_without_a_common_task_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    a = stored_run(tmp_path, "a", {"one": answers(3)})
    b = stored_run(tmp_path, "b", {"two": answers(3)})
    assert run(["compare", str(a), str(b)]) == 2
    assert "a has one, b has two: no task in common" in capfd.readouterr().err
    assert run(["compare", str(a), str(tmp_path / "none")]) == 2
    assert "no such file" in capfd.readouterr().err


def test_tasks_that_both_have_are_compared(tmp_path: Path) -> None:
    a = stored_run(tmp_path, "a", {"one": answers(3, 2), "two": answers(1)})
    b = stored_run(tmp_path, "b", {"three": answers(1), "one": answers(4, 1)})
    found = compare_runs(a, b)
    assert (found.a.run_id, found.b.run_id) == ("a", "b")
    assert [(one.task, one.overall.gained) for one in found.tasks.values()] == [("one", 1)]


def numbers(root: Path, capfd: pytest.CaptureFixture[str], **changes: Any) -> dict[str, Any]:
    a = stored_run(root, "a", {"toy": answers(60, 40, category={"step": "1"})})
    b = stored_run(root, "b", {"toy": answers(70, 30, category={"step": "1"})}, **changes)
    assert run(["compare", str(a), str(b), "--json"]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_the_command_prints_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = numbers(tmp_path, capfd)
    assert (content["a"], content["b"], content["protocol"]) == ("a", "b", "cot-v2")
    (task,) = content["tasks"]
    assert task["overall"]["difference"] == pytest.approx(0.1)
    assert task["overall"]["p_value"] == pytest.approx(chi2.sf(10, 1))
    assert task["overall"]["p_holm"] is None
    assert len(task["gained_ids"]) == 10
    assert task["categories"]["step"]["1"]["gained"] == 10


def test_the_command_prints_a_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    numbers(tmp_path, capfd)
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capfd.readouterr().out
    assert "b minus a" in out
    row = next(line for line in out.splitlines() if line.startswith(" toy"))
    assert row.replace("│", " ").split() == [
        "toy",
        "100",
        "60.0",
        "70.0",
        "+10.0",
        "+5.5",
        "to",
        "+17.4",
        "0.0016",
        "0",
        "10",
    ]
    category = next(line for line in out.splitlines() if "step 1" in line)
    assert category.replace("│", " ").split()[-4:] == ["0.0016", "0.0016", "0", "10"]
    assert "corrected for the number of categories (Holm)" in " ".join(out.split())
