"""No drift from lm-eval: the same prompts, the same scores for the same replies, and the intended differences.

    MEDBENCH_DATA=... pytest tests/protocols/test_parity.py

lm-eval's own evaluator is the reference: it loads medbench's YAML by its path, builds the prompts and scores. Only the
model is replaced, by one that gives each question a reply made for it; lm-eval's own code cuts the replies and applies
the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.benchmarks.lm_eval_tasks import foreign_task
from medbench.harness.benchmarks.rows import SAMPLE, question_of, read_jsonl
from medbench.harness.benchmarks.task_folders import tasks_folder
from medbench.harness.contracts import Completion, Message, Question, Request, Sample, Task
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.evaluation.requests import build_request
from medbench.harness.evaluation.runner import evaluate
from medbench.harness.protocols.chat import load_tokenizer, render_chat
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.records import ModelRecord, RunRecord
from medbench.harness.runs.run_folder import create_run, read_samples
from medbench.harness.scoring.score import score_completion, score_reply
from medbench.harness.scoring.summary import TaskResult

TASKS = ("medqa", "mmlu_pro_health", "mmlu_pro_medical", "pubmedqa", "pubmedqa_1k")
N = 50
SETTINGS = [(False, 0), (False, 5), (True, 0), (True, 5)]
SETTING_NAMES = ["plain-0", "plain-5", "chat-0", "chat-5"]
STOP = "\nQuestion:"


def other_than(question: Question) -> str:
    return question.labels[0] if question.gold != question.labels[0] else question.labels[1]


def form_of(index: int) -> str:
    return FORMS[index % len(FORMS)]


def reply_to(question: Question, form: str) -> tuple[str, str]:
    """(text, finish reason)."""
    right, wrong = question.gold, other_than(question)
    text = question.options[question.labels.index(right)]
    return {
        "right": (f"Let us think. The answer is ({right}).", "stop"),
        "wrong": (f"Let us think. The answer is ({wrong}).", "stop"),
        "right in bold": (f"So:\n\n**Answer: {right}**", "stop"),
        "wrong in a box": (rf"Hence $\boxed{{{wrong}}}$.", "stop"),
        "label alone": (right, "stop"),
        "text of the option": (f"The answer is {text}.", "stop"),
        "corrected": (f"The answer is ({wrong}). No, wait. The answer is ({right}).", "stop"),
        "ambiguous": (f"The answer is ({right}) or ({wrong}).", "stop"),
        "no label": ("The answer is (Z).", "stop"),
        "unparsed": ("This cannot be decided from what is given.", "stop"),
        "refused": ("I'm sorry, but I cannot give medical advice.", "stop"),
        "empty": ("", "stop"),
        "blank": (" \n\n", "stop"),
        "cut off before the answer": ("Let us think. The patient has had a fever for", "length"),
        "cut off behind the answer": (f"The answer is ({right}). To explain this, we must", "length"),
        "closed reasoning": (f"<think>The answer is ({wrong})?</think>\nThe answer is ({right}).", "stop"),
        "reasoning without its opening tag": (f"The answer is ({wrong})?</think>\nThe answer is ({right}).", "stop"),
        "unfinished reasoning": (f"<think>It seems that the answer is ({right}). But let me", "length"),
        "empty answer after reasoning": (f"<think>The answer is ({right}).</think>", "stop"),
        "goes on to the next question": (f"The answer is ({right}).\n{STOP} Next?\nThe answer is ({wrong}).", "stop"),
        "restates the question": (f"Well.{STOP} Which is it?\nThe answer is ({right}).", "stop"),
    }[form]


FORMS = (
    "right",
    "wrong",
    "right in bold",
    "wrong in a box",
    "label alone",
    "text of the option",
    "corrected",
    "ambiguous",
    "no label",
    "unparsed",
    "refused",
    "empty",
    "blank",
    "cut off before the answer",
    "cut off behind the answer",
    "closed reasoning",
    "reasoning without its opening tag",
    "unfinished reasoning",
    "empty answer after reasoning",
    "goes on to the next question",
    "restates the question",
)
CUT_BY_LM_EVAL = {"restates the question"}
"""Under a chat template lm-eval still cuts at the YAML's stop string; medbench lets the model end its turn."""


# lm-eval's side


