"""python -m fuzz --minutes 30 --out failures [--categories runs,yaml] [--seed 0]; exit status 1 if anything is bad.

python -m fuzz --replay failures/runs-17.json shows one case again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest  # noqa: F401  # sets environment variables: no hub, few threads

from fuzz.campaign import CORPUS, Plan, campaign, table, work
from fuzz.case import read_case
from fuzz.trial import CATEGORIES, sound_folder, tried


def replay(path: Path) -> int:
    case = read_case(path)
    with tempfile.TemporaryDirectory() as folder:
        found = tried(case, sound_folder(Path(folder) / "sound", [case.category]))
    print(f"{' '.join(case.command)}\n{case.why}\nexit {found.done.status}, {found.done.seconds:.2f} s of CPU time")
    print(f"{found.done.out[:3000]}\n{found.done.err[:3000]}\n{found.done.trace[-3000:]}")
    print("\n".join(f"BAD: {line}" for line in found.bad) or "as it should be")
    return 1 if found.bad else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--categories", default=",".join(CATEGORIES))
    parser.add_argument("--seed", type=int, help="first case of each category  [default: by the time]")
    parser.add_argument("--replay", type=Path)
    for name in ("--worker", "--plan", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.replay:
        return replay(asked.replay)
    if asked.worker:
        given = json.loads(asked.plan)
        plan = Plan(**{**given, "categories": tuple(given["categories"]), "corpus": tuple(given["corpus"])})
        work(plan, int(asked.worker), asked.out, Path(asked.folder))
        return 0
    names = asked.categories.split(",")
    first = int(time.time()) * 1000 if asked.seed is None else asked.seed
    stored = [name for name in sorted(path.name for path in CORPUS.glob("*.json")) if name.split("-")[0] in names]
    plans = [
        Plan(group, tuple(name for name in stored if name.split("-")[0] in group), asked.minutes * 60, seed=first)
        for group in _groups(names)
    ]
    lines = campaign(plans, asked.out.resolve())
    print(table(lines), end="")
    bad = sum(bool(line.bad) for line in lines)
    print(f"{len(lines):,} inputs from seed {first}, {bad} bad" + (f": see {asked.out}" if bad else ""))
    return 1 if bad else 0


def _groups(names: list[str]) -> list[tuple[str, ...]]:
    """Two of about the same share of the time, since a process counts the CPU time of one command."""
    groups: list[list[str]] = [[], []]
    for name in sorted(names, key=lambda name: -CATEGORIES[name].share):
        min(groups, key=lambda group: sum(CATEGORIES[one].share for one in group)).append(name)
    return [tuple(group) for group in groups if group]


if __name__ == "__main__":
    sys.exit(main())
