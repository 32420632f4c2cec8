"""The overhead of medbench over vLLM, and its whole command compared with lm_eval's.

    python tests/bench/overhead.py            # smollm2-135m, 64 MedQA questions x 64 new tokens; 8 minutes on 2 cores

1. One process, one loaded engine, the same prompts: wall time of evaluate() (prompts rendered, replies scored, samples
   on disk) divided by that of bare LLM.generate, in alternation, with the prefix cache dropped before each. Target:
   median at most 1.03.
2. The two commands, start to finish, for the same questions, lm_eval with its best settings here. Target: at most 0.9.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lm_eval_command import cpu_environment, timed_lm_eval

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.benchmarks.rows import SAMPLE
from medbench.harness.benchmarks.task_folders import tasks_folder
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Request, Sample, Task
from medbench.harness.engines.settings import EngineConfig
from medbench.harness.engines.vllm import VLLMEngine
from medbench.harness.evaluation.requests import build_request, permuted
from medbench.harness.evaluation.runner import evaluate
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.records import ModelRecord, RunRecord
from medbench.harness.runs.run_folder import create_run

QUESTIONS, NEW_TOKENS, TURNS = 64, 64, 3
DATA = os.environ.get("MEDBENCH_DATA", SAMPLE)
PROTOCOL = load_protocol("cot-v2", max_new_tokens=NEW_TOKENS)


class Silent:
    def start(self, task: str, total: int, done: int) -> None: ...
    def advance(self, task: str, sample: Sample) -> None: ...
    def expect(self, time: str) -> None: ...


def bare(engine: VLLMEngine, requests: list[Request]) -> float:
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0)
    prompts = [request.prompt for request in requests]
    started = time.perf_counter()
    engine.llm.generate(prompts, sampling, use_tqdm=False, tokenization_kwargs={"add_special_tokens": False})
    return time.perf_counter() - started


def ours(engine: VLLMEngine, task: Task, name: str, root: Path) -> float:
    record = RunRecord(
        run_id=name,
        status="running",
        created="",
        command=sys.argv,
        model=ModelRecord(name="bench", kind="full", fingerprint=""),
        tasks={},
        protocol=PROTOCOL.model_dump(mode="json"),
        seed=0,
        limit=QUESTIONS,
        engine={},
        packages={},
        git_commit=None,
    )
    started = time.perf_counter()
    with create_run(root, record) as run:
        evaluate(run, [task], PROTOCOL, engine, limit=QUESTIONS, progress=Silent())
    return time.perf_counter() - started


def in_one_engine(model: str, task: Task, root: Path) -> None:
    engine = VLLMEngine(model, EngineConfig())
    by_id = {question.id: question for question in task.questions}
    order = permuted(by_id, seed=0, task=task.name)[:QUESTIONS]
    requests = [build_request(task, by_id[id], PROTOCOL, engine, 0) for id in order]
    bare(engine, requests[:8])  # warm-up
    pairs = []
    for turn in range(TURNS):
        engine.llm.reset_prefix_cache()
        first = bare(engine, requests)
        engine.llm.reset_prefix_cache()
        second = ours(engine, task, f"run-{turn}", root)
        pairs.append((first, second))
        print(f"LLM.generate {first:6.2f} s   medbench {second:6.2f} s   ratio {second / first:.3f}", flush=True)
    print(f"overhead: median ratio {statistics.median(b / a for a, b in pairs):.3f} (target at most 1.03)", flush=True)
    engine.close()


def whole_commands(model: str, task: Task, root: Path) -> None:
    ids = [question.id for question in task.questions]
    chosen = sorted(ids.index(id) for id in permuted(ids, seed=0, task=task.name)[:QUESTIONS])
    theirs = f"--tasks {task.name} --gen_kwargs max_gen_toks={NEW_TOKENS} --apply_chat_template --log_samples".split()
    theirs += ["--include_path", str(tasks_folder()), "--samples", json.dumps({task.name: chosen})]
    theirs += ["--output_path", str(root / "theirs")]
    options = f"--tasks {task.name} --limit {QUESTIONS} --max-new-tokens {NEW_TOKENS} --json --quiet".split()
    program = [sys.executable, "-m", "medbench.harness.cli", "eval", model, "--runs", str(root), *options]
    seconds = {}
    seconds["lm_eval"], shown = timed_lm_eval(model, root, theirs, MEDBENCH_DATA=DATA)
    print(f"lm_eval   {seconds['lm_eval']:6.1f} s   {_score(shown)}", flush=True)
    started = time.perf_counter()
    done = subprocess.run(program, env={**cpu_environment(), "MEDBENCH_DATA": DATA}, capture_output=True, text=True)
    seconds["medbench"] = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"medbench failed:\n{done.stderr[-3000:]}")
    print(f"medbench  {seconds['medbench']:6.1f} s   {_score(done.stdout)}", flush=True)
    print(f"commands: ratio {seconds['medbench'] / seconds['lm_eval']:.3f} (target at most 0.9)")


def _score(shown: str) -> str:
    return " ".join(line for line in shown.splitlines() if "accuracy" in line)[:160]


def main() -> None:
    model = resolve("smollm2-135m").path
    task = TaskLoader(DATA).load("medqa")
    with tempfile.TemporaryDirectory() as root:
        whole_commands(model, task, Path(root))
        in_one_engine(model, task, Path(root))


if __name__ == "__main__":
    main()
