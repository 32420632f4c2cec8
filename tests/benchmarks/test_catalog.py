"""Tasks by name, medbench's and lm-eval's own; for the latter, lm-eval's evaluator is the reference."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medbench.harness.benchmarks import catalog
from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.benchmarks.lm_eval_tasks import _first_filters, foreign_task, lm_eval_names, untested_lm_eval
from medbench.harness.benchmarks.rows import SAMPLE
from medbench.harness.benchmarks.task_folders import tasks_folder
from medbench.harness.contracts import MedbenchError, Message, Question, Task
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.plan import example_notes, protocol_for

TRIVIA = [
    {
        "question": f"What is {a} times {b}?",
        "options": [str(a * b), str(a + b + 7), str(a - b)],
        "answer": 0,
        "n": a * b,
    }
    for a, b in [(2, 3), (4, 5), (6, 7), (8, 9), (3, 3), (5, 8)]
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "options",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
GENERATE = {
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{n}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32, "do_sample": False, "temperature": 0.0},
    "filter_list": [
        {
            "name": "last-number",
            "filter": [{"function": "regex", "regex_pattern": r"answer is (\d+)"}, {"function": "take_first"}],
        }
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def lm_eval_task(config: Mapping[str, Any], docs: list[dict[str, Any]] | None = None) -> Any:
    """An lm-eval task whose rows need no hub."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    rows = datasets.Dataset.from_list(TRIVIA if docs is None else docs)
    splits = datasets.DatasetDict({"test": rows, "train": rows})
    settings = {
        "task": "trivia",
        "test_split": "test",
        "custom_dataset": lambda **_: splits,
        "metadata": {"version": 3},
    }
    return ConfigurableTask(config={**settings, **config})


