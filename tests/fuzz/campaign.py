"""Many cases, in worker processes that are watched: one that hangs or dies is replaced, and its case is kept.

A worker writes one line per case to results-N.jsonl, and the case under way to under-way-N.json. What C code does
cannot be interrupted in Python: a case that takes more than HANGS seconds is ended with its process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.case import Case, read_case
from fuzz.trial import CATEGORIES, Tried, drawn, sound_folder, tried

HANGS = 45.0
"""Seconds of wall time; much more than the CPU time allowed, since the machine may be busy."""
KEPT = 3
"""Failures of the same kind that are written to files."""
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the cases lie: medbench syncs what it writes, and disks are slow at that."""
CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one worker does: the corpus files first, then drawn cases until either limit."""

    categories: tuple[str, ...]
    corpus: tuple[str, ...] = ()
    seconds: float = 0.0
    cases: int | None = None
    """Of each category; None: as many as the time allows."""
    seed: int = 0


@dataclass(slots=True)
class Line:
    """One case tried."""

    category: str
    seed: int | None
    corpus: str | None
    status: int | None
    bad: list[str]
    wrong: int
    seconds: float
    kept: str | None = None
    log: str = ""


@dataclass(slots=True)
class _Worker:
    plan: Plan
    number: int
    out: Path
    ends: float
    process: subprocess.Popen[bytes] | None = None
    died: list[Line] = field(default_factory=list)

    @property
    def under_way(self) -> Path:
        return self.out / f"under-way-{self.number}.json"

    @property
    def results(self) -> Path:
        return self.out / f"results-{self.number}.jsonl"


def campaign(plans: Sequence[Plan], out: Path) -> list[Line]:
    """Carry out the plans side by side; failures are written to `out`. Returns one line per case."""
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        workers = []
        for number, plan in enumerate(plans):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY)))
            worker = _Worker(plan, number, out, time.monotonic() + plan.seconds)
            worker.results.write_text("")
            _start(worker, folder)
            workers.append((worker, folder))
        try:
            while running := [one for one in workers if one[0].process is not None]:
                for worker, folder in running:
                    _look_after(worker, folder)
                time.sleep(0.1)
        finally:  # after Ctrl-C, or a fault of one of them
            for worker, _ in workers:
                if worker.process is not None:
                    worker.process.kill()
                    worker.process.wait()
    return [line for worker, _ in workers for line in (*_read(worker.results), *worker.died)]


def _start(worker: _Worker, folder: Path) -> None:
    worker.under_way.unlink(missing_ok=True)
    plan = json.dumps(
        {
            "categories": worker.plan.categories,
            "corpus": worker.plan.corpus,
            "seconds": worker.ends - time.monotonic() if worker.plan.cases is None else 0.0,
            "cases": worker.plan.cases,
            "seed": worker.plan.seed,
        }
    )
    command = [sys.executable, "-m", "fuzz", "--worker", str(worker.number), "--plan", plan, "--out", str(worker.out)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}  # the clock counts all threads
    with (worker.out / f"log-{worker.number}.txt").open("ab") as log:
        worker.process = subprocess.Popen([*command, "--folder", str(folder)], stdout=log, stderr=log, env=environment)


def _look_after(worker: _Worker, folder: Path) -> None:
    assert worker.process is not None
    code = worker.process.poll()
    if code == 0:
        worker.process = None
        return
    if code is None:
        try:
            age = time.time() - worker.under_way.stat().st_mtime
        except FileNotFoundError:
            return
        if age < HANGS:
            return
        worker.process.kill()
        worker.process.wait()
    what = f"no end after {HANGS:g} s, in code that cannot be interrupted" if code is None else f"died ({code})"
    if code == 1 or not worker.under_way.exists():  # 1: an exception outside of the command
        log = worker.out / f"log-{worker.number}.txt"
        raise RuntimeError(f"the fuzzer itself failed, see {log}: {log.read_text()[-500:]}")
    worker.died.append(_casualty(worker, what))
    _start(worker, folder)


def _casualty(worker: _Worker, what: str) -> Line:
    content = json.loads(worker.under_way.read_text())
    name = f"{content['category']}-{content['seed']}-{worker.number}-{len(worker.died)}.json"
    (worker.out / name).write_text(json.dumps({**content, "found": [what]}, indent=1))
    return Line(content["category"], content["seed"], content.get("corpus"), None, [what], 0, HANGS, name)


def _read(path: Path) -> list[Line]:
    return [Line(**json.loads(text)) for text in path.read_text().splitlines()]


# --- in the worker -----------------------------------------------------------------------------------------------


def work(plan: Plan, number: int, out: Path, folder: Path) -> None:
    """What has a line in the results already is not tried again."""
    began = time.monotonic()
    results, under_way = out / f"results-{number}.jsonl", out / f"under-way-{number}.json"
    earlier = _read(results)
    died = [json.loads(path.read_text()) for path in out.glob("*.json") if path != under_way]
    seen = {line.corpus for line in earlier} | {content.get("corpus") for content in died}
    kinds = Counter(kind_of(bad) for line in earlier for bad in line.bad)
    sound = sound_folder(Path(tempfile.mkdtemp(dir=folder)) / "sound", plan.categories)
    with results.open("a") as file:

        def attempt(case: Case, corpus: str | None) -> float:
            under_way.write_text(case.to_json(corpus=corpus))
            started = time.monotonic()
            found = tried(case, sound)
            took = time.monotonic() - started
            file.write(json.dumps(_line(found, corpus, out, kinds)) + "\n")
            file.flush()
            return took

        for name in plan.corpus:
            if name not in seen:
                attempt(read_case(CORPUS / name), name)
        spent = dict.fromkeys(plan.categories, 0.0)
        seeds = {name: _next_seed(name, plan.seed, earlier, died) for name in plan.categories}
        while left := [name for name in plan.categories if _goes_on(plan, seeds[name], began)]:
            name = min(left, key=lambda one: spent[one] / CATEGORIES[one].share)
            under_way.write_text(json.dumps({"category": name, "seed": seeds[name]}))  # drawing it could hang too
            spent[name] += attempt(drawn(name, seeds[name], sound), None)
            seeds[name] += 1
    under_way.unlink(missing_ok=True)


def _goes_on(plan: Plan, seed: int, began: float) -> bool:
    return seed < plan.seed + plan.cases if plan.cases is not None else time.monotonic() - began < plan.seconds


def _next_seed(name: str, first: int, earlier: Sequence[Line], died: Sequence[dict[str, object]]) -> int:
    seen = [line.seed for line in earlier if line.category == name and line.seed is not None]
    seen += [int(str(one["seed"])) for one in died if one["category"] == name and one["seed"] is not None]
    return max([seed + 1 for seed in seen], default=first)


def _line(found: Tried, corpus: str | None, out: Path, kinds: Counter[str]) -> dict[str, object]:
    case, done = found.case, found.done
    kept = None
    new = [bad for bad in found.bad if kinds[kind_of(bad)] < KEPT]
    kinds.update(map(kind_of, found.bad))
    if new and corpus is None:
        kept = f"{case.category}-{case.seed}.json"
        more = {"found": found.bad, "status": done.status, "trace": done.trace[-3000:], "stderr": done.err[-1000:]}
        (out / kept).write_text(case.to_json(**more))
    return {
        "category": case.category,
        "seed": case.seed,
        "corpus": corpus,
        "status": done.status,
        "bad": found.bad,
        "wrong": len(found.wrong),
        "seconds": round(done.seconds, 3),
        "kept": kept,
        "log": f"{done.trace[-1500:]}{done.err[-300:]}" if corpus and found.bad else "",
    }


def kind_of(bad: str) -> str:
    """The fault without its numbers, names and paths."""
    return re.sub(r"'[^']*'|\S*/case-\S+|[0-9a-f]{12}|-?\d[\d.e+-]*", "_", bad)


# --- what came of it ---------------------------------------------------------------------------------------------

COLUMNS = ("tried", "exit 0", "1", "2", "3, 4", "uncaught", "over time", "wrongly accepted", "other faults")


def table(lines: Sequence[Line]) -> str:
    """Counts by category, in Markdown; then each kind of fault, with its number and the smallest file."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*CATEGORIES, "all")}
    for line in lines:
        for row in (counts[line.category], counts["all"]):
            row.update(_columns(line))
    shown = [f"| fuzzed | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    shown += [
        f"| {name} | {' | '.join(f'{row[column]:,}' for column in COLUMNS)} |"
        for name, row in counts.items()
        if row["tried"]
    ]
    kinds = Counter(kind_of(bad) for line in lines for bad in line.bad)
    files: dict[str, list[str]] = {}
    for line in lines:
        for bad in line.bad:
            files.setdefault(kind_of(bad), []).extend(name for name in (line.kept, line.corpus) if name)
    shown += [""] + [f"{n:6} {kind}   ({', '.join(files[kind][:KEPT])})" for kind, n in kinds.most_common()]
    return "\n".join(shown) + "\n"


def _columns(line: Line) -> list[str]:
    text = "; ".join(line.bad)
    status = "3, 4" if line.status in (3, 4) else {0: "exit 0", 1: "1", 2: "2"}.get(line.status or 0, "")
    found = ["tried", *([status] if status and line.status is not None else [])]
    if "uncaught" in text or "died" in text or line.status == 70:
        found.append("uncaught")
    elif "CPU time" in text or "no end after" in text:
        found.append("over time")
    elif line.wrong:
        found.append("wrongly accepted")
    elif line.bad:
        found.append("other faults")
    return found
