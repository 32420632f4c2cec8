"""A task of a stored run as judged, without the task's data: for tests of pages.

from support.judged_pages import as_judged
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec

from medbench.harness.judges.judgements import Judgement
from medbench.harness.judges.places import places_of
from medbench.harness.judges.scored import LETTERS, ScoredReply, ScoredTask, scored_path
from medbench.harness.judges.steps import steps_of
from medbench.harness.runs.run_folder import read_samples

CYCLE = "scns-"


def as_judged(
    folder: Path, task: str, judge: str = "command", *, fingerprint: str = "a1b2c3d4e5f60718", start: int = 0
) -> list[Judgement]:
    """Verdicts in turn, one step in five without one; the scores are the supported share. Returns the judgements."""
    said: list[Judgement] = []
    replies = []
    for sample in read_samples(folder, task):
        if sample.error is not None:
            continue
        steps = steps_of(sample)
        letters = "".join(CYCLE[(start + len(said) + at) % len(CYCLE)] for at in range(len(steps)))
        share = letters.count("s") / len(letters) if letters else 0.0
        for step, letter in zip(steps, letters, strict=True):
            fault = None if LETTERS[letter] else "dunno <b>&amp;"
            said.append(Judgement(fingerprint, f"{sample.key}{step}", sample.id, step, LETTERS[letter], fault))
        replies.append(
            ScoredReply(
                sample.id, sample.cluster, sample.repeat, "0", letters, places_of(steps, sample.output), (share,) * 3
            )
        )
    faults = Counter(one.fault for one in said if one.fault is not None)
    scored = ScoredTask(task, judge, fingerprint, 0, 0, dict(faults), replies)
    path = scored_path(folder, task, judge)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.encode(scored))
    return said


def checked_by_people(folder: Path, task: str, judge: str = "command", fingerprint: str = "a1b2c3d4e5f60718") -> None:
    """A kappa of 0.61, of labels of 12 questions."""
    labels = [[f"q{at}", said, said] for at in range(12) for said in ("supported", "contradicted")]
    labels += [[f"q{at}", "not covered", "supported"] for at in range(6)]
    content = {"schema_version": 1, "judge": fingerprint, "steps": len(labels), "questions": 12}
    content |= {"kappa": 0.61, "kappa_low": 0.52, "kappa_high": 0.7, "labels": labels}
    (folder / "judgements" / f"{task}.{judge}.agreement.json").write_text(json.dumps(content))
