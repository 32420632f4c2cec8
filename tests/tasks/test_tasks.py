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
from medbench.harness.benchmarks.lm_eval_tasks import lm_eval_names
from medbench.harness.benchmarks.rows import SAMPLE, question_of
from medbench.harness.benchmarks.task_folders import tasks_folder
from medbench.harness.contracts import OPEN_EXTRACTION, OWN_EXTRACTION, Extraction, MedbenchError, Question, Task
from medbench.harness.evaluation.plan import default_protocol
from medbench.harness.extraction.quantity import without_limits
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.scoring.score import score_reply
from medbench.tasks.medcalc_verified import rows as medcalc
from medbench.tasks.medmcqa import rows as medmcqa
from medbench.tasks.medqa import rows as medqa
from medbench.tasks.medxpertqa import rows as medxpertqa
from medbench.tasks.metamedqa import rows as metamedqa
from medbench.tasks.mmlu_medical import rows as mmlu
from medbench.tasks.mmlu_pro_medical import rows as mmlu_pro
from medbench.tasks.pubmedqa import rows as pubmedqa

PINNED = {
    "medqa": medqa.dataset,
    "mmlu_pro_health": mmlu_pro.health_dataset,
    "mmlu_pro_medical": mmlu_pro.dataset,
    "pubmedqa": pubmedqa.dataset,
    "pubmedqa_1k": pubmedqa.all_dataset,
}
UNPINNED = {
    "medcalc_verified": medcalc.dataset,
    "medmcqa_val": medmcqa.dataset,
    "medqa_5options": medqa.five_options_dataset,
    "medxpertqa": medxpertqa.dataset,
    "metamedqa": metamedqa.dataset,
    "mmlu_medical": mmlu.dataset,
}
DATASETS = PINNED | UNPINNED
TASKS = tuple(DATASETS)
SAMPLED = tuple(name for name in TASKS if name != "metamedqa")
"""Rows of MetaMedQA were not to be had for a sample."""
SAMPLE_SIZES = {"medcalc_verified": 12, "medmcqa_val": 20, "medqa_5options": 10, "medxpertqa": 5, "mmlu_medical": 20}
"""Of samples taken from the benchmarks; those written for medbench are larger."""
OPTIONS = {"medcalc_verified": 0, "medmcqa_val": 4, "medqa_5options": 5, "medxpertqa": 10, "mmlu_medical": 4}
IN_CONTEXT = ("pubmedqa", "pubmedqa_1k", "medcalc_verified")
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
        right = without_limits(question.gold)
        for label in question.labels or (right, "-99999"):
            answer, score = scored(f"The answer is ({label}).", question)
            if answer.answer != label or answer.outcome != "answered" or score != float(label == right):
                wrong.append(f"{question.id}: {label} read as {answer.answer}, score {score}")
    return wrong


def scored(reply: str, question: Question) -> tuple[Extraction, float]:
    extraction = OWN_EXTRACTION if question.labels else OPEN_EXTRACTION
    return score_reply(reply, question.labels, question.options, question.gold, extraction=extraction)


def garbage_scored(task: Task) -> list[str]:
    wrong = []
    for question in task.questions:
        for reply in GARBAGE:
            answer, score = scored(reply, question)
            if answer.answer is not None or answer.outcome == "answered" or score != 0:
                wrong.append(f"{question.id}: {reply!r} read as {answer.answer}")
    return wrong


def test_these_are_all_the_tasks() -> None:
    assert sorted(cards()) == sorted(TASKS)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_sample_answers_to_its_gold(name: str) -> None:
    assert misjudged(loaded(SAMPLE, name)) == []


@pytest.mark.parametrize("name", SAMPLED)
def test_garbage_scores_nothing_on_the_sample(name: str) -> None:
    assert garbage_scored(loaded(SAMPLE, name)) == []


