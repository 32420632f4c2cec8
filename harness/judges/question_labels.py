"""PubMedQA's own labels by people, as labels for `medbench judge check`.

medbench judge labels pubmedqa --out labels.jsonl

People read question and abstract and agreed on yes, no or maybe as its answer (Jin et al. 2019, arXiv 1909.06146).
Each question is made a claim, see claims: yes is supported, no contradicted, and maybe not covered, which is the least
wrong of the three. The source is the abstract without its conclusion, the text that replies to the task are judged by;
half of the labels were given by people who also saw the conclusion, so `with_conclusion` adds that.
"""

from __future__ import annotations

import json
from pathlib import Path

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import replace_file
from medbench.harness.judges.abstracts import abstracts_of
from medbench.harness.judges.claims import claim_of
from medbench.harness.judges.contracts import Verdict

LABELS: dict[str, Verdict] = {"yes": "supported", "no": "contradicted", "maybe": "not covered"}


def write_labels(out: Path, data: str, *, with_conclusion: bool = False) -> int:
    """The 500 questions of the test split, a line each; returns how many. Raises MedbenchError for faulty rows."""
    abstracts = abstracts_of(data, "test")
    lines = [
        {
            "id": one.id,
            "step": claim_of(one.question),
            "source": "\n".join([one.text, *one.conclusion]) if with_conclusion else one.text,
            "label": LABELS[one.decision],
        }
        for one in abstracts
    ]
    try:
        replace_file(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    except OSError as error:
        raise MedbenchError(f"{out}: cannot be written ({error.strerror}): name another file with --out") from None
    return len(lines)
