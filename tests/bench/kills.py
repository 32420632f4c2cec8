"""kill -9 at random moments of a whole `medbench train` on the tiny model: is anything lost, or done twice?

    python tests/bench/kills.py [--kills 20] [--seed 0] [--longest 0.5]

First, one training runs uninterrupted. Then trainings are killed (only the command; its child must die by itself)
after a random time since their start, at most `longest` times the uninterrupted one's, and resumed until each is done;
as many trainings as are needed for all kills. Each must end with the journal, metrics and weights of the uninterrupted
one. Exit status 1 if any does not.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import conftest  # noqa: F401  # sets environment variables for vLLM
from support.tiny_training import build, differences, kill_when, left_behind, start


def torn_training(recipe: Path, runs: Path, draw: random.Random, kills: int, longest: float) -> int:
    """One training, killed up to `kills` times and then finished. Returns the number of kills."""
    for made in range(kills):
        after = draw.uniform(0, longest)
        killed = kill_when(start(recipe, runs), runs, lambda seconds, after=after: seconds >= after)
        if killed is None:
            return made
        print(f"  {killed.seconds:6.1f} s  {killed.under_way}", flush=True)
    if start(recipe, runs).wait() != 0:
        raise SystemExit(f"the training failed: {runs / 'log.txt'}")
    return kills


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.5, help="share of the uninterrupted training's time")
    parser.add_argument("--folder", type=Path, help="where everything is written; kept")
    asked = parser.parse_args()
    folder = (asked.folder or Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    recipe = build(folder)
    began = time.monotonic()
    if (code := start(recipe, folder / "whole").wait()) != 0:
        raise SystemExit(f"the uninterrupted training exits with {code}: {folder / 'whole/log.txt'}")
    seconds = time.monotonic() - began
    print(f"uninterrupted: {seconds:.0f} s on {os.cpu_count()} cores; everything is in {folder}", flush=True)
    draw = random.Random(asked.seed)
    left, trainings, wrong = asked.kills, 0, 0
    while left:
        trainings += 1
        runs = folder / f"torn-{trainings}"
        print(f"training {trainings}, killed after:")
        left -= torn_training(recipe, runs, draw, left, asked.longest * seconds)
        found = differences(runs, folder / "whole") + [f"left behind: {line}" for line in left_behind(runs)]
        print("\n".join([f"  WRONG: {line}" for line in found] or ["  as uninterrupted: journal, metrics, weights"]))
        wrong += len(found)
    print(
        f"{asked.kills} kills over {trainings} trainings, {wrong} differences, {time.monotonic() - began:.0f} s in all"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
