"""The benchmarks: every question of every task answers to its gold, and lm-eval's own command reads the same tasks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from medbench.harness.benchmarks.catalog import TaskCard, TaskLoader
from medbench.harness.benchmarks.rows import SAMPLE, question_of
from medbench.harness.benchmarks.task_folders import tasks_folder
from medbench.harness.contracts import Question, Task
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.scoring.score import score_reply
from medbench.tasks.medqa import rows as medqa
from medbench.tasks.mmlu_pro_medical import rows as mmlu_pro
from medbench.tasks.pubmedqa import rows as pubmedqa

DATASETS = {
    "medqa": medqa.dataset,
    "mmlu_pro_health": mmlu_pro.health_dataset,
    "mmlu_pro_medical": mmlu_pro.dataset,
    "pubmedqa": pubmedqa.dataset,
    "pubmedqa_1k": pubmedqa.all_dataset,
}
TASKS = tuple(DATASETS)
GARBAGE = (
    "",
    "   \n\n",
    "lol",
    "?????",
    "The patient should be seen soon.",
    "Lorem ipsum dolor sit amet.",
    "((((",
    "}",
)


@cache
def cards() -> dict[str, TaskCard]:
    return TaskLoader(SAMPLE).cards


@cache
def loaded(data: str, name: str, split: str = "test") -> Task:
    return TaskLoader(data).load(name, split)


def normal(question: Question) -> str:
    """The text by which the same question would be known again, whatever its punctuation and spacing."""
    return " ".join(re.findall(r"\w+", f"{question.context} {question.question}".lower()))


def misjudged(task: Task) -> list[str]:
    """Each label of each question given as a reply, where the score is not what it must be."""
    wrong = []
    for question in task.questions:
        for label in question.labels:
            answer, score = score_reply(f"The answer is ({label}).", question.labels, question.options, question.gold)
            if answer.answer != label or answer.outcome != "answered" or score != float(label == question.gold):
                wrong.append(f"{question.id}: {label} read as {answer.answer}, score {score}")
    return wrong


def garbage_scored(task: Task) -> list[str]:
    wrong = []
    for question in task.questions:
        for reply in GARBAGE:
            answer, score = score_reply(reply, question.labels, question.options, question.gold)
            if answer.answer is not None or answer.outcome == "answered" or score != 0:
                wrong.append(f"{question.id}: {reply!r} read as {answer.answer}")
    return wrong


def test_these_are_all_the_tasks() -> None:
    assert sorted(cards()) == sorted(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_the_sample_answers_to_its_gold(name: str) -> None:
    assert misjudged(loaded(SAMPLE, name)) == []


@pytest.mark.parametrize("name", TASKS)
def test_garbage_scores_nothing_on_the_sample(name: str) -> None:
    assert garbage_scored(loaded(SAMPLE, name)) == []


@pytest.mark.parametrize("name", TASKS)
def test_the_sample_is_named_so_and_large_enough(name: str) -> None:
    task = loaded(SAMPLE, name)
    assert task.data.source == SAMPLE
    assert not task.data.official
    assert len({question.cluster for question in task.questions}) >= 24
    assert task.version == cards()[name].version


@pytest.mark.parametrize("name", TASKS)
def test_questions_are_whole(name: str) -> None:
    for question in loaded(SAMPLE, name).questions:
        assert question.question.strip() == question.question != ""
        assert question.gold in question.labels
        assert len(question.labels) == len(question.options) >= 2
        assert all(option.strip() for option in question.options)
        assert bool(question.context) == name.startswith("pubmedqa")
        assert set(question.category) <= set(cards()[name].categories)


def test_the_sample_uses_every_label() -> None:
    """A model that always gives the same answer must not look good."""
    assert {question.gold for question in loaded(SAMPLE, "medqa").questions} == set("ABCD")
    assert {question.gold for question in loaded(SAMPLE, "pubmedqa").questions} == {"yes", "no", "maybe"}
    assert {len(question.labels) for question in loaded(SAMPLE, "mmlu_pro_medical").questions} >= {10}


def test_ids_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    lines = (tasks_folder() / "medqa" / "sample" / "test.jsonl").read_text().splitlines()
    (tmp_path / "medqa").mkdir()
    (tmp_path / "medqa" / "test.jsonl").write_text("\n".join(reversed(lines)))
    turned = loaded(str(tmp_path), "medqa")
    assert [question.id for question in turned.questions][::-1] == [q.id for q in loaded(SAMPLE, "medqa").questions]
    assert turned.data.sha256 == loaded(SAMPLE, "medqa").data.sha256


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "split", "n", "clusters"),
    [
        ("medqa", "test", 1273, 1273),
        ("mmlu_pro_medical", "test", 1535, 1440),
        ("mmlu_pro_health", "test", 818, 723),
        ("pubmedqa", "test", 500, 500),
        ("pubmedqa", "train", 500, 500),
        ("pubmedqa_1k", "test", 1000, 1000),
    ],
)
def test_the_real_files_are_the_pinned_benchmark(data_dir: Path, name: str, split: str, n: int, clusters: int) -> None:
    task, card = loaded(str(data_dir), name, split), cards()[name]
    assert len(task.questions) == n
    assert len({question.id for question in task.questions}) == n
    assert len({question.cluster for question in task.questions}) == clusters
    assert (task.version, task.split, task.data.source) == (card.version, split, "local")
    assert task.data.sha256 == card.sha256[split]
    assert task.data.official
    assert task.chance == pytest.approx(card.chance, abs=1e-4)
    assert split != "test" or card.n == n


@pytest.mark.data
@pytest.mark.parametrize("name", TASKS)
def test_the_real_questions_answer_to_their_gold(data_dir: Path, name: str) -> None:
    assert misjudged(loaded(str(data_dir), name)) == []


@pytest.mark.data
@pytest.mark.parametrize("name", TASKS)
def test_garbage_scores_nothing_on_the_real_questions(data_dir: Path, name: str) -> None:
    assert garbage_scored(loaded(str(data_dir), name)) == []


@pytest.mark.data
@pytest.mark.parametrize("name", TASKS)
def test_the_sample_shares_no_question_with_the_benchmark(data_dir: Path, name: str) -> None:
    real = {normal(question) for question in loaded(str(data_dir), name).questions}
    assert not real & {normal(question) for question in loaded(SAMPLE, name).questions}


@pytest.mark.data
def test_the_official_test_ids_tell_pubmedqa_s_splits_apart(data_dir: Path) -> None:
    splits = {split: {q.id for q in loaded(str(data_dir), "pubmedqa", split).questions} for split in ("test", "train")}
    both = loaded(str(data_dir), "pubmedqa_1k").questions
    assert {question.id for question in both if question.category["split"] == "test"} == splits["test"]
    assert {question.id for question in both if question.category["split"] == "other"} == splits["train"]


@pytest.mark.data
def test_known_counts_of_gold_answers(data_dir: Path) -> None:
    """Counted by hand in the data folder's README: a shifted answer column would show here."""

    def counts(name: str) -> dict[str, int]:
        golds = [question.gold for question in loaded(str(data_dir), name).questions]
        return {gold: golds.count(gold) for gold in set(golds)}

    assert counts("medqa") == {"A": 353, "B": 309, "C": 346, "D": 265}
    assert counts("pubmedqa") == {"yes": 276, "no": 169, "maybe": 55}


