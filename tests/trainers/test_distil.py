"""Distillation with the real TRL trainers on tiny models: on the student's own replies, and on filtered ones.

pytest tests/trainers/test_distil.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.synth import good_reply, write_replies, write_rows, wrong_letter
from support.tiny import TEXT, build_tiny_model

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.config import check_mapping
from medbench.harness.contracts import MedbenchError
from medbench.harness.protocols.chat import load_tokenizer
from medbench.harness.runs.synth_record import read_synth
from medbench.harness.training import checkpoint_folder
from medbench.trainers import distil, sft

pytestmark = pytest.mark.slow

ROWS = [
    {
        "question": f"Which substance is low in disease {number}?",
        "options": ["Iron", "Zinc"],
        "answer": "A",
        "reasoning": "Blood was poor in it. So iron was low.",
    }
    for number in range(24)
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def student(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("student") / "model", vocab_from=[TEXT, rows.read_text()])


@pytest.fixture(scope="module")
def teacher(student: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student after SFT, so that it is sure of what to reply."""
    folder = tmp_path_factory.mktemp("teacher") / "attempt-1"
    config = settled(
        {
            "data": [{"path": str(rows)}],
            "lora": None,
            "training": {"steps": 60, "batch_size": 8, "save_every": 60, "learning_rate": 3e-3},
        },
        sft.Config,
    )
    sft.prepare(config, start=student, folder=folder.parent, benchmarks={})
    sft.train(config, start=student, folder=folder, seed=0)
    return checkpoint_folder.checkpoints(folder)[-1].path


def settled(content: dict[str, Any], model: Any = distil.Config) -> Any:
    config, faults = check_mapping(content, model, "recipe.yaml")
    assert config is not None, faults
    back = model.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert back == config  # on its way to the process that trains
    return config


def faults_of(content: dict[str, Any]) -> str:
    config, faults = check_mapping(content, distil.Config, "recipe.yaml")
    assert config is None
    return "\n".join(faults)


def on_policy(teacher: Path | str, rows: Path) -> dict[str, Any]:
    return {
        "mode": "on_policy",
        "teacher": str(teacher),
        "prompts": [{"path": str(rows)}],
        "lora": None,
        "training": {"steps": 40, "batch_size": 8, "save_every": 20, "learning_rate": 2e-3},
        "rollout": {"max_completion_tokens": 24},
    }


