"""The band of protocols over the same replies: each row equals scoring under that protocol alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gate_runs import a_task, write_medqa, write_replies

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.cli.diagnostic_tables import band_table
from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError, Task
from medbench.harness.evaluation import protocol_sensitivity as module
from medbench.harness.evaluation.protocol_sensitivity import band_of, band_over, generating_protocols
from medbench.harness.evaluation.score_replies import ScoreOptions, replies_to, score_task
from medbench.harness.runs.run_folder import read_samples

TEXTS = (
    "The answer is (A).",
    "B",
    "Final answer: \\boxed{B}",
    "I cannot tell.",
    "",
    "answer is A",
    "Zinc, for it is one.",
    "A patient needs iron. The answer is (B).",
    "<think>The answer is (B)",
    "Vitamin B is not it. The answer is A",
)


def a_file(folder: Path, texts: Sequence[str]) -> Path:
    path = folder / "replies.jsonl"
    lines = [json.dumps({"id": f"q{at}", "output": text}) + "\n" for at, text in enumerate(texts)]
    path.write_text("".join(lines))
    return path


def alone(task: Task, file: Path, protocol: str, folder: Path) -> tuple[Any, Mapping[str, str | None]]:
    """(result, id -> answer) of `medbench score` under one protocol."""
    outcome = score_task(ScoreOptions(file, task.name, protocol, runs=folder / protocol), task, [], lambda _: None)
    return outcome.results[task.name], {s.id: s.extracted for s in read_samples(outcome.folder, task.name)}


@pytest.mark.slow
@settings(max_examples=15)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12))
def test_a_row_is_what_scoring_under_that_protocol_finds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("band")
    task = a_task([f"q{at}" for at in range(len(texts))])
    file = a_file(folder, texts)
    band = band_over(task, replies_to(task, file))
    assert band.rows[0].protocol == "cot-v2"
    answers = {}
    for row in band.rows:
        result, answers[row.protocol] = alone(task, file, row.protocol, folder)
        assert (row.accuracy, row.interval) == (result.accuracy, result.interval)
        assert row.published == (result.published.accuracy if result.published else None)
        assert row.unparsed * len(texts) == pytest.approx(result.n_unparsed)
        assert row.difference == pytest.approx(row.accuracy - band.rows[0].accuracy)
    for one in band.differing:
        assert one.replies == sum(answers[one.a][id] != answers[one.b][id] for id in answers[one.a])
    differing = sum(len({answers[name][q.id] for name in band.reading}) > 1 for q in task.questions)
    assert band.differing_reading == differing


def test_exactly_the_generating_protocols_are_in_the_band() -> None:
    names = [protocol.name for protocol in generating_protocols()]
    assert names[0] == "cot-v2"
    assert {"mmlu-pro-official", "huatuo-o1", "m1"} < set(names)
    assert not {"direct-v1", "lm-eval-logprob", "lm-eval"} & set(names)


def test_the_table_names_the_ends_of_the_band(tmp_path: Path) -> None:
    task = a_task([f"q{at}" for at in range(4)])
    band = band_over(task, replies_to(task, a_file(tmp_path, ["The answer is (A)."] * 4)))
    text = band_table(band)
    (line,) = [line for line in text.splitlines() if line.startswith("the same replies")]
    assert line == (
        "the same replies score between 0.0 % (medhelm-letter) and 100.0 % (cot-v2): a band of 100.0 points"
    )
    assert "without medhelm-letter" in text  # it expects only the letter
    assert "0 of 4 replies are read differently by two or more of these protocols" in text
    found = band.as_json()
    assert (found["band"], found["band_reading"]) == ((0.0, 1.0), (1.0, 1.0))


def test_missing_replies_in_the_band(tmp_path: Path) -> None:
    task = a_task(["q0", "q1", "q2"])
    file = a_file(tmp_path, ["A", "B"])
    with pytest.raises(MedbenchError, match="1 of 3 questions have no reply"):
        band_over(task, replies_to(task, file))
    band = band_over(task, replies_to(task, file), incomplete=True)
    assert (band.incomplete, band.replies, band.questions) == (1, 2, 3)
    assert "incomplete: 1 of 3" in band_table(band)


def test_lm_evals_own_tasks_have_no_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign: Any = SimpleNamespace()
    monkeypatch.setattr(module.TaskLoader, "load", lambda self, name: replace(a_task(["q0"]), foreign=foreign))
    with pytest.raises(MedbenchError, match="lm-eval's own"):
        band_of(ScoreOptions(a_file(tmp_path, ["A"]), "theirs", "all"), lambda _: None)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    ids = write_medqa(tmp_path / "data", 8)
    write_replies(tmp_path / "mine.jsonl", {id: at < 6 for at, id in enumerate(ids)})
    arguments = ["score", "mine.jsonl", "--task", "medqa", "--data", "data", "--protocol", "all"]
    assert run(arguments) == 0
    assert "the same replies score between" in capfd.readouterr().out
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert {row["protocol"]: row["accuracy"] for row in found["rows"]}["mmlu-pro-official"] == 0.75
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Meta-Llama-3_1-8B-Instruct", "Qwen1.5-7B-Chat"])
def test_real_replies(model: str, data_dir: Path) -> None:
    task = TaskLoader(str(data_dir)).load("mmlu_pro_health")
    file = data_dir / "replay" / f"mmlu_pro_health_{model}.jsonl"
    band = band_over(task, replies_to(task, file))
    print("\n" + band_table(band))
    rows = {row.protocol: row for row in band.rows}
    official = rows["mmlu-pro-official"]
    nothing = sum(json.loads(line)["official_pred"] is None for line in file.open())
    assert official.unparsed == pytest.approx(nothing / 818)
    assert official.published is not None
    assert official.published > official.accuracy  # its guesses
