"""Damaged run folders, through everything that reads them."""

from __future__ import annotations

import random
from pathlib import Path

from fuzz.case import Case
from fuzz.category import Category
from fuzz.damage import damaged
from fuzz.oracles import mean_score, run_faults, strict_json
from fuzz.play import Done
from fuzz.sound import GOLD

TASK = "medqa"
CANDIDATE, BASE, TORN = "runs/candidate", "runs/base", "runs/torn"
OUTPUTS = ("--data", "data", "--junit", "out/verdict.xml", "--summary", "out/verdict.md", "--json")
FLOOR = ("gate", CANDIDATE, "--gates", "floor.yaml", *OUTPUTS)
PAIRED = ("gate", CANDIDATE, "--gates", "gates.yaml", "--baseline", BASE, *OUTPUTS)
COMPARE = ("compare", BASE, CANDIDATE, "--json")
SITE = ("report", "runs", "-o", "out/site", "--json")
EXPORT = ("report", CANDIDATE, BASE, "-o", "out/lm-eval", "--format", "lm-eval", "--json")
ASKED = ("--replies", "replies.jsonl", "--data", "data", "--quiet", "--json")
RESUME = ("eval", "torn", "--name", "torn", "--resume", "--tasks", TASK, *ASKED)
LIVE = ("gate", "new", "--gates", "gates.yaml", "--baseline", BASE, *ASKED)
READS = {
    FLOOR: (CANDIDATE,),
    PAIRED: (CANDIDATE, BASE),
    COMPARE: (CANDIDATE, BASE),
    SITE: (CANDIDATE, BASE, TORN),
    EXPORT: (CANDIDATE, BASE),
    RESUME: (TORN,),
    LIVE: (BASE, CANDIDATE),
}


def draw_case(draw: random.Random, sound: Path) -> Case:
    command = draw.choice(tuple(READS))
    run = draw.choice(READS[command])
    names = [f"samples/{TASK}.jsonl"] * 3 + ["run.json"] * 3 + [f"results/{TASK}.json"]
    changes, done = {}, []
    for _ in range(draw.choice((1, 1, 1, 2))):
        name = f"{run}/{draw.choice(names)}"
        if (sound / name).exists():
            changes[name], what = damaged(sound / name, draw)
            done.append(what)
    return Case("runs", command, changes, "; ".join(done))


def wrong(case: Case, folder: Path, done: Done) -> list[str]:
    faults = []
    if done.status in (0, 1) and "--json" in case.command and case.command[0] != "report":
        try:
            shown = done.json
        except ValueError as error:
            return [f"standard output: {str(error)[:80]}"]
        faults += _judged(case, folder, done, shown)
    junit = folder / "out" / "verdict.xml"
    if done.status == 2 and junit.exists() and 'failures="0" errors="1"' not in junit.read_text():
        faults.append("no verdict, but JUnit does not say so")
    return faults


def _judged(case: Case, folder: Path, done: Done, shown: object) -> list[str]:
    command = case.command[0]
    if command == "eval" and done.status == 0:
        return [f"sealed, but {fault}" for fault in run_faults(folder / TORN, TASK, GOLD)[:3]] + _result(folder / TORN)
    if command == "gate" and "invalid checkpoint" in done.out:  # the folder was not taken for a run
        return []
    read = {FLOOR: (CANDIDATE,), PAIRED: (CANDIDATE, BASE), COMPARE: (CANDIDATE, BASE), LIVE: (BASE,)}
    believed = [
        f"{run}: {fault}" for run in read.get(case.command, ()) for fault in run_faults(folder / run, TASK, GOLD)[:3]
    ]
    if believed or command != "gate":
        return [f"{'compared' if command == 'compare' else 'given a verdict'}, but {fault}" for fault in believed]
    return _estimates(folder, shown) if case.command in (FLOOR, PAIRED) else []


def _estimates(folder: Path, shown: object) -> list[str]:
    """The verdict's accuracy is that of the stored answers, where it used all questions."""
    assert isinstance(shown, dict)
    expected = mean_score(folder / CANDIDATE, TASK)
    faults = []
    for verdict in shown["verdicts"]:
        for gate in verdict["gates"]:
            asked = gate["rule"] == f"{TASK}: accuracy at least 0.5" and gate["used"] == gate["total"]
            if asked and (expected is None or abs(gate["estimate"] - expected) > 1e-9):
                faults.append(f"the verdict says {gate['estimate']}, the answers {expected}")
    return faults


def _result(run: Path) -> list[str]:
    result = strict_json((run / f"results/{TASK}.json").read_bytes())
    accuracy, expected = result["accuracy"], mean_score(run, TASK)
    same = accuracy == expected or (None not in (accuracy, expected) and abs(accuracy - expected) < 1e-9)
    return [] if same else [f"the result says {accuracy}, the answers {expected}"]


CATEGORY = Category(
    "runs",
    ("runs", "data", "replies.jsonl", "gates.yaml", "floor.yaml"),
    draw_case,
    wrong,
    share=2.5,
    may_leave=r"^out(/verdict\.(xml|md))?$",  # that there is no verdict
)