def divergence(student: Path, teacher: Path, rows: Path) -> float:
    """Mean KL(student || teacher) per token, in nats, over the teacher's greedy replies to all prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    config = distil.Config.model_validate(on_policy(teacher, rows))
    first, second = (AutoModelForCausalLM.from_pretrained(one).eval() for one in (student, teacher))
    tokenizer, found = load_tokenizer(str(student)), []
    for prompt in distil._prompts(config, student, rows.parent)[:8]:
        ids = torch.tensor([tokenizer(prompt.text, add_special_tokens=False).input_ids])
        with torch.no_grad():
            whole = second.generate(ids, max_new_tokens=16, do_sample=False)
            mine, its = (model(whole).logits[0, ids.shape[1] - 1 :].log_softmax(-1) for model in (first, second))
        found.append(float((mine.exp() * (mine - its)).sum(-1).mean()))
    return sum(found) / len(found)


def trained(config: Any, start: Path, attempt: Path) -> list[dict[str, object]]:
    distil.prepare(config, start=start, folder=attempt.parent, benchmarks={})
    distil.train(config, start=start, folder=attempt, seed=3)
    times = ("step_time", "generation_time", "peak_memory_gib")
    lines = checkpoint_folder.read_metrics(attempt)
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def test_the_student_comes_close_to_its_teacher_and_a_resumed_training_goes_on_alike(
    student: Path, teacher: Path, rows: Path, tmp_path: Path
) -> None:
    config, attempt = settled(on_policy(teacher, rows)), tmp_path / "stage" / "attempt-1"
    through = trained(config, student, attempt)
    assert [line["step"] for line in through] == list(range(1, 41))
    assert {"loss", "grad_norm", "completions/mean_length", "entropy"} <= set(through[0])
    ended = attempt / "step-000040"
    before, after = (divergence(one, teacher, rows) for one in (student, ended))
    assert after < 0.7 * before
    weights = (ended / "model.safetensors").read_bytes()
    shutil.rmtree(ended)  # as after a kill between the two
    assert trained(config, student, attempt) == through
    assert (ended / "model.safetensors").read_bytes() == weights


def test_prepare_says_what_the_teacher_takes(student: Path, teacher: Path, rows: Path, tmp_path: Path) -> None:
    lines = distil.prepare(settled(on_policy(teacher, rows)), start=student, folder=tmp_path, benchmarks={})
    assert any(line.startswith("teacher: ") and "GiB of weights held beside the student's" in line for line in lines)
    assert any(line.startswith("steps: 40, each of 8 prompts with a reply of at most 24 tokens") for line in lines)
    first = distil.example(settled(on_policy(teacher, rows)), start=student, folder=tmp_path)
    assert "Which substance is low in disease 0?" in "\n".join(first)


def test_a_teacher_with_other_tokens_is_refused(student: Path, rows: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", vocab_from=[TEXT])
    with pytest.raises(MedbenchError, match=r"has other tokens than the student: \d+ differ, .* mode: sequence"):
        distil.prepare(settled(on_policy(other, rows)), start=student, folder=tmp_path, benchmarks={})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher": None}, "mode: on_policy needs teacher"),
        ({"prompts": []}, "mode: on_policy needs prompts"),
        ({"synth": "x.yaml"}, "synth does not belong to mode: on_policy"),
        ({"mode": "sequence"}, "mode: sequence needs synth"),
        ({"mode": "sequence", "synth": "x.yaml"}, "teacher does not belong to mode: sequence"),
        ({"mode": "logits"}, "mode"),
        ({"beta": 2}, "beta"),
    ],
)
def test_a_config_of_no_mode_is_refused(changes: dict[str, Any], says: str, rows: Path) -> None:
    assert says in faults_of(on_policy("teacher", rows) | changes)


# --- on the teacher's replies


@pytest.fixture
def synth(tmp_path: Path) -> Callable[..., Path]:
    def synth(right: int) -> Path:
        """A recipe whose teacher answers the first `right` of 12 questions right."""
        questions = write_rows(tmp_path / "exam.jsonl", 12)
        right_ones = {one.id for one in questions[:right]}
        write_replies(
            tmp_path / "replies.jsonl",
            questions,
            lambda one, sample: good_reply(one, one.gold if one.id in right_ones else wrong_letter(one), sample),
            1,
        )
        path = tmp_path / "teacher.yaml"
        content = {
            "name": "teacher",
            "generator": {"model": "stored", "replies": str(tmp_path / "replies.jsonl")},
            "sources": [{"path": str(tmp_path / "exam.jsonl")}],
            "filters": {"contamination": None},
        }
        path.write_text(yaml.safe_dump(content))
        return path

    return synth


def sequence(recipe: Path) -> Any:
    training = {"steps": 2, "batch_size": 2, "save_every": 1, "learning_rate": 1e-3}
    return settled({"mode": "sequence", "synth": str(recipe), "training": training, "lora": {"rank": 4}})


def test_the_student_is_tuned_on_the_teachers_replies_that_pass_the_filters(
    synth: Callable[..., Path], student: Path, tmp_path: Path
) -> None:
    config, attempt = sequence(synth(9)), tmp_path / "stage" / "attempt-1"
    lines = distil.prepare(config, start=student, folder=attempt.parent, benchmarks={})
    assert lines[1].startswith("teacher: 12 questions")
    assert "generator: stored by fake" in lines[2]
    assert distil.example(config, start=student, folder=attempt.parent) == []
    distil.train(config, start=student, folder=attempt, seed=1)
    card = read_synth(attempt.parent / "teacher").card
    assert card is not None
    assert card.files["accepted/multiple_choice.jsonl"] == 9
    assert [one.step for one in checkpoint_folder.checkpoints(attempt)] == [1, 2]
    assert resolve(str(attempt / "step-000002")).kind == "adapter"
    asked = (attempt.parent / "teacher" / "candidates.jsonl").read_bytes()
    distil.train(config, start=student, folder=attempt.parent / "attempt-2", seed=2)  # does not ask again
    assert (attempt.parent / "teacher" / "candidates.jsonl").read_bytes() == asked


def test_a_teacher_of_which_nothing_passes_and_a_missing_recipe_are_one_line(
    synth: Callable[..., Path], student: Path, tmp_path: Path
) -> None:
    with pytest.raises(MedbenchError, match="no reply of the teacher has passed the filters") as caught:
        distil.train(sequence(synth(0)), start=student, folder=tmp_path / "stage" / "attempt-1", seed=1)
    assert len(caught.value.lines) == 1
    with pytest.raises(MedbenchError, match=r"^synth: .*nowhere\.yaml: no such file"):
        distil.prepare(sequence(tmp_path / "nowhere.yaml"), start=student, folder=tmp_path, benchmarks={})
