"""GRPO with the real TRL trainer on the tiny model: it learns, logs, publishes, resumes, and refuses bad recipes.

pytest tests/trainers/test_grpo.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.config import check_mapping
from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.protocols.chat import load_tokenizer
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.trainer_plugins import FailedAttempt
from medbench.trainers import grpo
from medbench.trainers.data.prompts import Asker, load_questions, prompt_order
from medbench.trainers.domain_weights import AdvantageSettings
from medbench.trainers.rewards.rewards import COMPONENTS
from medbench.trainers.rollout import untested_trl

pytestmark = pytest.mark.slow

SEED = 3
COMPLETIONS = 4
ROWS = [
    {"question": "Which vitamin prevents scurvy?", "options": ["Vitamin C", "Vitamin K"], "answer": "A"},
    {
        "question": "A man has chest pain for 3 days. Which of the following is the best next step in management?",
        "options": ["Aspirin", "Biopsy of the liver", "Computed tomography scan"],
        "answer": "B",
    },
    {"question": "Which organ makes insulin?", "options": ["The spleen", "The pancreas"], "answer": "The pancreas"},
]
LEAKED = {
    "question": "Who first described how the blood circulates through heart and lung?",
    "options": ["Harvey", "Galen", "Vesalius", "Malpighi"],
    "answer": "A",
}
BENCHMARK = {"medqa": [Question("1", "1", str(LEAKED["question"]), ("Harvey", "Galen"), ("A", "B"), "A")]}


def recipe(path: Path, **changes: Any) -> dict[str, Any]:
    """Few short steps, and a reward in which random texts differ: how much they repeat themselves."""
    plain: dict[str, Any] = {
        "prompts": [{"path": str(path)}],
        "lora": {"rank": 4, "alpha": 8.0},
        "training": {"steps": 4, "batch_size": 8, "save_every": 2, "learning_rate": 2e-3, "warmup_steps": 0},
        "rollout": {"completions": COMPLETIONS, "max_completion_tokens": 24},
        "rewards": {"ngram": 2, "short": 4, "long": 24},
        "loss": {"mask_truncated": False},
        "contamination": {"most": 0.5},
    }
    for key, value in changes.items():
        plain[key] = {**plain[key], **value} if isinstance(value, dict) and key in plain else value
    return plain


def settled(content: dict[str, Any]) -> grpo.Config:
    config, faults = check_mapping(content, grpo.Config, "recipe.yaml")
    assert config is not None, faults
    return config


def faults_of(content: dict[str, Any]) -> str:
    config, faults = check_mapping(content, grpo.Config, "recipe.yaml")
    assert config is None
    return "\n".join(faults)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:1], LEAKED, *ROWS[1:]]))
    return path


@pytest.fixture(scope="module")
def start(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a BOS, which its template writes and its tokenizer would add again, and with one likely word,
    so that some completions repeat themselves more than others."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, processors

    folder = tmp_path_factory.mktemp("start") / "model"
    shutil.copytree(tiny_model, folder)
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", core.token_to_id("<|endoftext|>"))]
    )
    core.save(str(folder / "tokenizer.json"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][load_tokenizer(str(folder)).encode(" the", add_special_tokens=False)[-1]] *= 12
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    template = folder / "chat_template.jinja"
    template.write_text("<|endoftext|>" + template.read_text())
    assert len(load_tokenizer(str(folder))("a").input_ids) == 1 + len(load_tokenizer(str(tiny_model))("a").input_ids)
    return folder


@pytest.fixture(scope="module")
def config(rows: Path) -> grpo.Config:
    return settled(recipe(rows))


@pytest.fixture(scope="module")
def attempt(config: grpo.Config, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("stage") / "attempt-1"
    grpo.prepare(config, start=start, folder=folder.parent, benchmarks=BENCHMARK)
    grpo.train(config, start=start, folder=folder, seed=SEED)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))


def weights(folder: Path, step: int) -> bytes:
    return (folder / f"step-{step:06d}" / "adapter_model.safetensors").read_bytes()


def test_every_reward_and_every_metric_of_the_watchdogs_is_logged_at_each_step(attempt: Path) -> None:
    metrics = checkpoint_folder.read_metrics(attempt)
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    names = {f"rewards/{name}/mean" for name in COMPONENTS} | {
        "reward",
        "loss",
        "grad_norm",
        "entropy",
        "frac_reward_zero_std",
        "completions/mean_length",
        "completions/clipped_ratio",
        "format_faults/no_thought",
    }
    for line in metrics:
        assert names - set(line) == set()
        assert "kl" not in line
        assert float(str(line["grad_norm"])) > 0


def test_it_learns_what_is_rewarded(attempt: Path) -> None:
    first, *_, last = [float(str(line["rewards/repetition/mean"])) for line in checkpoint_folder.read_metrics(attempt)]
    assert first < -0.2 < last


def test_checkpoints_are_published_and_resolve(attempt: Path, start: Path, cache: None) -> None:
    assert [checkpoint.step for checkpoint in checkpoint_folder.checkpoints(attempt)] == [2, 4]
    adapter = json.loads((attempt / "step-000004" / "adapter_config.json").read_text())
    assert (adapter["use_dora"], adapter["use_rslora"], adapter["r"]) == (True, True, 4)
    merged = resolve(str(attempt / "step-000004"))
    assert merged.kind == "adapter"
    assert merged.base == str(start)
    assert merged.tokenizer_sha256 == resolve(str(start)).tokenizer_sha256
    assert weights(attempt, 2) != weights(attempt, 4)


def test_clean_prompts_are_asked_in_seeded_order_with_one_bos(attempt: Path, config: grpo.Config, start: Path) -> None:
    clean = [row for row in load_questions(config.prompts) if row.question.question != LEAKED["question"]]
    prompts = Asker(load_protocol("cot-v2"), load_tokenizer(str(start))).fitting(clean, 10**6)
    order = prompt_order(len(prompts), 2 * 4, SEED)
    asked = [sum(prompts[at].tokens for at in order[begin : begin + 2]) for begin in range(0, 8, 2)]
    seen = 0.0
    for line, tokens in zip(checkpoint_folder.read_metrics(attempt), asked, strict=True):
        made = 2 * COMPLETIONS * float(str(line["completions/mean_length"]))
        assert float(str(line["num_tokens"])) - seen == pytest.approx(COMPLETIONS * tokens + made)
        seen = float(str(line["num_tokens"]))


def test_trl_still_adds_a_second_bos(start: Path) -> None:
    """If this fails, TRL takes prompts as they are: delete grpo's override of _tokenize_prompts."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    tokenizer = load_tokenizer(str(start))
    asker = Asker(load_protocol("cot-v2"), tokenizer)
    text = asker.prompt(BENCHMARK["medqa"][0]).text
    ids, _, _ = GRPOTrainer._tokenize_prompts(SimpleNamespace(processing_class=tokenizer), [text])
    assert ids == [[tokenizer.convert_tokens_to_ids("<|endoftext|>"), *asker.ids(text)]]
    assert grpo._trainer_class(asker, AdvantageSettings())._tokenize_prompts(SimpleNamespace(), [text])[0] == [
        asker.ids(text)
    ]


