"""How long a site of a thousand runs takes, how much memory, and how soon it can be seen.

    python tests/bench/report.py [--runs 1000] [--keep FOLDER]     # 3 minutes, 6 GB of disk for a while

1,000 runs x 3 tasks x 1,000 samples of about 650 bytes, as `medbench eval` writes them: the same questions in each run,
other answers; every run gated. Then one run changes and the site is built again. Last, one run of 100,000 samples for
the viewer. Targets: 60 s and 2 GiB over all processes, index.html at most 1.5 MB, 2 s for the one run, first paint of
index and viewer within 1 s in Chromium.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.gate_runs import a_record, answer

from medbench.harness.gates.verdict import CORRECTION, GateResult, Verdict
from medbench.harness.runs.records import ModelRecord
from medbench.harness.runs.run_folder import _line, create_run
from medbench.harness.scoring.summary import CategoryResult, TaskResult
from medbench.harness.stats.intervals import wilson_interval

TASKS = {"medqa": "meta_info", "mmlu_pro_medical": "subject", "pubmedqa": "decision"}
SAMPLES = 1_000
TEXT = """a patient with fever cough and chest pain presents to the clinic after two weeks of therapy with which drug
of the following mechanisms best explains these findings on admission renal hepatic cardiac acute"""
WORDS = TEXT.split()
LARGE = 100_000
KINDS = ("right", "wrong", "unparsed", "truncated")


class Question:
    """One question's four possible lines, each a whole line of the samples file."""

    def __init__(self, task: str, number: int, rng: random.Random) -> None:
        text = " ".join(rng.choices(WORDS, k=18))
        reply = " ".join(rng.choices(WORDS, k=12)).capitalize() + ". The answer is ("
        options = "".join(f"\n{letter}. {rng.choice(WORDS)}" for letter in "ABCD")
        shared = {"prompt": f"<|im_start|>user\nQuestion: {text}?{options}<|im_end|>\n<|im_start|>assistant\n",
                  "category": {TASKS[task]: f"part {number % 6}"}, "gold": "A", "prompt_tokens": 80}  # fmt: skip
        id = f"{rng.getrandbits(48):012x}"
        self.part = number % 6
        self.lines = {
            kind: _line(answer(id, score=float(kind == "right"), completion_tokens=40 + number % 90, **shared, **more))
            for kind, more in {
                "right": {"output": f"{reply}A).", "extracted": "A", "span": (len(reply), len(reply) + 1)},
                "wrong": {"output": f"{reply}B).", "extracted": "B", "span": (len(reply), len(reply) + 1)},
                "unparsed": {"output": reply, "extracted": None, "outcome": "unparsed"},
                "truncated": {"output": reply, "extracted": None, "outcome": "truncated", "finish_reason": "length"},
            }.items()
        }


def write_run(root: Path, name: str, questions: dict[str, list[Question]], rng: random.Random) -> None:
    skill = rng.uniform(0.3, 0.9)
    record = a_record(
        name,
        {task: len(some) for task, some in questions.items()},
        model=ModelRecord(name=f"medical-model-{name}-8b", kind="full", fingerprint=f"{rng.getrandbits(256):064x}"),
        packages=dict.fromkeys(("medbench", "vllm", "torch", "transformers", "lm-eval", "datasets"), "1.2.3"),
        engine={"name": "vllm", "chat_template": "model", "settings": {"dtype": "bfloat16", "max_model_len": 8192}},
        git_commit=f"{rng.getrandbits(160):040x}",
    )
    with create_run(root, record) as run:
        gates = []
        for task, some in questions.items():
            kinds = rng.choices(KINDS, [skill, 0.95 - skill, 0.03, 0.02], k=len(some))
            lines = b"".join(question.lines[kind] for question, kind in zip(some, kinds, strict=True))
            (run.folder / "samples" / f"{task}.jsonl").write_bytes(lines)
            result = summed(task, some, kinds)
            run.write_result(result)
            gates.append(a_gate(result))
        run.update(status="complete")
    overall = "pass" if all(gate.status == "pass" for gate in gates) else "fail"
    verdict = Verdict(
        overall=overall, why="three gates", alpha=0.05, decide="census", partition="all", correction=CORRECTION,
        candidate=name, fingerprint=name, baseline=None, protocol="cot-v2", gates=gates,
    )  # fmt: skip
    (root / name / "verdict.json").write_text(verdict.model_dump_json())