@pytest.mark.slow
@pytest.mark.parametrize("source", [SAMPLE, pytest.param("real", marks=pytest.mark.data)])
def test_lm_eval_asks_every_question_as_the_default_protocol_does(request: pytest.FixtureRequest, source: str) -> None:
    from lm_eval.tasks import TaskManager

    data = SAMPLE if source == SAMPLE else str(request.getfixturevalue("data_dir"))
    manager = TaskManager(include_path=tasks_folder(), include_defaults=False, metadata={"data": data})
    protocol = load_protocol("cot-v2")
    for name in TASKS:
        theirs = manager.load(name)["tasks"][name]
        asked = [theirs.doc_to_text(doc) for doc in theirs.eval_docs]
        assert asked == [protocol.text(question) for question in loaded(data, name).questions]
        shown = [theirs.doc_to_target(doc) for doc in theirs.eval_docs]
        assert shown == [f"The answer is ({question.gold})." for question in loaded(data, name).questions]


@pytest.mark.slow
def test_lm_eval_s_own_command_asks_and_scores_our_tasks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "dummy", "--limit", "3", "--log_samples"]
    command += ["--include_path", str(tasks_folder()), "--tasks", ",".join(TASKS), "--output_path", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "MEDBENCH_DATA": SAMPLE}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = tmp_path.glob("**/results_*.json")
    scores = json.loads(results.read_text())["results"]
    # the dummy model says "lol" to everything
    assert sorted(scores) == sorted(TASKS)
    assert {(score["accuracy,none"], score["unparsed,none"]) for score in scores.values()} == {(0.0, 1.0)}
    protocol = load_protocol("cot-v2")
    for name in TASKS:
        (samples,) = tmp_path.glob(f"**/samples_{name}_2*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        ours = loaded(SAMPLE, name).questions[:3]
        asked = [line["arguments"]["gen_args_0"] for line in lines]
        assert [question_of(line["doc"]).id for line in lines] == [question.id for question in ours]
        assert [one["arg_0"] for one in asked] == [protocol.text(question) for question in ours]
        assert [one["arg_1"]["until"] for one in asked] == [list(protocol.stop)] * 3
        assert {one["arg_1"]["max_gen_toks"] for one in asked} == {protocol.decoding.max_new_tokens}
        assert {one["arg_1"]["temperature"] for one in asked} == {protocol.decoding.temperature}
