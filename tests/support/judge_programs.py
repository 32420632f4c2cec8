"""A PubMedQA run with replies of known steps, and programs that judge them.

from support.judge_programs import choice, pubmedqa_run
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from medbench.harness.api import score
from medbench.harness.judges.contracts import JudgeChoice
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


def pubmedqa_run(folder: Path, replies: list[str] | None = None, number: int = 3) -> StoredRun:
    """A sealed run in `folder`/runs/judged, of replies to the questions of `folder`/data."""
    ids = pubmedqa_data(folder / "data", number)
    replies = replies if replies is not None else [thought(at) for at in range(number)]
    file = folder / "replies.jsonl"
    file.write_text(
        "".join(json.dumps({"id": id, "output": reply}) + "\n" for id, reply in zip(ids, replies, strict=True))
    )
    return score(file, "pubmedqa", data=str(folder / "data"), runs=folder / "runs", name="judged")