def summed(task: str, questions: Sequence[Question], kinds: Sequence[str]) -> TaskResult:
    """What scoring.summarize finds, without a record for each sample."""

    def share(parts: Sequence[int]) -> tuple[int, float, tuple[float, float]]:
        right = sum(kind == "right" for question, kind in zip(questions, kinds, strict=True) if question.part in parts)
        n = sum(question.part in parts for question in questions)
        return n, right / n, wilson_interval(right, n)

    n, accuracy, interval = share(range(6))
    parts = {f"part {part}": share([part]) for part in range(6)}
    return TaskResult(
        task=task, version="1", split="test", source="local", official=True, protocol="cot-v2", n=n, n_error=0,
        n_unparsed=kinds.count("unparsed") + kinds.count("truncated"), n_truncated=kinds.count("truncated"),
        outcomes={"answered": kinds.count("right") + kinds.count("wrong"), "unparsed": kinds.count("unparsed"),
                  "truncated": kinds.count("truncated")},
        accuracy=accuracy, interval=interval, interval_wilson=interval, chance=0.25, tokens_per_answer=84.5,
        categories={TASKS[task]: {name: CategoryResult(n=n, accuracy=mean, interval=bounds)
                                  for name, (n, mean, bounds) in parts.items()}},
    )  # fmt: skip


def a_gate(result: TaskResult) -> GateResult:
    assert result.accuracy is not None
    status = "pass" if result.accuracy >= 0.6 else "fail"
    return GateResult(
        rule=f"{result.task}: accuracy at least 0.6", task=result.task, metric="accuracy", status=status,
        estimate=result.accuracy, interval=result.interval, threshold=0.6, used=400, total=1000, why="shown",
    )  # fmt: skip


def timed_report(runs: Path, site: Path) -> str:
    """Seconds of the whole command, CPU seconds and the most MiB that all its processes held together, in words."""
    command = [sys.executable, "-m", "medbench.harness.cli", "report", str(runs), "-o", str(site)]
    started, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(command)
    most = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        process = psutil.Process(child.pid)
        while not over.wait(0.05):
            try:
                together = 0
                for one in (process, *process.children(recursive=True)):
                    together += one.memory_info().rss
                most = max(most, together)
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = child.wait(timeout=600)
    seconds = time.perf_counter() - started
    over.set()
    watcher.join()
    if status:
        sys.exit(f"medbench report ended with {status}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return f"built in {seconds:.1f} s ({cpu:.1f} s of CPU), {most / 2**20:.0f} MiB"


def first_paint(site: Path, pages: Sequence[str]) -> None:
    """Seconds from navigation to the first contentful paint of each page, opened from disk in a fresh context.

    Of a viewer also to the first answer, read from its files and shown.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has none
    script = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*sandbox, "--disable-dev-shm-usage"])
        for name in pages:
            page = browser.new_context().new_page()
            page.goto((site / name).as_uri())
            if name.endswith("viewer.html"):
                page.wait_for_selector("#v-detail h2")
                answered = page.evaluate("performance.getEntriesByName('medbench-answer')[0].startTime") / 1000
                print(f"first answer in {name}: {answered:.2f} s (target at most 1)")
            while (painted := page.evaluate(script)) is None:  # the policy forbids wait_for_function, which evals
                time.sleep(0.05)
            print(f"first paint of {name}: {painted / 1000:.2f} s (target at most 1)", flush=True)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--keep", type=Path, help="Work here, and leave runs and site behind.")
    given = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = given.keep or Path(folder)
        runs, site = root / "runs", root / "site"
        started = time.perf_counter()
        questions = {task: [Question(task, number, rng) for number in range(SAMPLES)] for task in TASKS}
        for number in range(given.runs):
            write_run(runs, f"run-{number:04d}", questions, rng)
        size = sum(path.stat().st_size for path in runs.rglob("*.jsonl"))
        samples = given.runs * len(TASKS) * SAMPLES
        print(f"{given.runs} runs, {samples} samples of {size / samples:.0f} bytes, written in "
              f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip

        print(f"{timed_report(runs, site)} (targets at most 60 s, 2048 MiB)")
        index = (site / "index.html").stat().st_size / 1e6
        print(f"index.html: {index:.2f} MB (target at most 1.5)", flush=True)

        shutil.rmtree(runs / "run-0001")
        write_run(runs, "run-0001", questions, rng)
        print(f"one run changed: {timed_report(runs, site)} (target at most 2 s)", flush=True)

        many = {"medqa": [Question("medqa", number, rng) for number in range(LARGE)]}
        write_run(root / "large", "large", many, rng)
        print(f"one run of {LARGE} samples: {timed_report(root / 'large', root / 'large-site')}", flush=True)
        first_paint(site, ["index.html", "runs/run-0000/viewer.html"])
        first_paint(root / "large-site", ["runs/large/viewer.html"])


if __name__ == "__main__":
    main()
