"""The judge `local`: a small cross-encoder that `medbench judge train` has made, read from its folder.

medbench judge RUN --judge local --model FOLDER

`rewording` and `pairs` make what it learns from, `network` and `fit` the encoder, `lexical` and `calibrate` turn its
scores into probabilities, `report` measures it, `folder` keeps it, `train` does all of that; `scoring` asks it.
"""

from __future__ import annotations

from pathlib import Path

from medbench.harness.files import expanded
from medbench.harness.judges.contracts import JudgeChoice
from medbench.harness.judges.local.scoring import LocalJudge

NEEDS = ("model",)


def start(choice: JudgeChoice) -> LocalJudge:
    """Raises MedbenchError for a folder that is none of medbench's judges, or damaged, and where torch is missing."""
    from medbench.harness.checkpoints.packages import needed
    from medbench.harness.judges.local.folder import load

    assert choice.model is not None
    with needed("--judge local cannot start", "torch"):
        loaded = load(Path(expanded(choice.model)))
    if loaded.file.unchecked:
        choice.say(f"judge local does not find these kinds of faults: {', '.join(loaded.file.unchecked)}")
    return LocalJudge(loaded)
