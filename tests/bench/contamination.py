"""Time and memory of screening a training set against the benchmarks.

    MEDBENCH_DATA=... python tests/bench/contamination.py      # a minute

100,000 rows of about 2,500 characters, drawn sentence by sentence from the training files, every 200th with a
benchmark question inside, against all questions of MedQA, MMLU-Pro (Medical) and PubMedQA; one process. Targets:
at most 60 s and 1 GiB, and every planted row found.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medbench.harness.contracts import Question
from medbench.tasks.medqa import rows as medqa
from medbench.tasks.mmlu_pro_medical import rows as mmlu_pro
from medbench.tasks.pubmedqa import rows as pubmedqa
from medbench.trainers.data.overlap import TrainingText, find_overlaps

ROWS = 100_000
CHARACTERS = 2_500
PLANTED_EVERY = 200


def questions(path: Path, row: Any) -> list[Question]:
    return [row.model_validate_json(line).canonical() for line in path.open(encoding="utf-8")]


def rows(sentences: list[str], planted: list[Question], seed: int) -> Iterator[TrainingText]:
    """Rows one at a time, so that the data set takes no memory."""
    draw = random.Random(seed)
    for number in range(ROWS):
        text = ""
        while len(text) < CHARACTERS:
            text += draw.choice(sentences) + " "
        stem = ""
        if number % PLANTED_EVERY == 0:
            question = planted[number // PLANTED_EVERY % len(planted)]
            stem = question.question
            text = f"{text} {stem}\n" + "\n".join(question.options) + f"\n{question.context}"
        yield TrainingText(number, text, stem)


def main() -> None:
    data = Path(os.environ.get("MEDBENCH_DATA") or sys.exit("MEDBENCH_DATA must name the folder of benchmark files"))
    benchmarks = {
        "medqa": questions(data / "medqa" / "test.jsonl", medqa.Row),
        "mmlu_pro_medical": [
            question
            for name in ("health", "biology")
            for question in questions(data / "mmlu_pro_medical" / f"{name}.jsonl", mmlu_pro.Row)
        ],
        "pubmedqa": questions(data / "pubmedqa" / "test.jsonl", pubmedqa.Row),
    }
    texts = []
    for line in (data / "train" / "medical_o1_demo_sft.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        texts += [row["question"], row["reasoning"], row["response"]]
    texts += [json.loads(line)["question"] for line in (data / "train" / "medmcqa_mcq.jsonl").open(encoding="utf-8")]
    sentences = [s for text in texts for s in re.split(r"(?<=[.?!])\s+", text) if len(s) > 20]
    planted = [question for found in benchmarks.values() for question in found]
    random.Random(1).shuffle(planted)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter(), time.process_time()
    made = sum(len(row.text) for row in rows(sentences, planted, seed=2))
    making = time.process_time() - started[1]
    started = time.perf_counter(), time.process_time()
    overlaps = find_overlaps(rows(sentences, planted, seed=2), benchmarks)
    wall, seconds = time.perf_counter() - started[0], time.process_time() - started[1] - making
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    found = {overlap.row for overlap in overlaps}
    wanted = set(range(0, ROWS, PLANTED_EVERY))
    print(f"{ROWS:,} rows, {made / 1e6:.0f} MB, against {len(planted):,} questions")
    print(f"{seconds:.1f} s of processor time, {wall:.1f} s in total including making the rows (target at most 60)")
    print(f"peak memory {peak / 1024:.0f} MiB, {before / 1024:.0f} before (target at most 1,024)")
    for overlap in [each for each in overlaps if each.row not in wanted][:10]:
        print(overlap)
    print(f"planted rows found: {len(found & wanted)} of {len(wanted)}; other rows flagged: {len(found - wanted)}")


if __name__ == "__main__":
    main()
