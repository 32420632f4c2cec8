"""`medbench judge check`: agreement with labels counted by hand, corrected shares, and faulty labels."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.judge_programs import pubmedqa_run, thought

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.check import Checked, CheckOptions, check_judge, known_agreement
from medbench.harness.judges.contracts import Item, Ruling, Verdict
from medbench.harness.judges.judge_run import JudgedTask, JudgeOptions, judge_run
from medbench.harness.runs.stored_run import StoredRun

TRUTH: tuple[Verdict, ...] = ("supported", "contradicted", "not covered")
"""Of the three steps of each reply."""


@dataclass
class Scripted:
    """Says the truth but for the steps in `wrong`, on which it says `instead`; silent on those in `silent`."""

    wrong: frozenset[str] = frozenset()
    instead: Verdict = "supported"
    silent: frozenset[str] = frozenset()
    name: str = "scripted"
    fingerprint: str = "a1"
    asked: list[str] = field(default_factory=list)

    def judge(self, items: Sequence[Item]) -> Iterator[Ruling]:
        for item in items:
            if item.step not in self.silent:
                yield Ruling(item.id, self.instead if item.step in self.wrong else true_of(item.step))

    def close(self) -> None: ...


def true_of(step: str) -> Verdict:
    return TRUTH[1] if " not " in step else TRUTH[0] if step.startswith("Drug") else TRUTH[2]


def denial(at: int) -> str:
    return f"Drug {at} does not lower it at all."


def judged(folder: Path, judge: Scripted, number: int = 12) -> tuple[StoredRun, JudgedTask]:
    run = pubmedqa_run(folder, [thought(at) for at in range(number)], number=number)
    (found,) = judge_run(JudgeOptions(run.folder, data=str(folder / "data")), judge, lambda _: None)
    return run, found


def labels(folder: Path, run: StoredRun, number: int | None = None) -> Path:
    """True labels of all three steps of the first `number` replies."""
    ids = sorted((sample.id for sample in run.samples("pubmedqa")), key=int)[:number]
    return written(folder, [{"id": id, "step": at, "label": TRUTH[at - 1]} for id in ids for at in (1, 2, 3)])


def written(folder: Path, rows: Sequence[object]) -> Path:
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def checked(run: StoredRun, file: Path, **more: str) -> Checked:
    return check_judge(CheckOptions(run.folder, file, **more))


def test_a_judge_that_agrees_everywhere(tmp_path: Path) -> None:
    run, _ = judged(tmp_path, Scripted())
    found = checked(run, labels(tmp_path, run))
    assert (found.agreement.items, found.agreement.clusters, found.without_verdict) == (36, 12, 0)
    assert found.agreement.kappa is not None
    assert found.agreement.kappa.value == 1
    assert found.labels["supported"].raw.value == pytest.approx(1 / 3)


def test_errors_lower_sensitivity_of_one_label_and_specificity_of_the_other(tmp_path: Path) -> None:
    run, _ = judged(tmp_path, Scripted(wrong=frozenset(map(denial, range(3)))))
    found = checked(run, labels(tmp_path, run))
    assert found.agreement.share.value == pytest.approx(33 / 36)
    contradicted, supported = found.labels["contradicted"], found.labels["supported"]
    assert contradicted.sensitivity is not None
    assert contradicted.sensitivity.value == pytest.approx(9 / 12)
    assert supported.specificity is not None
    assert supported.specificity.value == pytest.approx(21 / 24)
    assert supported.raw.value == pytest.approx(15 / 36)


def test_both_corrections_bring_a_lenient_judges_share_back_to_the_truth(tmp_path: Path) -> None:
    """It calls every fourth contradicted step supported; a random half of the questions is labelled."""
    drawn = random.Random(1).sample(range(60), 15)
    run, _ = judged(tmp_path, Scripted(wrong=frozenset(map(denial, drawn))), number=60)
    ids = sorted((sample.id for sample in run.samples("pubmedqa")), key=int)
    file = written(
        tmp_path,
        [{"id": id, "step": at, "label": TRUTH[at - 1]} for id in random.Random(2).sample(ids, 30) for at in (1, 2, 3)],
    )
    found = checked(run, file).labels["supported"]
    assert found.raw.value == pytest.approx(75 / 180)
    for corrected in (found.by_error_rates, found.prediction_powered):
        assert corrected.value is not None
        assert abs(corrected.value - 1 / 3) < abs(found.raw.value - 1 / 3) / 2
        assert corrected.low <= 1 / 3 <= corrected.high


def test_agreement_by_length_shows_a_judge_that_fails_on_long_steps(tmp_path: Path) -> None:
    run, _ = judged(tmp_path, Scripted(wrong=frozenset(["Aspirin cures every headache quickly."])))
    parts = checked(run, labels(tmp_path, run)).lengths
    assert [part.steps for part in parts] == [12, 12, 12]
    assert [part.share.value for part in parts] == [1.0, 1.0, 0.0]
    assert parts[0].longest <= parts[1].shortest


def test_a_label_may_name_its_step_by_number_text_or_item_and_repeat_itself(tmp_path: Path) -> None:
    run, found = judged(tmp_path, Scripted())
    id = min((sample.id for sample in run.samples("pubmedqa")), key=int)
    item = next(json.loads(line) for line in found.file.read_text().splitlines() if json.loads(line)["id"] == id)
    rows = [
        {"id": id, "step": 2, "label": "contradicted"},
        {"id": id, "step": f" {denial(0)} ", "label": "contradicted"},
        {"id": id, "step": item["item"], "label": "supported"},
    ]
    assert checked(run, written(tmp_path, rows)).agreement.items == len({2, item["step"]})


def test_the_file_of_judgements_may_be_named_itself(tmp_path: Path) -> None:
    run, found = judged(tmp_path, Scripted())
    assert check_judge(CheckOptions(found.file, labels(tmp_path, run))).agreement.items == 36


def test_labels_of_steps_without_a_verdict_are_counted_and_left_out(tmp_path: Path) -> None:
    run, _ = judged(tmp_path, Scripted(silent=frozenset([denial(0), denial(1)])))
    found = checked(run, labels(tmp_path, run))
    assert (found.agreement.items, found.without_verdict) == (34, 2)


def test_a_check_is_remembered_for_this_fingerprint_only(tmp_path: Path) -> None:
    run, found = judged(tmp_path, Scripted())
    assert known_agreement(found.file, "a1") is None
    checked(run, labels(tmp_path, run))
    known = known_agreement(found.file, "a1")
    assert known is not None
    assert (known.steps, known.questions, known.kappa) == (36, 12, 1.0)
    assert known_agreement(found.file, "other") is None


def test_several_fingerprints_need_a_choice(tmp_path: Path) -> None:
    run, _ = judged(tmp_path, Scripted())
    options = JudgeOptions(run.folder, data=str(tmp_path / "data"))
    judge_run(options, Scripted(fingerprint="b2", wrong=frozenset(map(denial, range(12)))), lambda _: None)
    file = labels(tmp_path, run)
    with pytest.raises(MedbenchError, match="fingerprints of judges: a1, b2: choose one with --fingerprint"):
        checked(run, file)
    assert checked(run, file, fingerprint="a").agreement.share.value == 1
    assert checked(run, file, fingerprint="b").agreement.share.value == pytest.approx(24 / 36)


GOOD = {"id": "ID", "step": 1, "label": "supported"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "no labels: each line must be"),
        ([{"step": 1, "label": "supported"}], ":1: no id"),
        ([GOOD | {"id": 7}], ":1: no id"),
        ([GOOD | {"id": "unknown\x1b[2J"}], "x1b[2J' has no reply in the run: correct the id"),
        ([GOOD | {"label": "yes"}], ":1: the label 'yes' is none of supported, contradicted, not covered"),
        ([GOOD | {"label": ["supported"]}], "is none of supported"),
        ([GOOD | {"step": 4}], ":1: question 'ID' has steps 1 to 3: correct the step 4"),
        ([GOOD | {"step": 0}], "has steps 1 to 3"),
        ([GOOD | {"step": True}], ":1: no step"),
        ([GOOD | {"step": 1, "repeat": 5}], "has no reply 5"),
        ([GOOD | {"step": "It is so."}], "has no step 'It is so.'"),
        ([GOOD, GOOD | {"label": "contradicted"}], ":2: this step has another label above"),
        (["text"], ":1: expected a JSON object"),
    ],
)
def test_a_faulty_label_is_one_line(tmp_path: Path, rows: list[object], told: str) -> None:
    run, _ = judged(tmp_path, Scripted(), number=2)
    id = next(run.samples("pubmedqa")).id
    file = written(tmp_path, rows)
    file.write_text(file.read_text().replace("ID", id))
    with pytest.raises(MedbenchError) as caught:
        checked(run, file)
    assert told.replace("ID", id) in str(caught.value)
    assert not {"\n", "\x1b"} & set(str(caught.value))


def test_what_was_not_judged_cannot_be_checked(tmp_path: Path) -> None:
    run = pubmedqa_run(tmp_path)
    file = labels(tmp_path, run)
    with pytest.raises(MedbenchError, match="no judgements: judge the run first"):
        checked(run, file)
    judge_run(JudgeOptions(run.folder, data=str(tmp_path / "data")), Scripted(), lambda _: None)
    with pytest.raises(MedbenchError, match="no judgements of other"):
        checked(run, file, judge="other")
    with pytest.raises(MedbenchError, match="no file of judgements"):
        check_judge(CheckOptions(file, file))
    judge_run(JudgeOptions(run.folder, data=str(tmp_path / "data")), Scripted(name="second"), lambda _: None)
    with pytest.raises(MedbenchError, match="several judgements"):
        checked(run, file)
