"""How often a loop that retries until its gates pass promotes a model that truly fails, over many loops.

    python tests/bench/null_loop.py [--loops 2000] [--attempts 10]

Every checkpoint of every attempt truly fails: it has one right answer too few for the floor of 60 % (the hardest case),
both on the loop's 100 `gate` questions and on the 100 `report` questions. Each attempt answers different questions
right, and gets them in a new order. The loop, its journal, its gates and its order are the real ones; trainer and
engine are made up (tests/support/loops.py). It is compared with a naive loop: the same sequential gate with the whole
alpha for every attempt, and no other questions to confirm on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from scipy.stats import binomtest
from support.loops import MadeUpJudge, MadeUpTrainings, recipe_of, world

from medbench.harness.training.journal import Confirmed, Gated, Promoted

ALPHA, FLOOR, QUESTIONS = 0.05, 0.6, 100
FAILING = FLOOR - 1 / QUESTIONS


def one_loop(number: int, attempts: int) -> tuple[bool, bool, bool]:
    """(ever passed on the gate questions, promoted, promoted by the naive loop)."""
    recipe = recipe_of([{"task": "medqa", "at_least": FLOOR}], attempts=attempts).model_copy(update={"seed": number})
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        trainings = MadeUpTrainings([[FAILING]] * attempts)
        loop = world(Path(folder), recipe, trainings, start=FAILING, n=QUESTIONS, exact=True)
        with loop.journal:
            loop.run()
        events = loop.journal.events
        passed = any(isinstance(event, Gated) and event.verdict.overall == "pass" for event in events)
        promoted = any(isinstance(event, Promoted) for event in events)
        confirmations = sum(isinstance(event, Confirmed) for event in events)
        assert promoted <= passed == (confirmations > 0)
        return passed, promoted, naive(Path(folder), recipe, trainings, attempts)


def naive(folder: Path, recipe, trainings: MadeUpTrainings, attempts: int) -> bool:
    """Whether any checkpoint of these attempts, or of those that would have followed, passes with the whole alpha."""
    judge = MadeUpJudge(folder, QUESTIONS, exact=True)
    stage = recipe.stages[0]
    for number in range(1, attempts + 1):
        attempt = folder / "1-stage1" / f"attempt-{number}"
        checkpoint = attempt / "step-000010"
        if not checkpoint.exists():  # the real loop had ended before
            attempt.mkdir(parents=True, exist_ok=True)
            trainings(stage, {}, start=folder / "start", folder=attempt, seed=recipe.seed * 1000 + number)
        rules = stage.gates.model_copy(update={"partition": "gate"})
        seed = recipe.seed * 1000 + number
        ruling = judge.judge(checkpoint, rules, name=f"{number}", seed=seed, baseline=None, alpha_fail=ALPHA)
        if ruling.verdict is not None and ruling.verdict.overall == "pass":
            return True
    return False


def share(found: list[bool]) -> str:
    test = binomtest(sum(found), len(found))
    low, high = test.proportion_ci(method="wilson")
    return f"{sum(found)} of {len(found)}: {test.statistic:.2%} ({low:.2%} to {high:.2%})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loops", type=int, default=2000)
    parser.add_argument("--attempts", type=int, default=10)
    asked = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(one_loop, range(asked.loops), [asked.attempts] * asked.loops, chunksize=20))
    print(f"{asked.loops} loops of up to {asked.attempts} attempts at a model that truly fails, alpha {ALPHA}")
    print(f"a checkpoint passes while training:  {share([passed for passed, _, _ in found])}")
    print(f"and is confirmed and promoted:       {share([promoted for _, promoted, _ in found])}")
    print(f"the naive loop promotes one:         {share([wrong for _, _, wrong in found])}")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