def canned_model(replies: dict[str, str], tokenizer: Any) -> Any:
    """An lm-eval model that returns replies[question id], with the cutting and the chat template of lm-eval's HFLM."""
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import postprocess_generated_text

    class Canned(LM):
        tokenizer_name = "tiny"
        apply_chat_template = HFLM.apply_chat_template

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer
            self.chat_template_args: dict[str, Any] = {}

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [
                postprocess_generated_text(replies[request.doc["id"]], request.args[1]["until"], None)
                for request in requests
            ]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(0.0 if request.args[1] == " A" else -1.0, False) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise AssertionError("must not be called")

    return Canned()


def lm_eval_s(
    tasks: Sequence[Any], data: str, replies: dict[str, str], tokenizer: Any, *, chat: bool, shots: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, float]]]:
    """({task: samples in document order}, {task: metrics}) of simple_evaluate."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=tasks_folder(), include_defaults=False, metadata={"data": data})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # runs `pip list` and more, a second a time
        found = lm_eval.simple_evaluate(
            model=canned_model(replies, tokenizer),
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=shots,
            limit=N,
            apply_chat_template=chat,
            bootstrap_iters=0,
        )
    assert found is not None
    return found["samples"], found["results"]


# medbench's side


class Templated(FakeEngine):
    """Stored replies, with a real chat template."""

    chat_template = "model"

    def __init__(self, replies: dict[str, dict[str, str]], tokenizer: Any) -> None:
        super().__init__(replies)
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return render_chat(self._tokenizer, messages, thinking)


class Silent:
    def start(self, task: str, total: int, done: int) -> None: ...
    def advance(self, task: str, sample: Sample) -> None: ...
    def expect(self, time: str) -> None: ...


def medbench_s(
    root: Path, tasks: Sequence[Task], replies: dict[str, dict[str, str]], tokenizer: Any, *, chat: bool, shots: int
) -> tuple[dict[str, dict[str, Sample]], dict[str, TaskResult]]:
    """({task: {id: sample}}, {task: result}) of a whole evaluation."""
    protocol = load_protocol("cot-v2", shots=shots)
    record = RunRecord(
        run_id=f"{chat}-{shots}",
        status="running",
        created="2026-01-01T00:00:00+00:00",
        command=["medbench"],
        model=ModelRecord(name="m", kind="replies", fingerprint="f"),
        tasks={},
        protocol=protocol.model_dump(mode="json"),
        seed=0,
        limit=None,
        engine={},
        packages={},
        git_commit=None,
    )
    engine = Templated(replies, tokenizer) if chat else FakeEngine(replies)
    with create_run(root, record) as run:
        results = evaluate(run, tasks, protocol, engine, limit=None, progress=Silent())
    samples = {task.name: {one.id: one for one in read_samples(run.folder, task.name)} for task in tasks}
    return samples, results


# one evaluation by each, for every setting and source of rows


class Both:
    """The results of lm-eval and of medbench for the same questions and replies."""

    def __init__(self, data: str, root: Path, tokenizer: Any, chat: bool, shots: int) -> None:
        self.tasks = first_questions(data)
        self.forms = {q.id: form_of(at) for task in self.tasks for at, q in enumerate(task.questions)}
        full = {q.id: reply_to(q, self.forms[q.id]) for task in self.tasks for q in task.questions}
        stored = {id: {"output": text, "finish_reason": reason} for id, (text, reason) in full.items()}
        texts = {id: text for id, (text, _) in full.items()}
        self.theirs, self.metrics = lm_eval_s(TASKS, data, texts, tokenizer, chat=chat, shots=shots)
        self.ours, self.results = medbench_s(root, self.tasks, stored, tokenizer, chat=chat, shots=shots)


@cache
def first_questions(data: str) -> list[Task]:
    """medbench's tasks with the questions that the lm_eval command takes under `--limit`."""
    tasks = [TaskLoader(data).load(name) for name in TASKS]
    return [replace(task, questions=task.questions[:N]) for task in tasks]


