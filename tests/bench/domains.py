"""A rare domain beside a common one: GRPO's advantages weighted by domain (DRPO), and not.

    python tests/bench/domains.py                      # 5 seeds, 60 steps each; 11 minutes on one core

Nine of ten questions are about the heart, where A is right; one is about bones, where B is. The tiny model first learns
by SFT to answer either with A or B, half and half, whatever is asked. Then GRPO, by the real TRL: once with all weights
1 (`cap: 1`, which is plain GRPO with the domains' accuracies logged), once weighted. The curves are the shares of right
replies of both domains, in windows of ten steps; a domain that no prompt of a window came from is left out.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.tiny import TEXT, build_tiny_model

from medbench.harness.config import check_mapping
from medbench.harness.training import checkpoint_folder
from medbench.trainers import grpo, sft

DOMAINS = {"heart": "A", "bones": "B"}
WINDOW = 10
THOUGHT = "Patients with weak {} recover quickly when doctors replace {}. Blood tests confirm it, so {} fits best."


def rows(count: int, share: float) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        domain = "bones" if number < share * count else "heart"
        options = random.Random(number).sample(["Iron", "Zinc"], 2)
        found.append(
            {
                "question": f"In a disease of the {domain}, which substance is low?",
                "options": options,
                "answer": DOMAINS[domain],
                "domain": domain,
            }
        )
    return found


def with_reasoning(row: dict[str, Any], answer: str) -> dict[str, Any]:
    option = row["options"]["AB".index(answer)]
    return {**row, "answer": answer, "reasoning": THOUGHT.format(row["domain"], option, option)}


def write(path: Path, content: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def settled(content: dict[str, Any], model: Any) -> Any:
    config, faults = check_mapping(content, model, "bench")
    assert config is not None, faults
    return config


def started(root: Path) -> Path:
    """A checkpoint that answers A and B alike."""
    questions = rows(40, 0.5)
    both = [with_reasoning(row, answer) for row in questions for answer in "AB"]
    texts = [TEXT, *(row["question"] + row["reasoning"] for row in both), *(" ".join(row["options"]) for row in both)]
    model = build_tiny_model(root / "tiny", vocab_from=texts)
    config = settled(
        {
            "data": [{"path": str(write(root / "sft.jsonl", both))}],
            "training": {"steps": 150, "batch_size": 8, "save_every": 150, "learning_rate": 3e-3, "warmup_steps": 5},
            "lora": None,
        },
        sft.Config,
    )
    folder = root / "sft" / "attempt-1"
    sft.prepare(config, start=model, folder=folder.parent, benchmarks={})
    sft.train(config, start=model, folder=folder, seed=0)
    return checkpoint_folder.checkpoints(folder)[-1].path


def curves(start: Path, root: Path, prompts: Path, seed: int, steps: int, cap: float) -> dict[str, np.ndarray]:
    """domain -> share right at each step, NaN where none of its prompts was asked."""
    config = settled(
        {
            "prompts": [{"path": str(prompts)}],
            "lora": None,
            "training": {"steps": steps, "batch_size": 32, "save_every": steps, "learning_rate": 2e-4},
            "rollout": {"completions": 8, "max_completion_tokens": 64},
            "rewards": {"short": 48, "long": 64, "least_steps": 1},
            "loss": {"advantage": {"kind": "domain", "by": "domain", "warmup": 20, "cap": cap}},
        },
        grpo.Config,
    )
    folder = root / f"grpo-{seed}-{cap}" / "attempt-1"
    grpo.prepare(config, start=start, folder=folder.parent, benchmarks={})
    grpo.train(config, start=start, folder=folder, seed=seed)
    lines = checkpoint_folder.read_metrics(folder)
    return {
        name: np.array([float(str(line.get(f"domains/{name}/accuracy", "nan"))) for line in lines]) for name in DOMAINS
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = started(root)
        prompts = write(root / "prompts.jsonl", rows(100, 0.1))
        windows = [f"to {end}" for end in range(WINDOW, asked.steps + 1, WINDOW)]
        print(f"| weights | domain | {' | '.join(windows)} |")
        print("|---" * (2 + len(windows)) + "|")
        for cap, words in ((1.0, "all 1"), (4.0, "by domain")):
            found = [curves(start, root, prompts, seed, asked.steps, cap) for seed in range(asked.seeds)]
            for name in DOMAINS:
                of_windows = np.stack([one[name] for one in found]).reshape(asked.seeds, -1, WINDOW)
                per_seed = np.nanmean(of_windows, axis=2)
                cells = [
                    f"{100 * mean:.0f} ± {100 * spread:.0f}"
                    for mean, spread in zip(np.nanmean(per_seed, 0), np.nanstd(per_seed, 0), strict=True)
                ]
                print(f"| {words} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
