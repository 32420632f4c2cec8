"""How a verdict puts its chances into words."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from support.gate_runs import a_task, answer

from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.verdict import GateResult
from medbench.harness.gates.wording import confidence, level


@pytest.mark.parametrize(
    ("alpha", "said"),
    [(0.05, "95 %"), (0.001, "99.9 %"), (1e-5, "99.999 %"), (0.0, "100 %"), (1 - level(1e-14), "100 %")],
)
def test_as_many_digits_as_tell_it_from_certainty(alpha: float, said: str) -> None:
    assert confidence(alpha) == said


@pytest.mark.parametrize("value", [True, "0.9", 1.5, -0.1, float("nan")])
def test_a_level_of_an_interval_is_a_share(value: object) -> None:
    ids = [f"q{number}" for number in range(40)]
    gate = LiveGate(GateFile(gates=[Gate(task="toy", at_least=0.5)]), [a_task(ids)], 0, None)
    gate.observe("toy", [answer(id, 1.0) for id in gate.orders["toy"][:32]])
    (found,) = gate.results()
    with pytest.raises(ValidationError, match="interval_level"):
        GateResult.model_validate(found.model_dump() | {"interval_level": value})
