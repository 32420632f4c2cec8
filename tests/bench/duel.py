"""The gate beside the other statistical gates that pip installs, on the same records of 28 real models.

    python -m venv RIVALS; RIVALS/bin/pip install evalsig==0.1.2 statgate==0.1.1
    RIVALS/bin/pip install --ignore-requires-python nemo-evaluator==0.3.0   # asks for 3.12; its gate runs on 3.11
    MEDBENCH_DATA=... python tests/bench/duel.py RIVALS [--draws 200]

Records: replay/mmlu_pro_health_correct.csv (818 questions x 28 models). A draw is a model (the baseline) and a random
order of the questions; the candidate is the baseline with 4 % of the answers flipped, as many from right to wrong as
back, and then some more lost or gained. What all 818 questions say is the truth. Alpha, or 1 - confidence, is 5 %.

Rule "margin": not more than 2 points worse. Rule "better": better at all; evalsig knows no margin.
"on 400": given the first 400 of the order, as a user does who has no time for all of them.
"every 100": called again after each 100 questions until it decides. None of the tools that take a whole run says that
it may be used so, but nothing stops a user.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from families import share_of

from medbench.harness.stats.sequential import Control, SequentialTest

ALPHA, MARGIN, FLIPS, LOOK = 0.05, 0.02, 0.04, 8
SOME, STEP = 400, 100

Scores = np.ndarray
Decide = Callable[[Scores, Scores], tuple[str, int]]


class Rivals:
    """The process that holds the other tools."""

    def __init__(self, environment: Path) -> None:
        command = [environment / "bin" / "python", Path(__file__).with_name("duel_rivals.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, tool: str, baseline: Scores, candidate: Scores) -> tuple[str, int]:
        line = {"tool": tool, "baseline": baseline.tolist(), "candidate": candidate.tolist(), "margin": MARGIN}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        return said["verdict"], said["used"]

    def whole(self, tool: str) -> Decide:
        return lambda baseline, candidate: self.ask(tool, baseline, candidate)

    def some(self, tool: str) -> Decide:
        return lambda baseline, candidate: self.ask(tool, baseline[:SOME], candidate[:SOME])

    def again(self, tool: str) -> Decide:
        def decide(baseline: Scores, candidate: Scores) -> tuple[str, int]:
            for stop in [*range(STEP, len(candidate), STEP), len(candidate)]:
                verdict, used = self.ask(tool, baseline[:stop], candidate[:stop])
                if verdict != "undecided":
                    break
            return verdict, used

        return decide


def ours(rule: str) -> Decide:
    def decide(baseline: Scores, candidate: Scores) -> tuple[str, int]:
        ids = [str(number) for number in range(len(candidate))]
        test = SequentialTest(
            ids,
            at_least=baseline.mean() - (MARGIN if rule == "margin" else 0),
            strict=rule == "better",
            alpha_pass=ALPHA,
            alpha_fail=ALPHA,
            controls=[Control("baseline", dict(zip(ids, baseline, strict=True)))],
        )
        for start in range(0, len(ids), LOOK):
            test.observe(candidate[start : start + LOOK].tolist())
            if found := test.evidence().decision:
                return found, test.evidence().used
        raise AssertionError("all questions decide")

    return decide


def candidate_of(baseline: Scores, gained: int, rng: np.random.Generator) -> Scores:
    """The baseline with 4 % of the answers flipped and so many more right; a negative number: fewer."""
    each = round(FLIPS * len(baseline) / 2)
    right, wrong = (rng.permutation(np.flatnonzero(baseline == score)) for score in (1, 0))
    found = baseline.copy()
    found[right[: each + max(-gained, 0)]] = 0
    found[wrong[: each + max(gained, 0)]] = 1
    return found


def duel(records: Scores, draws: int, tools: dict[str, Decide], cases: dict[str, tuple[int, str]]) -> None:
    """`cases`: name to (answers gained, true verdict)."""
    total = len(records)
    said: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    used: dict[tuple[str, str], list[int]] = defaultdict(list)
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        order = rng.permutation(total)
        baseline = records[order, draw % records.shape[1]]
        for case, (gained, _) in cases.items():
            candidate = candidate_of(baseline, gained, rng)
            for tool, decide in tools.items():
                verdict, asked = decide(baseline, candidate)
                said[tool, case][verdict] += 1
                used[tool, case].append(asked)
        print(f"{draw + 1}/{draws}", end="\r", file=sys.stderr)
    print("| | " + " | ".join(f"{case}: {truth}" for case, (_, truth) in cases.items()) + " |")
    print("|---" * (len(cases) + 1) + "|")
    for tool in tools:
        cells = []
        for case, (_, truth) in cases.items():
            count = said[tool, case]
            wrong = count["fail" if truth == "pass" else "pass"]
            cells.append(
                f"right {100 * count[truth] / draws:.0f} %, undecided {100 * count['undecided'] / draws:.0f} %, "
                f"wrong {share_of(wrong, draws)}; asked {100 * np.mean(used[tool, case]) / total:.0f} %"
            )
        print(f"| {tool} | " + " | ".join(cells) + " |")
    print(flush=True)


def commands_agree(rivals: Rivals, baseline: Scores) -> None:
    """The tools' own commands on files say what their functions say."""
    for gained in (0, -17, -60, 60):
        candidate = candidate_of(baseline, gained, np.random.default_rng(5))
        for tool in ("nel gate", "statgate compare", "evalsig gate"):
            by_function = rivals.ask(tool, baseline, candidate)
            assert rivals.ask(f"{tool}, by command", baseline, candidate) == by_function, (tool, gained)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("environment", type=Path, help="of the other tools")
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    if "MEDBENCH_DATA" not in os.environ:
        print("skipped: MEDBENCH_DATA names no folder of benchmark files")
        return
    file = Path(os.environ["MEDBENCH_DATA"]) / "replay" / "mmlu_pro_health_correct.csv"
    records = pd.read_csv(file, index_col=0).to_numpy(dtype=float)
    rivals = Rivals(arguments.environment)
    commands_agree(rivals, records[:, 0])
    total = len(records)
    lost = int(MARGIN * total)  # the most that a margin of 2 points forgives: 16 of 818
    print("### Margin of 2 points")
    margin = {
        "medbench": ours("margin"),
        "nel gate": rivals.whole("nel gate"),
        "nel gate, on 400": rivals.some("nel gate"),
        "nel gate, every 100": rivals.again("nel gate"),
        "statgate compare": rivals.whole("statgate compare"),
        "statgate compare, on 400": rivals.some("statgate compare"),
        "statgate sequential": rivals.whole("statgate sequential"),
    }
    points = round(total / 100)
    duel(
        records,
        arguments.draws,
        margin,
        {
            "nothing lost": (0, "pass"),
            "2 points gained": (2 * points, "pass"),
            "5 points lost": (-5 * points, "fail"),
            "one answer beyond the margin": (-lost - 1, "fail"),
            "the margin just kept": (-lost, "pass"),
        },
    )
    print("### Better at all")
    better = {
        "medbench": ours("better"),
        "evalsig gate": rivals.whole("evalsig gate"),
        "evalsig gate, on 400": rivals.some("evalsig gate"),
        "evalsig gate, every 100": rivals.again("evalsig gate"),
        "evalsig watch": rivals.whole("evalsig watch"),
    }
    duel(
        records,
        arguments.draws,
        better,
        {
            "2 points gained": (2 * points, "pass"),
            "5 points gained": (5 * points, "pass"),
            "2 points lost": (-2 * points, "fail"),
            "the same": (0, "fail"),
            "one answer gained": (1, "pass"),
        },
    )


if __name__ == "__main__":
    main()
