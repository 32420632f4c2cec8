"""What is kept of a judge's verdicts for each reply: whole, readable by itself, and never silently wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.judge_programs import Scripted, judged, labelled, pubmedqa_run, thought

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.agreement import calibration_of, corrections_of
from medbench.harness.judges.compare import comparison_of, judges_of
from medbench.harness.judges.judge_run import JudgeOptions
from medbench.harness.judges.scored import (
    ScoredReply,
    ScoredTask,
    judge_and_score,
    parse_scored,
    read_scored,
    scored_path,
)
from medbench.harness.runs.stored_run import StoredRun


def scored_of(run: StoredRun, judge: str = "scripted") -> ScoredTask:
    found = read_scored(run.folder, "pubmedqa", judge)
    assert found is not None
    return found


def test_what_is_read_back_gives_the_figures_that_were_printed(tmp_path: Path) -> None:
    run = pubmedqa_run(tmp_path)
    options = JudgeOptions(run.folder, data=str(tmp_path / "data"))
    ((_, printed),) = judge_and_score(options, Scripted(faults=("Aspirin",)), lambda _: None)
    assert scored_of(run).summary() == printed
    assert printed.failed == 3


def test_each_step_has_a_letter_and_its_place_in_the_reply(tmp_path: Path) -> None:
    run = pubmedqa_run(tmp_path)
    judged(run, Scripted())
    outputs = {sample.id: sample.output for sample in run.samples("pubmedqa")}
    for reply in scored_of(run).replies:
        assert reply.verdicts == "scn"
        texts = [outputs[reply.id][slice(*place)] for place in reply.places if place]
        assert [text.split()[0] for text in texts] == ["Drug", "Drug", "Aspirin"]


def test_judging_a_few_questions_keeps_what_is_known_of_all(tmp_path: Path) -> None:
    run = pubmedqa_run(tmp_path)
    judged(run, Scripted())
    whole = scored_path(run.folder, "pubmedqa", "scripted").read_bytes()
    judged(run, Scripted(), limit=1)
    assert scored_path(run.folder, "pubmedqa", "scripted").read_bytes() == whole
    judged(run, Scripted(fingerprint="b2"), limit=1)
    assert (scored_of(run).fingerprint, len(scored_of(run).replies)) == ("b2", 1)


def test_texts_from_a_file_are_kept_and_the_tasks_own_are_not(tmp_path: Path) -> None:
    run = pubmedqa_run(tmp_path)
    judged(run, Scripted())
    assert scored_of(run).sources == {}
    first = min(sample.id for sample in run.samples("pubmedqa"))
    (tmp_path / "sources.jsonl").write_text(json.dumps({"id": first, "source": "Reference."}) + "\n")
    judged(run, Scripted(), sources=tmp_path / "sources.jsonl")
    found = scored_of(run)
    assert [found.sources[reply.source] for reply in found.replies] == ["Reference."]
    assert found.without_source == 2


@pytest.mark.parametrize(
    "change",
    [
        ('"scn"', '"scx"'),
        ('"scn"', '"sc"'),
        ('"scn"', '"sc-"'),
        ('"task":"pubmedqa"', '"task":"medqa"'),
        ('"schema_version":1', '"schema_version":99'),
        ('"scores":[', '"scores":[7,'),
        ('"places":[[', '"places":[[9,1],['),
        ("{", "["),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, change: tuple[str, str]) -> None:
    run = pubmedqa_run(tmp_path)
    judged(run, Scripted())
    path = scored_path(run.folder, "pubmedqa", "scripted")
    content = path.read_text()
    assert change[0] in content
    path.write_text(content.replace(*change, 1))
    with pytest.raises(MedbenchError) as caught:
        scored_of(run)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_whatever_a_file_holds_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    """One value anywhere in a sound file is replaced by another JSON value."""
    content: Any = json.loads(msgspec.json.encode(SOUND))
    node = content
    while True:
        key: Any = data.draw(st.sampled_from(sorted(node))) if isinstance(node, dict) else data.draw(at_of(node))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(ODD)
    found, told = None, ""
    try:
        found = parse_scored(json.dumps(content).encode(), Path("f.json"), "t", "j")
    except MedbenchError as error:
        told = str(error)
    if found is None:
        assert told.startswith("f.json: ")
        assert "\n" not in told
    else:
        summary = found.summary()
        figures = (*summary.shares.values(), *summary.scores.values())
        assert all(0 <= one.low <= one.value <= one.high <= 1 for one in figures)


def at_of(listed: list[Any]) -> st.SearchStrategy[int]:
    return st.integers(0, len(listed) - 1)


ODD = st.sampled_from([None, -1, 0, 1, 2**40, 1e308, "", "s", "sc", [], [[5, 2]], {}, True, [1, 1, 1], [None], "\x00"])
SOUND = ScoredTask(
    "t",
    "j",
    "a1",
    0,
    0,
    {"broken": 1},
    [
        ScoredReply("q1", "q1", 0, "0", "sc", [(0, 3), (4, 9)], (0.5, 0.5, 0.1)),
        ScoredReply("q2", "q2", 0, "0", "n-", [(0, 3), None], (0.0, 0.0, 0.0)),
        ScoredReply("q3", "q3", 0, "0", "", [], None),
    ],
)


# --- agreement ---


def test_labels_of_a_run_beside_it_count_for_the_same_fingerprint_only(tmp_path: Path) -> None:
    base = pubmedqa_run(tmp_path, [thought(at) for at in range(6)], number=6, name="base")
    later = pubmedqa_run(tmp_path, [thought(at) for at in range(6)], number=6, name="later")
    for run in (base, later):
        judged(run, Scripted())
    assert calibration_of(later.folder, "pubmedqa", "scripted", "a1") is None
    labelled(base, 5)
    found = calibration_of(later.folder, "pubmedqa", "scripted", "a1")
    assert found is not None
    assert (found.run, found.known.steps) == ("base", 15)
    assert "of run base" in found.in_words
    assert calibration_of(later.folder, "pubmedqa", "scripted", "b2") is None
    labelled(later, 2)
    own = calibration_of(later.folder, "pubmedqa", "scripted", "a1")
    assert own is not None
    assert (own.run, own.known.questions) == (None, 2)


def test_shares_are_corrected_by_stored_labels_and_without_random_labels_by_error_rates_only(tmp_path: Path) -> None:
    """The judge calls every contradicted step supported: a third too many."""
    wrong = frozenset(f"Drug {at} does not lower it at all." for at in range(0, 24, 2))
    base = pubmedqa_run(tmp_path, [thought(at) for at in range(24)], number=24, name="base")
    later = pubmedqa_run(tmp_path, [thought(at) for at in range(24)], number=24, name="later")
    for run in (base, later):
        judged(run, Scripted(wrong))
    labelled(base, 16)
    own = corrections_of(scored_of(base), calibration_of(base.folder, "pubmedqa", "scripted", "a1"))["supported"]
    other = corrections_of(scored_of(later), calibration_of(later.folder, "pubmedqa", "scripted", "a1"))["supported"]
    assert scored_of(later).summary().shares["supported"].value == pytest.approx(36 / 72)
    for share in (own.by_error_rates, own.prediction_powered, other.by_error_rates):
        assert share.value == pytest.approx(1 / 3, abs=0.05)
        assert share.low - 1e-9 <= 1 / 3 <= share.high + 1e-9
    assert other.prediction_powered.value is None
    assert corrections_of(scored_of(later), None) == {}


# --- comparing ---


def test_paired_differences_are_those_of_shared_questions(tmp_path: Path) -> None:
    replies = [thought(at) for at in range(8)]
    a = pubmedqa_run(tmp_path, replies, number=8, name="a")
    honest = [reply.replace(" does not lower it at all", " lowers blood pressure again") for reply in replies[:6]]
    b = pubmedqa_run(tmp_path, [*honest, *replies[6:]], number=8, name="b")
    for run in (a, b):
        judged(run, Scripted())
    found = comparison_of("pubmedqa", "scripted", scored_of(a), scored_of(b))
    assert found.fault == ""
    assert found.scores is not None
    factuality = found.scores["factuality"]
    assert (factuality.n, factuality.a, factuality.b) == (8, 0.5, 0.875)
    assert (factuality.lost, factuality.gained) == (0, 6)
    assert factuality.interval[0] < 0.375 < factuality.interval[1]


def test_runs_judged_by_another_version_by_other_texts_or_one_alone_are_not_compared(tmp_path: Path) -> None:
    a, b = (pubmedqa_run(tmp_path, name=name) for name in ("a", "b"))
    judged(a, Scripted())
    assert comparison_of("pubmedqa", "scripted", scored_of(a), None).fault == "only A was judged by it"
    judged(b, Scripted(fingerprint="b2"))
    assert "another version of scripted (b2, not a1)" in comparison_of("t", "j", scored_of(a), scored_of(b)).fault
    ids = sorted(sample.id for sample in b.samples("pubmedqa"))
    (tmp_path / "s.jsonl").write_text("".join(json.dumps({"id": id, "source": "Other."}) + "\n" for id in ids))
    judged(b, Scripted(), sources=tmp_path / "s.jsonl")
    assert "other source texts" in comparison_of("t", "j", scored_of(a), scored_of(b)).fault


def test_the_judges_of_a_task_are_those_with_scores_and_not_of_a_task_with_a_longer_name(tmp_path: Path) -> None:
    folder = tmp_path / "judgements"
    folder.mkdir()
    for name in ("a.one.scores.json", "a.two.scores.json", "a.two.jsonl", "a.b.three.scores.json"):
        (folder / name).touch()
    assert judges_of(tmp_path, "a") == ["one", "two"]
    assert judges_of(tmp_path, "a.b") == ["three"]
    assert judges_of(tmp_path / "none", "a") == []