@pytest.mark.parametrize("whose", ["trl", "medbench"])
def test_trl_still_generates_in_train_mode(whose: str, start: Path, tmp_path: Path) -> None:
    """If this fails for trl, it generates in eval mode: delete grpo's override of _generate_single_turn."""
    import datasets
    from transformers import AutoModelForCausalLM
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    model = AutoModelForCausalLM.from_pretrained(start)
    modes: set[bool] = set()

    def note(module: Any, given: Any, named: dict[str, Any]) -> None:
        if named.get("past_key_values") is not None:  # only generation passes it
            modes.add(module.training)

    model.register_forward_pre_hook(note, with_kwargs=True)
    tokenizer = load_tokenizer(str(start))
    kind = (
        GRPOTrainer
        if whose == "trl"
        else grpo._trainer_class(Asker(load_protocol("cot-v2"), tokenizer), AdvantageSettings())
    )
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = kind(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{"prompt": "Which organ makes insulin?"}] * 2),
        reward_funcs=lambda completions, **_: [float(len(one)) for one in completions],
    )
    trainer.train()
    assert modes == {whose == "trl"}
    assert model.training


@pytest.mark.parametrize(("installed", "lines"), [("1.16.0", 0), ("1.16.7", 0), ("1.17.0", 1), ("1.160.0", 1)])
def test_an_untested_trl_gets_a_warning(installed: str, lines: int) -> None:
    said = untested_trl(installed, "grpo")
    assert len(said) == lines
    assert all(f"TRL {installed} is untested" in line and "\n" not in line for line in said)