def reply_to(prompt: str) -> str:
    """The reply of the tests' model, fixed by the prompt: right, wrong, or without an answer."""
    question = prompt.rsplit("What is ", 1)[1]
    a, b = (int(word) for word in question.split("?")[0].split(" times "))
    return [f"The answer is {a * b}.", f"The answer is {a + b}.", "No idea.", f"{a * b}"][(a + b) // 2 % 4]


def likelihood(prompt: str, continuation: str) -> float:
    digest = hashlib.sha256(f"{prompt}|{continuation}".encode()).digest()
    return -digest[0] - digest[1] / 256


def lm_eval_s_verdict(task: Any) -> dict[str, Any]:
    """simple_evaluate on the same model: per-document prompts and scores, and the task's own metric."""
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Scripted(LM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [reply_to(request.args[0]) for request in requests]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(likelihood(*request.args), False) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise AssertionError("must not be called")

    none = TaskManager(include_defaults=False)  # the default one indexes lm-eval's own tasks, for seconds
    found = lm_eval.simple_evaluate(model=Scripted(), tasks=[task], bootstrap_iters=0, task_manager=none)
    assert found is not None
    return {"samples": found["samples"]["trivia"], "results": found["results"]["trivia"]}


def our_verdict(task: Task, question: Question) -> tuple[str, str | None, float]:
    """(prompt, extracted, score) for the same model."""
    assert task.foreign is not None
    prompt = task.foreign.text(question.id, None)
    choices = task.foreign.continuations(question.id)
    if choices is None:
        return (prompt, *task.foreign.score(question.id, reply_to(prompt), None))
    return (prompt, *task.foreign.score(question.id, "", {choice: likelihood(prompt, choice) for choice in choices}))


@pytest.fixture(scope="module")
def loader() -> TaskLoader:
    """lm-eval's index of its own tasks takes seconds to build: once for this file."""
    return TaskLoader(SAMPLE)


def fault(loader: TaskLoader, name: str, split: str = "test") -> str:
    with pytest.raises(MedbenchError) as caught:
        loader.load(name, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# medbench's tasks


def test_an_unknown_split_names_those_there_are(loader: TaskLoader) -> None:
    assert fault(loader, "medqa", "dev") == "task medqa has no split 'dev'; it has test, train"
    assert (
        fault(loader, "mmlu_pro_health", "train")
        == "task mmlu_pro_health has no split 'train'; it has test, validation"
    )


def test_a_split_without_rows_names_the_file_to_add(loader: TaskLoader, tmp_path: Path) -> None:
    assert "no rows of split 'train' in sample: add pubmedqa/train.jsonl" in fault(loader, "pubmedqa", "train")
    copy_sample(tmp_path)
    said = fault(TaskLoader(str(tmp_path)), "medqa", "train")
    assert said == f"medqa: no rows of split 'train' in {tmp_path}: add medqa/train.jsonl"


def copy_sample(folder: Path) -> None:
    for sample in tasks_folder().glob("*/sample"):
        shutil.copytree(sample, folder / sample.parent.name)


def test_unofficial_rows_are_named(tmp_path: Path) -> None:
    copy_sample(tmp_path)
    warnings: list[str] = []
    task = TaskLoader(str(tmp_path), warnings.append).load("medqa")
    assert (task.data.source, task.data.official) == ("local", False)
    assert warnings == [
        f"medqa: the rows are not the pinned ones (sha256 {task.data.sha256[:12]}): the run is marked unofficial"
    ]


@pytest.mark.data
def test_one_changed_row_makes_the_real_rows_unofficial(tmp_path: Path, data_dir: Path) -> None:
    lines = (data_dir / "medqa" / "test.jsonl").read_text().splitlines()
    row = json.loads(lines[100])
    row["options"]["A"] += "."
    (tmp_path / "medqa").mkdir()
    (tmp_path / "medqa" / "test.jsonl").write_text("\n".join([*lines[:100], json.dumps(row), *lines[101:]]))
    warnings: list[str] = []
    task = TaskLoader(str(tmp_path), warnings.append).load("medqa")
    assert (len(task.questions), task.data.official, len(warnings)) == (1273, False, 1)
    turned = tmp_path / "medqa" / "test.jsonl"
    turned.write_text("\n".join(reversed(lines)))
    assert TaskLoader(str(tmp_path)).load("medqa").data.official, "the order of rows does not matter"


def test_a_faulty_row_is_named_through_lm_eval(tmp_path: Path) -> None:
    copy_sample(tmp_path)
    path = tmp_path / "medqa" / "test.jsonl"
    path.write_text(path.read_text() + '{"question": "half"}\n')
    number = len(path.read_text().splitlines())
    said = fault(TaskLoader(str(tmp_path)), "medqa")
    assert said.startswith(f"{path}:{number}: options: field required")


def test_categories_are_only_those_the_task_breaks_down_by(loader: TaskLoader) -> None:
    assert all(set(question.category) <= {"split"} for question in loader.load("pubmedqa_1k").questions)
    assert not any(question.category for question in loader.load("pubmedqa").questions)


@pytest.mark.parametrize("setting", [None, ""])
def test_without_data_and_hub_the_sample_is_used_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    """conftest.py sets HF_HUB_OFFLINE; in CI, a variable that is not defined leaves MEDBENCH_DATA empty."""
    if setting is None:
        monkeypatch.delenv("MEDBENCH_DATA", raising=False)
    else:
        monkeypatch.setenv("MEDBENCH_DATA", setting)
    warnings: list[str] = []
    task = TaskLoader(None, warnings.append).load("medqa")
    assert task.data.source == SAMPLE
    assert warnings[0].startswith("medqa: no --data, no MEDBENCH_DATA, and ")
    assert "GBaker/MedQA-USMLE-4-options: not in the hub's cache" in warnings[0]
    assert "the built-in sample" in warnings[-1]


def test_a_hub_that_is_named_and_cannot_be_reached_is_an_error() -> None:
    said = fault(TaskLoader("hub"), "medqa")
    assert said.startswith("medqa: data set GBaker/MedQA-USMLE-4-options: not in the hub's cache")
    assert "name a folder with --data or MEDBENCH_DATA" in said


# few-shot examples of medbench's tasks; tests/protocols/test_parity.py compares them with those of lm-eval


def with_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> TaskLoader:
    """The sample with one file added or replaced."""
    copy_sample(folder)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskLoader(str(folder))


def examples_of(task: Task, n: int = 5) -> dict[str, list[str]]:
    assert task.examples is not None
    return {question.id: [one.id for one in task.examples.draw(question.id, n)] for question in task.questions}


OTHER_EXAMPLES = {
    "medqa": "; add medqa/train.jsonl for others",
    "mmlu_pro_health": "; add mmlu_pro_medical/health_validation.jsonl for others",
    "mmlu_pro_medical": "; add mmlu_pro_medical/health_validation.jsonl and "
    "mmlu_pro_medical/biology_validation.jsonl for others",
    "pubmedqa": "; add pubmedqa/train.jsonl for others",
    "pubmedqa_1k": "never the question or a duplicate of it",  # it has no other rows
}


@pytest.mark.parametrize("name", OTHER_EXAMPLES)
def test_without_another_split_examples_come_from_the_questions_but_never_the_question(name: str) -> None:
    task = TaskLoader(SAMPLE).load(name)
    assert task.examples is not None
    assert (task.examples.split, task.examples.sha256) == ("test", task.data.sha256)
    assert task.examples.note.startswith(f"{name}: few-shot examples come from the evaluated split itself")
    assert task.examples.note.endswith(OTHER_EXAMPLES[name])
    drawn = examples_of(task)
    assert all(len(set(ids)) == 5 and id not in ids for id, ids in drawn.items())
    # for any questions in any order: as with --limit, --resume, or half of the questions
    again = TaskLoader(SAMPLE).load(name).examples
    assert again is not None
    last = task.questions[-1].id
    assert [one.id for one in again.draw(last, 5)] == drawn[last]
    assert again.draw(last, 5) == again.draw(last, 5)


def test_duplicates_of_a_question_are_not_its_examples(tmp_path: Path) -> None:
    row = {"options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer_idx": "B"}
    # each question twelve times with different spacing: most draws of six would include one of its copies
    rows = [row | {"question": f"Which{' ' * copy}is {which}?"} for which in range(3) for copy in range(1, 13)]
    task = with_rows(tmp_path, "medqa/test.jsonl", rows).load("medqa")
    cluster = {question.id: question.cluster for question in task.questions}
    assert len(set(cluster.values())) == 3
    for id, ids in examples_of(task).items():
        assert len(ids) == 5
        assert cluster[id] not in {cluster[each] for each in ids}


def test_examples_come_from_the_training_split_where_its_file_is_there(tmp_path: Path) -> None:
    row = {"options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer_idx": "B"}
    rows = [row | {"question": f"Which is {which}?"} for which in range(9)]
    loader = with_rows(tmp_path, "medqa/train.jsonl", rows)
    asked, trained = loader.load("medqa"), loader.load("medqa", "train")
    assert asked.examples is not None
    assert (asked.examples.split, asked.examples.sha256) == ("train", trained.data.sha256)
    assert asked.examples.note == ""
    drawn = examples_of(asked)
    assert {id for ids in drawn.values() for id in ids} == {question.id for question in trained.questions}
    assert len({tuple(ids) for ids in drawn.values()}) > 10, "each question has its own draw"
    # a training question that is evaluated is not its own example
    assert all(id not in ids for id, ids in examples_of(trained).items())


def test_mmlu_pro_health_shows_the_validation_rows_in_order(tmp_path: Path) -> None:
    row = {"options": ["a", "b"], "answer": "B", "answer_index": 1, "category": "health"}
    rows = [row | {"question": f"Which is {which}?", "question_id": which} for which in range(5)]
    task = with_rows(tmp_path, "mmlu_pro_medical/health_validation.jsonl", rows).load("mmlu_pro_health")
    assert task.examples is not None
    assert task.examples.split == "validation"
    assert set(map(tuple, examples_of(task).values())) == {("0", "1", "2", "3", "4")}
    # a split needs all of its files
    both = TaskLoader(str(tmp_path)).load("mmlu_pro_medical").examples
    assert both is not None
    assert both.split == "test"


@pytest.mark.parametrize("name", ["medqa/train.jsonl", "mmlu_pro_medical/health_validation.jsonl"])
def test_too_few_rows_for_the_examples_are_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    common = {"question": "Q?", "options": ["a", "b"], "answer": "B", "answer_index": 1, "category": "health"}
    medqa = {"question": "Q?", "options": {"A": "a", "B": "b"}, "answer_idx": "B"}
    row = medqa if name.startswith("medqa") else common | {"question_id": 1}
    task = with_rows(tmp_path, name, [row]).load("medqa" if name.startswith("medqa") else "mmlu_pro_health")
    assert task.examples is not None
    with pytest.raises(MedbenchError) as caught:
        task.examples.draw(task.questions[0].id, 2)
    split = "train" if name.startswith("medqa") else "validation"
    assert f"1 rows of split {split} are too few for 2 few-shot examples" in str(caught.value)
    assert str(caught.value).endswith(f"add rows to {name}")
    assert "\n" not in str(caught.value)


def test_too_few_questions_for_the_examples_name_the_file_of_another_split() -> None:
    task = TaskLoader(SAMPLE).load("medqa")
    assert task.examples is not None
    task.examples.draw(task.questions[0].id, 29)
    with pytest.raises(MedbenchError, match=r"30 rows of split test are too few for 30 .*, or add medqa/train.jsonl$"):
        task.examples.draw(task.questions[0].id, 30)


# lm-eval's own tasks, from inline configs


@pytest.mark.slow
def test_a_multiple_choice_task_has_the_prompts_and_scores_of_lm_eval() -> None:
    theirs = lm_eval_s_verdict(lm_eval_task(CHOICE))
    task = foreign_task("trivia", lm_eval_task(CHOICE))
    ours = [our_verdict(task, question) for question in task.questions]
    assert [prompt for prompt, _, _ in ours] == [one["arguments"][0][0] for one in theirs["samples"]]
    assert [score for _, _, score in ours] == [one["acc"] for one in theirs["samples"]]
    assert {0.0, 1.0} == {score for _, _, score in ours}, "the scripted model must be right sometimes"
    assert sum(score for _, _, score in ours) / len(ours) == pytest.approx(theirs["results"]["acc,none"])
    for question, one in zip(task.questions, theirs["samples"], strict=True):
        assert task.foreign is not None
        assert list(task.foreign.continuations(question.id) or ()) == [args[1] for args in one["arguments"]]


@pytest.mark.slow
def test_a_generating_task_has_the_prompts_and_scores_of_lm_eval() -> None:
    theirs = lm_eval_s_verdict(lm_eval_task(GENERATE))
    task = foreign_task("trivia", lm_eval_task(GENERATE))
    ours = [our_verdict(task, question) for question in task.questions]
    assert [prompt for prompt, _, _ in ours] == [one["arguments"][0][0] for one in theirs["samples"]]
    assert [score for _, _, score in ours] == [one["exact_match"] for one in theirs["samples"]]
    assert {0.0, 1.0} == {score for _, _, score in ours}, "the scripted model must be right sometimes"
    read = [one["filtered_resps"][0] for one in theirs["samples"]]
    assert [extracted for _, extracted, _ in ours] == [None if each == "[invalid]" else each for each in read]
    assert None in [extracted for _, extracted, _ in ours]


@pytest.mark.slow
@pytest.mark.parametrize("config", [CHOICE, GENERATE], ids=["choice", "generate"])
@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_few_shot_examples_are_lm_eval_s_in_any_order_of_questions(config: Mapping[str, Any], sampler: str) -> None:
    shots = {**config, "num_fewshot": 2, "fewshot_split": "train", "fewshot_config": {"sampler": sampler}}
    theirs = [one["arguments"][0][0] for one in lm_eval_s_verdict(lm_eval_task(shots))["samples"]]
    assert theirs[0].count("Question:") == 3
    task = foreign_task("trivia", lm_eval_task(shots))
    assert task.foreign is not None
    turned = {question.id: task.foreign.text(question.id, None) for question in reversed(task.questions)}
    assert [turned[question.id] for question in task.questions] == theirs
    # a resumed run asks only what is left
    resumed = foreign_task("trivia", lm_eval_task(shots)).foreign
    assert resumed is not None
    assert resumed.text(task.questions[-1].id, None) == theirs[-1]


@pytest.mark.slow
def test_examples_from_the_split_of_the_questions_never_include_the_question() -> None:
    shots = {**GENERATE, "num_fewshot": 3, "fewshot_split": "test"}
    theirs = [one["arguments"][0][0] for one in lm_eval_s_verdict(lm_eval_task(shots))["samples"]]
    task = foreign_task("trivia", lm_eval_task(shots))
    assert task.foreign is not None
    prompts = [task.foreign.text(question.id, None) for question in task.questions]
    assert prompts == theirs
    assert all(prompt.count(doc["question"]) == 1 for prompt, doc in zip(prompts, TRIVIA, strict=True))


def test_a_begun_reply_is_part_of_the_prompt() -> None:
    begun = {**GENERATE, "doc_to_text": "Question: {{question}}\n", "gen_prefix": "Answer: the"}
    theirs = [one["arguments"][0][0] for one in lm_eval_s_verdict(lm_eval_task(begun))["samples"]]
    assert theirs[0].endswith("Answer: the")
    task = foreign_task("trivia", lm_eval_task(begun))
    assert task.foreign is not None
    assert [task.foreign.text(question.id, None) for question in task.questions] == theirs

    def chat(turns: Any) -> str:
        return "".join(f"<{turn.role}>{turn.content}</{turn.role}>" for turn in turns) + "<assistant>"

    prompt = task.foreign.text(task.questions[0].id, chat)
    assert prompt.startswith("<user>Question: What is 2 times 3?")
    assert prompt.endswith("</user><assistant>Answer: the")


def test_chat_turns_of_few_shot_examples() -> None:
    shots = {**GENERATE, "description": "Reckon.", "num_fewshot": 1, "fewshot_config": {"sampler": "first_n"}}
    task = foreign_task("trivia", lm_eval_task({**shots, "fewshot_split": "train"}))
    seen: list[Message] = []

    def chat(turns: Any) -> str:
        seen.extend(turns)
        return "rendered"

    assert task.foreign is not None
    assert task.foreign.text(task.questions[1].id, chat) == "rendered"
    assert [turn.role for turn in seen] == ["system", "user", "assistant", "user"]
    assert [turn.content for turn in seen][2] == "6"
    assert "4 times 5" in seen[3].content


def test_only_the_yaml_of_a_foreign_task_sets_its_few_shot_examples() -> None:
    task = foreign_task("trivia", lm_eval_task(GENERATE))
    with pytest.raises(MedbenchError, match=r"^--shots: lm-eval's own tasks use the few-shot .*: leave it out$"):
        protocol_for([task], EvalOptions("m", tasks=("trivia",), shots=2))
    assert example_notes([task], protocol_for([task], EvalOptions("m", tasks=("trivia",)))) == []


def test_what_a_foreign_task_is() -> None:
    choice, generate = (foreign_task("trivia", lm_eval_task(config)) for config in (CHOICE, GENERATE))
    assert (choice.name, choice.version, choice.split) == ("trivia", "3", "test")
    assert choice.data.source == "lm-eval"
    assert not choice.data.official
    assert choice.chance == pytest.approx(1 / 3, abs=1e-4)
    assert generate.chance == 0.0
    assert [question.gold for question in choice.questions] == [str(doc["n"]) for doc in TRIVIA]
    assert [question.gold for question in generate.questions] == [str(doc["n"]) for doc in TRIVIA]
    assert choice.questions[0].labels == ("6", "12", "-1")
    assert len({question.id for question in choice.questions}) == len(TRIVIA)
    assert generate.foreign is not None
    assert generate.foreign.generation() == {"stop": ("\n\n",), "max_new_tokens": 32, "temperature": 0.0}
    assert generate.foreign.continuations(generate.questions[0].id) is None


def test_sampling_settings_of_a_generating_task() -> None:
    def settings(**kwargs: Any) -> Mapping[str, Any]:
        task = foreign_task("trivia", lm_eval_task({**GENERATE, "generation_kwargs": kwargs}))
        assert task.foreign is not None
        return task.foreign.generation()

    assert settings(until="###", temperature=0.7, do_sample=True) == {
        "stop": ("###",),
        "max_new_tokens": 256,
        "temperature": 0.7,
    }
    assert settings(until=["a", "b"], temperature=0.7, do_sample=False)["temperature"] == 0.0
    assert settings(max_gen_toks=5) == {"stop": ("\n\n",), "max_new_tokens": 5, "temperature": 0.0}


def test_equal_rows_share_a_cluster_and_questions_that_live_in_their_choices_do_not() -> None:
    docs = [{"options": ["He goes.", "He go."], "answer": 0}, {"options": ["I am.", "I is."], "answer": 0}]
    task = foreign_task("trivia", lm_eval_task({**CHOICE, "doc_to_text": ""}, [*docs, docs[0]]))
    first, second, third = task.questions
    assert first.cluster == third.cluster != second.cluster
    assert len({first.id, second.id, third.id}) == 3


@pytest.mark.parametrize("kind", ["loglikelihood_rolling", "loglikelihood"])
def test_a_task_that_is_not_answered_question_by_question_is_refused(kind: str) -> None:
    metric = {"loglikelihood_rolling": "word_perplexity", "loglikelihood": "acc"}[kind]
    config = {"output_type": kind, "doc_to_text": "", "doc_to_target": "question", "metric_list": [{"metric": metric}]}
    with pytest.raises(MedbenchError) as caught:
        foreign_task("trivia", lm_eval_task(config))
    assert str(caught.value).startswith(
        f"lm-eval task trivia is of type {kind}: only generate_until and multiple_choice"
    )
    assert "\n" not in str(caught.value)


def test_a_metric_that_is_not_a_number_for_one_question_is_refused() -> None:
    config = {**CHOICE, "metric_list": [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]}
    task = foreign_task("trivia", lm_eval_task(config))
    with pytest.raises(MedbenchError, match="lm-eval task trivia: none of its metrics is a number for one question"):
        our_verdict(task, task.questions[0])


# lm-eval's own tasks, by name: its index takes seconds


@pytest.mark.slow
def test_the_names_of_lm_eval_s_tasks_are_found_without_its_index() -> None:
    assert set(catalog._lm_eval_tasks().all_subtasks) <= lm_eval_names()


@pytest.mark.parametrize("name", ["medqaa", "\x00", "q" * 30])
def test_an_unknown_task_is_told_without_the_index(
    loader: TaskLoader, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes ten seconds to build."""
    monkeypatch.setattr(catalog, "_lm_eval_tasks", lambda: pytest.fail("built"))
    assert "unknown task" in fault(loader, name)


def test_an_unknown_task_gives_near_matches(loader: TaskLoader) -> None:
    assert fault(loader, "medqaa").startswith("unknown task 'medqaa'; did you mean medqa or ")
    assert "mmlu_pro_health" in fault(loader, "mmlu_pro_helth")
    assert fault(loader, "medqaa").count(" medqa ") == 1
    nothing_near = "run `medbench tasks` for medbench's tasks, `lm_eval ls tasks` for lm-eval's"
    assert fault(loader, "q" * 30) == f"unknown task '{'q' * 30}'; {nothing_near}"


@pytest.mark.slow
def test_a_group_is_refused_by_name(loader: TaskLoader) -> None:
    assert fault(loader, "mmlu") == "task 'mmlu' is a group: name its tasks one by one"


@pytest.mark.slow
def test_a_task_whose_data_cannot_be_downloaded_is_one_line(loader: TaskLoader) -> None:
    assert fault(loader, "hellaswag").startswith(
        "lm-eval task hellaswag: data set Rowan/hellaswag: not in the hub's cache "
    )


GPQA = [
    {
        "Question": f"Question {number}?",
        "Correct Answer": f"right {number}",
        **{f"Incorrect Answer {wrong}": f"wrong {number}.{wrong}" for wrong in (1, 2, 3)},
    }
    for number in range(8)
]


@pytest.mark.slow
def test_a_task_that_shuffles_its_options_is_the_same_every_time(
    loader: TaskLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPQA shuffles with the global generator as it loads. Only the Hub is replaced: everything else is lm-eval's."""
    import datasets

    rows = datasets.Dataset.from_list(GPQA)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"train": rows}))
    first, second = (loader.load("gpqa_main_zeroshot") for _ in range(2))
    assert first.questions == second.questions
    assert first.data.source == "hub:Idavidrein/gpqa@main"
    assert first.data.sha256 == second.data.sha256
    assert {question.gold for question in first.questions} > {"(A)"}
    assert [question.labels for question in first.questions] == [("(A)", "(B)", "(C)", "(D)")] * 8
    thinking = loader.load("gpqa_main_cot_zeroshot")
    question = thinking.questions[0]
    assert thinking.foreign is not None
    assert thinking.foreign.score(question.id, f"So. The answer is {question.gold}.", None) == (question.gold, 1.0)
    assert thinking.foreign.score(question.id, "I cannot tell.", None) == (None, 0.0)


def test_loading_leaves_the_global_generators_as_they_were(loader: TaskLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_list(GPQA)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"train": rows}))
    random.seed(7)
    np.random.seed(7)
    expected = (random.random(), np.random.random())
    random.seed(7)
    np.random.seed(7)
    loader.load("gpqa_main_zeroshot")
    fault(loader, "hellaswag")  # also where loading fails
    assert (random.random(), np.random.random()) == expected


