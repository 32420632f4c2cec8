"""The leaderboard's files and badges, and runs as lm-eval's own code reads them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from markdown_it import MarkdownIt
from support.gate_runs import answer, answers, stored_run
from support.hostile import HOSTILE, hostile_runs

from medbench.harness.contracts import MedbenchError
from medbench.harness.gates.verdict import CORRECTION, GateResult, Verdict
from medbench.harness.runs.records import ModelRecord
from medbench.reports.read.collect import collect
from medbench.reports.read.records import Collection
from medbench.reports.write.exports import badges, leaderboard
from medbench.reports.write.lm_eval_format import export

SVG = "{http://www.w3.org/2000/svg}"


def gate(rule: str, status: str = "pass", **changes: Any) -> GateResult:
    values: dict[str, Any] = {
        "rule": rule, "task": "medqa", "metric": "accuracy", "status": status, "estimate": 0.625, "interval": None,
        "threshold": 0.6, "used": 5, "total": 5, "why": "",
    }  # fmt: skip
    return GateResult(**(values | changes))


def judge(folder: Path, *gates: GateResult, overall: str = "pass") -> None:
    found = Verdict(
        overall=overall, why="", alpha=0.05, decide="census", partition="all", correction=CORRECTION, candidate="run",
        fingerprint="run", baseline=None, protocol="cot-v2", gates=list(gates),
    )  # fmt: skip
    (folder / "verdict.json").write_text(found.model_dump_json())


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    runs = tmp_path / "runs"
    good = stored_run(runs, "good", {"medqa": answers(9, 1), "pubmedqa": answers(8, 2)})
    judge(good, gate("medqa: accuracy at least 0.6"))
    stored_run(runs, "poor", {"medqa": answers(2, 6, 2), "pubmedqa": answers(5, 5)}, status="running")
    stored_run(runs, "other", {"medqa": answers(5, 5)}, described={"version": "2"})
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    return collect([runs])


def table(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_json_has_every_run_and_what_is_broken(collection: Collection) -> None:
    found = json.loads(leaderboard(collection)["leaderboard.json"])
    assert [run["id"] for run in found["runs"]] == ["good", "other", "poor"]
    good, _, poor = found["runs"]
    assert good["mean"] == pytest.approx(0.85)
    assert good["verdict"] == "pass"
    assert good["tasks"]["medqa"]["accuracy"] == 0.9
    assert good["tasks"]["medqa"]["low"] < 0.9 < good["tasks"]["medqa"]["high"]
    assert poor["state"] == "running"
    assert poor["tasks"]["medqa"]["errors"] == 2
    assert [one["name"] for one in found["broken"]] == ["broken"]


def test_csv_has_a_row_a_run_and_task(collection: Collection) -> None:
    rows = table(leaderboard(collection)["leaderboard.csv"])
    assert [(row["run"], row["task"]) for row in rows] == [
        ("good", "medqa"), ("good", "pubmedqa"), ("other", "medqa"), ("poor", "medqa"), ("poor", "pubmedqa"),
    ]  # fmt: skip
    assert {row["version"] for row in rows} == {"1"}
    assert float(rows[0]["accuracy"]) == 0.9


def test_csv_of_no_runs_has_its_heading(tmp_path: Path) -> None:
    content = leaderboard(Collection(()))["leaderboard.csv"]
    assert content.startswith(b"run,model,protocol,")
    assert table(content) == []


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1"])
def test_csv_runs_no_formula(tmp_path: Path, name: str) -> None:
    model = ModelRecord(name=name, kind="full", fingerprint="f")
    stored_run(tmp_path, "run", {"medqa": answers(1)}, model=model)
    (row,) = table(leaderboard(collect([tmp_path]))["leaderboard.csv"])
    assert row["model"].startswith("'")


def test_markdown_keeps_task_versions_apart_and_puts_the_best_first(collection: Collection) -> None:
    html = etree.HTML(
        MarkdownIt("commonmark").enable("table").render(leaderboard(collection)["leaderboard.md"].decode())
    )
    tables = html.findall(".//table")
    rows = [[["".join(cell.itertext()) for cell in row] for row in one.iter("tr")] for one in tables]
    assert [len(one) for one in rows] == [3, 2]
    heading, good, poor = rows[0]
    assert heading == ["model", "medqa", "pubmedqa", "mean", "verdict", "note"]
    assert good == ["good", "90.0 (59.6 to 98.2)", "80.0 (49.0 to 94.3)", "85.0", "pass", ""]
    assert poor[0] == "poor"
    assert poor[-1] == "running"


@pytest.mark.slow
def test_hostile_names_stay_text_in_every_format(tmp_path: Path) -> None:
    files = leaderboard(collect([hostile_runs(tmp_path, reply=100)]))
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(files["leaderboard.md"].decode())
    tree = etree.HTML(rendered)
    allowed = {"html", "body", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert {element.tag for element in tree.iter()} <= allowed
    assert len(table(files["leaderboard.csv"])) > len(HOSTILE)
    assert all(
        not cell.startswith(("=", "+", "-", "@")) for row in table(files["leaderboard.csv"]) for cell in row.values()
    )
    json.loads(files["leaderboard.json"])


def test_a_badge_a_gate_says_what_it_found(tmp_path: Path) -> None:
    run = stored_run(tmp_path, "run", {"medqa": answers(5, 3)})
    rules = [
        gate("medqa: accuracy at least 0.6"),
        gate("medqa: accuracy not worse than the baseline's by more than 0.02", "fail", estimate=-0.031),
        gate("medqa: tokens_per_answer at most 900", "undecided", metric="tokens_per_answer", estimate=880.04),
        gate("medqa: errors at most 0.1", "not gateable", metric="errors", estimate=None),
    ]
    judge(run, *rules, overall="fail")
    (view,) = collect([tmp_path]).runs
    found = badges(view)
    assert all(name.startswith("badges/run--") and name.endswith(".svg") for name in found)
    labels = [etree.fromstring(image).get("aria-label") for image in found.values()]
    assert labels == [
        "medbench: fail",
        "medqa: accuracy at least 0.6: pass 62.5 %",
        "medqa: accuracy not worse than the baseline's by more than 0.02: fail -3.1 points",
        "medqa: tokens_per_answer at most 900: undecided 880.0",
        "medqa: errors at most 0.1: not gateable",
    ]
    colours = [etree.fromstring(image).findall(f"{SVG}rect")[1].get("fill") for image in found.values()]
    assert len(set(colours)) == 4


def test_a_run_without_a_verdict_has_no_badge(tmp_path: Path) -> None:
    stored_run(tmp_path, "run", {"medqa": answers(1)})
    assert badges(collect([tmp_path]).runs[0]) == {}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_badge_is_text_in_an_image(tmp_path: Path, text: str) -> None:
    run = stored_run(tmp_path, "run", {"medqa": answers(1)})
    judge(run, gate(text.encode("utf-8", "replace").decode()))
    for image in badges(collect([tmp_path]).runs[0]).values():
        tags = {element.tag.removeprefix(SVG) for element in etree.fromstring(image).iter()}
        assert tags == {"svg", "title", "rect", "g", "text"}


# --- lm-eval ---


def exported(root: Path, target: Path) -> list[str]:
    written, left_out = export(collect([root]), target)
    assert written == sum(1 for path in target.rglob("*") if path.is_file() and not path.name.startswith("."))
    return left_out


def read_as_lm_eval(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The newest results of a model's folder and its samples, found by lm-eval's own functions, as its scripts do."""
    from lm_eval import utils

    names = [path.as_posix() for path in folder.iterdir()]
    results = json.loads(Path(utils.get_latest_filename(utils.get_results_filenames(names))).read_text())
    samples = {}
    for task in results["configs"]:
        of_task = [name for name in utils.get_sample_results_filenames(names)
                   if utils.get_file_task_name(Path(name).name) == task]  # fmt: skip
        with Path(utils.get_latest_filename(of_task)).open(encoding="utf-8") as file:
            samples[task] = [json.loads(line.strip()) for line in file]
    return results, samples


