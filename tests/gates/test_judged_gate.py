"""Gates on a judge's scores: decided as other metrics are, and never by a judge that nobody has checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.judge_programs import Scripted, judged, labelled, pubmedqa_run, thought

from medbench.harness.contracts import MedbenchError
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.gates.finished_run import gate_finished_run
from medbench.harness.gates.judge import gate_candidates
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.gates.verdict import GateResult
from medbench.harness.judges.scored import scored_path
from medbench.harness.runs.stored_run import StoredRun

NUMBER = 20


def floor(least: float = 0.4, metric: str = "factuality", **more: Any) -> Gate:
    return Gate("pubmedqa", metric=metric, judge="scripted", at_least=least, **more)  # type: ignore[arg-type]


def gated(run: StoredRun, gate: Gate, baseline: StoredRun | None = None, **file: Any) -> GateResult:
    verdict = gate_finished_run(
        run.folder, GateFile(gates=[gate], **file), baseline.folder if baseline else None
    ).verdict
    return verdict.gates[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def base(place: Path) -> StoredRun:
    """Judged, and its judge checked: each reply has factuality 1/2."""
    run = pubmedqa_run(place, [thought(at) for at in range(NUMBER)], number=NUMBER, name="base")
    judged(run, Scripted())
    labelled(run, 12)
    return run


@pytest.fixture(scope="module")
def better(place: Path) -> StoredRun:
    """Says nothing that is contradicted: factuality 1; judged by the same judge, and without labels of its own."""
    replies = [thought(at).replace(" does not lower it at all", " lowers it") for at in range(NUMBER)]
    run = pubmedqa_run(place, replies, number=NUMBER, name="better")
    judged(run, Scripted())
    return run


def test_a_finished_judged_run_is_decided_exactly_on_all_its_questions(base: StoredRun, better: StoredRun) -> None:
    found = gated(base, floor(0.5))
    assert (found.status, found.estimate, found.used) == ("pass", 0.5, NUMBER)
    assert gated(base, floor(0.51)).status == "fail"
    assert gated(better, floor(0.99)).status == "pass"


def test_the_result_names_judge_agreement_raw_and_corrected_shares(base: StoredRun, better: StoredRun) -> None:
    found = gated(base, floor())
    assert found.judged is not None
    assert (found.judged.judge, found.judged.fingerprint, found.judged.kappa) == ("scripted", "a1", 1.0)
    assert found.judged.supported is not None
    assert found.judged.supported[0] == pytest.approx(1 / 3)
    assert found.judged.prediction_powered is not None
    assert "judged by scripted a1, kappa 1.00" in found.why
    assert "supported 33.3 %" in found.why
    assert "prediction-powered" in found.why
    later = gated(better, floor()).judged
    assert later is not None
    assert (later.labels_of, later.prediction_powered) == ("base", None)


def test_the_population_and_categories_of_rules_work_as_for_other_metrics(base: StoredRun) -> None:
    found = gated(base, floor(0.3), decide="population")
    assert found.status == "pass"
    assert found.interval is not None
    assert found.interval[0] <= 0.5 <= found.interval[1]
    assert gated(base, Gate("pubmedqa", metric="factuality", judge="scripted", at_most=0.4)).status == "fail"


def test_margins_compare_with_a_baseline_judged_in_the_same_way(base: StoredRun, better: StoredRun) -> None:
    def margin(of: Gate, run: StoredRun, against: StoredRun) -> GateResult:
        return gated(run, of, against)

    rule = Gate("pubmedqa", metric="factuality", judge="scripted", margin=0.1)
    assert margin(rule, better, base).estimate == pytest.approx(0.5)
    assert margin(rule, better, base).status == "pass"
    assert margin(rule, base, better).status == "fail"
    above = Gate("pubmedqa", metric="factuality", judge="scripted", better_by=0.4)
    assert margin(above, better, base).status == "pass"


def refused(run: StoredRun, gate: Gate, baseline: StoredRun | None = None) -> str:
    found = gated(run, gate, baseline)
    assert found.status == "not gateable"
    assert found.estimate is None
    assert "\n" not in found.why
    return found.why


def test_a_run_that_the_judge_has_not_judged_is_not_gateable(tmp_path: Path) -> None:
    run = pubmedqa_run(tmp_path)
    assert "has not judged it: medbench judge" in refused(run, floor())


def test_a_judge_of_unknown_agreement_or_checked_in_another_version_cannot_gate(tmp_path: Path) -> None:
    run = pubmedqa_run(tmp_path, [thought(at) for at in range(NUMBER)], number=NUMBER)
    judged(run, Scripted())
    assert "agrees with people is not known" in refused(run, floor())
    labelled(run, 12)
    assert gated(run, floor()).status == "pass"
    judged(run, Scripted(fingerprint="b2"))
    assert "scripted b2 agrees with people is not known" in refused(run, floor())


def test_the_lower_end_of_kappas_interval_must_reach_what_the_rule_asks(tmp_path: Path) -> None:
    wrong = frozenset(f"Drug {at} does not lower it at all." for at in range(6))
    run = pubmedqa_run(tmp_path, [thought(at) for at in range(NUMBER)], number=NUMBER)
    judged(run, Scripted(wrong))
    labelled(run, 12)
    kappa = gated(run, floor(least_kappa=0)).judged
    assert kappa is not None
    assert kappa.kappa is not None
    assert kappa.kappa_low is not None
    between = (kappa.kappa + kappa.kappa_low) / 2
    assert "is not shown to reach kappa" in refused(run, floor(least_kappa=round(between, 3)))
    assert gated(run, floor(least_kappa=round(kappa.kappa_low - 0.01, 3))).status == "pass"


def test_labels_of_a_few_questions_are_too_few(tmp_path: Path) -> None:
    run = pubmedqa_run(tmp_path, [thought(at) for at in range(NUMBER)], number=NUMBER)
    judged(run, Scripted())
    labelled(run, 9)
    assert "labels of 9 questions, a gate needs 10" in refused(run, floor())


def test_half_judged_replies_failed_steps_and_an_unjudged_baseline_say_what_to_do(
    tmp_path: Path, base: StoredRun
) -> None:
    run = pubmedqa_run(tmp_path, [thought(at) for at in range(NUMBER)], number=NUMBER, name="few")
    judged(run, Scripted(), limit=12)
    labelled(run, 12)
    assert "8 of 20 replies of few have no score by scripted: judge all of them" in refused(run, floor())
    other = pubmedqa_run(tmp_path, [thought(at) for at in range(NUMBER)], number=NUMBER, name="other")
    judged(other, Scripted(faults=("Aspirin",)))
    assert "20 of 60 steps of other have no verdict" in refused(other, floor())
    margin = Gate("pubmedqa", metric="factuality", judge="scripted", margin=0.1)
    judged(run, Scripted())
    labelled(run, 12)
    judged(other, Scripted(fingerprint="b2"))
    assert "the baseline was judged by another version of scripted" in refused(run, margin, other)
    scored_path(other.folder, "pubmedqa", "scripted").unlink()
    assert "has not judged the baseline" in refused(run, margin, other)


def test_other_gates_of_the_file_are_decided_beside_it(base: StoredRun) -> None:
    rules = GateFile(gates=[floor(), Gate("pubmedqa", at_least=0.5)])
    verdict = gate_finished_run(base.folder, rules, None).verdict
    assert [gate.status for gate in verdict.gates] == ["pass", "pass"]
    assert [gate.estimate for gate in verdict.gates] == [0.5, 1.0]


def test_a_checkpoint_that_has_still_to_answer_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="finished, judged runs only: medbench eval CHECKPOINT --judge scripted"):
        gate_candidates(["smollm2-135m"], GateFile(gates=[floor()]), None, EvalOptions(""), lambda _: None)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"metric": "factuality", "at_least": 0.5}, "add judge: NAME"),
        ({"metric": "accuracy", "at_least": 0.5, "judge": "llm"}, "accuracy needs no judge"),
        ({"metric": "unparsed", "at_most": 0.5, "least_kappa": 0.3}, "unparsed needs no judge"),
        ({"metric": "factuality", "at_least": 50, "judge": "llm"}, "is a share between 0 and 1"),
        ({"metric": "factuality", "at_least": 0.5, "judge": "../../x"}, "letters, digits"),
        ({"metric": "factuality", "at_least": 0.5, "judge": "llm", "least_kappa": 2}, "least_kappa"),
        ({"task": "mean", "metric": "factuality", "at_least": 0.5, "judge": "llm"}, "must be on accuracy"),
    ],
)
def test_a_rule_that_makes_no_sense_is_one_line(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(MedbenchError) as caught:
        Gate(**({"task": "pubmedqa"} | fields))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
