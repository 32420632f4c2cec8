"""`medbench judge check LABELS`: a judge asked about labelled steps that belong to no run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.check import Checked
from medbench.harness.judges.contracts import Item, Ruling, Verdict
from medbench.harness.judges.direct_check import check_directly

TRUTH: tuple[Verdict, ...] = ("supported", "contradicted", "not covered")


@dataclass
class Scripted:
    """Says what the step says of itself; of steps in `by_order` the opposite where the source begins with its end."""

    by_order: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    name: str = "scripted"
    fingerprint: str = "a1"
    asked: list[Item] = field(default_factory=list)

    def judge(self, items: Sequence[Item]) -> Iterator[Ruling]:
        for item in items:
            self.asked.append(item)
            verdict = next(one for one in TRUTH if item.step.startswith(one))
            if item.step in self.by_order and item.source.startswith("Last"):
                verdict = "not covered"
            if item.step not in self.silent:
                yield Ruling(item.id, verdict)

    def close(self) -> None: ...


def rows(number: int = 30, source: str = "First of all, {at} were seen. Last came the others.") -> list[dict[str, str]]:
    return [
        {"id": f"q{at // 3}", "step": f"{TRUTH[at % 3]} {at}", "source": source.format(at=at), "label": TRUTH[at % 3]}
        for at in range(number)
    ]


def written(folder: Path, content: Sequence[object]) -> Path:
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def checked(path: Path, judge: Scripted, out: Path | None = None) -> Checked:
    return check_directly(path, out, judge, lambda _: None)


def test_agreement_is_that_of_the_verdicts_with_the_labels(tmp_path: Path) -> None:
    content = rows()
    content[0]["label"] = "contradicted"
    found = checked(written(tmp_path, content), Scripted())
    assert (found.agreement.items, found.agreement.clusters, found.judged) == (30, 10, 30)
    assert found.agreement.share.value == pytest.approx(29 / 30)
    assert found.labels["contradicted"].sensitivity is not None
    assert found.labels["contradicted"].sensitivity.value == pytest.approx(10 / 11)
    assert len(found.lengths) == 3


def test_steps_are_asked_again_with_the_source_the_other_way_round(tmp_path: Path) -> None:
    judge = Scripted(by_order=frozenset(["supported 0", "supported 3", "not covered 2"]))
    found = checked(written(tmp_path, rows()), judge)
    assert {item.source for item in judge.asked if item.step == "supported 0"} == {
        "First of all, 0 were seen. Last came the others.",
        "Last came the others. First of all, 0 were seen.",
    }
    assert found.order is not None
    assert found.order.steps == 30
    assert found.order.changed.value == pytest.approx(2 / 30)
    assert found.order.changed.low < 2 / 30 < found.order.changed.high
    assert found.agreement.share.value == 1


def test_a_source_of_one_sentence_has_no_order(tmp_path: Path) -> None:
    judge = Scripted()
    assert checked(written(tmp_path, rows(source="All {at} were seen.")), judge).order is None
    assert len(judge.asked) == 30


def test_nothing_is_asked_twice_and_a_changed_judge_is_asked_again(tmp_path: Path) -> None:
    path, judge = written(tmp_path, rows()), Scripted()
    first = checked(path, judge)
    assert len(judge.asked) == 60
    assert checked(path, judge) == first
    assert len(judge.asked) == 60
    assert (tmp_path / "labels.judgements" / "labels.scripted.jsonl").exists()
    checked(path, changed := Scripted(fingerprint="b2"))
    assert len(changed.asked) == 60
    checked(path, judge, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "labels.scripted.jsonl").exists()


def test_steps_without_a_verdict_are_left_out_and_asked_again(tmp_path: Path) -> None:
    path, judge = written(tmp_path, rows()), Scripted(silent=frozenset(["supported 0"]))
    found = checked(path, judge)
    assert (found.judged, found.without_verdict) == (29, 1)
    assert found.order is not None
    assert found.order.steps == 29
    checked(path, judge)
    assert [item.step for item in judge.asked[60:]] == ["supported 0", "supported 0"]


GOOD = {"id": "q", "step": "It fell.", "source": "It fell by 3 points.", "label": "supported"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "no labels: each line must be"),
        ([GOOD | {"id": 3}], ":1: no id"),
        ([GOOD | {"step": 1}], ":1: no step"),
        ([GOOD | {"step": "  "}], ":1: no step"),
        ([{key: GOOD[key] for key in ("id", "step", "label")}], ":1: no source: each line must be"),
        ([{key: GOOD[key] for key in ("id", "step", "label")}], "or name the run before the file"),
        ([GOOD | {"label": "yes\x1b[2J"}], ":1: the label 'yes\\\\x1b[2J' is none of supported"),
        ([GOOD, GOOD | {"label": "contradicted"}], ":2: this step has another id or label above"),
        (["text"], ":1: expected a JSON object"),
    ],
)
def test_a_faulty_label_is_one_line(tmp_path: Path, content: list[object], told: str) -> None:
    with pytest.raises(MedbenchError) as caught:
        checked(written(tmp_path, content), Scripted())
    assert told in str(caught.value)
    assert not {"\n", "\x1b"} & set(str(caught.value))


def test_a_judge_without_any_verdict_is_one_line(tmp_path: Path) -> None:
    judge = Scripted(silent=frozenset(row["step"] for row in rows()))
    with pytest.raises(MedbenchError, match=r"no step of labels\.jsonl got a verdict, first: no verdict"):
        checked(written(tmp_path, rows()), judge)