def test_lm_eval_finds_and_tabulates_the_results(tmp_path: Path) -> None:
    from lm_eval.utils import make_table

    stored_run(tmp_path / "runs", "run", {"mmlu_pro_medical": answers(6, 2), "medqa": answers(3, 1, 1)})
    assert exported(tmp_path / "runs", tmp_path / "out") == []
    results, samples = read_as_lm_eval(tmp_path / "out" / "run")
    assert set(samples) == {"mmlu_pro_medical", "medqa"}
    cells = [[cell.strip() for cell in line.split("|")] for line in make_table(results).splitlines()]
    rows = {(row[1], row[5]): row for row in cells if len(row) > 8}
    assert float(rows["medqa", "accuracy"][7]) == 0.75
    assert float(rows["medqa", "accuracy"][9]) == 0.25  # 0.5 / sqrt(4), as lm-eval's mean_stderr
    assert ("", "unparsed") in rows
    assert results["n-samples"]["medqa"] == {"original": 5, "effective": 4}


def test_what_lm_eval_averages_over_the_samples_is_what_the_results_say(tmp_path: Path) -> None:
    from lm_eval.api.metrics import mean, mean_stderr

    stored_run(tmp_path / "runs", "run", {"medqa": [*answers(7, 4), answer("x", 0.0, outcome="unparsed")]})
    exported(tmp_path / "runs", tmp_path / "out")
    results, samples = read_as_lm_eval(tmp_path / "out" / "run")
    for metric in results["configs"]["medqa"]["metric_list"]:
        values = [sample[metric["metric"]] for sample in samples["medqa"]]
        assert results["results"]["medqa"][f"{metric['metric']},extracted"] == pytest.approx(mean(values))
        assert results["results"]["medqa"][f"{metric['metric']}_stderr,extracted"] == pytest.approx(mean_stderr(values))


