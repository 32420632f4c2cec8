"""The cost of `medbench score`: seconds per thousand replies, the whole command, and memory by number of replies.

    python tests/bench/score.py                # 3 minutes on 2 cores

1. Scoring only: 1,000 replies of about 200 words, checked, read, stored and summarised. Target: at most 0.5 s.
2. The whole command for them, most of which is loading the task through lm_eval. No target.
3. Peak memory with 100,000 and with a million short replies to a thousand questions. Target: a ratio of at most 1.1.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medbench.harness.contracts import LETTERS, Data, Question, Task
from medbench.harness.evaluation.score_replies import ScoreOptions, score_task

QUESTIONS = 1000
PROTOCOLS = ("cot-v2", "mmlu-pro-official", "huatuo-o1", "m1")
FINDING = "The patient has fever and a stiff neck, so the findings speak for option {} rather than for any other. "


def a_task() -> Task:
    options = tuple(f"Finding {letter.lower()} of the kind" for letter in LETTERS[:10])
    questions = tuple(
        Question(str(n), str(n), f"What is found in case {n}? " * 8, options, tuple(LETTERS[:10]), LETTERS[n % 10])
        for n in range(QUESTIONS)
    )
    return Task("bench", "1", "test", 0.1, questions, Data("local", "0" * 64, True))


def write(path: Path, lines: int, sentences: int) -> Path:
    with path.open("w") as file:
        for at in range(lines):
            question, sample = at % QUESTIONS, at // QUESTIONS
            said = "".join(FINDING.format(LETTERS[(at + n) % 10]) for n in range(sentences))
            output = f"{said}The answer is ({LETTERS[(question + at % 3) % 10]})."
            file.write(json.dumps({"id": str(question), "output": output, "sample": sample}) + "\n")
    return path


def scored(file: Path, protocol: str, folder: Path) -> float:
    options = ScoreOptions(file, "bench", protocol, runs=folder)
    started = time.perf_counter()
    score_task(options, a_task(), [], lambda _: None)
    return time.perf_counter() - started


def in_a_child(file: Path, folder: Path) -> tuple[float, float]:
    """(seconds, peak memory in MiB)"""
    done = subprocess.run(
        [sys.executable, __file__, str(file), str(folder)], capture_output=True, text=True, check=True
    )
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def whole_command(folder: Path) -> float:
    """`medbench score` over made-up replies to the built-in sample of MedQA's form, of which there are 30 questions."""
    from medbench.harness.benchmarks.catalog import TaskLoader
    from medbench.harness.benchmarks.rows import SAMPLE

    ids = [question.id for question in TaskLoader(SAMPLE).load("medqa").questions]
    with (folder / "sample.jsonl").open("w") as file:
        for at in range(1020):
            output = FINDING.format("B") * 10 + "The answer is (B)."
            file.write(json.dumps({"id": ids[at % 30], "output": output, "sample": at // 30}) + "\n")
    options = ["--task", "medqa", "--data", SAMPLE, "--runs", str(folder / "command")]
    command = [sys.executable, "-m", "medbench.harness.cli", "score", str(folder / "sample.jsonl"), *options]
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        thousand = write(folder / "thousand.jsonl", 1000, sentences=10)
        scored(thousand, "cot-v2", folder / "warm")  # imports
        for protocol in PROTOCOLS:
            seconds = min(scored(thousand, protocol, folder / f"{protocol}-{turn}") for turn in range(3))
            print(
                f"1,000 replies under {protocol:18} {seconds:6.3f} s   {1000 / seconds:7.0f} replies/s   "
                f"(target at most 0.5 s)",
                flush=True,
            )
        print(f"the whole command, 1,020 replies      {whole_command(folder):6.2f} s", flush=True)
        peaks = []
        for lines in (100_000, 1_000_000):
            seconds, peak = in_a_child(write(folder / "many.jsonl", lines, sentences=0), folder / str(lines))
            peaks.append(peak)
            print(
                f"{lines:9,} replies: {seconds:6.1f} s, {lines / seconds:6.0f} replies/s, peak {peak:.0f} MiB",
                flush=True,
            )
        print(f"peak memory, ratio {peaks[1] / peaks[0]:.2f} (target at most 1.1)")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        taken = scored(Path(sys.argv[1]), "cot-v2", Path(sys.argv[2]))
        print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        main()
