"""The best constant answer: what a model scores that never reads the question.

`at_least: constant` in a gate file asks for as much: on PubMedQA's 500 test questions "yes" is right 276 times, 55.2 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from medbench.harness.contracts import MedbenchError
from medbench.harness.gates.rules import Gate


def with_constant(gate: Gate, golds: Sequence[str | None], labelled: bool) -> Gate:
    """`gate` with the accuracy of the best constant answer as its floor.

    `golds`: the right answer of each of the gate's questions, None where it is not known. The answer is chosen with all
    of them in view, so no constant scores higher; of equally good ones it is the first of the alphabet. `labelled`:
    whether the task has answers to choose from. Raises MedbenchError where it has none, or where a gold is not known.
    """
    if not labelled:
        raise MedbenchError(
            f"gate '{gate.rule}': the questions of {gate.task} have no fixed answers to choose from: give at_least a "
            f"number"
        )
    known = Counter(gold for gold in golds if gold is not None)
    if known.total() < len(golds):
        raise MedbenchError(
            f"gate '{gate.rule}': the right answers of {len(golds) - known.total()} of the {len(golds)} questions are "
            f"not in this run: finish it with medbench eval --resume, or give at_least a number"
        )
    answer, count = min(known.items(), key=lambda item: (-item[1], item[0]))
    return gate.at_constant(answer, count / len(golds))
