"""kill -9 at random moments of eval, score, gate, report and train: is anything lost, done twice, or left behind?

    python tests/bench/kills.py [--kills 200] [--seed 0] [--only eval,gate] [--folder DIR]

Each command first runs uninterrupted. Then it is killed (only the command; its children must die by themselves) after
a random time, and run again, until it finishes; as often as its share of the kills needs. What it leaves must be what
the uninterrupted one left, except for times; no temporary file and no process may remain. Exit status 1 if anything
differs. A kill of `train` takes about half a minute, so it has the smallest share.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import conftest  # noqa: F401  # sets environment variables for vLLM
from support.gate_runs import write_gates, write_medqa, write_replies
from support.tiny_training import MARK, arguments, build, differences, environment, left_behind
from support.tiny_training import kill_when as kill_training
from support.tiny_training import start as start_training

QUESTIONS = 120
RUNS = 110
"""Of the report: enough for worker processes."""
SHARES = {"eval": 0.43, "score": 0.23, "gate": 0.23, "report": 0.09, "train": 0.02}
TIMES = ("created", "seconds", "totals", "command", "packages", "elapsed")
"""Keys left out; `totals` are of the sessions that ended by themselves."""
REPORT_TIME = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?[^\s<\"]*")
TEMPORARY = re.compile(r"\.tmp$|^tmp|\.partial$")

Differences = Callable[[Path, Path], list[str]]


@dataclass(frozen=True, slots=True)
class Job:
    """A command that is killed. Both functions are given the folder that it works in."""

    name: str
    command: Callable[[Path], list[str]]
    made: Callable[[Path], dict[str, Any]]
    """Path -> contents of all that it wrote, times left out."""
    torn: Callable[[Path], list[str]] = lambda folder: []
    """What is wrong right after a kill."""


@dataclass(frozen=True, slots=True)
class Row:
    """The table's line for one command."""

    name: str
    kills: int
    finished: int
    """Commands that were killed at least once and then run to their end."""
    wrong: list[str]
    seconds: float


