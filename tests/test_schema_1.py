"""Run folders that an earlier medbench wrote (schema 1) are read, judged, compared, resumed and shown.

tests/data/schema_1/README.md says what they are and how they were made. Only the command line and the reading functions
are used here.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medbench.harness.cli.main import run
from medbench.harness.runs.run_folder import read_result, read_run, read_samples
from medbench.harness.training.checkpoint_folder import read_metrics
from medbench.harness.training.journal import read_events, read_training

STORED = Path(__file__).parent / "data" / "schema_1"
RUNS = sorted(path.parent.relative_to(STORED) for path in STORED.rglob("run.json"))
RESULTS = sorted(path.relative_to(STORED) for path in STORED.rglob("results/*.json"))
SAMPLES = sorted(path.relative_to(STORED) for path in STORED.rglob("samples/*.jsonl"))
TRAINING = Path("runs/train-tiny")
REPLIES = ("--replies", "replies.jsonl", "--data", "sample", "--partition", "gate", "--protocol", "cot-v1")
REPLIES += ("--max-new-tokens", "64", "--quiet")
NEWER = 99

Medbench = Callable[..., Any]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folders, which is also the working directory."""
    copy = tmp_path / "copy"
    shutil.copytree(STORED, copy)
    for record in copy.rglob("run.json"):
        (record.parent / "results").mkdir(exist_ok=True)  # git keeps no empty folder
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    for name in ("MEDBENCH_DATA", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    return copy


@pytest.fixture
def medbench(stored: Path, capfd: pytest.CaptureFixture[str]) -> Medbench:
    """Runs a command with --json in the copy; (exit status, the object)."""

    def medbench(*arguments: str | Path) -> tuple[int, Any]:
        capfd.readouterr()
        status = run([*map(str, arguments), "--json"])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert out, err
        return status, json.loads(out)

    return medbench


@pytest.fixture
def fault(stored: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a command is refused with."""

    def fault(*arguments: str | Path) -> str:
        capfd.readouterr()
        assert run([*map(str, arguments)]) == 2
        out, err = capfd.readouterr()
        (line,) = [line for line in err.splitlines() if "the built-in sample" not in line]
        assert out == ""
        return line

    return fault


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file."""
    *lines, _ = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]


def as_json(value: Any) -> Any:
    """As a reader of JSON gets it back."""
    plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    return json.loads(json.dumps(plain, default=lambda other: other.model_dump(mode="json")))


def make_newer(path: Path) -> None:
    text = path.read_text()
    assert '"schema_version": 1' in text
    path.write_text(text.replace('"schema_version": 1', f'"schema_version": {NEWER}'))


def test_every_kind_of_folder_is_there() -> None:
    assert (len(RUNS), len(RESULTS), len(SAMPLES)) == (17, 18, 20)
    assert sum(path.stat().st_size for path in STORED.rglob("*") if path.is_file()) < 400_000


@pytest.mark.parametrize("folder", RUNS, ids=str)
def test_run_json_is_read_whole(folder: Path) -> None:
    content = json.loads((STORED / folder / "run.json").read_text())
    record = read_run(STORED / folder)
    assert record.run_id == folder.name
    for key in content.keys() - {"schema_version", "model", "tasks"}:
        assert as_json(getattr(record, key)) == content[key], key
    names = ("config_sha256", "weight_bytes", "quantization", "revision", "commit", "base_commit", "experts")
    added = dict.fromkeys(names)
    assert as_json(record.model) == content["model"] | added
    assert as_json(record.tasks) == {name: task | {"commit": None} for name, task in content["tasks"].items()}


@pytest.mark.parametrize("file", RESULTS, ids=str)
def test_results_are_read_whole(file: Path) -> None:
    content = json.loads((STORED / file).read_text())
    result = read_result(STORED / file.parent.parent, file.stem)
    for key in content.keys() - {"schema_version"}:
        assert as_json(getattr(result, key)) == content[key], key


@pytest.mark.parametrize("file", SAMPLES, ids=str)
def test_samples_are_read_whole(file: Path) -> None:
    lines = lines_of(STORED / file)
    samples = list(read_samples(STORED / file.parent.parent, file.stem))
    assert len(samples) == len(lines) > 0
    for sample, line in zip(samples, lines, strict=True):
        for key in line.keys() - {"schema_version"}:
            assert as_json(getattr(sample, key)) == line[key], key


def test_what_is_special_about_each_run() -> None:
    records = {folder.name: read_run(STORED / folder) for folder in RUNS}
    unfinished = {name for name, record in records.items() if record.status != "complete"}
    assert unfinished == {"incomplete", "weak-cot-v1-dd4c72"}
    sampled, shuffled, direct = (STORED / "runs" / name for name in ("sampled", "shuffled", "direct"))
    assert (records["sampled"].samples, records["shuffled"].shuffle_options) == (3, 3)
    assert Counter(sample.repeat for sample in read_samples(sampled, "medqa")) == {0: 2, 1: 2, 2: 2}
    assert {sample.order is None for sample in read_samples(shuffled, "medqa")} == {False}
    assert {len(sample.logprobs or {}) for sample in read_samples(direct, "pubmedqa")} == {3}
    assert read_result(sampled, "medqa").sampling is not None
    assert read_result(shuffled, "medqa").shuffling is not None
    assert read_result(direct, "medqa").calibration is not None


def test_the_torn_line_is_no_sample() -> None:
    content = (STORED / "runs/incomplete/samples/medqa.jsonl").read_bytes()
    assert not content.endswith(b"\n")
    assert len(content.split(b"\n")) == 8
    assert len(list(read_samples(STORED / "runs/incomplete", "medqa"))) == 7


NEW_FIELDS = ("costs", "samples", "number", "order_seed", "gate_file", "rules")


def without_new(content: Any) -> Any:
    """A verdict without what newer verdicts say beside it, and of each gate beside its rule."""
    if not isinstance(content, dict) or "gates" not in content:
        return content
    added = {"kind", "unit", "interval_level", "interval_kind", "observed", "sampling_noise", "new_questions", "judged"}
    gates = [{key: value for key, value in gate.items() if key not in added} for gate in content["gates"]]
    return {key: value for key, value in content.items() if key not in NEW_FIELDS} | {"gates": gates}


def without_empty(content: Any) -> Any:
    """A stored verdict without intervals of width zero, which a census over all questions no longer has."""
    if not isinstance(content, dict) or "gates" not in content:
        return content
    gates = [gate | {"interval": interval_of(gate)} for gate in content["gates"]]
    return {**content, "gates": gates}


def interval_of(gate: dict[str, Any]) -> list[float] | None:
    return gate["interval"] if gate["interval"] and len(set(gate["interval"])) > 1 else None


def test_the_training_and_its_events() -> None:
    training = read_training(STORED / TRAINING)
    assert (training.name, [stage["name"] for stage in training.recipe["stages"]]) == ("tiny", ["sft", "grpo"])
    events = list(read_events(STORED / TRAINING))
    assert Counter(event.event for event in events) == {
        "stage_started": 2, "measured": 3, "attempt_started": 3, "gated": 5, "confirmed": 2, "attempt_ended": 3,
        "promoted": 2, "training_ended": 1,
    }  # fmt: skip
    lines = lines_of(STORED / TRAINING / "journal.jsonl")
    for event, line in zip(events, lines, strict=True):
        for key in line:
            assert without_new(as_json(getattr(event, key))) == without_empty(line[key]), key


def test_metrics_of_the_attempts() -> None:
    steps = {str(path.parent.relative_to(STORED / TRAINING)): [line["step"] for line in read_metrics(path.parent)]
             for path in sorted((STORED / TRAINING).rglob("metrics.jsonl"))}  # fmt: skip
    assert steps == {
        "1-sft/attempt-1": list(range(1, 33)),
        "1-sft/attempt-2": list(range(1, 33)),
        "2-grpo/attempt-1": [1, 2, 3, 4],
    }


def test_a_torn_journal_ends_before_the_torn_line(stored: Path) -> None:
    journal = stored / TRAINING / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-10])
    assert [event.event for event in read_events(stored / TRAINING)][-1] == "promoted"


