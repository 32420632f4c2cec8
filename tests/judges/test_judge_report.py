"""The report of a trained judge: figures counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.judges.local.calibrate import best_thresholds, chosen, fitted, probabilities
from medbench.harness.judges.local.pairs import Pair
from medbench.harness.judges.local.report import kind_reports, verdicts_of


def pair(abstract: int, kind: str) -> Pair:
    verdict = "supported" if not kind else "not covered" if kind == "left out" else "contradicted"
    return Pair(str(abstract), "step", "source", verdict, kind, "sentence", "step")  # type: ignore[arg-type]


PAIRS = [pair(at, kind) for at in range(40) for kind in ("", "number", "left out")]
SUPPORTED = np.array([not one.kind for one in PAIRS])


def test_a_kind_that_is_told_apart_and_one_that_is_not() -> None:
    scores = np.array([0.9 if one.kind in ("", "left out") else 0.1 for one in PAIRS])
    found = {one.kind: one for one in kind_reports(PAIRS, scores, np.full(len(PAIRS), 0.5))}
    assert set(found) == {"all", "number", "left out"}
    for kind, auroc in (("number", 1.0), ("left out", 0.5), ("all", 0.75)):
        figures = found[kind].judge.auroc
        assert figures is not None
        assert figures.value == auroc
    assert (found["number"].faulty, found["number"].supported) == (40, 40)
    assert [found[kind].unchecked for kind in ("number", "left out")] == [False, True]


def test_calibration_of_a_kind_does_not_depend_on_how_rare_it_is() -> None:
    """Ten of 120 steps are faulty; the judge gives every step the share that it was calibrated on."""
    pairs = [pair(at, "") for at in range(110)] + [pair(at, "number") for at in range(10)]
    found = kind_reports(pairs, np.full(120, 1 / 3), np.full(120, 0.9))[1]
    assert found.kind == "number"
    assert found.judge.ece == pytest.approx(0, abs=1e-9)
    assert found.baseline.ece == pytest.approx(0.9 - 1 / 3)
    (only,) = found.judge.bins
    assert (only.steps, only.share) == (120, pytest.approx(1 / 3))


def test_verdicts_are_counted_beside_the_known_ones() -> None:
    said = [0 if one.verdict != "contradicted" else 1 for one in PAIRS]
    found = verdicts_of(PAIRS, said)
    assert found.same.value == pytest.approx(2 / 3)
    assert found.sensitivity == {"supported": 1.0, "contradicted": 1.0, "not covered": 0.0}


def test_calibration_learns_shares_and_thresholds_make_up_for_what_is_rare() -> None:
    chance = np.random.default_rng(0)
    truth = chance.choice(3, 3000, p=[0.9, 0.05, 0.05])
    inputs = np.eye(3)[truth] + chance.normal(0, 0.7, (3000, 3))
    calibrator = fitted(inputs, list(truth))
    shares = probabilities(calibrator, inputs)
    assert shares.mean(axis=0) == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    even = dict.fromkeys(VERDICTS, 1 / 3)
    best = best_thresholds(shares, list(truth))
    assert best["supported"] > best["contradicted"]
    rarest = truth == 1
    assert np.mean(np.array(chosen(shares, best))[rarest] == 1) > np.mean(np.array(chosen(shares, even))[rarest] == 1)


def test_inputs_that_are_no_numbers_give_no_probability() -> None:
    calibrator = fitted(np.eye(3).repeat(5, axis=0), [0] * 5 + [1] * 5 + [2] * 5)
    found = probabilities(calibrator, np.array([[np.nan, 0, 0], [1.0, 0, 0]]))
    assert not np.isfinite(found[0]).all()
    assert np.isfinite(found[1]).all()