def test_a_trl_without_an_overridden_method_is_refused(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    monkeypatch.delattr(GRPOTrainer, "_generate_single_turn")
    with pytest.raises(MedbenchError, match=r"GRPOTrainer has no _generate_single_turn.*pip install"):
        grpo._trainer_class(Asker(load_protocol("cot-v2"), load_tokenizer(str(start))), AdvantageSettings())


def test_a_killed_training_ends_with_the_same_weights(
    attempt: Path, config: grpo.Config, start: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stage" / "attempt-1"
    folder.mkdir(parents=True)
    shutil.copy(attempt.parent / grpo.CONTAMINATION, folder.parent)
    code = (
        "import sys; from pathlib import Path; from medbench.trainers import grpo; "
        "grpo.train(grpo.Config.model_validate_json(sys.argv[1]), start=Path(sys.argv[2]), folder=Path(sys.argv[3]), "
        f"seed={SEED})"
    )
    child = subprocess.Popen([sys.executable, "-c", code, config.model_dump_json(), str(start), str(folder)])
    try:
        while not (folder / "step-000002").exists():
            assert child.poll() is None
            time.sleep(0.005)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not (folder / "step-000004").exists()
    grpo.train(config, start=start, folder=folder, seed=SEED)
    assert weights(folder, 4) == weights(attempt, 4)
    assert [line["step"] for line in checkpoint_folder.read_metrics(folder)] == [1, 2, 3, 4]


def test_a_resumed_training_with_reused_completions_ends_with_the_same_weights(
    rows: Path, start: Path, tmp_path: Path
) -> None:
    """Gradient accumulation, two steps on each batch, a KL term, all weights, a resume in the second pass."""
    config = settled(
        recipe(
            rows,
            lora=None,
            training={"steps": 8, "batch_size": 4, "gradient_accumulation": 2, "save_every": 6, "learning_rate": 1e-3},
            loss={"type": "dr_grpo", "num_iterations": 2, "beta": 0.1},
        )
    )
    folder = tmp_path / "stage" / "attempt-1"
    grpo.train(config, start=start, folder=folder, seed=SEED)
    final = (folder / "step-000008" / "model.safetensors").read_bytes()
    through = checkpoint_folder.read_metrics(folder)
    assert all("kl" in line for line in through)
    shutil.rmtree(folder / "step-000008")  # as after a kill between the two
    grpo.train(config, start=start, folder=folder, seed=SEED)
    assert (folder / "step-000008" / "model.safetensors").read_bytes() == final
    assert final != (start / "model.safetensors").read_bytes()
    times = ("step_time", "generation_time", "reward_time", "peak_memory_gib")
    assert [{k: v for k, v in line.items() if k not in times} for line in checkpoint_folder.read_metrics(folder)] == [
        {k: v for k, v in line.items() if k not in times} for line in through
    ]


def test_another_seed_trains_another_adapter(attempt: Path, config: grpo.Config, start: Path, tmp_path: Path) -> None:
    short = config.model_copy(update={"training": config.training.model_copy(update={"steps": 2})})
    grpo.train(short, start=start, folder=tmp_path / "stage" / "attempt-2", seed=SEED + 1)
    assert weights(tmp_path / "stage" / "attempt-2", 2) != weights(attempt, 2)


def test_prepare_reports_what_would_be_trained(config: grpo.Config, start: Path, tmp_path: Path) -> None:
    lines = "\n".join(grpo.prepare(config, start=start, folder=tmp_path, benchmarks=BENCHMARK))
    assert "prompts: 3 of 4 rows" in lines
    assert "1 overlap a benchmark" in lines
    assert "steps: 4, each of 2 prompts x 4 completions of at most 24 tokens" in lines
    assert "2.67 passes" in lines
    assert "generation: transformers" in lines
    assert "memory about" in lines
    assert json.loads((tmp_path / grpo.CONTAMINATION).read_text())["dropped"] == 1
    assert not any(line.startswith(("hint", "warning")) for line in lines.splitlines())


def test_prepare_hints_at_rewards_that_cannot_be_earned(start: Path, tmp_path: Path) -> None:
    row = {
        "pubid": 1,
        "question": "Does it?",
        "context": {"contexts": ["It may."]},
        "long_answer": "It does.",
        "final_decision": "yes",
    }
    path = tmp_path / "pubmedqa.jsonl"
    path.write_text(json.dumps(row))
    config = settled(recipe(path, rewards={"long": 30}))
    lines = grpo.prepare(config, start=start, folder=tmp_path, benchmarks={})
    assert any(line.startswith("hint") and "least_steps" in line for line in lines)
    assert any(line.startswith("warning") and "rewards.long (30)" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"rollout": {"engine": "vllm"}}, r"rollout\.engine: vllm needs a CUDA GPU"),
        ({"protocol": "cot-v9"}, "unknown protocol 'cot-v9'"),
        ({"lora": {"targets": ["q_porj"]}}, r"lora\.targets: 'q_porj' matches no"),
        ({"training": {"optimizer": "adamw_torsch"}}, r"training\.optimizer: "),
        ({"rollout": {"max_prompt_tokens": 3}}, "none of 3 rows has at most 3 tokens"),
        (
            {"rollout": {"max_completion_tokens": 2048}},
            r"max_completion_tokens \(2048\) leaves no room .* context of 2048",
        ),
        ({"contamination": {"most": 0.1}}, "overlap benchmark questions"),
        ({"prompts": [{"path": "nowhere.jsonl"}]}, "nowhere.jsonl: no such file"),
    ],
)
def test_prepare_refuses(rows: Path, start: Path, tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(MedbenchError, match=fault) as caught:
        grpo.prepare(settled(recipe(rows, **changes)), start=start, folder=tmp_path, benchmarks=BENCHMARK)
    assert "\n" not in str(caught.value)


def test_a_changed_data_set_is_not_trained_on(config: grpo.Config, start: Path, tmp_path: Path) -> None:
    (tmp_path / grpo.CONTAMINATION).write_text('{"rows": 99, "overlaps": []}')
    with pytest.raises(MedbenchError, match="it covers 99 rows, the data now has 4"):
        grpo.train(config, start=start, folder=tmp_path / "attempt-1", seed=SEED)


def test_faults_of_a_recipe_name_their_keys(rows: Path) -> None:
    found = faults_of(recipe(rows, rollout={"completions": 1}, loss={"type": "gspo"}, promts=[]))
    assert "rollout.completions: " in found
    assert "loss.type: " in found
    assert "promts: unknown key; did you mean prompts?" in found
    assert "lora.rnk: unknown key; did you mean rank?" in faults_of(recipe(rows, lora={"rnk": 4}))
    assert "must be a multiple of rollout.completions (3)" in faults_of(recipe(rows, rollout={"completions": 3}))
    assert "training.save_every (3) must be a multiple of loss.num_iterations (2)" in faults_of(
        recipe(rows, training={"save_every": 3}, loss={"num_iterations": 2})
    )


def test_epochs_become_steps(rows: Path) -> None:
    content = recipe(rows, loss={"num_iterations": 2})
    content["training"] = {"epochs": 3.0, "batch_size": 8, "gradient_accumulation": 2, "save_every": 2}
    config = settled(content)
    assert config.prompts_a_step() == 4
    assert config.steps(10) == 2 * 7
    assert config.steps(10, processes=2) == 2 * 3
    assert config.steps(1) == 2


def test_adapt_halves_the_learning_rate_after_divergence(config: grpo.Config) -> None:
    adapted = grpo.adapt(config, FailedAttempt("KL", diverged=True))
    assert adapted.training.learning_rate == config.training.learning_rate / 2
    assert adapted.rewards == config.rewards
    assert adapted.training.model_copy(update={"learning_rate": config.training.learning_rate}) == config.training


def test_adapt_rewards_long_replies_less_after_rambling(config: grpo.Config) -> None:
    adapted = grpo.adapt(config, FailedAttempt("long", rambling=True))
    assert (adapted.rewards.short, adapted.rewards.long) == (3, 18)
    assert adapted.training == config.training


def test_adapt_leaves_any_other_failure_alone(config: grpo.Config) -> None:
    assert grpo.adapt(config, FailedAttempt("crashed", crashed=True, improving=True)) == config


@given(st.integers(0, 3000), st.integers(1, 3000), st.integers(1, 40))
def test_bounds_of_the_length_reward_never_cross(short: int, more: int, times: int) -> None:
    config = settled(recipe(Path("rows.jsonl"), rewards={"short": short, "long": short + more}))
    for _ in range(times):
        config = grpo.adapt(config, FailedAttempt("long", rambling=True))
        assert settled(config.model_dump()) == config