def with_other_splits(folder: Path) -> str:
    """A data folder with a training or validation split, cut out of the sample, for each task that can have one."""
    others = {
        "medqa/test": "train",
        "pubmedqa/test": "train",
        "mmlu_pro_medical/health": "health_validation",
        "mmlu_pro_medical/biology": "biology_validation",
    }
    paths = [tasks_folder() / name.replace("/", "/sample/") for name in others]
    rows = {path: [row for _, row in read_jsonl(path.with_suffix(".jsonl"))] for path in paths}
    for path, docs in rows.items():
        family = path.parent.parent.name
        target = folder / family
        target.mkdir(exist_ok=True)
        other = others[f"{family}/{path.stem}"]
        cut = 5 if "validation" in other else 6
        for name, part in ((path.stem, docs[cut:]), (other, docs[:cut])):
            (target / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return str(folder)


SOURCES = [SAMPLE, "other splits", pytest.param("real", marks=pytest.mark.data)]


@pytest.fixture(scope="module", params=SOURCES)
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows from the sample, from a folder that also has training and validation files, and the real rows."""
    if request.param == "other splits":
        return with_other_splits(tmp_path_factory.mktemp("data"))
    return SAMPLE if request.param == SAMPLE else str(request.getfixturevalue("data_dir"))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


@pytest.fixture(scope="module", params=SETTINGS, ids=SETTING_NAMES)
def both(
    request: pytest.FixtureRequest, data: str, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Both, bool, int]:
    chat, shots = request.param
    return Both(data, tmp_path_factory.mktemp("runs"), tokenizer, chat, shots), chat, shots


@pytest.mark.slow
def test_prompts_are_lm_eval_s_byte_for_byte(both: tuple[Both, bool, int]) -> None:
    found, chat, shots = both
    for task in found.tasks:
        theirs = {one["doc"]["id"]: one["arguments"][0][0] for one in found.theirs[task.name]}
        ours = {id: sample.prompt for id, sample in found.ours[task.name].items()}
        assert len(ours) == len(task.questions) >= 20
        assert ours == theirs
        assert all(prompt.count("Question:") == 1 + shots for prompt in ours.values())
        assert all(prompt.count("<|im_start|>assistant") == (1 + shots) * chat for prompt in ours.values())


@pytest.mark.slow
def test_scores_are_lm_eval_s_for_every_form_of_reply(both: tuple[Both, bool, int]) -> None:
    found, chat, _ = both
    named = CUT_BY_LM_EVAL if chat else set()
    for task in found.tasks:
        theirs = {one["doc"]["id"]: (one["accuracy"], one["unparsed"]) for one in found.theirs[task.name]}
        ours = {id: (one.score, float(one.extracted is None)) for id, one in found.ours[task.name].items()}
        differing = {found.forms[id] for id in ours if ours[id] != theirs[id]}
        assert differing == named & set(map(found.forms.get, ours))
        assert {score for score, _ in ours.values()} == {0.0, 1.0}
        assert {unparsed for _, unparsed in ours.values()} == {0.0, 1.0}


def test_totals_are_lm_eval_s(both: tuple[Both, bool, int]) -> None:
    found, chat, _ = both
    for task in found.tasks:
        result, metrics = found.results[task.name], found.metrics[task.name]
        if not chat:
            assert result.accuracy == pytest.approx(metrics["accuracy,none"])
            assert result.n_unparsed / result.n == pytest.approx(metrics["unparsed,none"])
        # over the forms that both read alike it is the same mean in any setting
        alike = [one for one in found.theirs[task.name] if found.forms[one["doc"]["id"]] not in CUT_BY_LM_EVAL]
        ours = [found.ours[task.name][one["doc"]["id"]].score for one in alike]
        assert sum(score or 0.0 for score in ours) == sum(one["accuracy"] for one in alike)


def test_direct_prompts_and_continuations_are_lm_eval_s(data: str, tokenizer: Any) -> None:
    """No YAML of medbench has the prompt of direct-v1, so lm-eval gets one with it, as a multiple_choice task."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    protocol = load_protocol("direct-v1", shots=5)
    cards = TaskLoader(data).cards
    choosing = {
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: protocol.text(question_of(doc)),
        "doc_to_target": "gold",
        "doc_to_choice": "labels",
        "process_results": None,
        "generation_kwargs": None,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    asked = []
    for name in TASKS:
        config = load_yaml(cards[name].path)
        known = {**config["metadata"], "data": data, "config_source": cards[name].path}
        asked.append(ConfigurableTask(config={**config, **choosing, "metadata": known}))
    samples, _ = lm_eval_s(asked, data, {}, tokenizer, chat=False, shots=5)
    for task in first_questions(data):
        requests = {q.id: build_request(task, q, protocol, FakeEngine({}), 0) for q in task.questions}
        assert len(samples[task.name]) == len(task.questions)
        for one in samples[task.name]:
            ours = requests[one["doc"]["id"]]
            assert [(ours.prompt, choice) for choice in ours.choices or ()] == [tuple(a) for a in one["arguments"]]
            assert ours.prompt.count("\nAnswer: ") == 5


# where lm-eval is wrong

UNFINISHED = "<think>Iron is stored in ferritin, so it seems that the answer is (B). But let me check that ag"


def lm_eval_s_own_mmlu_pro(rows: Sequence[dict[str, Any]]) -> Task:
    """mmlu_pro_health as lm-eval ships it, its filter and metric included; only its rows are not the Hub's."""
    import datasets
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.tasks.__file__).parent / "mmlu_pro"
    config = load_yaml(folder / "mmlu_pro_health.yaml")
    table = datasets.Dataset.from_list(list(rows))
    splits = datasets.DatasetDict({"test": table, "validation": table})
    return foreign_task(
        "mmlu_pro_health",
        ConfigurableTask(
            config={**config, "dataset_path": None, "custom_dataset": lambda **_: splits, "num_fewshot": 0}
        ),
    )


@cache
def own_mmlu_pro() -> Task:
    row = {
        "question_id": 1,
        "question": "Where is iron stored?",
        "options": ["Transferrin", "Ferritin"],
        "answer": "B",
        "answer_index": 1,
        "category": "health",
        "src": "",
        "cot_content": "A: ...",
    }
    return lm_eval_s_own_mmlu_pro([row])


def judged(task: Task, reply: str, finish_reason: str) -> Sample:
    (question,) = task.questions
    request = Request(f"{task.name}/{question.id}", (), "prompt", 64)
    return score_completion(task, question, request, Completion(request.id, reply, finish_reason))  # type: ignore[arg-type]


def test_lm_eval_scores_unfinished_reasoning_as_the_answer_and_medbench_does_not() -> None:
    """lm-eval issue 3382: the same reply, first under lm-eval's own task, then under medbench."""
    theirs = judged(own_mmlu_pro(), UNFINISHED, "length")
    assert (theirs.extracted, theirs.score) == ("B", 1.0)
    ours, score = score_reply(UNFINISHED, ("A", "B"), ("Transferrin", "Ferritin"), "B", finish_reason="length")
    assert (ours.answer, ours.outcome, score) == (None, "truncated", 0.0)


def test_lm_eval_s_first_match_is_in_the_reasoning_and_medbench_s_in_the_answer() -> None:
    reply = "<think>At first sight the answer is (A).</think>The answer is (B)."
    theirs = judged(own_mmlu_pro(), reply, "stop")
    assert (theirs.extracted, theirs.score) == ("A", 0.0)
    ours, score = score_reply(reply, ("A", "B"), ("Transferrin", "Ferritin"), "B")
    assert (ours.answer, score) == ("B", 1.0)


def test_lm_eval_cuts_inside_the_reasoning_and_medbench_does_not() -> None:
    from lm_eval.models.utils import postprocess_generated_text

    reply = f"<think>Again.{STOP} Where is iron stored?</think>The answer is (B)."
    cut = postprocess_generated_text(reply, [STOP], None)
    assert "</think>" not in cut
    options = ("A", "B"), ("Transferrin", "Ferritin"), "B"
    assert score_reply(cut, *options)[1] == 0.0
    assert score_reply(reply, *options, stop=(STOP,))[1] == 1.0


def test_only_medbench_knows_of_reasoning_that_the_prompt_opened() -> None:
    """`process_results` does not get the prompt, so lm_eval cannot see that a template has opened the reasoning."""
    from medbench.harness.scoring.score import lm_eval_results

    reply = UNFINISHED.removeprefix("<think>")
    options = ("A", "B"), ("Transferrin", "Ferritin"), "B"
    doc = {"labels": ["A", "B"], "options": ["Transferrin", "Ferritin"], "gold": "B"}
    assert lm_eval_results(doc, [reply])["accuracy"] == 1.0
    assert score_reply(reply, *options, finish_reason="length", opened=True)[1] == 0.0
