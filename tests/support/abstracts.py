"""Made-up abstracts in the form of PubMedQA's files, of which a judge can be trained in seconds.

from support.abstracts import abstracts_data
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

DRUGS = ("aspirin", "morphine", "warfarin", "metformin", "insulin", "heparin", "digoxin", "lithium")
FINDINGS = ("mortality", "pain", "fever", "stroke", "nausea", "fatigue", "depression", "asthma")
PLACES = ("Turin", "Leeds", "Osaka", "Quito", "Accra", "Perth", "Lyon", "Delhi", "Oslo", "Lima")


def row(at: int, id: int) -> dict[str, Any]:
    draw = random.Random(at)
    drug, finding, place = draw.choice(DRUGS), draw.choice(FINDINGS), draw.choice(PLACES)
    number, low, high = draw.randrange(100, 900), draw.randrange(11, 40), draw.randrange(41, 90)
    word = "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(4))
    contexts = [
        f"It is debated whether {drug} changes {finding} of people in the wards of {place}.",
        f"We enrolled {number} women with {word} from clinics of {place} between January and June. "
        f"Participants with {word} received {drug} for {low} days before surgery.",
        f"The rate of {finding} was {low}% with {drug} and {high}% without it (P < .05). "
        f"Blood pressure of the {word} group was higher after {high} days. "
        f"Men were not included in any of the {word} analyses of the registry.",
    ]
    return {
        "pubid": id,
        "question": f"Does {drug} reduce {finding} in {word}?",
        "context": {"contexts": contexts},
        "long_answer": f"In women with {word} the rate of {finding} was lower with {drug} before surgery. "
        f"Further research is needed.",
        "final_decision": draw.choice(["yes", "no", "maybe"]),
    }


def abstracts_data(folder: Path, number: int = 30) -> Path:
    """`folder` with pubmedqa/train.jsonl and test.jsonl of `number` rows each."""
    (folder / "pubmedqa").mkdir(parents=True, exist_ok=True)
    for at, split in enumerate(("train", "test")):
        rows = [row(place, place + 1) for place in range(at * number, (at + 1) * number)]
        text = "".join(json.dumps(one) + "\n" for one in rows)
        (folder / "pubmedqa" / f"{split}.jsonl").write_text(text)
    return folder