def start(job: Job, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    own = {MARK: str(folder), "TMPDIR": str(folder / "temporary"), "MEDBENCH_CACHE": str(folder / "cache")}
    (folder / "temporary").mkdir(exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            arguments(*job.command(folder)),
            cwd=folder,
            env=environment(**own),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def killed(job: Job, folder: Path, after: float) -> bool:
    """Whether the command was still running then."""
    process = start(job, folder)
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def processes_left(folder: Path) -> list[str]:
    """Processes that are still there ten seconds after their parent was killed."""
    until = time.monotonic() + 10
    while (left := left_behind(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    return [f"a process is left: {line[:150]}" for line in left]


def files_left(folder: Path) -> list[str]:
    names = (path.relative_to(folder) for path in folder.rglob("*"))
    left = [name for name in names if TEMPORARY.search(name.name) and name != Path("temporary")]
    inside = [path.relative_to(folder) for path in (folder / "temporary").iterdir()]
    return [f"a file is left: {name}" for name in sorted({*left, *inside})]


def tried(job: Job, kills: int, folder: Path, draw: random.Random) -> Row:
    began = time.monotonic()
    if (code := start(job, folder / "whole").wait()) != 0:
        raise SystemExit(f"{job.name}: exits with {code}: {folder / 'whole/log.txt'}")
    takes = time.monotonic() - began
    expected = job.made(folder / "whole")
    made = finished = rounds = 0
    wrong: list[str] = []
    while made < kills:
        torn = folder / f"torn-{rounds}"
        rounds += 1
        found: list[str] = []
        hit = 0
        for _ in range(min(draw.choice((1, 2, 3)), kills - made)):
            # the first tenths of a second are Python's own start
            started = time.monotonic()
            if not killed(job, torn, draw.uniform(0.3, 1.0) * takes):
                takes = min(takes, time.monotonic() - started)  # the machine was busier at first
                break
            hit += 1
            found += [f"killed: {line}" for line in (*processes_left(torn), *job.torn(torn))]
        else:  # a command that was killed after its last write may say that there is nothing left to do
            code = start(job, torn).wait()
        now = job.made(torn)
        if differ := sorted(name for name in expected.keys() | now.keys() if expected.get(name) != now.get(name)):
            found.append(f"{', '.join(differ)} differ; exit status {code}: {(torn / 'log.txt').read_text()[-300:]}")
        found += files_left(torn)
        made += hit
        finished += hit > 0
        wrong += [f"{torn.name}: {line}" for line in found]
        if not found:
            shutil.rmtree(torn)
    return Row(job.name, made, finished, wrong, time.monotonic() - began)


# --- the commands ------------------------------------------------------------------------------------------------


def jobs(common: Path) -> list[Job]:
    """`common` gets what they read: data, replies, a finished run, many runs."""
    ids = write_medqa(common / "data", QUESTIONS)
    replies = write_replies(common / "replies.jsonl", {id: at % 3 > 0 for at, id in enumerate(ids)})
    (common / "slow.yaml").write_text("engine_config: {delay: 0.01}\n")
    gates = write_gates(common / "gates.yaml", "{task: medqa, at_least: 0.5}", "{task: medqa, margin: 0.1}")
    asked = ["--tasks", "medqa", "--data", str(common / "data"), "--replies", str(replies), "--quiet"]
    evaluate = ["eval", "model", "--name", "run", *asked]
    subprocess.run(arguments(*evaluate, "--runs", str(common / "runs")), check=True, env=environment(), stdout=2)
    base = common / "runs/run"
    for number in range(RUNS):
        _copy_run(base, common / "many" / f"run-{number}")

    def gate(folder: Path) -> list[str]:
        if not (folder / "run").exists():
            shutil.copytree(base, folder / "run")
        outputs = ["--junit", "verdict.xml", "--summary", "verdict.md"]
        return ["gate", "run", "--gates", str(gates), "--baseline", str(base), *outputs]

    return [
        Job("eval", lambda _: [*evaluate, "--config", str(common / "slow.yaml"), "--resume"], run_made),
        Job(
            "score",
            lambda _: ["score", str(replies), "--task", "medqa", "--data", str(common / "data"), "--name", "run"],
            run_made,
        ),
        Job("gate", gate, verdict_made, half_written),
        Job("report", lambda _: ["report", str(common / "many"), "-o", "site"], site_made),
    ]


def _copy_run(run: Path, target: Path) -> None:
    shutil.copytree(run, target)
    record = target / "run.json"
    record.write_text(record.read_text().replace('"run_id": "run"', f'"run_id": "{target.name}"'))


def run_made(folder: Path) -> dict[str, Any]:
    run = folder / "runs/run"
    lines = (run / "samples/medqa.jsonl").read_text().splitlines() if (run / "samples/medqa.jsonl").exists() else []
    results = {path.name: path.read_text() for path in run.glob("results/*.json")}
    record = json.loads((run / "run.json").read_text()) if (run / "run.json").exists() else {}
    return {**results, "run.json": _without_times(record), "samples": sorted(lines), "number of samples": len(lines)}


def verdict_made(folder: Path) -> dict[str, Any]:
    verdict = _without_times(json.loads((folder / "run/verdict.json").read_text()))
    junit = re.sub(r'time="[\d.]+"', "", (folder / "verdict.xml").read_text())
    (kept,) = folder.glob("run/verdicts/*.json")
    if _without_times(json.loads(kept.read_text())) != verdict:
        raise ValueError(f"{kept} is not the latest verdict")
    return {"verdict": verdict, "junit": junit, "summary": (folder / "verdict.md").read_text(), **_run_files(folder)}


def _run_files(folder: Path) -> dict[str, Any]:
    names = ("run.json", "samples/medqa.jsonl", "results/medqa.json")
    return {name: (folder / "run" / name).read_bytes() for name in names}


def half_written(folder: Path) -> list[str]:
    """Files of a verdict are whole or absent."""
    kept = [str(file.relative_to(folder)) for file in folder.glob("run/verdicts/*.json")]
    ends = {**dict.fromkeys(["run/verdict.json", *kept], "}\n"), "verdict.xml": "</testsuites>\n", "verdict.md": "\n"}
    there = {name: (folder / name).read_text() for name in ends if (folder / name).exists()}
    return [f"{name} is half written" for name, text in there.items() if not text.endswith(ends[name])]


def site_made(folder: Path) -> dict[str, Any]:
    files = [path for path in (folder / "site").rglob("*") if path.is_file() and path.name != ".lock"]
    made = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: REPORT_TIME.sub(b"", content) for name, content in made.items() if not name.endswith("site.json")}


def _without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_times(value) for key, value in content.items() if key not in TIMES}
    return [_without_times(value) for value in content] if isinstance(content, list) else content


# --- train, which tiny_training compares -------------------------------------------------------------------------


def trained(kills: int, folder: Path, draw: random.Random) -> Row:
    began = time.monotonic()
    recipe = build(folder)
    if (code := start_training(recipe, folder / "whole").wait()) != 0:
        raise SystemExit(f"the uninterrupted training exits with {code}: {folder / 'whole/log.txt'}")
    takes = time.monotonic() - began
    left, trainings, wrong = kills, 0, list[str]()
    while left:
        trainings += 1
        runs = folder / f"torn-{trainings}"
        left -= _torn_training(recipe, runs, draw, left, 0.5 * takes)
        found = differences(runs, folder / "whole") + [f"left behind: {line}" for line in left_behind(runs)]
        wrong += [f"{runs.name}: {line}" for line in found]
        wrong += [f"{runs.name}: a file is left: {path.relative_to(runs)}" for path in runs.rglob("*.tmp")]
    return Row("train", kills, trainings, wrong, time.monotonic() - began)


def _torn_training(recipe: Path, runs: Path, draw: random.Random, kills: int, longest: float) -> int:
    """One training, killed up to `kills` times and then finished. Returns the number of kills."""
    for made in range(kills):
        after = draw.uniform(0, longest)
        kill = kill_training(start_training(recipe, runs), runs, lambda seconds, after=after: seconds >= after)
        if kill is None:
            return made
        print(f"  train {kill.seconds:6.1f} s  {kill.under_way}", flush=True)
    if start_training(recipe, runs).wait() != 0:
        raise SystemExit(f"the training failed: {runs / 'log.txt'}")
    return kills


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=40, help="over all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SHARES), help="commands, comma-separated")
    parser.add_argument("--folder", type=Path, help="where everything is written; kept")
    asked = parser.parse_args()
    folder = (asked.folder or Path(tempfile.mkdtemp())).resolve()
    names = asked.only.split(",")
    (folder / "common").mkdir(parents=True)
    print(f"{asked.kills} kills on {os.cpu_count()} cores; everything is in {folder}", flush=True)
    draw = random.Random(asked.seed)
    total = sum(SHARES[name] for name in names)
    kills = {name: max(1, round(asked.kills * SHARES[name] / total)) for name in names}
    asked_for = [job for job in jobs(folder / "common") if job.name in names]
    rows = [_shown(tried(job, kills[job.name], folder / job.name, draw)) for job in asked_for]
    if "train" in names:
        rows.append(_shown(trained(kills["train"], folder / "train", draw)))
    print("| kills (SIGKILL) | kills | finished afterwards | differences and leftovers | s |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.name} | {row.kills} | {row.finished} | {len(row.wrong)} | {row.seconds:.0f} |")
    print(f"| all | {sum(row.kills for row in rows)} | | {sum(len(row.wrong) for row in rows)} | |")
    return 1 if any(row.wrong for row in rows) else 0


def _shown(row: Row) -> Row:
    print(f"{row.name}: {row.kills} kills, {row.seconds:.0f} s", flush=True)
    print("".join(f"  WRONG: {line}\n" for line in row.wrong[:20]), end="", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
