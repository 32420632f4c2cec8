"""kill -9 of a real `medbench gate` at 20 moments, from before its run exists to the writing of its verdict: run again
to the end it gives the verdict of an uninterrupted one, and what is stored is not asked again.

Each gate is a process of its own, forked from one that has imported medbench (1 s per import).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import write_gates, write_medqa
from support.streaming_engine import TOLD, kill_at

from medbench.harness.engines.plugins import GROUP
from medbench.harness.runs.run_folder import read_samples

FLOOR = {"pass": 0.6, "fail": 0.8}
MOMENTS = {
    "pass": [
        # each list is a gate that is killed and run again so often, and then once more to its end
        ["opens run.json 1", "renames run.json 1", "opens ledger.jsonl 1", "asked 1", "asked 16"],
        ["stored 1", "finished 14", "passed 2", "stored 25", "passed 9"],
    ],
    "fail": [
        ["finished 1", "passed 1", "stored 20", "asked 30", "finished 12"],
        ["stored 90", "opens verdict.json 1", "renames verdict.json 1", "opens verdict.xml 1", "renames verdict.md 1"],
    ],
}


@dataclass(frozen=True, slots=True)
class Session:
    """One process."""

    status: int
    """Of its exit; negative: the signal that ended it."""
    asked: frozenset[str]
    log: str


@dataclass(frozen=True, slots=True)
class Gate:
    """`medbench gate` on stored replies; a fifth of them runs on beyond the first limit in tokens, most are wrong."""

    folder: Path

    @classmethod
    def made(cls, folder: Path, floor: float) -> Gate:
        ids = write_medqa(folder / "data", 300)
        random.Random(1).shuffle(ids)
        with (folder / "replies.jsonl").open("w") as file:
            for at, id in enumerate(ids):
                words = 300 if at < 60 else 8
                reply = "so " * (words - 4) + f"The answer is ({'B' if at < 50 or at > 270 else 'A'})."
                file.write(json.dumps({"id": id, "output": reply}) + "\n")
        write_gates(folder / "gates.yaml", f"{{task: medqa, at_least: {floor}}}", partition="all")
        info = folder / "site" / "streaming-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: streaming\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\nstreaming = support.streaming_engine\n")
        return cls(folder)

    def run(self, folder: Path, moment: str, pool: Pool) -> Session:
        """`moment`: see support.streaming_engine.kill_at."""
        folder.mkdir(exist_ok=True)
        files = {"--gates": self.folder / "gates.yaml", "--replies": self.folder / "replies.jsonl"}
        files |= {"--data": self.folder / "data", "--runs": folder / "runs"}
        files |= {"--junit": folder / "verdict.xml", "--summary": folder / "verdict.md"}
        options = [str(part) for option in files.items() for part in option]
        arguments = ["gate", "m", "--engine", "streaming", "--quiet", *options]
        status = pool.apply(_fork, (arguments, self.folder / "site", moment, folder / "log.txt"))
        log = (folder / "log.txt").read_text()
        asked = [line.split()[2] for line in log.splitlines() if line.startswith(f"{TOLD}asked ")]
        assert len(asked) == len(set(asked))
        return Session(status, frozenset(asked), log)


def _fork(arguments: list[str], site: Path, moment: str, log: Path) -> int:
    """The command's exit status, or the signal that ended it, negative."""
    import lm_eval.tasks  # noqa: F401  # what each would import

    from medbench.harness.cli import verdict_output  # noqa: F401
    from medbench.harness.cli.main import run
    from medbench.harness.gates import judge  # noqa: F401

    if (pid := os.fork()) == 0:
        told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1)
        os.dup2(told, 2)
        sys.path.insert(0, str(site))
        kill_at(moment)
        os._exit(run(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stored(folder: Path) -> list[str]:
    """Ids of the answers that the run holds, in the order in which they were stored."""
    found = list((folder / "runs").glob("*/samples/medqa.jsonl"))
    return [sample.id for path in found for sample in read_samples(path.parents[1], "medqa")]


def verdict(folder: Path) -> dict[str, Any]:
    """verdict.json without what depends on how much had come in when the verdict was noticed."""
    (path,) = (folder / "runs").glob("*/verdict.json")
    whole = json.loads(path.read_text())
    (gate,) = whole.pop("gates")
    return {**whole, "gate": {key: gate[key] for key in ("rule", "status", "threshold", "total")}}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """A process without threads, which can be forked."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("overall", MOMENTS)
def test_a_gate_killed_again_and_again_gives_the_same_verdict_and_asks_nothing_twice(
    overall: str, tmp_path: Path, pool: Pool
) -> None:
    gate = Gate.made(tmp_path, FLOOR[overall])
    whole = gate.run(tmp_path / "whole", "never", pool)
    assert (whole.status, verdict(tmp_path / "whole")["overall"]) == (0 if overall == "pass" else 1, overall)
    assert f"{TOLD}passed" in whole.log
    for number, moments in enumerate(MOMENTS[overall]):
        folder = tmp_path / f"killed {number}"
        kept: list[str] = []
        for moment in [*moments, "never"]:
            session = gate.run(folder, moment, pool)
            print(f"{overall}: killed at {moment!r}: {len(kept)} stored before, {len(session.asked)} asked")
            assert session.status == (whole.status if moment == "never" else -signal.SIGKILL), session.log[-500:]
            assert session.asked.isdisjoint(kept)
            now = stored(folder)
            assert now[: len(kept)] == kept
            assert len(set(now)) == len(now)
            kept = now
        assert verdict(folder) == verdict(tmp_path / "whole")
        assert (folder / "verdict.xml").read_text().count("<failure") == (overall == "fail")
        assert not list((folder / "runs").rglob("*.tmp"))
