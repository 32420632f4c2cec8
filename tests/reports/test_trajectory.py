"""The page of a training, without a browser: what events become, that the same folder gives the same bytes, and that
nothing foreign becomes markup."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from lxml import html
from support.gate_runs import answers, stored_run
from support.hostile import HOSTILE, hostile_training
from support.made_trainings import FLOOR, MARGIN, TOKENS, a_gate, a_training, a_verdict, begun, gated, log, two_stages
from support.pages import shape

from medbench.harness.cli.main import run
from medbench.harness.training.checkpoint_folder import append_metrics
from medbench.harness.training.journal import AttemptEnded, Confirmed, Event, Measured, Probed, Promoted, TrainingEnded
from medbench.reports.read.collect import collect
from medbench.reports.read.trainings import TrainingView, read_trainings
from medbench.reports.views.formats import HIDDEN, logged
from medbench.reports.views.trajectory import MOST_GATES
from medbench.reports.views.trajectory_charts import script
from medbench.reports.views.trajectory_page import TrajectoryPage, index_row, recipe_text, view_of
from medbench.reports.write.pages import ASSETS, POLICY, index_page, training_page
from medbench.reports.write.site import build

BASE = "runs/sft-baseline-gate"


def training_in(folder: Path) -> TrainingView:
    ((training,), _) = read_trainings([folder])
    return training


def page_of(folder: Path) -> TrajectoryPage:
    return view_of(training_in(folder), {})


def charts_of(page: TrajectoryPage) -> list[dict[str, Any]]:
    """As the browser gets them."""
    text = script(page.stages).decode("ascii")
    assert text.startswith("medbenchTraining([")
    content: list[dict[str, Any]] = json.loads(text.removeprefix("medbenchTraining(").removesuffix(");\n"))
    return content


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryPage:
    return page_of(two_stages(tmp_path_factory.mktemp("runs")))


# --- what events become ---


def test_attempts_follow_one_another_on_the_axis_of_steps(made: TrajectoryPage) -> None:
    first = made.stages[0]
    assert [(one.number, one.offset, one.length) for one in first.attempts] == [(1, 0, 79), (2, 79, 120), (3, 199, 80)]
    chart = charts_of(made)[0]
    assert chart["length"] == 279
    assert chart["attempts"] == [[1, 0, 79, "failed"], [2, 79, 199, "failed"], [3, 199, 279, "passed"]]
    assert chart["promoted"] == 199 + 80
    assert chart["alarms"] == [[71, False], [78, True]]
    assert [point[0] for point in chart["gates"][0]["points"]] == [0, 40, 119, 159, 199, 239, 279]
    loss = next(one for one in chart["metrics"] if one["name"] == "Loss")
    assert loss["data"][0][-1] == 279
    assert loss["data"][1].count(None) == 2  # between attempts; what is not finite is left out


def test_points_are_in_the_unit_of_their_gate_and_begin_at_the_start(made: TrajectoryPage) -> None:
    floor, margin, tokens = charts_of(made)[0]["gates"]
    assert (floor["unit"], floor["threshold"], floor["points"][0]) == (
        "percent",
        60,
        [0, 41.2, 37.2, 45.2, "", None, 0],
    )
    assert floor["points"][1] == [40, 47, 42.5, 51.5, "fail", 1, 40]
    assert (margin["unit"], margin["threshold"]) == ("points", -2)
    assert margin["points"][0] == [0, 0, None, None, "", None, 0]  # the start's difference to itself
    assert (tokens["unit"], tokens["threshold"], tokens["points"][1][1]) == ("", 400, 310)


def test_the_tables_say_what_the_charts_show(made: TrajectoryPage) -> None:
    tree = html.document_fromstring(training_page(made))
    for number, (stage, chart) in enumerate(zip(made.stages, charts_of(made), strict=True), 1):
        (table,) = tree.xpath(f"//table[caption[@id='c-checkpoints-{number}']]")
        rows = table.xpath("./tbody/tr")
        for place in range(len(stage.columns)):
            shown = [row.xpath("./td")[1 + place].text_content() for row in rows]
            points = chart["gates"][place]["points"]
            assert len([one for one in shown if re.search(r"\d", one)]) == len(points)
            for text, point in zip(shown, points, strict=True):
                assert f"{abs(point[1]):.1f}" in text
        metrics = {
            row.xpath("string(./th)") for row in tree.xpath(f"//table[caption[@id='c-metrics-{number}']]/tbody/tr")
        }
        assert metrics == {one["name"] for one in chart["metrics"]}
        alarms = tree.xpath(f"//table[caption[@id='c-alarms-{number}']]/tbody/tr")
        assert len(alarms) == len(chart["alarms"])


def test_the_summary_says_how_it_went(made: TrajectoryPage) -> None:
    text = " ".join(sentence for some in made.summary for sentence in some)
    assert "The training passed: every stage's gates are passed and confirmed." in text
    assert "Stage sft promoted step 80 of attempt 3, after 3 attempts." in text
    assert "PubMedQA accuracy 72.6 % (68.1–77.1, 93 %, whole benchmark, anytime); MedQA accuracy +2.9 points" in text
    assert "It took 1 h 41 min: 68 min of training in 4 attempts" in text
    assert "8 checkpoints judged while training used 3,440 of 9,088 questions: stopping early saved 62 %." in text


def test_verdicts_notes_changes_and_costs(made: TrajectoryPage) -> None:
    stage = made.stages[0]
    assert [row.note for row in stage.rows] == [
        "",
        "best of its attempt",
        "",
        "",
        "best of its attempt",
        "",
        "promoted",
    ]
    assert [(row.attempt, row.note) for row in stage.confirmations] == [
        (None, ""),
        (2, "not confirmed"),
        (3, "promoted"),
    ]
    assert [one.changes for one in stage.attempts] == [(), (("training.learning_rate", "2e-05", "1e-05"),), ()]
    assert [one.start for one in stage.attempts] == ["the stage's start"] * 2 + ["attempt 2, step 120"]
    cost = stage.costs[0]
    assert (cost.used, cost.total, cost.saved, cost.saved_by_controls, cost.controls) == (
        1300,
        3000,
        1700,
        246,
        ("base-1b",),
    )
    assert stage.rows[1].total == 500 + 636  # gates of one task share its questions
    assert (stage.judging_seconds, stage.training_seconds) == (600 + 6 * 94 + 280, 2410)


def test_the_first_page_lists_the_training(tmp_path: Path) -> None:
    two_stages(tmp_path)
    row = index_row(training_in(tmp_path))
    assert (row.name, row.state, row.stages, row.attempts, row.time) == ("smollm2", "passed", "2 of 2", 4, "1 h 41 min")
    assert row.promoted == "step 100 of grpo"
    assert row.scores[0] == "PubMedQA accuracy 72.6 % (68.1–77.1, 93 %, whole benchmark, anytime)"
    tree = html.document_fromstring(index_page(collect([tmp_path])))
    assert tree.xpath("//section[@aria-labelledby='h-trainings']//tbody//a/@href") == [
        "trainings/train-smollm2/index.html"
    ]
    assert "PubMedQA accuracy 72.6 % (68.1–77.1, 93 %, whole benchmark, anytime)" in tree.text_content()


def test_without_trainings_the_first_page_has_no_such_table(tmp_path: Path) -> None:
    stored_run(tmp_path, "a", {"medqa": answers(3)})
    assert "h-trainings" not in index_page(collect([tmp_path]))


# --- odd ones ---


def built(tmp_path: Path, events: list[Event]) -> str:
    """The page as HTML; its charts must be sound as well."""
    page = page_of(a_training(tmp_path, "t", events))
    charts_of(page)
    return training_page(page)


def test_a_training_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    assert "has not ended" in built(tmp_path / "a", [])
    assert "attempt 1 of sft begun" in built(tmp_path / "b", begun())


def test_costs_stand_beside_those_of_a_baseline_of_the_stages_own(tmp_path: Path) -> None:
    measured, gate = "runs/sft-start-gate", "runs/sft-a1-step-000010-gate"
    verdict = a_verdict("fail", a_gate(MARGIN, "fail", -0.1))
    events = [
        *begun()[:1],
        Measured(stage="sft", partition="gate", verdict=None, run=measured, whole=False, questions=30, baseline=BASE),
        Probed(stage="sft", run="runs/sft-difficulty", questions=9, said="9 questions, 1 never right", seconds=1.0),
        *begun()[1:],
        gated("sft", 1, 10, verdict, run=gate, questions=10),
    ]
    folder = a_training(tmp_path, "t", events)
    for asked, count, tokens in ((BASE, 20, 900), (measured, 10, 300), (gate, 10, 250)):
        stored_run(folder / "runs", asked.removeprefix("runs/"), {"medqa": answers(count)})
        path = folder / asked / "run.json"
        content = json.loads(path.read_text())
        content["totals"] = {"seconds": 5.0, "completion_tokens": tokens, "peak_memory_gib": 1.25}
        content["model"]["weight_bytes"] = 3_000_000
        content["engine"]["name"] = "vllm"  # the time of the fake engine is none
        path.write_text(json.dumps(content))
    page = page_of(folder)
    found = [
        (one.model, one.questions, one.cost.seconds_per_question, one.cost.tokens_per_answer)
        for one in page.stages[0].beside
    ]
    assert found == [
        ("baseline", 20, 0.25, 45.0),
        ("start", 10, 0.5, 30.0),
        ("attempt 1, step 10", 10, 0.5, 25.0),
    ]
    text = training_page(page)
    assert "What each model takes" in text
    assert "±0.0" not in text  # the start is not what the margin is from
    assert [point[4] for point in charts_of(page)[0]["gates"][0]["points"]] == ["fail"]
    assert "3 MB" in text
    assert "difficulty: 9 questions, 1 never right" in text
    (folder / BASE / "run.json").write_text("{")  # a damaged run is left out
    assert "baseline" not in [one.model for one in page_of(folder).stages[0].beside]


def test_a_checkpoint_that_could_not_be_loaded_is_in_the_table(tmp_path: Path) -> None:
    verdict = a_verdict("not gateable", why="step-000010: model.safetensors is damaged")
    text = built(tmp_path, [*begun(), gated("sft", 1, 10, verdict, run=None, questions=0)])
    assert "model.safetensors is damaged" in text
    assert "not gateable" in text


def test_a_gate_without_an_estimate_has_no_point(tmp_path: Path) -> None:
    verdicts = [a_verdict("not gateable", a_gate(FLOOR, "not gateable", None, why="all requests failed")),
                a_verdict("undecided", a_gate(FLOOR, "undecided", None, interval=(0.0, 1.0)))]  # fmt: skip
    page = page_of(
        a_training(tmp_path, "t", [*begun(), *(gated("sft", 1, n, one) for n, one in enumerate(verdicts, 1))])
    )
    assert charts_of(page)[0]["gates"][0]["points"] == []
    assert "all requests failed" in training_page(page)


def test_gates_that_come_and_go_keep_their_columns(tmp_path: Path) -> None:
    events = [
        *begun(),
        gated("sft", 1, 1, a_verdict("fail", a_gate(FLOOR, "fail", 0.5))),
        gated("sft", 1, 2, a_verdict("fail", a_gate(MARGIN, "fail", -0.1), a_gate(FLOOR, "pass", 0.7))),
        gated("sft", 1, 3, a_verdict("fail", a_gate(TOKENS, "fail", 900))),
    ]
    stage = page_of(a_training(tmp_path, "t", events)).stages[0]
    assert [column.rule for column in stage.columns] == [FLOOR, MARGIN, TOKENS]
    assert [[line is not None for line in row.gates] for row in stage.rows] == [
        [True, False, False], [True, True, False], [False, False, True]
    ]  # fmt: skip


def test_more_gates_than_a_table_holds_are_counted(tmp_path: Path) -> None:
    verdict = a_verdict("fail", *(a_gate(f"t{n}: accuracy at least 0.5", "fail", 0.4) for n in range(MOST_GATES + 7)))
    text = built(tmp_path, [*begun(), gated("sft", 1, 1, verdict)])
    assert "7 more gates are not shown" in text


def test_a_failed_training_names_its_reason_and_best_checkpoint(tmp_path: Path) -> None:
    verdict = a_verdict("fail", a_gate(FLOOR, "fail", 0.5))
    events = [
        *begun(),
        gated("sft", 1, 30, verdict),
        AttemptEnded(stage="sft", attempt=1, outcome="failed", reason="training ended with -9: killed", step=30),
        TrainingEnded(outcome="failed", reason="1 attempts failed", checkpoint="1-sft/attempt-1/step-000030"),
    ]
    text = built(tmp_path, events)
    for part in ("The training failed: 1 attempts failed.", "The best checkpoint is 1-sft/attempt-1/step-000030.",
                 "training ended with -9: killed", "best of its attempt"):  # fmt: skip
        assert part in text
    assert index_row(training_in(tmp_path)).scores == ()


def test_a_rule_that_only_mentions_a_baseline_is_a_share(tmp_path: Path) -> None:
    rule = "medqa (set baseline): accuracy at least 0.6"
    verdict = a_verdict("fail", a_gate(rule, "fail", 0.5, task="medqa", metric="accuracy", threshold=0.6))
    page = page_of(a_training(tmp_path, "t", [*begun(), gated("sft", 1, 1, verdict)]))
    assert page.stages[0].columns[0].unit == "percent"


def test_long_metrics_are_thinned_and_the_page_says_so(tmp_path: Path) -> None:
    folder = a_training(tmp_path, "t", begun())
    (folder / "1-sft" / "attempt-1").mkdir(parents=True)
    lines = "".join(f'{{"step": {n}, "loss": {1 + math.sin(n)}}}\n' for n in range(100_000))
    (folder / "1-sft" / "attempt-1" / "metrics.jsonl").write_text(lines)
    page = page_of(folder)
    assert len(script(page.stages)) < 100_000
    columns = charts_of(page)[0]["metrics"][0]["data"]
    assert [len(column) for column in columns] == [1200] * 4
    assert "a point is the mean of up to 83 logged steps" in training_page(page)


def test_recipes_are_yaml_whatever_they_hold(tmp_path: Path) -> None:
    record = training_in(two_stages(tmp_path)).record
    assert "learning_rate: 2.0e-05" in recipe_text(record)
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert "too deeply" in recipe_text(record.model_copy(update={"recipe": deep}))
    assert "cut here" in recipe_text(record.model_copy(update={"recipe": {"a": "x" * 300_000}}))
    recipe_text(record.model_copy(update={"recipe": {"a": "half \ud800"}})).encode()


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-5, "2e-05"), (-0.5, "−0.5"), (1234.5, "1,234"), (0.0, "0"), (None, "–"), (math.nan, "–"), (1e9, "1e+09")],
)
def test_logged_values_have_four_digits(value: float | None, text: str) -> None:
    assert logged(value) == text


# --- the site ---


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_training_gives_the_same_bytes(tmp_path: Path) -> None:
    two_stages(tmp_path / "runs")
    one, two = tmp_path / "one", tmp_path / "two"
    report = build(collect([tmp_path / "runs"]), one)
    build(collect([tmp_path / "runs" / "train-smollm2"]), two)
    assert contents(one) == contents(two)
    assert report.trainings == 1
    assert {"trainings/train-smollm2/index.html", "trainings/train-smollm2/charts.js"} <= set(contents(one))
    assert str(tmp_path).encode() not in b"".join(contents(one).values())
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "runs", moved)
    build(collect([moved]), tmp_path / "three")
    pages = {name: content for name, content in contents(one).items() if not name.startswith(".")}
    assert pages == {name: content for name, content in contents(tmp_path / "three").items() if name in pages}


def test_a_folder_of_trainings_alone_makes_a_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_training(tmp_path / "runs", "t", begun())
    assert run(["report", str(folder), "-o", str(tmp_path / "site")]) == 0
    assert "0 runs, 1 training, " in capsys.readouterr().out
    assert "No run is named beside the trainings" in (tmp_path / "site" / "index.html").read_text()


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    folder = two_stages(tmp_path / "runs")
    a_training(tmp_path / "runs", "other", begun())
    stored_run(tmp_path / "runs", "a-run", {"medqa": answers(3)})

    def written() -> set[str]:
        before = {path: path.stat().st_ino for path in (tmp_path / "site").rglob("*") if path.is_file()}
        build(collect([tmp_path / "runs"]), tmp_path / "site")
        after = {path: path.stat().st_ino for path in (tmp_path / "site").rglob("*") if path.is_file()}
        return {path.relative_to(tmp_path / "site").as_posix() for path in after if before.get(path) != after[path]} - {
            ".medbench-site.json"
        }

    written()
    assert written() == set()
    append_metrics(folder / "2-grpo" / "attempt-1", 101, {"loss": 1.0})
    own = {"trainings/train-smollm2/index.html", "trainings/train-smollm2/charts.js"}
    assert written() == own  # the first page shows no metrics
    with (folder / "journal.jsonl").open("a") as file:
        file.write(TrainingEnded(outcome="failed", reason="spent", checkpoint=None).model_dump_json() + "\n")
    assert written() - {"leaderboard.json", "leaderboard.csv", "leaderboard.md", "runs.js"} == own | {"index.html"}
    shutil.rmtree(folder)
    written()
    assert not (tmp_path / "site" / "trainings" / "train-smollm2").exists()


def test_checkpoints_link_to_their_runs_where_these_are_on_the_site(tmp_path: Path) -> None:
    folder = two_stages(tmp_path / "runs")
    stored_run(folder / "runs", "sft-a3-step-000080-gate", {"medqa": answers(3)})
    build(collect([tmp_path / "runs", folder / "runs"]), tmp_path / "site")
    page = tmp_path / "site" / "trainings" / "train-smollm2" / "index.html"
    tree = html.fromstring(page.read_bytes())
    (link,) = tree.xpath("//table[caption[@id='c-checkpoints-1']]//th/a/@href")
    assert link == "../../runs/sft-a3-step-000080-gate/index.html"
    for _, kind, address, _ in tree.iterlinks():
        local = address.partition("#")[0]
        if kind in ("href", "src") and local and not address.startswith("data:"):
            assert (page.parent / local).is_file(), address


def test_the_page_is_well_formed_and_keeps_to_the_policy(made: TrajectoryPage) -> None:
    tree = html.document_fromstring(training_page(made))
    assert tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content") == [POLICY]
    assert len(tree.xpath("//h1")) == 1
    ids = tree.xpath("//@id")
    assert len(ids) == len(set(ids))
    assert all(label in ids for labels in tree.xpath("//@aria-labelledby") for label in labels.split())
    for table in tree.xpath("//table"):
        assert table.xpath("./caption")
        assert all(cell.get("scope") in ("col", "row") for cell in table.xpath(".//th"))
        widths = {len(row.xpath("./th | ./td")) for row in table.xpath(".//tr")}
        assert len(widths) == 1
    assert not tree.xpath("//script[not(@src)] | //style | //@style | //iframe | //form")
    for link in tree.xpath("//script/@src | //link/@href"):
        assert link in ("data:,", "charts.js") or link.rpartition("assets/")[2] in ASSETS
    assert tree.xpath("count(//figure[@data-gate]) + count(//figure[@data-metric])") == sum(
        len(one["gates"]) + len(one["metrics"]) for one in charts_of(made)
    )


# --- hostile content ---


@pytest.fixture(scope="module")
def plain_shape(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    page = page_of(hostile_training(tmp_path_factory.mktemp("plain"), "t", ["plain"]))
    return shape(training_page(page))


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_foreign_text_stays_text_in_every_field(tmp_path: Path, plain_shape: list[str], evil: str) -> None:
    folder = hostile_training(tmp_path / "runs", "t", [evil])
    found = collect([tmp_path / "runs"])
    assert [one.fault for one in found.trainings] == [""]
    page = page_of(folder)
    charts = script(page.stages)
    assert not re.search(rb"[<>&\x00-\x09\x0b-\x1f\x7f-\xff]", charts)
    charts_of(page)
    for text in (training_page(page), index_page(found)):
        text.encode("utf-8")
        tree = html.document_fromstring(text)
        assert not HIDDEN.search(text)
        assert not tree.xpath("//script[not(@src)] | //img | //svg[@onload]")
        assert not [attribute for attribute in tree.xpath("//@*") if attribute.attrname.startswith("on")]
        assert not [link for link in tree.xpath("//@href | //@src") if link.strip().lower().startswith("javascript")]
    if page.stages[0].attempts[0].series and evil != "accuracy":
        assert shape(training_page(page)) == plain_shape, "the text changed the structure of the page"


def test_many_hostile_stages_are_built_inside_the_site(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    for number, evil in enumerate(HOSTILE[::9]):
        hostile_training(folder / "runs", f"{number} {evil}", [evil, "plain"])
    build(collect([folder / "runs"]), folder / "site")
    assert {path.name for path in folder.iterdir()} == {"runs", "site"}
    assert {path.name for path in tmp_path.iterdir()} == {"x"}
    assert len(list((folder / "site" / "trainings").iterdir())) == len(HOSTILE[::9])


def test_half_a_surrogate_pair_in_a_recipe_is_shown(tmp_path: Path) -> None:
    folder = a_training(tmp_path, "t", begun())
    record = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(record | {"recipe": {"note": "half \ud800"}}))
    assert b"half \\uD800" in training_page(page_of(folder)).encode()


def test_measuring_and_confirming_alone_make_a_page(tmp_path: Path) -> None:
    measured = Measured(
        stage="sft", partition="gate", verdict=None, run="runs/s", whole=True, questions=9, elapsed=31.0
    )
    stage, attempt = begun()
    verdict = a_verdict("pass", a_gate(MARGIN, "pass", 0.01))
    events: list[Event] = [
        stage, measured, attempt, gated("sft", 1, 4, verdict),
        Confirmed(stage="sft", attempt=1, step=4, verdict=verdict, alpha=0.01, run=None, seconds=2.0, questions=5),
        AttemptEnded(stage="sft", attempt=1, outcome="passed", reason="confirmed", step=4),
        Promoted(stage="sft", attempt=1, step=4, checkpoint="1-sft/promoted", fingerprint="f"),
    ]  # fmt: skip
    page = page_of(a_training(tmp_path, "t", events))
    log(tmp_path / "t" / "1-sft" / "attempt-1", 2)
    assert page.stages[0].rows[0].seconds == 30.0
    assert charts_of(page)[0]["gates"][0]["points"] == [[0, 0, None, None, "", None, 0], [4, 1, -2, 4, "pass", 1, 4]]
    assert page.state == "running"
    assert page.stages[0].outcome == "passed"
