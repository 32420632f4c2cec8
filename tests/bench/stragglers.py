"""How often a gate errs that does not wait for long replies, where length tells right from wrong.

    python tests/bench/stragglers.py               # 400 orders per row; about 5 minutes
    python tests/bench/stragglers.py --orders 50

A floor is set one question beyond the truth, the hardest case there is. Of 240 replies 60 % are right; medians are 200
and 1,000 tokens, and 64 are generated at once. alpha is 5 %. See harness/gates/token_limits.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.stragglers import RULES, World, wrong_share


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=400)
    asked = parser.parse_args()
    started = time.monotonic()
    print("| rule | wrong passes, long replies mostly wrong | wrong fails, long replies mostly right |")
    print("|---|---|---|")
    for rule in RULES:
        shares = [wrong_share(rule, World(long_are_right), orders=asked.orders) for long_are_right in (False, True)]
        print(f"| {rule} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |", flush=True)
    print(f"{asked.orders} orders, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
