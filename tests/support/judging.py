"""A judging server without an engine: a checkpoint's name decides what becomes of it.

with judging(Keeper({"checkpoint-4": ("pass", 0.6)}), tmp_path / "runs", [tmp_path / "out"]) as address: ...
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.verdict import Judged, invalid_checkpoint
from medbench.harness.verdict_server.judge import judged_items
from medbench.harness.verdict_server.queue import JudgingQueue
from medbench.harness.verdict_server.server import Desk, allowed_folders, answering

RULES = GateFile(gates=[Gate("medqa", at_least=0.5)])
ABOUT = {"gate_file": "<b>gates.yaml", "gates": ["medqa: accuracy at least 0.5"], "baseline": None}


class Keeper:
    """Stands for a Gatekeeper. What is called interrupted, wrong or fault cannot be judged; `found` has the status and
    the accuracy of others; the rest fails as a broken checkpoint would."""

    def __init__(self, found: Mapping[str, tuple[str, float]] | None = None) -> None:
        self.found = found or {}
        self.asked: list[str] = []
        self.dropped = 0
        self.free = threading.Event()
        self.free.set()

    def judge(self, name: str) -> Judged:
        self.asked.append(Path(name).name)
        assert self.free.wait(30)
        faults = {
            "interrupted": Interrupted("the disk is full: make room"),
            "wrong": MedbenchError("the base is not there: copy it"),
            "fault": ZeroDivisionError("division by zero"),
        }
        if Path(name).name in faults:
            raise faults[Path(name).name]
        judged = invalid_checkpoint(name, RULES, "<script>alert(1)</script>")
        if Path(name).name not in self.found:
            return judged
        status, accuracy = self.found[Path(name).name]
        gate = judged.verdict.gates[0].model_copy(update={"status": status, "estimate": accuracy})
        changes = {"overall": status, "why": f"accuracy {accuracy}", "gates": [gate]}
        return Judged(judged.verdict.model_copy(update=changes), None)

    def drop_engine(self) -> None:
        self.dropped += 1


@contextmanager
def judging(keeper: Keeper, runs: Path, allowed: Sequence[Path], port: int = 0) -> Iterator[str]:
    """The address of a server whose checkpoints `keeper` judges."""
    with JudgingQueue(runs, "rules") as queue:
        desk = Desk(queue, allowed_folders(allowed), ABOUT, lambda error: f"fault kept: {type(error).__name__}")
        with answering(desk, port) as address:
            items = judged_items(keeper, queue, desk.keep_fault)  # type: ignore[arg-type]
            threading.Thread(target=lambda: list(items), daemon=True).start()
            yield address
