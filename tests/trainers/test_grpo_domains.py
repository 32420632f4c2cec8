"""GRPO with advantages weighted by domain, with the real TRL trainer on the tiny model.

pytest tests/trainers/test_grpo_domains.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medbench.harness.config import check_mapping
from medbench.harness.contracts import MedbenchError
from medbench.harness.training import checkpoint_folder
from medbench.trainers import grpo

pytestmark = pytest.mark.slow

SEED = 3
DOMAIN = {"kind": "domain", "by": "subject", "warmup": 0}
TIMES = ("step_time", "generation_time", "reward_time", "peak_memory_gib")


def a_row(number: int, subject: Any) -> dict[str, Any]:
    return {
        "question": f"Which of these two substances is number {number}?",
        "options": ["Iron", "Zinc"],
        "answer": "AB"[number % 2],
        "subject": subject,
    }


def recipe(path: Path, advantage: dict[str, Any]) -> grpo.Config:
    content = {
        "prompts": [{"path": str(path)}],
        "lora": {"rank": 4, "alpha": 8.0},
        "training": {"steps": 4, "batch_size": 8, "save_every": 2, "learning_rate": 2e-3, "warmup_steps": 0},
        "rollout": {"completions": 4, "max_completion_tokens": 24},
        "rewards": {"ngram": 2, "short": 4, "long": 24},
        "loss": {"mask_truncated": False, "advantage": advantage},
    }
    config, faults = check_mapping(content, grpo.Config, "recipe.yaml")
    assert config is not None, faults
    return config


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def start(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one likely word, so that some completions repeat themselves more than others."""
    from safetensors.torch import load_file, save_file

    from medbench.harness.protocols.chat import load_tokenizer

    folder = tmp_path_factory.mktemp("start") / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][load_tokenizer(str(folder)).encode(" the", add_special_tokens=False)[-1]] *= 12
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    subjects = ["common"] * 7 + ["rare"]
    return write(tmp_path_factory.mktemp("rows") / "rows.jsonl", [a_row(at, name) for at, name in enumerate(subjects)])


def trained(config: grpo.Config, start: Path, folder: Path) -> list[dict[str, object]]:
    grpo.prepare(config, start=start, folder=folder.parent, benchmarks={})
    grpo.train(config, start=start, folder=folder, seed=SEED)
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in checkpoint_folder.read_metrics(folder)
    ]


def final(folder: Path) -> bytes:
    return (folder / "step-000004" / "adapter_model.safetensors").read_bytes()


def test_the_rarer_domain_weighs_more_and_a_resumed_training_goes_on_alike(
    rows: Path, start: Path, tmp_path: Path
) -> None:
    config, folder = recipe(rows, DOMAIN), tmp_path / "stage" / "attempt-1"
    through = trained(config, start, folder)
    # all 8 questions have been asked by step 4; each is as hard, so only the sizes of the domains tell
    last = {name: value for line in through for name, value in line.items() if name.startswith("domains/")}
    assert last["domains/rare/weight"] > 1 > last["domains/common/weight"]  # type: ignore[operator]
    assert last["domains/rare/accuracy"] == 0
    weights = final(folder)
    shutil.rmtree(folder / "step-000004")  # as after a kill between the two
    assert trained(config, start, folder) == through
    assert final(folder) == weights
    plain = tmp_path / "plain" / "attempt-1"
    trained(recipe(rows, {"kind": "group"}), start, plain)
    assert final(plain) != weights


def test_prepare_counts_the_domains(rows: Path, start: Path, tmp_path: Path) -> None:
    lines = grpo.prepare(recipe(rows, DOMAIN), start=start, folder=tmp_path, benchmarks={})
    assert "domains by subject: common 7, rare 1" in lines
    lines = grpo.prepare(recipe(rows, DOMAIN | {"by": "source"}), start=start, folder=tmp_path, benchmarks={})
    assert f"domains by source: {str(rows)[:60]}" in "\n".join(lines)


@pytest.mark.parametrize(
    ("subjects", "fault"),
    [
        ([None, "a"], "rows.jsonl:1: subject: expected text"),
        (["a", " "], "rows.jsonl:2: subject is empty"),
        (["a", ["b"]], "rows.jsonl:2: subject: expected text, found list"),
        (["a" * 101], "rows.jsonl:1: subject: 101 characters"),
        (list(range(51)), "subject has 51 different values"),
    ],
)
def test_a_column_that_tells_no_domains_is_refused(
    subjects: list[Any], fault: str, start: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [a_row(at, name) for at, name in enumerate(subjects)])
    with pytest.raises(MedbenchError, match=fault) as caught:
        grpo.prepare(recipe(path, DOMAIN), start=start, folder=tmp_path, benchmarks={})
    assert "\n" not in str(caught.value)