def same_verdict(found: dict[str, Any], expected: dict[str, Any], *, wider: bool = False) -> None:
    assert found["overall"] == expected["overall"]
    assert len(found["gates"]) == len(expected["gates"]) > 0
    for one, other in zip(found["gates"], expected["gates"], strict=True):
        for key in ("rule", "status", "used", "total"):
            assert one[key] == other[key], (key, other["rule"])
        for key in ("estimate", "threshold"):
            assert one[key] == pytest.approx(other[key], rel=1e-6), (key, other["rule"])
        expected_interval = interval_of(other)
        if expected_interval is None:
            assert one["interval"] is None, other["rule"]
        elif wider:
            assert one["interval"][0] <= expected_interval[0] < expected_interval[1] <= one["interval"][1]
        else:
            assert one["interval"] == pytest.approx(expected_interval, rel=1e-6), other["rule"]


def test_the_finished_candidate_gets_its_verdict_again(stored: Path, medbench: Medbench) -> None:
    file = stored / "runs/candidate/verdict.json"
    expected = json.loads(file.read_text())
    file.unlink()
    status, told = medbench("gate", "runs/candidate", "--gates", "gates.yaml", "--baseline", "runs/base")
    assert (status, expected["overall"]) == (1, "fail")
    same_verdict(told["verdicts"][0], expected)
    same_verdict(json.loads(file.read_text()), expected)