@pytest.mark.parametrize("name", SAMPLED)
def test_the_sample_is_named_so_and_large_enough(name: str) -> None:
    task = loaded(SAMPLE, name)
    assert task.data.source == SAMPLE
    assert not task.data.official
    assert len({question.cluster for question in task.questions}) >= SAMPLE_SIZES.get(name, 24)
    assert task.version == cards()[name].version


@pytest.mark.parametrize("name", SAMPLED)
def test_questions_are_whole(name: str) -> None:
    for question in loaded(SAMPLE, name).questions:
        assert question.question.strip() == question.question != ""
        assert question.gold in question.labels or name == "medcalc_verified"
        assert len(question.labels) == len(question.options) == OPTIONS.get(name, len(question.options))
        assert len(question.options) >= 2 or name == "medcalc_verified"
        assert all(option.strip() for option in question.options)
        assert bool(question.context) == (name in IN_CONTEXT)
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
@pytest.mark.parametrize("name", PINNED)
def test_the_real_questions_answer_to_their_gold(data_dir: Path, name: str) -> None:
    assert misjudged(loaded(str(data_dir), name)) == []


@pytest.mark.data
@pytest.mark.parametrize("name", PINNED)
def test_garbage_scores_nothing_on_the_real_questions(data_dir: Path, name: str) -> None:
    assert garbage_scored(loaded(str(data_dir), name)) == []


@pytest.mark.data
@pytest.mark.parametrize("name", PINNED)
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
    for name in SAMPLED if source == SAMPLE else PINNED:
        protocol = load_protocol(default_protocol([loaded(data, name)]))
        theirs = manager.load(name)["tasks"][name]
        asked = [theirs.doc_to_text(doc) for doc in theirs.eval_docs]
        assert asked == [protocol.text(question) for question in loaded(data, name).questions]
        shown = [theirs.doc_to_target(doc) for doc in theirs.eval_docs]
        golds = [without_limits(question.gold) for question in loaded(data, name).questions]
        assert shown == [f"The answer is ({gold})." for gold in golds]


