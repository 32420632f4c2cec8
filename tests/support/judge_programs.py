"""A PubMedQA run with replies of known steps, and programs that judge them.

from support.judge_programs import choice, pubmedqa_run
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.api import score
from medbench.harness.cli.main import run
from medbench.harness.judges.check import CheckOptions, check_judge
from medbench.harness.judges.contracts import Item, Judge, JudgeChoice, Ruling, Verdict
from medbench.harness.judges.judge_run import JudgeOptions
from medbench.harness.judges.scored import judge_and_score
from medbench.harness.judges.steps import steps_of
from medbench.harness.runs.stored_run import StoredRun

OVERLAP = """
import json, sys
for line in sys.stdin:
    item = json.loads(line)
    words = set(item["step"].lower().split())
    share = len(words & set(item["source"].lower().split())) / len(words)
    verdict = "contradicted" if " not " in item["step"] else "supported" if share > 0.5 else "not covered"
    print(json.dumps({"id": item["id"], "verdict": verdict}), flush=True)
"""
"""A judge by the words that step and source share."""


def program(folder: Path, source: str = OVERLAP, name: str = "judge.py") -> str:
    """The command that runs `source`."""
    path = folder / name
    path.write_text(source)
    return shlex.join([sys.executable, "-I", "-S", str(path)])


def choice(folder: Path, source: str = OVERLAP, timeout: float = 30.0, *, kept: bool = False) -> JudgeChoice:
    return JudgeChoice("command", command=program(folder, source), timeout=timeout, kept=kept)


def pubmedqa_data(folder: Path, number: int = 3) -> list[str]:
    """Writes the task's file below `folder`; returns the question ids. Abstract i says that drug i lowers pressure."""
    from medbench.tasks.pubmedqa.rows import official_test_ids

    ids = sorted(official_test_ids())[:number]
    rows = [
        {
            "pubid": id,
            "question": f"Does drug {at} help?",
            "context": {"contexts": [f"Drug {at} lowers blood pressure.", f"We studied {at + 10} patients."]},
            "final_decision": "yes",
        }
        for at, id in enumerate(ids)
    ]
    path = folder / "pubmedqa" / "test.jsonl"
    return _written(path, rows, [str(id) for id in ids])


def _written(path: Path, rows: list[dict[str, object]], ids: list[str]) -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ids


def thought(at: int) -> str:
    """Three steps: supported, contradicted and not covered, by the judge OVERLAP."""
    return (
        f"<think>Drug {at} lowers blood pressure. Drug {at} does not lower it at all. Aspirin cures every "
        f"headache quickly.</think>The answer is yes."
    )


def pubmedqa_run(folder: Path, replies: list[str] | None = None, number: int = 3, name: str = "judged") -> StoredRun:
    """A sealed run in `folder`/runs/`name`, of replies to the questions of `folder`/data."""
    ids = pubmedqa_data(folder / "data", number)
    replies = replies if replies is not None else [thought(at) for at in range(number)]
    file = folder / "replies.jsonl"
    file.write_text(
        "".join(json.dumps({"id": id, "output": reply}) + "\n" for id, reply in zip(ids, replies, strict=True))
    )
    return score(file, "pubmedqa", data=str(folder / "data"), runs=folder / "runs", name=name)


@dataclass
class Scripted:
    """A judge by the words of a step alone; with `faults`, silent on the steps that begin so."""

    wrong: frozenset[str] = frozenset()
    """Steps on which it says that the source supports them, whatever is true."""
    faults: tuple[str, ...] = ()
    name: str = "scripted"
    fingerprint: str = "a1"

    def judge(self, items: Sequence[Item]) -> Iterator[Ruling]:
        for item in items:
            if not (self.faults and item.step.startswith(self.faults)):
                yield Ruling(item.id, "supported" if item.step in self.wrong else truth_of(item.step))

    def close(self) -> None: ...


def truth_of(step: str) -> Verdict:
    """Of the steps of `thought`."""
    return "contradicted" if " not " in step else "supported" if step.startswith("Drug") else "not covered"


def judged(run: StoredRun, judge: Judge, **options: Any) -> None:
    """Judge a run of pubmedqa_run and keep the scores."""
    data = str(run.folder.parent.parent / "data")
    judge_and_score(JudgeOptions(run.folder, data=data, **options), judge, lambda _: None)


def labelled(run: StoredRun, questions: int) -> None:
    """Check the judge of a run by true labels of the first questions' steps."""
    ids = sorted((sample.id for sample in run.samples("pubmedqa")), key=int)[:questions]
    file = run.folder.parent / f"{run.folder.name}-labels.jsonl"
    steps = {sample.id: steps_of(sample) for sample in run.samples("pubmedqa")}
    rows = [{"id": id, "step": step, "label": truth_of(step)} for id in ids for step in steps[id]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_judge(CheckOptions(run.folder, file))


def judge(folder: Path, *more: str, source: str = OVERLAP) -> int:
    """The exit status of `medbench judge` on the run runs/judged of the current folder, by the program `source`."""
    return run(["judge", "runs/judged", "--judge", "command", "--command", program(folder, source), *more])