# what medbench works around in lm-eval: each of these fails where a newer lm-eval makes that needless


def test_lm_eval_still_shuffles_gpqa_with_the_global_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise lm_eval_seeds can go."""
    import datasets

    rows = datasets.Dataset.from_list(GPQA)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"train": rows}))
    name = "gpqa_main_zeroshot"
    orders, manager = [], catalog._lm_eval_tasks()
    for seed in (1, 2):
        random.seed(seed)
        loaded = manager.load(name)["tasks"][name]
        orders.append([doc["choice1"] for doc in loaded.eval_docs])
    assert orders[0] != orders[1]


def test_lm_eval_still_draws_examples_by_the_order_of_documents() -> None:
    """Otherwise draw_examples need not draw for all documents at once (lm-eval pull request 1724)."""
    task = lm_eval_task({**GENERATE, "num_fewshot": 2, "fewshot_split": "train"})
    task.set_fewshot_seed(1234)
    first, second = (task.fewshot_context(TRIVIA[0], num_fewshot=2) for _ in range(2))
    assert first != second


def test_lm_eval_still_shows_a_question_to_itself_where_the_splits_have_other_names() -> None:
    """Otherwise _medbench_yaml need not set fewshot_split to test_split (lm-eval issue 4145)."""
    task = lm_eval_task({**GENERATE, "num_fewshot": 5})
    task.set_fewshot_seed(1234)
    prompts = [task.fewshot_context(doc, num_fewshot=5) for doc in TRIVIA]
    assert any(prompt.count(doc["question"]) > 1 for prompt, doc in zip(prompts, TRIVIA, strict=True))


def test_lm_eval_still_applies_filters_only_to_a_whole_evaluation() -> None:
    """Otherwise lm_eval_tasks need not build a task's filters itself (lm-eval issue 2949)."""
    assert list(inspect.signature(lm_eval_task(GENERATE).apply_filters).parameters) == []


