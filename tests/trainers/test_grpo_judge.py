"""GRPO with a judge among the rewards, by the real TRL trainer, on a tiny model trained to give four fixed replies.

pytest tests/trainers/test_grpo_judge.py
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.tiny import build_tiny_model

from medbench.harness.config import check_mapping
from medbench.harness.contracts import MedbenchError
from medbench.harness.protocols.chat import load_tokenizer
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.training import checkpoint_folder
from medbench.trainers import grpo
from medbench.trainers.data.prompts import Asker, load_questions

pytestmark = pytest.mark.slow

SEED = 5
STEPS = 6
ROW = {
    "pubid": 1,
    "question": "Does less salt reduce ankle oedema?",
    "context": {
        "contexts": ["Leg volume fell by 96 ml with less salt and rose by 11 ml without. Sodium showed adherence."]
    },
    "long_answer": "It does.",
    "final_decision": "yes",
}
TRUE = "1. The legs lost 96 ml of volume with less salt. 2. They gained 11 ml when salt was not restricted."
FALSE = "1. The legs gained 300 ml of volume with less salt. 2. They lost 700 ml when salt was not restricted."
REPLIES = [
    f"<think>{TRUE}</think>The answer is (yes).",
    f"<think>{FALSE}</think>The answer is (yes).",
    f"<think>{TRUE}</think>The answer is (no).",
    "The answer is (yes).",
]
JUDGE = """
import json, re, sys
with open(%r, "a") as notes:
    notes.write("start\\n")
for line in sys.stdin:
    item = json.loads(line)
    with open(%r, "a") as notes:
        notes.write(item["step"] + "\\n")
    numbers = set(re.findall(r"\\d\\d+", item["step"]))
    known = numbers <= set(re.findall(r"\\d\\d+", item["source"]))
    verdict = "supported" if known else "contradicted"
    print(json.dumps({"id": item["id"], "verdict": verdict}), flush=True)
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