def test_the_files_have_the_fields_of_lm_evals_schema(tmp_path: Path) -> None:
    from lm_eval.result_schema import EvalResults, SampleResult

    stored_run(tmp_path / "runs", "run", {"medqa": answers(2, 1)})
    exported(tmp_path / "runs", tmp_path / "out")
    results, samples = read_as_lm_eval(tmp_path / "out" / "run")
    assert set(results) <= set(EvalResults.__annotations__)
    assert {"results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "config"} <= set(results)
    for sample in samples["medqa"]:
        assert set(SampleResult.__annotations__) == set(sample) - set(sample["metrics"])
        assert all(isinstance(sample[metric], float) for metric in sample["metrics"])


def test_the_hub_library_loads_the_samples_as_a_data_set(tmp_path: Path) -> None:
    from datasets import load_dataset

    scored = [answer(f"q{n}", logprobs={" A": -0.1, " B": -2.0}) for n in range(3)]
    method = {"protocol": {"name": "logprob", "method": "loglikelihood"}}
    stored_run(tmp_path / "runs", "run", {"medqa": scored}, **method)
    exported(tmp_path / "runs", tmp_path / "out")
    (path,) = (tmp_path / "out" / "run").glob("samples_*")
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["filtered_resps"][0] == [["-0.1", "True"], ["-2.0", "False"]]
    assert rows["arguments"][0]["gen_args_1"] == {"arg_0": "Q?", "arg_1": " B"}
    assert read_as_lm_eval(tmp_path / "out" / "run")[0]["configs"]["medqa"]["output_type"] == "multiple_choice"


def test_several_askings_are_repeats_of_one_document(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "runs", "run", {"medqa": [answer("q2", 1.0, output="first")]}, n=2)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"samples": 2}))
    from medbench.harness.runs.run_folder import _line

    with (run / "samples" / "medqa.jsonl").open("ab") as file:
        file.write(_line(answer("q2", 0.0, output="second", repeat=1)))
        file.write(_line(answer("q1", None)))
    exported(tmp_path / "runs", tmp_path / "out")
    _, samples = read_as_lm_eval(tmp_path / "out" / "run")
    (sample,) = samples["medqa"]
    assert (sample["doc_id"], sample["resps"], sample["accuracy"]) == (1, [["first", "second"]], 0.5)


def test_an_export_is_made_again_and_never_over_other_files(tmp_path: Path) -> None:
    stored_run(tmp_path / "runs", "a", {"medqa": answers(1)})
    stored_run(tmp_path / "runs", "b", {"medqa": answers(1)})
    exported(tmp_path / "runs", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "a").iterdir()}
    (tmp_path / "runs" / "b").rename(tmp_path / "elsewhere")
    exported(tmp_path / "runs", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "a").iterdir()} == before
    assert not (tmp_path / "out" / "b").exists()
    with pytest.raises(MedbenchError, match="holds other files"):
        export(collect([tmp_path / "runs"]), tmp_path / "runs")


def test_damaged_samples_are_named_and_the_rest_exported(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "runs", "run", {"medqa": answers(2), "pubmedqa": answers(2)})
    (run / "samples" / "pubmedqa.jsonl").unlink()
    with (run / "samples" / "medqa.jsonl").open("ab") as file:
        file.write(b"{}\n")
    left_out = exported(tmp_path / "runs", tmp_path / "out")
    assert [line.split(": ")[0:2] for line in left_out] == [["run", "medqa"], ["run", "pubmedqa"]]
    assert list(read_as_lm_eval(tmp_path / "out" / "run")[1]) == ["medqa"]


@pytest.mark.slow
def test_hostile_runs_are_exported_inside_the_folder(tmp_path: Path) -> None:
    hostile_runs(tmp_path / "x" / "runs", reply=100)
    before = set(tmp_path.rglob("*"))
    exported(tmp_path / "x" / "runs", tmp_path / "x" / "out")
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "x" / "out")} == before
    results, samples = read_as_lm_eval(tmp_path / "x" / "out" / "all-samples")
    assert len(samples["medqa"]) == results["n-samples"]["medqa"]["effective"]