def test_the_filters_built_from_the_config_are_those_that_lm_eval_builds() -> None:
    task = lm_eval_task(GENERATE)
    theirs = [(step.func, step.keywords) for step in task._filters[0].filters]
    ours = _first_filters(task)
    assert [type(step) for step in ours] == [type(make()) for make in task._filters[0].filters]
    assert ours[0].regex_pattern == theirs[0][1]["regex_pattern"]
    (default,) = _first_filters(lm_eval_task({**GENERATE, "filter_list": None}))
    (their_default,) = lm_eval_task({**GENERATE, "filter_list": None})._filters[0].filters
    assert type(default) is type(their_default())


@pytest.mark.parametrize("installed", ["0.4.13", "0.4.13.1"])
def test_the_tested_lm_eval_has_no_warning(installed: str) -> None:
    assert untested_lm_eval(installed) == []


@pytest.mark.parametrize("installed", ["0.4.14", "0.4.130", "0.5.0"])
def test_an_untested_lm_eval_is_a_warning_of_one_line(installed: str) -> None:
    (line,) = untested_lm_eval(installed)
    assert line.startswith(f"lm-eval {installed} is untested, 0.4.13 is tested: ")
    assert "\n" not in line


def test_the_installed_lm_eval_is_the_tested_one() -> None:
    assert untested_lm_eval(version("lm_eval")) == []
