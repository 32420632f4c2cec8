"""The other gates of duel.py, in their own environment: JSON lines in, a verdict a line out.

A line in: {"tool": ..., "baseline": [scores], "candidate": [scores], "margin": ...}, the scores in the order of asking.
A line out: {"verdict": "pass", "fail" or "undecided", "used": questions that the verdict needed}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from evalsig.compare.gate import gate as evalsig_gate
from evalsig.inference.sequential import sequential_gate
from evalsig.types import ItemResult, RunFrame
from nemo_evaluator.config import load_gate_policy
from nemo_evaluator.engine import gate_runs
from statgate.config import GateSettings, SequentialSettings
from statgate.records import EvalRecord
from statgate.sequential_runner import run_replay
from statgate.verdict import evaluate_gate

SMALLEST_EFFECT = 0.005  # of evalsig's published GitHub action
VERDICTS = {
    "GO": "pass", "NO-GO": "fail", "SHIP": "pass", "BLOCK": "fail", "ALLOW": "pass", "REJECT": "fail",
    "INCONCLUSIVE": "undecided",
}  # fmt: skip

Scores = list[float]


def write_nel(folder: Path, baseline: Scores, candidate: Scores, margin: float) -> list[Path]:
    """Results folders as `nel eval` writes them, as far as `nel gate` reads them, and the policy."""
    for name, scores in (("base", baseline), ("cand", candidate)):
        (folder / name).mkdir()
        bundle = {"benchmark": {"name": "health", "scores": {"mean_reward": {"value": sum(scores) / len(scores)}}}}
        (folder / name / "eval-health.json").write_text(json.dumps(bundle))
        rows = ({"problem_idx": number, "repeat": 0, "reward": score} for number, score in enumerate(scores))
        (folder / name / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = folder / "policy.yaml"
    policy.write_text(
        f"version: 1\nbenchmarks:\n  health: {{tier: critical, max_drop: {margin}, metric: mean_reward}}\n"
    )
    return [folder / "base", folder / "cand", policy]


def nel(baseline: Scores, candidate: Scores, margin: float) -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        base, cand, policy = write_nel(Path(folder), baseline, candidate, margin)
        return gate_runs(base, cand, load_gate_policy(policy)).verdict, len(candidate)


def nel_command(baseline: Scores, candidate: Scores, margin: float) -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        base, cand, policy = write_nel(Path(folder), baseline, candidate, margin)
        status = run("nel", "gate", base, cand, "--policy", policy)
        return {0: "GO", 1: "NO-GO", 2: "INCONCLUSIVE"}[status], len(candidate)


def run(name: str, *arguments: object) -> int:
    command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode


def records(scores: Scores) -> list[EvalRecord]:
    return [EvalRecord(case_id=f"{number:05d}", score=score) for number, score in enumerate(scores)]


def statgate(baseline: Scores, candidate: Scores, margin: float) -> tuple[str, int]:
    settings = GateSettings(margin=margin, seed=0)
    return evaluate_gate(records(baseline), records(candidate), settings).verdict.value, len(candidate)


def statgate_command(baseline: Scores, candidate: Scores, margin: float) -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("base.jsonl", "cand.jsonl")]
        for file, scores in zip(files, (baseline, candidate), strict=True):
            file.write_text("".join(one.model_dump_json() + "\n" for one in records(scores)))
        status = run("statgate", "compare", *files, "--margin", margin)
        return {0: "SHIP", 1: "BLOCK", 2: "INCONCLUSIVE"}[status], len(candidate)


def statgate_sequential(baseline: Scores, candidate: Scores, margin: float) -> tuple[str, int]:
    batches = SequentialSettings(max_cases=len(candidate))
    found = run_replay(records(baseline), records(candidate), GateSettings(margin=margin), batches)
    return found.verdict.value, found.pairs_used


def frame(name: str, scores: Scores) -> RunFrame:
    items = [ItemResult(item_id=f"{number:05d}", score=score) for number, score in enumerate(scores)]
    return RunFrame(run_id=name, model_id=name, task_id="health", metric_name="accuracy", items=tuple(items))


def evalsig(baseline: Scores, candidate: Scores, margin: float) -> tuple[str, int]:
    """Its rule is superiority; it has no margin."""
    report = evalsig_gate(frame("base", baseline), frame("cand", candidate), min_delta=SMALLEST_EFFECT)
    return report.verdict.value, len(candidate)


def evalsig_command(baseline: Scores, candidate: Scores, margin: float) -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("base.json", "cand.json")]
        for file, scores in zip(files, (baseline, candidate), strict=True):
            file.write_text(json.dumps(asdict(frame(file.stem, scores))))
        status = run("evalsig", "gate", "--baseline", files[0], "--candidate", files[1], "--min-delta", SMALLEST_EFFECT)
        return {0: "ALLOW", 1: "REJECT", 2: "INCONCLUSIVE"}[status], len(candidate)


def evalsig_watch(baseline: Scores, candidate: Scores, margin: float) -> tuple[str, int]:
    found = sequential_gate(right - other for right, other in zip(candidate, baseline, strict=True))
    return "ALLOW" if found.stopped else "INCONCLUSIVE", found.n_pairs


TOOLS = {
    "nel gate": nel,
    "nel gate, by command": nel_command,
    "statgate compare, by command": statgate_command,
    "evalsig gate, by command": evalsig_command,
    "statgate compare": statgate,
    "statgate sequential": statgate_sequential,
    "evalsig gate": evalsig,
    "evalsig watch": evalsig_watch,
}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        verdict, used = TOOLS[asked["tool"]](asked["baseline"], asked["candidate"], asked["margin"])
        print(json.dumps({"verdict": VERDICTS[verdict], "used": used}), flush=True)


if __name__ == "__main__":
    main()
