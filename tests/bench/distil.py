"""A teacher distilled to half its layers, on real questions: the gate's verdict, and what each costs.

    MEDBENCH_DATA=... python tests/bench/distil.py TEACHER --runs FOLDER    # about an hour on two cores for 135M

The student begins as every second layer of the teacher. Stage 1 teaches it to write again (sft on PubMedQA's labelled
training rows, all weights), stage 2 distils on its own replies. The margin of stage 2 is one from the teacher, on test
questions that neither has seen. Resumed where FOLDER has some of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.checkpoints.weights import weight_files
from medbench.harness.runs.run_folder import read_run, read_samples
from medbench.harness.training.journal import Gated, Measured, Promoted, read_events

TASK, TOKENS = "pubmedqa", 96
ROWS = {"path": "$MEDBENCH_DATA/pubmedqa/train.jsonl", "format": "pubmedqa"}


def halved(teacher: Path, folder: Path) -> Path:
    """A checkpoint of every second layer of `teacher`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if folder.exists():
        return folder
    model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    model.model.layers = torch.nn.ModuleList(model.model.layers[::2])
    for at, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = at
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[::2]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return folder


def recipe(teacher: str, student: Path, recover: int, steps: int) -> dict[str, Any]:
    gates = {"protocol": "cot-v2", "max_new_tokens": TOKENS, "alpha": 0.05}
    return {
        "name": "half",
        "start": str(student),
        "budget": {"attempts": 1},
        "engine": {"dtype": "float32", "kv_cache_gib": 1},
        "benchmarks": [TASK],
        "stages": [
            {
                "name": "recover",
                "trainer": "sft",
                "config": {
                    "data": [ROWS],
                    "training": {"steps": recover, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 2e-4,
                                 "warmup_steps": 4, "save_every": recover},
                    "lora": None,
                    "max_length": 420,
                },
                "gates": {**gates, "gates": [{"task": TASK, "metric": "unparsed", "at_most": 0.9}]},
            },
            {
                "name": "distil",
                "trainer": "distil",
                "baseline": teacher,
                "config": {
                    "mode": "on_policy",
                    "teacher": teacher,
                    "prompts": [ROWS],
                    "training": {"steps": steps, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 1e-4,
                                 "save_every": steps},
                    "rollout": {"max_completion_tokens": 64, "max_prompt_tokens": 360},
                    "lora": None,
                },
                "gates": {**gates, "gates": [{"task": TASK, "margin": 0.05}]},
            },
        ],
    }  # fmt: skip


def costs(run: Path, model: str) -> str:
    record, samples = read_run(run), list(read_samples(run, TASK))
    right = sum(one.score or 0 for one in samples) / len(samples)
    tokens = sum(one.completion_tokens for one in samples) / len(samples)
    size = sum(path.stat().st_size for path in weight_files(Path(resolve(model).path))) / 2**20
    return (
        f"{len(samples)} | {100 * right:.1f} | {size:.0f} | {record.totals.seconds / len(samples):.2f} | {tokens:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("teacher")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--recover", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    asked.runs.mkdir(parents=True, exist_ok=True)
    student = halved(Path(resolve(asked.teacher).path), asked.runs / "student")
    path = asked.runs / "half.yaml"
    path.write_text(yaml.safe_dump(recipe(asked.teacher, student, asked.recover, asked.steps)))
    words = [sys.executable, "-m", "medbench.harness.cli", "train", str(path), "--runs", str(asked.runs), "--resume"]
    subprocess.run(words, check=False)
    folder = asked.runs / "train-half"
    events = list(read_events(folder))
    print("| | questions | accuracy, % | weights, MiB | seconds a question | tokens an answer |")
    print("|---|---|---|---|---|---|")
    for event in events:
        if isinstance(event, Measured) and event.stage == "distil" and event.partition == "gate":
            assert event.baseline is not None
            print(f"| teacher | {costs(folder / event.baseline, asked.teacher)} |")
            print(f"| student, before distillation | {costs(folder / event.run, str(student))} |")
        if isinstance(event, Gated) and event.stage == "distil":
            assert event.run is not None
            print(f"| student, step {event.step} | {costs(folder / event.run, str(student))} |")
            print(f"{event.verdict.overall}: {event.verdict.why}")
    print("promoted" if any(isinstance(one, Promoted) and one.stage == "distil" for one in events) else "not promoted")


if __name__ == "__main__":
    main()
