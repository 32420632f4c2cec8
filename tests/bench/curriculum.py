"""GRPO on easy rows first (`order: {by: difficulty}`), and not: groups without a signal, and what is learnt.

    python tests/bench/curriculum.py                   # 3 seeds, 90 steps each; half an hour on one core

Each question names one of four diseases. The tiny model first learns by SFT to answer yes or no: right for all about
the first disease, three of four about the second, one of four about the third, and none about the fourth. Then whole
trainings of a GRPO stage by `medbench train`: real gates, real TRL, the same seeds with and without the order. The gate
cannot be passed, so all checkpoints are judged.

Columns: the share of groups whose replies are all right or all wrong, by windows of 15 steps; and the accuracy of the
start and of each checkpoint on the gate questions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.tiny import TEXT, build_tiny_model
from support.tiny_training import command

from medbench.harness.config import check_mapping
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.journal import AttemptEnded, Gated, Measured, Probed, read_events
from medbench.trainers import sft

SHARES = {"gout": 4, "mumps": 3, "croup": 1, "lupus": 0}
"""Right replies of the start, of four."""
GOLD = {"gout": "yes", "mumps": "no", "croup": "yes", "lupus": "no"}
WINDOW = 15
THOUGHT = "Patients with {} took iron for weeks. Their doctors saw that pain went {}."
WORD = {"yes": "down", "no": "up"}


def row(number: int, disease: str, decision: str) -> dict[str, Any]:
    return {
        "pubid": number,
        "question": f"Does iron help in {disease}?",
        "context": {"contexts": [f"We asked {20 + number % 70} patients with {disease} about iron."]},
        "long_answer": THOUGHT.format(disease, WORD[decision]),
        "final_decision": decision,
    }


def rows(count: int, first: int) -> list[dict[str, Any]]:
    diseases = list(SHARES)
    return [row(first + at, diseases[at % 4], GOLD[diseases[at % 4]]) for at in range(count)]


def taught(count: int) -> list[dict[str, Any]]:
    other = {"yes": "no", "no": "yes"}
    return [
        row(at, disease, GOLD[disease] if turn < right else other[GOLD[disease]])
        for at in range(count)
        for disease, right in SHARES.items()
        for turn in range(4)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in content))
    return path


def started(root: Path) -> Path:
    content = taught(40)
    texts = [TEXT, *(f"{one['question']} {one['context']['contexts'][0]} {one['long_answer']}" for one in content)]
    model = build_tiny_model(root / "tiny", vocab_from=texts)
    config, faults = check_mapping(
        {
            "data": [{"path": str(write(root / "sft.jsonl", content))}],
            "training": {"steps": 250, "batch_size": 16, "save_every": 250, "learning_rate": 3e-3, "warmup_steps": 5},
            "lora": None,
        },
        sft.Config,
        "bench",
    )
    assert config is not None, faults
    folder = root / "sft" / "attempt-1"
    sft.prepare(config, start=model, folder=folder.parent, benchmarks={})
    sft.train(config, start=model, folder=folder, seed=0)
    return checkpoint_folder.checkpoints(folder)[-1].path


def trained(root: Path, start: Path, seed: int, steps: int, order: dict[str, Any]) -> tuple[list[float], list[float]]:
    """(share of groups without a signal, by window; accuracy of the start and of each checkpoint)"""
    name = f"seed-{seed}-{order.get('by', 'random')}"
    recipe = {
        "name": name,
        "start": str(start),
        "seed": seed,
        "budget": {"attempts": 1},
        "engine": {"dtype": "float32", "kv_cache_gib": 1},
        "benchmarks": ["pubmedqa"],
        "watchdogs": {"entropy_least": 0, "entropy_share": 0.001},  # the text is nearly always the same
        "stages": [
            {
                "name": "grpo",
                "trainer": "grpo",
                "config": {
                    "prompts": [{"path": "$MEDBENCH_DATA/pubmedqa/train.jsonl"}],
                    "lora": None,
                    "training": {"steps": steps, "batch_size": 32, "save_every": WINDOW, "learning_rate": 3e-4},
                    "rollout": {"completions": 8, "max_completion_tokens": 64},
                    "rewards": {"short": 48, "long": 64, "least_steps": 1},
                    "contamination": {"most": 1.0, "ngram_share": 1.0, "near": 1.0},
                    "order": order,
                },
                "gates": {
                    "max_new_tokens": 64,
                    "decide_after": "all",
                    "gates": [{"task": "pubmedqa", "at_least": 1.0}],
                },
            }
        ],
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = command("train", path, "--runs", root, "--data", root / "data", "--quiet", cwd=root, timeout=3000)
    assert done.returncode in (0, 1), done.stderr
    folder = root / f"train-{name}"
    ended = [event for event in read_events(folder) if isinstance(event, AttemptEnded)][-1]
    assert ended.reason.startswith("no checkpoint passed"), ended.reason
    alike = [
        float(str(line["groups/all_right"])) + float(str(line["groups/all_wrong"]))
        for line in checkpoint_folder.read_metrics(folder / "1-grpo" / "attempt-1")
    ]
    accuracy = []
    for event in read_events(folder):
        if isinstance(event, Probed):
            print(f"{name}: {event.said}; {event.seconds:.0f} s", file=sys.stderr)
        if isinstance(event, Measured | Gated) and event.verdict is not None:
            accuracy.append(float(event.verdict.gates[0].estimate or 0.0))
    return [float(np.mean(alike[at : at + WINDOW])) for at in range(0, len(alike), WINDOW)], accuracy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=90)
    asked = parser.parse_args()
    ordered = {"by": "difficulty", "samples": 8, "bands": 2, "rise": 0.05}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = started(root)
        write(root / "data/pubmedqa/train.jsonl", rows(96, 1000))
        write(root / "data/pubmedqa/test.jsonl", rows(80, 5000))
        print("| order | groups without a signal, % | accuracy, % |\n|---|---|---|")
        for order, words in (({}, "random"), (ordered, "by difficulty")):
            found = [trained(root, start, seed, asked.steps, order) for seed in range(asked.seeds)]
            cells = []
            for part in zip(*found, strict=True):
                values = 100 * np.array(part)
                pairs = zip(values.mean(0), values.std(0), strict=True)
                cells.append(", ".join(f"{mean:.0f} ± {spread:.0f}" for mean, spread in pairs))
            print(f"| {words} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
