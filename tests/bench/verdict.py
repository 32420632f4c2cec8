"""From a checkpoint on disk to its verdict in a warm engine, beside the whole lm_eval command on the same task.

    MEDBENCH_DATA=... python tests/bench/verdict.py      # smollm2-135m, PubMedQA, direct-v1; 30 minutes, 20 of lm_eval

The baseline is smollm2-135m, 10 points above chance on PubMedQA by log-likelihood. One candidate is it with damaged
weights (at least 10 points lost), the other it with weights that differ and lost nothing. Both are swapped into one
warm engine and gated against the baseline with a margin of 3 points. lm_eval runs the same prompts through vLLM with
the best settings for this machine. Targets: at most 0.2 of lm_eval's time for the damaged one, 0.5 for the other.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from lm_eval_command import timed_lm_eval

from medbench.harness.benchmarks.task_folders import tasks_folder
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.cli.main import run
from medbench.harness.cli.streams import say
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.gates.judge import Gatekeeper
from medbench.harness.gates.rules import read_gate_file
from medbench.harness.runs.run_folder import read_result

GATES = """
protocol: direct-v1
gates:
  - {task: pubmedqa, margin: 0.03}
"""
TASK = """
task: pubmedqa_direct
custom_dataset: !function rows.dataset
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}\\n\\nQuestion: {{question}}\\nAnswer:"
doc_to_choice: ["yes", "no", "maybe"]
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata:
  version: 1
  files: {test: [pubmedqa/test.jsonl]}
"""


def changed(source: Path, target: Path, factor: float, only: str) -> Path:
    """`source` with the tensors whose name contains `only` scaled."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    for name in weights:
        if only in name:
            weights[name] = weights[name] * factor
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def lm_eval_seconds(model: str, root: Path) -> float:
    tasks = root / "tasks"
    tasks.mkdir()
    shutil.copy(tasks_folder() / "pubmedqa" / "rows.py", tasks)
    shutil.copy(tasks_folder() / "pubmedqa" / "test_ids.txt", tasks)
    (tasks / "pubmedqa_direct.yaml").write_text(TASK)
    seconds, shown = timed_lm_eval(model, root, ["--include_path", str(tasks), "--tasks", "pubmedqa_direct"])
    print("\n".join(line for line in shown.splitlines() if "acc" in line))
    return seconds


def main() -> None:
    base = resolve("smollm2-135m")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "gates.yaml").write_text(GATES)
        runs = root / "runs"
        baseline = ["eval", "smollm2-135m", "--tasks", "pubmedqa", "--protocol", "direct-v1", "--runs", str(runs)]
        if run([*baseline, "--name", "base", "--quiet"]):
            sys.exit("the baseline could not be evaluated")
        print(f"baseline: {read_result(runs / 'base', 'pubmedqa').accuracy:.3f}", flush=True)
        damaged = changed(Path(base.path), root / "damaged", 0.0, ".20.mlp.down_proj")
        intact = changed(Path(base.path), root / "intact", 1.002, "o_proj.weight")
        rules = read_gate_file(root / "gates.yaml")
        found = {}
        with Gatekeeper(rules, runs / "base", EvalOptions("", runs=runs, quiet=True), say) as keeper:
            keeper.judge("smollm2-135m")  # warms the engine; its answers are in nobody's time
            for name, checkpoint in (("lost 10 points", damaged), ("lost nothing", intact)):
                judged = keeper.judge(str(checkpoint))
                found[name] = judged.seconds
                print(f"{name}: {judged.verdict.overall} in {judged.seconds:.1f} s; {judged.verdict.gates[0].why}")
                print(json.dumps(judged.verdict.gates[0].model_dump(mode="json")), flush=True)
        seconds = lm_eval_seconds(base.path, root)
        print(f"lm_eval, all 500 questions: {seconds:.1f} s")
        for (name, took), target in zip(found.items(), (0.2, 0.5), strict=True):
            print(f"{name}: {took / seconds:.3f} of it (target at most {target})")


if __name__ == "__main__":
    main()