@pytest.mark.slow
def test_lm_eval_s_own_command_asks_and_scores_our_tasks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "dummy", "--limit", "3", "--log_samples"]
    command += ["--include_path", str(tasks_folder()), "--tasks", ",".join(SAMPLED), "--output_path", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "MEDBENCH_DATA": SAMPLE}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = tmp_path.glob("**/results_*.json")
    scores = json.loads(results.read_text())["results"]
    # the dummy model says "lol" to everything
    assert sorted(scores) == sorted(SAMPLED)
    assert {(score["accuracy,none"], score["unparsed,none"]) for score in scores.values()} == {(0.0, 1.0)}
    for name in SAMPLED:
        protocol = load_protocol(default_protocol([loaded(SAMPLE, name)]))
        (samples,) = tmp_path.glob(f"**/samples_{name}_2*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        ours = loaded(SAMPLE, name).questions[:3]
        asked = [line["arguments"]["gen_args_0"] for line in lines]
        assert [question_of(line["doc"]).id for line in lines] == [question.id for question in ours]
        assert [one["arg_0"] for one in asked] == [protocol.text(question) for question in ours]
        assert [one["arg_1"]["until"] for one in asked] == [list(protocol.stop)] * 3
        assert {one["arg_1"]["max_gen_toks"] for one in asked} == {protocol.decoding.max_new_tokens}
        assert {one["arg_1"]["temperature"] for one in asked} == {protocol.decoding.temperature}


# the benchmarks whose rows are not pinned


def write_rows(folder: Path, task: str, *rows: dict[str, object]) -> Path:
    """The test file of `task` in a data folder."""
    path = folder / cards()[task].files["test"][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MEDMCQA = {"id": "1", "question": "Q?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 3}
MMLU = {"question": "Q?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 1}
FIVE = {"question": "Q?", "options": dict(zip("ABCDE", "abcde", strict=True)), "answer_idx": "E", "answer": "e"}
TEN = {"id": "1", "question": "Q?", "options": dict(zip("ABCDEFGHIJ", "abcdefghij", strict=True)), "label": "J"}
SIX = {"question": "Q?", "options": dict(zip("ABCDEF", "abcdef", strict=True)), "answer_idx": "F", "kind": "Fictional"}
CALC = {
    "Row Number": 1,
    "Category": "lab test",
    "Output Type": "decimal",
    "Patient Note": "A note.",
    "Question": "What is it?",
    "Ground Truth Answer": 24,
    "Lower Limit": 22.8,
    "Upper Limit": 25.2,
}
GOOD = {
    "medmcqa_val": (MEDMCQA, "D"),
    "mmlu_medical": (MMLU, "B"),
    "medqa_5options": (FIVE, "E"),
    "medxpertqa": (TEN, "J"),
    "metamedqa": (SIX, "F"),
    "medcalc_verified": (CALC, "24 (22.8 to 25.2)"),
}


@pytest.mark.parametrize("name", UNPINNED)
def test_nobody_takes_rows_for_checked_that_the_task_does_not_pin(tmp_path: Path, name: str) -> None:
    row, gold = GOOD[name]
    write_rows(tmp_path, name, row)
    warnings: list[str] = []
    task = TaskLoader(str(tmp_path), warnings.append).load(name)
    assert cards()[name].sha256 == {}
    assert not cards()[name].core
    assert not task.data.official
    assert [question.gold for question in task.questions] == [gold]
    assert misjudged(task) == garbage_scored(task) == []
    (warning,) = warnings
    assert warning == (
        f"{name}: the task pins no rows, so these are unchecked (sha256 {task.data.sha256[:12]}), and 1 instead of "
        f"{cards()[name].n}: the run is marked unofficial"
    )


@pytest.mark.parametrize("name", UNPINNED)
def test_the_hub_s_rows_are_those_of_one_revision(name: str) -> None:
    assert re.fullmatch("[0-9a-f]{40}", cards()[name].hub["revision"])


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("medmcqa_val", {"cop": 4}, "cop: 4 is not 0 to 3: subtract 1 where the file counts options from 1"),
        ("medmcqa_val", {"cop": -1}, "cop: -1: the test split has no answers: use the validation split"),
        ("mmlu_medical", {"subject": "virology"}, "subject: 'virology' is not one of anatomy, "),
        ("mmlu_medical", {"answer": 4}, "answer: input should be less than or equal to 3"),
        ("medqa_5options", {"options": {"A": "a", "B": "e"}, "answer_idx": "B"}, "options: 2 where there must be 5"),
        ("medqa_5options", {"options": [{"key": []}]}, "options: input should be a valid dictionary"),
        ("medxpertqa", {"options": {"A": "a"}}, "options: keys must be A to J, found A"),
        ("medxpertqa", {"label": "K"}, "label: 'K' is not one of A to J"),
        ("metamedqa", {"options": {"A": "a"}}, "options: keys must be A to F, found A"),
        ("metamedqa", {"answer_idx": "G"}, "answer_idx: 'G' is not one of A to F"),
        ("medcalc_verified", {"Output Type": "text"}, "Output Type: input should be 'decimal', 'integer' or 'date'"),
        ("medcalc_verified", {"Upper Limit": "high"}, "answer and limits 24, 22.8, high: not three numbers"),
        ("medcalc_verified", {"Output Type": "date"}, "Ground Truth Answer: '24' is no date and no weeks and days"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, name: str, change: dict[str, object], says: str) -> None:
    path = write_rows(tmp_path, name, {**GOOD[name][0], **change})
    with pytest.raises(MedbenchError) as fault:
        TaskLoader(str(tmp_path)).load(name)
    assert str(fault.value).startswith(f"{path}:1: {says}")


def test_copies_with_lists_of_options_are_the_same_questions(tmp_path: Path) -> None:
    listed = {**FIVE, "options": [{"key": key, "value": value} for key, value in FIVE["options"].items()]}
    write_rows(tmp_path, "medqa_5options", listed)
    (question,) = TaskLoader(str(tmp_path)).load("medqa_5options").questions
    assert question.options == ("a", "b", "c", "d", "e")


def test_a_row_that_a_data_set_without_ids_has_twice_is_two_questions_of_one_cluster(tmp_path: Path) -> None:
    write_rows(tmp_path, "mmlu_medical", MMLU, {**MMLU, "question": "Other?"}, MMLU)
    first, _, second = TaskLoader(str(tmp_path)).load("mmlu_medical").questions
    assert second.id == f"{first.id}-2"
    assert second.cluster == first.cluster


def test_medxpertqa_s_list_of_options_is_shown_once() -> None:
    for question in loaded(SAMPLE, "medxpertqa").questions:
        assert "Answer Choices" not in question.question
        assert load_protocol("cot-v2").text(question).count("J. ") == 1


def test_metamedqa_has_no_sample_and_says_so() -> None:
    with pytest.raises(MedbenchError, match=r"no built-in sample: add test\.jsonl, or name a folder with --data"):
        TaskLoader(SAMPLE).load("metamedqa")


@pytest.mark.data
def test_i_do_not_know_is_an_option_like_others(data_dir: Path, tmp_path: Path) -> None:
    """MedQA's questions with the two further options of MetaMedQA."""
    rows = [
        {
            "question": question.question,
            "options": dict(zip("ABCD", question.options, strict=True))
            | {"E": "None of the above", "F": "I don't know or cannot answer"},
            "answer_idx": "F",
        }
        for question in loaded(str(data_dir), "medqa").questions[:300]
    ]
    write_rows(tmp_path, "metamedqa", *rows)
    task = TaskLoader(str(tmp_path)).load("metamedqa")
    assert misjudged(task) == garbage_scored(task) == []
    for reply in ("The answer is F. I don't know or cannot answer.", "I don't know or cannot answer."):
        assert {scored(reply, question)[0].answer for question in task.questions} == {"F"}


def test_lm_eval_s_own_tasks_keep_their_names() -> None:
    assert lm_eval_names() & set(UNPINNED) == set()
    assert {"medmcqa", "medqa_4options", "mmlu_anatomy"} <= lm_eval_names()


def test_medcalc_s_answers_are_right_within_their_limits() -> None:
    """The one-shot examples, worked out by hand: heart rate 113 and QT 330 give 330 / sqrt(60 / 113) = 452.9."""
    by_id = {question.id: question for question in loaded(SAMPLE, "medcalc_verified").questions}
    cases = {
        "10": {"452.9 msec": 1, "431": 1, "475": 1, "430": 0, "476": 0},
        "12": {"6": 1, "6 points": 1, "6.0": 1, "5": 0, "6.2": 0},
        "49": {"-7 mEq/L": 1, "-7.3": 1, "7": 0},
        "11": {"12/02/2000": 1, "12/2/2000": 1, "December 2, 2000": 1, "12/03/2000": 0, "02/12/2000": 0},
        "55": {"34 weeks, 3 days": 1, "(34, 3)": 1, "34 weeks": 0, "241 days": 0},
    }
    for id, answers in cases.items():
        for answer, right in answers.items():
            assert scored(f"The answer is ({answer}).", by_id[id])[1] == right, (id, answer)


@pytest.mark.data
def test_medqa_has_a_second_accuracy_without_the_flagged_questions(data_dir: Path) -> None:
    task = loaded(str(data_dir), "medqa")
    assert task.flags is not None
    assert len(task.flags.ids) == 122
    assert loaded(SAMPLE, "medqa").flags is None, "other rows were not reviewed"
    assert loaded(str(data_dir), "pubmedqa").flags is None