def test_the_candidate_judged_while_asked_is_not_asked_again(stored: Path, medbench: Medbench) -> None:
    folder = stored / "runs/weak-cot-v1-dd4c72"
    expected = json.loads((folder / "verdict.json").read_text())
    samples = (folder / "samples/mmlu_pro_medical.jsonl").read_bytes()
    given = ("--engine", "fake", "--replies", "weak.jsonl", "--data", "sample", "--gates", "early.yaml", "--quiet")
    gates = stored / "early.yaml"
    gates.write_text("protocol: cot-v1\n" + gates.read_text())  # it was the default then
    status, told = medbench("gate", "weak", *given)
    assert status == 1
    assert Path(told["verdicts"][0]["run"]).name == folder.name
    # the first checkpoint of the ledger, which medbench 0.1.0 did not have, spends 61 % of alpha on a pass
    same_verdict(told["verdicts"][0], expected, wider=True)
    assert (folder / "samples/mmlu_pro_medical.jsonl").read_bytes() == samples


def test_two_runs_are_compared(medbench: Medbench) -> None:
    status, told = medbench("compare", "runs/base", "runs/candidate")
    assert status == 0
    found = {task["task"]: task["overall"] for task in told["tasks"]}
    assert {name: (one["n"], one["lost"], one["gained"]) for name, one in found.items()} == {
        "medqa": (18, 1, 11),
        "pubmedqa": (14, 2, 4),
    }
    assert found["medqa"]["difference"] == pytest.approx(10 / 18)
    assert found["pubmedqa"]["difference"] == pytest.approx(2 / 14)


def test_pages_of_all_of_them(stored: Path, tmp_path: Path, medbench: Medbench) -> None:
    status, told = medbench("report", "runs", "-o", tmp_path / "site")
    assert status == 0
    assert (told["runs"], told["trainings"], told["broken"]) == (7, 1, 0)
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    shown = [path.name for path in (stored / "runs").iterdir() if (path / "run.json").exists()]
    assert len(shown) == 7
    assert {name for name in shown if not any(page.startswith(f"runs/{name}/") for page in pages)} == set()
    assert any(page.startswith("trainings/train-tiny/") for page in pages)


def test_pages_of_the_runs_that_a_training_asked(tmp_path: Path, medbench: Medbench) -> None:
    status, told = medbench("report", TRAINING / "runs", "-o", tmp_path / "site")
    assert status == 0
    assert (told["runs"], told["broken"]) == (10, 0)


def test_files_for_lm_eval(tmp_path: Path, medbench: Medbench) -> None:
    assert medbench("report", "runs/base", "-o", tmp_path / "out", "--format", "lm-eval")[0] == 0
    assert list((tmp_path / "out").rglob("samples_medqa*.jsonl"))


def test_an_incomplete_run_is_gone_on_with(stored: Path, medbench: Medbench) -> None:
    path = stored / "runs/incomplete/samples/medqa.jsonl"
    before = path.read_bytes().split(b"\n")[:-1]
    given = ("eval", "candidate", "--tasks", "medqa", "--name", "incomplete", "--resume", *REPLIES)
    status, told = medbench(*given)
    assert (status, told["status"]) == (0, "complete")
    after = path.read_bytes().split(b"\n")[:-1]
    assert after[: len(before)] == before  # the seven whole lines; the torn one was asked again
    ids = [sample.id for sample in read_samples(stored / "runs/incomplete", "medqa")]
    assert sorted(ids) == sorted(sample.id for sample in read_samples(stored / "runs/candidate", "medqa"))
    assert told["results"]["medqa"]["accuracy"] == read_result(stored / "runs/candidate", "medqa").accuracy


def test_a_finished_run_is_resumed_by_doing_nothing(stored: Path, medbench: Medbench) -> None:
    files = {path: path.read_bytes() for path in (stored / "runs/candidate").rglob("*.json*")}
    given = ("eval", "candidate", "--tasks", "medqa,pubmedqa", "--name", "candidate", "--resume", *REPLIES)
    status, told = medbench(*given)
    assert (status, told["status"]) == (0, "complete")
    assert {path: path.read_bytes() for path in files} == files


COMPARE = ("compare", "runs/base", "runs/candidate")
RESUME = ("eval", "candidate", "--tasks", "medqa,pubmedqa", "--name", "candidate", "--resume", *REPLIES)
TRAIN = ("train", "training/recipe.yaml", "--resume")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("runs/candidate/run.json", COMPARE),
        ("runs/candidate/samples/medqa.jsonl", COMPARE),
        ("runs/candidate/run.json", RESUME),
        ("runs/candidate/results/medqa.json", RESUME),
        ("runs/train-tiny/training.json", TRAIN),
    ],
)
def test_a_newer_schema_is_refused_in_one_line(
    stored: Path, fault: Callable[..., str], file: str, command: tuple[str, ...]
) -> None:
    make_newer(stored / file)
    line = fault(*command)
    assert file in line
    assert f"schema version {NEWER} is newer" in line


def test_pages_name_what_is_newer(stored: Path, medbench: Medbench, tmp_path: Path) -> None:
    make_newer(stored / "runs/direct/run.json")
    make_newer(stored / "runs/train-tiny/training.json")
    status, told = medbench("report", "runs", "-o", tmp_path / "site")
    assert status == 0
    assert (told["runs"], told["trainings"], told["broken"]) == (6, 0, 2)
