"""Time and memory of `medbench synth` apart from the model: replies by the hundred thousand, made up as they are asked.

    python tests/bench/synth.py 1000000            # about half an hour of one core; see docs/synth.md
    python tests/bench/synth.py 50000 --data DIR   # screened against the benchmarks in DIR

Four attempts at each of N/4 made-up questions, in a folder of its own that is removed. One reply in eight is wrong, one
in sixteen is cut off, one in fifty repeats an earlier reasoning. Prints seconds of processor time, replies per second
and peak memory, for asking and for filtering; the target is that memory does not grow with N.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medbench.harness.contracts import Completion, Message, Request
from medbench.harness.synth import synth
from medbench.harness.synth.select import Selection

ATTEMPTS = 4
SYLLABLES = ("ba", "do", "fi", "ku", "le", "mo", "na", "pi", "ro", "su", "ta", "vi")
VERBS = ("points to", "speaks for", "is typical of", "goes with", "argues for", "cannot explain", "leaves open")
_CASE = re.compile(r"case (\d+) ")


def name(draw: random.Random) -> str:
    return "".join(draw.choice(SYLLABLES) for _ in range(4))


def write_rows(path: Path, n: int) -> None:
    draw = random.Random(1)
    with path.open("w") as file:
        for at in range(n):
            findings = ", ".join(name(draw) for _ in range(20))
            row = {
                "question": f"In case {at} a man has {findings}. What is the most likely diagnosis?",
                "options": {letter: f"{name(draw)} {name(draw)}" for letter in "ABCD"},
                "answer_idx": "ABCD"[at % 4],
            }
            file.write(json.dumps(row) + "\n")


class MadeUp:
    """An engine that takes no time to speak of: a reply is a draw of sentences."""

    name = "made-up"
    fingerprint = "made-up"
    chat_template = "none"
    places = 256

    def __init__(self) -> None:
        draw = random.Random(2)
        self._sentences = [
            f"The finding of {name(draw)} {draw.choice(VERBS)} {name(draw)}, and {name(draw)} {draw.choice(VERBS)} the "
            f"{name(draw)} of this man."
            for _ in range(20_000)
        ]
        self._draw = random.Random(3)
        self._latest: deque[list[str]] = deque(maxlen=1000)

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return messages[-1].content

    def settings(self) -> dict[str, Any]:
        return {}

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in requests:
            if request is None:
                return
            yield self._reply(request)

    def _reply(self, request: Request) -> Completion:
        draw = self._draw
        found = _CASE.search(request.prompt)
        assert found is not None
        letter = "ABCD"[int(found[1]) % 4]
        if draw.random() < 1 / 8:
            letter = "ABCD"[(int(found[1]) + 1) % 4]
        said = draw.choices(self._sentences, k=7)
        if self._latest and draw.random() < 1 / 50:
            said = draw.choice(self._latest)
        elif draw.random() < 1 / 10:
            self._latest.append(said)
        text = f"{' '.join(said)} So option {letter} fits.\n\nThe answer is ({letter})."
        return Completion(request.id, text, "length" if draw.random() < 1 / 16 else "stop", 300, 160)

    def close(self) -> None: ...


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("replies", type=int, nargs="?", default=100_000)
    parser.add_argument("--data", help="folder of benchmark files")
    given = parser.parse_args()
    marks: list[tuple[float, float]] = []

    class Timed(Selection):
        def run(self, *words: Any) -> Any:
            marks.append((time.process_time(), peak()))
            return super().run(*words)

    synth.Selection = Timed  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_rows(folder / "rows.jsonl", given.replies // ATTEMPTS)
        recipe = {
            "name": "bench",
            "generator": {"model": "made-up", "engine": "fake"},
            "sampling": {"attempts": ATTEMPTS},
            "sources": [{"path": str(folder / "rows.jsonl")}],
            "filters": {"pass_rate": [0.0, 1.0], **({} if given.data else {"contamination": None})},
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        options = synth.SynthOptions(folder / "recipe.yaml", folder / "out", data=given.data, engine=MadeUp())
        before, started, wall = peak(), time.process_time(), time.perf_counter()
        found = synth.synthesize(options, lambda _: None)
        ended, at_end, wall = time.process_time(), peak(), time.perf_counter() - wall
        (between, at_between), n = marks[0], found.card.replies
        sizes = ", ".join(
            f"{path.name} {path.stat().st_size / 1e6:.0f} MB" for path in (folder / "out").glob("*.jsonl")
        )
    print(f"{n:,} replies to {found.card.questions:,} questions, {found.card.accepted:,} accepted; {sizes}")
    for one in found.card.filters:
        print(f"  {one.filter:16} {one.dropped:>9,}")
    for what, seconds in (("asking", between - started), ("filtering", ended - between), ("both", ended - started)):
        print(f"{what:10} {seconds:.1f} s of processor time, {n / seconds:,.0f} replies/s")
    print(f"{wall:.1f} s passed")
    print(f"peak memory {at_end:.0f} MiB, {at_between:.0f} before filtering, {before:.0f} before all")


if __name__ == "__main__":
    main()
