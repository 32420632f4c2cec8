"""The tables of the leaderboard: what is never mixed, and ranks that tell chance from difference."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.gate_runs import answer, stored_run

from medbench.harness.contracts import Sample
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.compare import compare_task
from medbench.harness.runs.records import ModelRecord
from medbench.harness.runs.run_folder import read_samples
from medbench.harness.scoring.summary import TaskResult
from medbench.harness.stats.intervals import clustered_mean
from medbench.reports.read.collect import collect
from medbench.reports.read.records import RunView
from medbench.reports.read.scores import Scores
from medbench.reports.views.leaderboard import Table, mean_score, size_class, size_of, tables_of
from medbench.reports.views.ranking import ranks
from medbench.reports.write.pages import index_page, run_page


def samples(pattern: Sequence[float | None], clusters: Sequence[str] | None = None) -> list[Sample]:
    ids = [f"q{n:04}" for n in range(len(pattern))]
    return [answer(id, score, cluster=c) for id, score, c in zip(ids, pattern, clusters or ids, strict=True)]


def shares(n: int, right: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [float(draw.random() < right) for _ in range(n)]


def with_scores(run: RunView) -> RunView:
    """As site.build fills them in."""
    found = {}
    for task in run.results:
        stored = sorted(read_samples(run.folder, task), key=lambda sample: sample.id)
        found[task] = Scores.of([s.id for s in stored], [s.cluster for s in stored], [s.score for s in stored],
                                [s.completion_tokens for s in stored])  # fmt: skip
    return replace(run, scores=found)


def board(root: Path) -> list[Table]:
    return tables_of([with_scores(run) for run in collect([root]).runs])


def rank_of(table: Table) -> dict[str, int | None]:
    return {row.run.id: row.rank for row in table.rows}


def model(name: str, fingerprint: str | None = None) -> ModelRecord:
    return ModelRecord(name=name, kind="full", fingerprint=fingerprint or name)


# --- what is never mixed ---


@pytest.mark.parametrize(
    "changes",
    [
        {"described": {"version": "2"}},
        {"described": {"split": "train"}},
        {"described": {"sha256": "1" * 64}},
        {"protocol": load_protocol("direct-v1").model_dump(mode="json")},
        {"protocol": load_protocol("cot-v2").model_dump(mode="json") | {"system": "Other words."}},
        {"partition": "gate"},
        {"shuffle_options": 4},
    ],
    ids=["version", "split", "data", "protocol", "prompt of the same name", "partition", "option orders"],
)
def test_runs_that_were_asked_differently_are_in_two_tables(tmp_path: Path, changes: dict[str, Any]) -> None:
    stored_run(tmp_path, "a", {"medqa": samples([1.0, 0.0])})
    orders = range(changes.get("shuffle_options", 1))
    repeated = [replace(one, repeat=order) for one in samples([1.0, 0.0]) for order in orders]
    stored_run(tmp_path, "b", {"medqa": repeated}, **changes)
    tables = board(tmp_path)
    assert sorted(len(table.rows) for table in tables) == [1, 1]
    assert len({table.key for table in tables}) == len({table.label for table in tables}) == 2


def test_runs_of_some_of_the_tasks_share_the_table(tmp_path: Path) -> None:
    full = {"medqa": samples([1.0, 0.0]), "pubmedqa": samples([1.0, 1.0])}
    stored_run(tmp_path, "full", full)
    stored_run(tmp_path, "part", {"pubmedqa": full["pubmedqa"]})
    (table,) = board(tmp_path)
    assert [column.task for column in table.columns] == ["medqa", "pubmedqa"]
    part = next(row for row in table.rows if row.run.id == "part")
    assert part.scores[0] is None
    assert part.mean is None
    assert part.rank is None


def test_a_task_of_two_versions_never_meets_through_a_third_run(tmp_path: Path) -> None:
    medqa, pubmedqa = samples([1.0, 0.0]), samples([1.0, 1.0])
    stored_run(tmp_path, "one", {"medqa": medqa, "pubmedqa": pubmedqa})
    stored_run(tmp_path, "two", {"medqa": medqa}, described={"version": "2"})
    stored_run(tmp_path, "bridge", {"pubmedqa": pubmedqa})
    for table in board(tmp_path):
        versions = {row.run.record.tasks["medqa"].version for row in table.rows if "medqa" in row.run.record.tasks}
        assert len(versions) <= 1


def test_official_data_comes_first_and_the_mean_is_over_the_three_benchmarks(tmp_path: Path) -> None:
    sample = {"source": "sample", "official": False, "sha256": "1" * 64}
    for name in ("s1", "s2"):
        stored_run(tmp_path, name, {"medqa": samples([1.0])}, described=dict(sample))
    stored_run(
        tmp_path, "a", {task: samples([1.0, 0.0]) for task in ("zebra", "pubmedqa", "medqa", "mmlu_pro_medical")}
    )
    first, second = board(tmp_path)
    assert [column.label for column in first.columns] == ["MedQA", "MMLU-Pro Medical", "PubMedQA", "zebra"]
    assert first.core == ("MedQA", "MMLU-Pro Medical", "PubMedQA")
    assert "built-in sample" in second.label
    assert not second.has_mean


# --- ranks ---


def test_runs_that_chance_may_explain_share_a_rank(tmp_path: Path) -> None:
    for name, share, seed in (("best", 0.9, 1), ("twin", 0.9, 2), ("middle", 0.6, 3), ("worst", 0.3, 4)):
        stored_run(tmp_path, name, {"medqa": samples(shares(800, share, seed))})
    (table,) = board(tmp_path)
    assert rank_of(table) == {"best": 1, "twin": 1, "middle": 3, "worst": 4}
    assert [row.opens_group for row in table.rows] == [True, False, True, True]


def test_pairing_tells_apart_what_independent_intervals_cannot(tmp_path: Path) -> None:
    base = shares(1000, 0.7, 5)
    lost = [n for n, score in enumerate(base) if score][:25]
    worse = [0.0 if n in lost else score for n, score in enumerate(base)]
    stored_run(tmp_path, "a", {"medqa": samples(base)})
    stored_run(tmp_path, "b", {"medqa": samples(worse)})
    (table,) = board(tmp_path)
    assert rank_of(table) == {"a": 1, "b": 2}
    unpaired = tables_of(collect([tmp_path]).runs)[0]
    assert rank_of(unpaired) == {"a": 1, "b": 1}


def test_duplicates_count_once(tmp_path: Path) -> None:
    clusters = [f"c{n // 40}" for n in range(400)]
    a, b = [1.0] * 400, [1.0] * 320 + [0.0] * 80  # two clusters of ten differ
    stored_run(tmp_path, "a", {"medqa": samples(a, clusters)})
    stored_run(tmp_path, "b", {"medqa": samples(b, clusters)})
    (table,) = board(tmp_path)
    assert rank_of(table) == {"a": 1, "b": 1}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_questions_decides_nothing(tmp_path: Path, n: int) -> None:
    stored_run(tmp_path, "a", {"medqa": samples([1.0] * n)})
    stored_run(tmp_path, "b", {"medqa": samples([0.0] * n)})
    (table,) = board(tmp_path)
    assert set(rank_of(table).values()) == {1}


def test_the_paired_variance_is_that_of_clustered_differences() -> None:
    clusters = [f"c{n // 2}" if n < 100 else f"q{n}" for n in range(500)]
    first, second = samples(shares(500, 0.7, 1), clusters), samples(shares(500, 0.6, 2), clusters)
    from medbench.reports.views.ranking import _variances

    results = [_result(some) for some in (first, second)]
    _, clustered, _ = _variances(results, [_scores(first), _scores(second)])
    error = np.sqrt(clustered[0, 1])
    by_cluster: dict[str, list[float]] = {}
    for one, two in zip(first, second, strict=True):
        by_cluster.setdefault(one.cluster, []).append((two.score or 0.0) - (one.score or 0.0))
    assert clustered_mean(list(by_cluster.values()))[1] == pytest.approx(error, rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 30)), min_size=1, max_size=60))
def test_a_rank_says_what_the_compare_page_says(found: list[tuple[bool, bool, int]]) -> None:
    clusters = [f"c{cluster}" for _, _, cluster in found]
    first, second = (samples([float(one[side]) for one in found], clusters) for side in (0, 1))
    low, high = compare_task("t", first, second).overall.interval
    assume(min(abs(low), abs(high)) > 1e-9)
    results, scores = [{"t": _result(one)} for one in (first, second)], [{"t": _scores(one)} for one in (first, second)]
    assert ranks(results, scores) == [1 + (low > 0), 1 + (high < 0)]


def test_runs_on_other_questions_are_compared_by_their_variances(tmp_path: Path) -> None:
    """90 and 70 of 100: z of the pooled test is 3.5, but 79 of 100 do not differ from 70 (1.5)."""
    first, second, third = (samples([1.0] * right + [0.0] * (100 - right)) for right in (90, 70, 79))
    results = [{"t": _result(one)} for one in (first, second, third)]
    assert ranks(results, [{}, {}, {}]) == [1, 2, 2]


def test_a_running_or_unscored_run_has_no_rank(tmp_path: Path) -> None:
    stored_run(tmp_path, "done", {"medqa": samples([1.0, 0.0])})
    stored_run(tmp_path, "running", {"medqa": samples([1.0, 0.0])}, status="running")
    stored_run(tmp_path, "failed", {"medqa": samples([None, None])})
    (table,) = board(tmp_path)
    assert rank_of(table) == {"done": 1, "running": None, "failed": None}
    assert table.rows[0].run.id == "done"


@settings(max_examples=40)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, None]), min_size=12, max_size=12), min_size=1, max_size=6))
def test_ranks_are_counts_of_better_runs(patterns: list[list[float | None]]) -> None:
    some = [pattern for pattern in patterns if any(score is not None for score in pattern)]
    if not some:
        return
    stored = [samples(pattern) for pattern in some]
    found = ranks([{"t": _result(one)} for one in stored], [{"t": _scores(one)} for one in stored])
    assert min(found) == 1
    assert max(found) <= len(found)
    means = [_result(one).accuracy or 0.0 for one in stored]
    # no more: a run on more questions can be shown to be worse than the best where a lower score on fewer is not
    assert all(rank == 1 for rank, mean in zip(found, means, strict=True) if mean == max(means))
    assert all(rank <= 1 + sum(other > mean for other in means) for rank, mean in zip(found, means, strict=True))


def test_no_runs_no_tables() -> None:
    assert tables_of(()) == []
    assert ranks([], []) == []


# --- what a row says ---


def test_rates_and_speed(tmp_path: Path) -> None:
    silent = {"extracted": None, "completion_tokens": 10}
    some = [
        answer("q0", 1.0, completion_tokens=30),
        answer("q1", 0.0, outcome="unparsed", **silent),
        answer("q2", 0.0, outcome="truncated", finish_reason="length", **silent | {"completion_tokens": 80}),
        answer("q3", None),
    ]
    stored_run(tmp_path, "a", {"medqa": some}, engine={"name": "vllm"})
    ((row,),) = [table.rows for table in board(tmp_path)]
    assert (row.asked, row.unparsed, row.truncated, row.errors) == (4, 2, 1, 1)
    assert row.tokens == pytest.approx(40)
    assert row.speed == pytest.approx(4.0)  # four questions in the one second of a_record


def test_stored_replies_have_no_speed(tmp_path: Path) -> None:
    stored_run(tmp_path, "a", {"medqa": samples([1.0])}, engine={"name": "fake"})
    assert board(tmp_path)[0].rows[0].speed is None


def test_the_mean_has_the_interval_of_independent_tasks(tmp_path: Path) -> None:
    stored_run(tmp_path, "a", {"medqa": samples(shares(400, 0.8, 1)), "pubmedqa": samples(shares(400, 0.6, 2))})
    (run,) = collect([tmp_path]).runs
    mean = mean_score(run, ["medqa", "pubmedqa"])
    assert mean is not None
    one, two = (run.results[task] for task in ("medqa", "pubmedqa"))
    assert mean.accuracy == pytest.approx((one.accuracy + two.accuracy) / 2)  # type: ignore[operator]
    widths = [result.interval[1] - result.interval[0] for result in (one, two)]  # type: ignore[index]
    width = mean.interval[1] - mean.interval[0]
    assert width == pytest.approx(np.hypot(*widths) / 2, rel=0.02)
    assert mean_score(run, ["medqa", "pubmedqa", "mmlu_pro_medical"]) is None


def test_stale_and_incomplete_runs_are_marked(tmp_path: Path) -> None:
    some = {"medqa": samples([1.0, 0.0])}
    stored_run(tmp_path, "old", some, model=model("tuned", "aaa"), created="2026-01-01T00:00:00+00:00")
    stored_run(tmp_path, "new", some, model=model("tuned", "bbb"), created="2026-02-01T00:00:00+00:00")
    stored_run(tmp_path, "short", some, n=50, limit=2)
    stored_run(tmp_path, "running", some, status="running")
    (table,) = board(tmp_path)
    marks = {row.run.id: " | ".join(row.marks) for row in table.rows}
    assert "stale" in marks["old"]
    assert marks["new"] == ""
    assert "first 2" in marks["short"]
    assert "running" in marks["running"]
    short = next(row for row in table.rows if row.run.id == "short")
    assert short.scores[0] is not None
    assert short.scores[0].of == (2, 50)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-32B", 32e9), ("smollm2-135m", 135e6), ("gemma-1.1-7b-it", 7e9), ("Llama-3.1-8B-Instruct", 8e9),
        ("Mixtral-8x7B", None), ("gpt-4o", None), ("checkpoints/step-400", None), ("phi-3.8b", 3.8e9), ("bert", None),
    ],
)  # fmt: skip
def test_sizes_are_read_off_names(tmp_path: Path, name: str, size: float | None) -> None:
    stored_run(tmp_path, "a", {"medqa": samples([1.0])}, model=model(name))
    (run,) = collect([tmp_path]).runs
    assert size_of(run) == (size, size is not None)


def test_a_quantised_model_has_its_precision_and_its_bytes(tmp_path: Path) -> None:
    packed = model("qwen3-8b-awq").model_copy(
        update={"parameters": 8_190_000_000, "weight_bytes": 6_120_000_000, "quantization": "awq 4 bit"}
    )
    stored_run(tmp_path, "a", {"medqa": samples([1.0])}, model=packed, engine={"settings": {"dtype": "bfloat16"}})
    ((row,),) = [table.rows for table in board(tmp_path)]
    assert (row.size_text, row.precision) == ("8.19B", "bfloat16, awq 4 bit")
    found = collect([tmp_path])
    assert '8.19B<small class="below">6.12 GB</small>' in index_page(found)
    assert "8.19B, 6.12 GB, awq 4 bit" in run_page(found, row.run)


def test_size_classes() -> None:
    assert [size_class(size) for size in (None, 135e6, 1e9, 9.9e9, 1e10, 32e9, 4e10, 4e11)] == [
        "", "s", "m", "m", "l", "l", "xl", "xl"]  # fmt: skip


def _result(some: Sequence[Sample]) -> TaskResult:
    from support.gate_runs import a_task

    from medbench.harness.scoring.summary import summarize

    return summarize(a_task([], "t"), "cot-v2", some)


def _scores(some: Sequence[Sample]) -> Scores:
    return Scores.of([s.id for s in some], [s.cluster for s in some], [s.score for s in some],
                     [s.completion_tokens for s in some])  # fmt: skip
