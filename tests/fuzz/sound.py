"""The sound folder that every case damages a copy of.

data/{medqa,pubmedqa,mmlu_pro_medical}/*.jsonl   made-up benchmarks, 16 questions each; GOLD is always the answer
replies.jsonl, weak.jsonl                        stored replies to medqa: 12 and 4 of 16 right
gates.yaml, floor.yaml                           with and without a gate that needs a baseline
runs/{base,candidate,torn}                       finished; finished; killed after ten answers
training/train-mine                              a training that ended
*.yaml                                           a recipe, an eval config, a protocol, a task, references
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from support.gate_runs import write_medqa
from support.made_trainings import two_stages

from medbench.harness.cli.main import run

N = 16
GOLD = "A"
ROOT = Path(__file__).parents[2]
GATES = """\
alpha: 0.05
gates:
  - {task: medqa, at_least: 0.5}
  - {task: medqa, margin: 0.3}
  - {task: medqa, metric: unparsed, at_most: 0.2}
  - {task: medqa, category: {meta_info: step1}, at_least: 0.1}
"""
FLOOR = "gates:\n  - {task: medqa, at_least: 0.5}\n"
CONFIG = """\
tasks: [medqa]
protocol: cot-v2
max_new_tokens: 64
limit: 12
seed: 3
temperature: 0.0
engine_config: {dtype: float32, batch_size: 4, concurrency: 2, timeout: 60, delay: 0.0, vllm_args: {}}
"""
REFERENCES = """\
references:
  - model: Other-8B
    parameters: 8B
    scores: {medqa: 71.5, pubmedqa: 70}
    protocol: the authors' own
    source: Other et al. 2025
    url: https://example.org/other
"""
RECIPE = """\
name: small
start: model
seed: 1
budget: {attempts: 2, hours: 2, questions: 1000}
device: shared
engine: {dtype: float32, kv_cache_gib: 1}
watchdogs: {}
benchmarks: [medqa]
stages:
  - name: sft
    trainer: sft
    launch: {processes: 1, env: {A: b}}
    config:
      data: [{path: $MEDBENCH_DATA/medqa/train.jsonl}]
      training: {steps: 10, batch_size: 2, learning_rate: 1.0e-4, save_every: 5}
      lora: {rank: 8, alpha: 16, use_dora: true}
      max_length: 512
    gates:
      alpha: 0.05
      gates: [{task: medqa, at_least: 0.5}, {task: medqa, margin: 0.1}]
"""


def build(folder: Path) -> Path:
    """Write the sound folder; medbench's messages go where they always go."""
    ids = write_medqa(folder / "data", N)
    _add_answers(folder / "data/medqa/test.jsonl")
    _pubmedqa(folder / "data/pubmedqa/test.jsonl")
    _mmlu_pro(folder / "data/mmlu_pro_medical")
    for name, right in (("replies", 12), ("weak", 4)):
        (folder / f"{name}.jsonl").write_text("".join(_reply(id, at < right) for at, id in enumerate(ids)))
    texts = {"gates": GATES, "floor": FLOOR, "config": CONFIG, "references": REFERENCES, "recipe": RECIPE}
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    shutil.copy(ROOT / "harness/protocols/cot-v2.yaml", folder / "protocol.yaml")
    shutil.copy(ROOT / "tasks/medqa/medqa.yaml", folder / "task.yaml")
    for name, replies in (("base", "weak"), ("candidate", "replies"), ("torn", "replies")):
        command = ["eval", name, "--replies", str(folder / f"{replies}.jsonl"), "--data", str(folder / "data")]
        assert run([*command, "--tasks", "medqa", "--runs", str(folder / "runs"), "--name", name, "--quiet"]) == 0
        _forget_command(folder / "runs" / name / "run.json")
    _tear(folder / "runs/torn")
    two_stages(folder / "training", "train-mine")
    return folder


def ids_of(folder: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (folder / "replies.jsonl").read_text().splitlines()]


def _forget_command(record: Path) -> None:
    """It is how the tests were started, and what is drawn must not depend on that."""
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "command": ["medbench", "eval"]}, indent=1) + "\n")


def _tear(run_folder: Path) -> None:
    """As SIGKILL leaves it after ten answers and a half."""
    samples = run_folder / "samples/medqa.jsonl"
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:10]) + lines[10][:50])
    (run_folder / "results/medqa.json").unlink()
    record = run_folder / "run.json"
    record.write_text(record.read_text().replace('"status": "complete"', '"status": "running"'))


def _reply(id: str, right: bool) -> str:
    return (
        json.dumps({"id": id, "output": f"The answer is ({GOLD if right else 'B'}).", "finish_reason": "stop"}) + "\n"
    )


def _add_answers(path: Path) -> None:
    """The gold answer's text, which the benchmark's own rows have too."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "answer": row["options"][GOLD]}) + "\n" for row in rows))


def _pubmedqa(path: Path) -> None:
    path.parent.mkdir(parents=True)
    rows = [
        {
            "pubid": 100 + at,
            "question": f"Does drug {at} help?",
            "context": {"contexts": [f"It helped {at} of {N} patients."], "labels": ["RESULTS"], "meshes": []},
            "long_answer": "It may.",
            "final_decision": ("yes", "no", "maybe")[at % 3],
        }
        for at in range(N)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _mmlu_pro(folder: Path) -> None:
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for category in ("health", "biology"):
        for name, n in ((category, N // 2), (f"{category}_validation", 2)):
            rows = []
            for at in range(n):
                gold = draw.randrange(10)
                rows.append(
                    {
                        "question_id": len(category) * 1000 + at + (500 if n == 2 else 0),
                        "question": f"Which is {name} {at}?",
                        "options": [f"option {number}" for number in range(10)],
                        "answer": "ABCDEFGHIJ"[gold],
                        "answer_index": gold,
                        "category": category,
                        "src": "made-up",
                    }
                )
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