@pytest.fixture(scope="module")
def start(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes each of REPLIES about equally often, word by word."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = build_tiny_model(tmp_path_factory.mktemp("start") / "model", vocab_from=[*REPLIES, json.dumps(ROW)])
    tokenizer = load_tokenizer(str(folder))
    asker = Asker(load_protocol("cot-v2"), tokenizer)
    (prompt,) = asker.fitting(load_questions([grpo.Source(path=str(rows))]), 10**6)
    before = asker.ids(prompt.text)
    texts = [[*tokenizer.encode(reply, add_special_tokens=False), tokenizer.eos_token_id] for reply in REPLIES]
    longest = max(map(len, texts))
    ids = torch.tensor([before + text + [tokenizer.pad_token_id] * (longest - len(text)) for text in texts])
    labels = torch.tensor([[-100] * len(before) + text + [-100] * (longest - len(text)) for text in texts])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(90):
            loss = model(input_ids=ids, attention_mask=(ids >= 0).long(), labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    print(f"loss {loss.item():.3f}")
    model.save_pretrained(folder)
    return folder


def settled(rows: Path, folder: Path, **changes: Any) -> grpo.Config:
    folder.mkdir(parents=True, exist_ok=True)
    notes = str(folder / "notes")
    (folder / "judge.py").write_text(JUDGE % (notes, notes))
    judge = {"judge": "command", "command": shlex.join([sys.executable, "-I", "-S", str(folder / "judge.py")])}
    content: dict[str, Any] = {
        "prompts": [{"path": str(rows)}],
        "lora": None,
        "training": {"steps": STEPS, "batch_size": 8, "save_every": 3, "learning_rate": 3e-4, "warmup_steps": 0},
        "rollout": {"completions": 8, "max_completion_tokens": 90},
        "rewards": {"short": 4, "long": 90, "factuality": {**judge, **changes}},
        "loss": {"mask_truncated": False},
    }
    config, faults = check_mapping(content, grpo.Config, "recipe.yaml")
    assert config is not None, faults
    return config


@pytest.fixture(scope="module")
def judged(rows: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole training; its judge's notes are beside it."""
    folder = tmp_path_factory.mktemp("judged")
    config = settled(rows, folder)
    print(*grpo.prepare(config, start=start, folder=folder / "stage", benchmarks={}), sep="\n")
    (folder / "notes").unlink()
    grpo.train(config, start=start, folder=folder / "stage" / "attempt-1", seed=SEED)
    return folder / "stage" / "attempt-1"


def notes(attempt: Path) -> list[str]:
    return (attempt.parents[1] / "notes").read_text().splitlines()


def number(line: dict[str, object], name: str) -> float:
    return float(str(line[name]))


def test_the_judge_is_logged_as_a_component_and_what_it_said_beside_it(judged: Path) -> None:
    metrics = checkpoint_folder.read_metrics(judged)
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    for line in metrics:
        assert {"rewards/factuality/mean", "rewards/factuality/std", "steps/supported", "steps/copied"} <= set(line)
        assert number(line, "steps/failed") == 0
    assert any(0 < number(line, "rewards/factuality/mean") < 1 for line in metrics)
    assert any(number(line, "steps/contradicted") > 0 for line in metrics)


def test_it_is_part_of_the_reward(judged: Path) -> None:
    weights = {"accuracy": 1.0, "format": 0.1, "length": 0.1, "repetition": 1.0, "reasoning": 0.2, "factuality": 0.5}
    for line in checkpoint_folder.read_metrics(judged):
        total = sum(weight * number(line, f"rewards/{name}/mean") for name, weight in weights.items())
        assert number(line, "reward") == pytest.approx(total, abs=1e-5)


def test_the_judge_is_started_once_and_asked_about_each_step_once(judged: Path) -> None:
    said = notes(judged)
    assert said.count("start") == 1
    steps = [line for line in said if line != "start"]
    assert len(steps) == len(set(steps)) >= 4


def test_a_training_killed_between_checkpoints_ends_with_the_same_weights_and_asks_no_step_again(
    judged: Path, rows: Path, start: Path, tmp_path: Path
) -> None:
    config = settled(rows, tmp_path)
    attempt = tmp_path / "stage" / "attempt-1"
    attempt.mkdir(parents=True)
    shutil.copy(judged.parent / grpo.CONTAMINATION, attempt.parent)
    code = (
        "import sys; from pathlib import Path; from medbench.trainers import grpo; "
        "grpo.train(grpo.Config.model_validate_json(sys.argv[1]), start=Path(sys.argv[2]), folder=Path(sys.argv[3]), "
        f"seed={SEED})"
    )
    child = subprocess.Popen([sys.executable, "-c", code, config.model_dump_json(), str(start), str(attempt)])
    try:
        while not (attempt / "step-000003").exists():
            assert child.poll() is None
            time.sleep(0.005)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not (attempt / f"step-{STEPS:06d}").exists()
    grpo.train(config, start=start, folder=attempt, seed=SEED)
    last = f"step-{STEPS:06d}/model.safetensors"
    assert (attempt / last).read_bytes() == (judged / last).read_bytes()
    steps = [line for line in notes(attempt) if line != "start"]
    assert len(steps) == len(set(steps))


def test_the_plan_names_the_judge_and_how_many_prompts_it_can_judge(rows: Path, start: Path, tmp_path: Path) -> None:
    lines = grpo.prepare(settled(rows, tmp_path), start=start, folder=tmp_path / "stage", benchmarks={})
    (line,) = [line for line in lines if line.startswith("judge: command (")]
    assert "weight 0.5; 1 of 1 prompts have a text to judge by" in line
    assert notes(tmp_path / "stage" / "attempt-1") == [
        "start",
        "Leg volume fell by 96 ml with less salt and rose by 11 ml without.",
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"judge": "comand"}, r"rewards\.factuality: .*did you mean command"),
        ({"command": None}, r"rewards\.factuality: the judge command needs command"),
        ({"command": "false"}, r"rewards\.factuality: the judge command failed on a first step: .*status 1"),
    ],
)
def test_prepare_refuses_a_judge(rows: Path, start: Path, tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(MedbenchError, match=fault) as caught:
        grpo.prepare(settled(rows, tmp_path, **changes), start=start, folder=tmp_path / "stage", benchmarks={})
    assert "\n" not in str(caught.value)


def test_prepare_refuses_a_judge_where_no_row_has_a_source(start: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "Which organ?", "options": ["Liver", "Lung"], "answer": "A"}) + "\n")
    with pytest.raises(MedbenchError, match=r"none of 1 prompts has a text to judge by: .*column source or reference"):
        grpo.prepare(settled(path, tmp_path), start=start, folder=tmp_path / "stage", benchmarks={})


def test_rewards_are_summed_before_they_are_normalised() -> None:
    """One by one, each would count by its spread, and a wrong reply could rank above a right one."""
    assert grpo._loss_arguments(grpo.LossSettings())["multi_objective_aggregation"] == "sum_then_normalize"
