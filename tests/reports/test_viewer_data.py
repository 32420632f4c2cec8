"""The viewer's files: what goes in comes out, in order, from scripts that can do nothing but hand over data."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gate_runs import answer, answers, stored_run
from support.hostile import HOSTILE, hostile_sample

from medbench.harness.contracts import Sample
from medbench.reports.read import ordered
from medbench.reports.read.lines import head_of, order_of
from medbench.reports.read.scores import Scores
from medbench.reports.write import viewer_index
from medbench.reports.write.viewer_data import utf16_span, write_task

FIELDS = ("id", "repeat", "prompt", "output", "finish_reason", "extracted", "outcome", "span", "gold", "score", "error",
          "prompt_tokens", "completion_tokens", "category", "logprobs", "order", "judged")  # fmt: skip


class Files(dict[str, bytes]):
    """What was written, read back as a browser would: nothing but one call with JSON in it."""

    def put(self, name: str, content: bytes) -> None:
        assert name not in self
        self[name] = content

    def call(self, name: str, function: str) -> list[Any]:
        text = self[name].decode()
        assert not re.search("[<\u2028\u2029]", text)
        match = re.fullmatch(rf"{function}\((.*)\);\n", text, re.DOTALL)
        assert match
        return json.loads(f"[{match[1]}]")

    def index(self) -> dict[str, Any]:
        """All parts of the index put together."""
        run, task, part, content = self.call("index.js", "medbenchIndex")
        assert (run, task, part) == ("run", "slug", 0)
        for number in range(1, content["parts"]):
            *_, part, more = self.call(f"index-{number}.js", "medbenchIndex")
            assert part == number
            content["n"] += more["n"]
            for key in ("ids", "flags", "extracted", "gold", "heads", "repeat", "scores"):
                if key in content:
                    content[key] += more[key]
            for field in content["category"]:
                content["category"][field] += more["category"][field]
        return content

    def rows(self) -> list[dict[str, Any]]:
        """All samples, found as the viewer finds them."""
        content = self.index()
        chunks = []
        for number in range(len(content["chunks"])):
            run, task, chunk, rows = self.call(f"{number}.js", "medbenchChunk")
            assert (run, task, chunk) == ("run", "slug", number)
            assert len(self[f"{number}.js"]) == content["sizes"][number]
            chunks.append(rows)
        starts = content["chunks"]
        found = []
        for row in range(content["total"]):
            chunk = max(number for number, start in enumerate(starts) if start <= row)
            found.append(dict(zip(FIELDS, chunks[chunk][row - starts[chunk]], strict=True)))
        assert sum(map(len, chunks)) == len(found)
        return found


def written(folder: Path, samples: list[Sample], **changes: Any) -> tuple[Files, Scores]:
    files = Files()
    run = stored_run(folder, "run", {"medqa": samples}, **changes)
    return files, write_task(run, "medqa", "run", "slug", files.put)


def of_lines(folder: Path, content: bytes) -> Files:
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "medqa.jsonl").write_bytes(content)
    files = Files()
    write_task(folder, "medqa", "run", "slug", files.put)
    return files


def line(sample: Sample, **changes: Any) -> bytes:
    return json.dumps(asdict(sample) | {"schema_version": 1} | changes).encode() + b"\n"


def as_row(sample: Sample) -> dict[str, Any]:
    kept = {name: getattr(sample, name, None) for name in FIELDS}
    kept["span"] = utf16_span(sample.output, sample.span)
    return json.loads(json.dumps(kept).encode("utf-8", "replace"))


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(
        st.builds(
            answer,
            id=TEXT,
            score=st.sampled_from([0.0, 0.25, 1.0, None]),
            prompt=TEXT,
            output=TEXT,
            extracted=st.none() | TEXT,
            gold=TEXT,
            finish_reason=st.sampled_from(["stop", "length"]),
            category=st.dictionaries(TEXT, TEXT, max_size=2),
            logprobs=st.none() | st.dictionaries(TEXT, st.floats(-1e6, 0), max_size=3),
            span=st.none() | st.just((0, 3)),
            completion_tokens=st.integers(0, 10**6),
        ),
        unique_by=lambda sample: sample.id,
        max_size=12,
    )
)
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> None:
    files = of_lines(tmp_path_factory.mktemp("run"), b"".join(map(line, samples)))
    inorder = sorted(samples, key=lambda sample: (order_of(sample.id), sample.id))
    assert files.rows() == [as_row(sample) for sample in inorder]
    index = files.index()
    assert index["ids"] == [sample.id for sample in inorder]
    assert index["gold"] == [sample.gold for sample in inorder]
    assert index["fault"] is None
    for place, sample in enumerate(inorder):
        known = {name: index["values"][name][codes[place]] for name, codes in index["category"].items()
                 if codes[place] >= 0}  # fmt: skip
        assert known == dict(sample.category)


def test_hostile_strings_are_handed_over_as_they_are(tmp_path: Path) -> None:
    samples = [hostile_sample(number, text) for number, text in enumerate(HOSTILE)]
    files = of_lines(tmp_path, b"".join(map(line, samples)))
    rows = {row["category"]["kind"]: row for row in files.rows()}
    for sample in samples:
        kind = sample.category["kind"].encode("utf-8", "replace").decode()
        text = json.loads(json.dumps(sample.output).encode()).encode("utf-8", "replace").decode()
        assert rows[kind]["output"] == text
    assert b"</script" not in b"".join(files.values())


def test_flags_say_what_became_of_each_answer(tmp_path: Path) -> None:
    flags = {name: 1 << bit for bit, name in enumerate(viewer_index.FLAG_NAMES)}
    cases = {
        "a": (answer("a", 1.0), {"right"}),
        "b": (answer("b", 0.0), {"wrong"}),
        "c": (answer("c", 0.0, outcome="unparsed"), {"wrong", "unparsed"}),
        "d": (answer("d", 0.0, outcome="truncated", finish_reason="length"), {"wrong", "unparsed", "truncated"}),
        "e": (answer("e", 1.0, finish_reason="length"), {"right", "truncated"}),
        "f": (answer("f", None, outcome="error"), {"error"}),
        "g": (answer("g", 0.0, outcome="refused"), {"wrong", "unparsed", "refused"}),
        "h": (answer("h", 0.0, outcome="ambiguous"), {"wrong", "unparsed", "ambiguous"}),
        "i": (answer("i", 0.0, outcome="empty"), {"wrong", "unparsed", "empty"}),
    }
    files, _ = written(tmp_path, [sample for sample, _ in cases.values()])
    index = files.index()
    for id, mask in zip(index["ids"], index["flags"], strict=True):
        assert {name for name, flag in flags.items() if mask & flag} == cases[id][1]
    for name in flags:
        assert index["counts"][name] == sum(name in expected for _, expected in cases.values())


def test_questions_stand_in_natural_order_whatever_order_they_were_answered_in(tmp_path: Path) -> None:
    files, _ = written(tmp_path, answers(12))
    assert files.index()["ids"] == [f"q{number}" for number in range(12)]


def test_several_askings_stand_together_and_are_numbered(tmp_path: Path) -> None:
    samples = [answer(f"q{n}", float(n == repeat), repeat=repeat) for repeat in (2, 0, 1) for n in (1, 0)]
    files = of_lines(tmp_path, b"".join(map(line, samples)))
    index = files.index()
    assert index["ids"] == ["q0"] * 3 + ["q1"] * 3
    assert index["repeat"] == [0, 1, 2] * 2
    assert "scores" not in index
    scores = write_task(tmp_path, "medqa", "run", "slug", Files().put)
    assert scores.array().tolist() == pytest.approx([1 / 3, 1 / 3])


def test_scores_are_kept_a_value_a_question(tmp_path: Path) -> None:
    samples = [answer("q2", 0.0, cluster="same"), answer("q10", None), answer("q1", 1.0, cluster="same")]
    files, scores = written(tmp_path / "one", samples)
    assert files.index()["ids"] == ["q1", "q2", "q10"]
    assert scores.array()[:2].tolist() == [1.0, 0.0]
    assert str(scores.array()[2]) == "nan"
    assert scores.cluster_array().tolist() == [0, 0, 2]
    others = written(tmp_path / "two", [answer(sample.id) for sample in samples])[1]
    assert others.digest == scores.digest
    assert others.cluster_array().tolist() == [0, 1, 2]
    assert written(tmp_path / "three", samples[:2])[1].digest != scores.digest


def test_lengths_are_in_bins_of_about_as_many_replies(tmp_path: Path) -> None:
    samples = [answer(f"q{n}", float(n < 50), completion_tokens=n) for n in range(100)]
    bins = written(tmp_path, samples)[1].lengths
    assert [one.n for one in bins] == [10] * 10
    assert [(one.fewest, one.most) for one in bins][:2] == [(0, 9), (10, 19)]
    assert [one.accuracy for one in bins] == [1.0] * 5 + [0.0] * 5


def test_files_are_cut_by_rows_and_bytes_and_long_replies_stand_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered, "BATCH_ROWS", 5)
    monkeypatch.setattr(viewer_index, "PART_ROWS", 7)
    samples = answers(20)
    samples[9] = replace(samples[9], output="x" * 2_000_000)
    files, _ = written(tmp_path, samples)
    index = files.index()
    assert index["parts"] == 3
    assert index["chunks"] == [0, 5, 9, 10, 15]
    assert len(files.rows()[9]["output"]) == 2_000_000


def test_a_file_too_large_to_hold_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, scores = written(tmp_path / "small", answers(30, 10))
    monkeypatch.setattr(ordered, "MOST_HELD", 100)
    assert written(tmp_path / "large", answers(30, 10)) == (files, scores)


@pytest.mark.parametrize(
    ("text", "span", "marked"),
    [
        ("The answer is (A)", (15, 16), "A"),
        ("Ja, 😀😀 (B) é", (8, 9), "B"),
        ("𝔸", (0, 1), "𝔸"),
    ],
)
def test_spans_count_as_javascript_counts(text: str, span: tuple[int, int], marked: str) -> None:
    found = utf16_span(text, span)
    assert found is not None
    start, end = found
    assert text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le") == marked == text[slice(*span)]


@pytest.mark.parametrize(
    ("prompts", "heads"),
    [
        (["<s>\nQuestion: A man\ncoughs.", "<s>\nQuestion: A boy"], ["A man coughs.", "A boy"]),
        (["Context. Question: Example?\nA\n\nBackground. Question: Is it?"], ["Is it?"]),
        (["<|user|>\nA man", "<|user|>\nA boy"], ["A man", "A boy"]),
        (["x" * 60 + "one", "x" * 60 + "two"], ["one", "two"]),
        (["Question: " + "word " * 100], [("word " * 16)[:79].rstrip() + "…"]),
    ],
)
def test_heads_are_the_first_words_of_the_question(tmp_path: Path, prompts: list[str], heads: list[str]) -> None:
    files, _ = written(tmp_path, [answer(f"q{n}", prompt=prompt) for n, prompt in enumerate(prompts)])
    assert files.index()["heads"] == heads


def test_a_head_is_short_whatever_the_prompt() -> None:
    assert len(head_of("Question: " + "W" * 1000, "")) == 80


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (b"{\n", "not a sample"),
        (b"\xff\xfe\n", "not a sample"),
        (b"\n", "not a sample"),
        (b"[" * 100_000 + b"\n", "not a sample"),
        (line(answer("x"), score=7), "not a sample"),
        (line(answer("x"), span="alert(1)"), "not a sample"),
        (line(answer("x"), outcome="<script>"), "not a sample"),
        (line(answer("x"), schema_version=99), "newer"),
    ],
)
def test_a_damaged_line_is_left_out_and_named(tmp_path: Path, damaged: bytes, reason: str) -> None:
    files = of_lines(tmp_path, line(answer("q1")) + damaged + line(answer("q2")))
    index = files.index()
    assert index["ids"] == ["q1", "q2"]
    assert index["fault"].startswith("1 damaged line left out: line 2: ")
    assert reason in index["fault"]


def test_a_torn_last_line_of_a_run_under_way_is_no_fault(tmp_path: Path) -> None:
    files = of_lines(tmp_path, line(answer("q1")) + line(answer("q2"))[:-20])
    assert files.index()["ids"] == ["q1"]
    assert files.index()["fault"] is None


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"5.0", b"true", b"null"])
def test_a_score_that_cannot_be_true_is_a_damaged_line(tmp_path: Path, number: bytes) -> None:
    damaged = line(answer("q1")).replace(b'"score": 1.0', b'"score": ' + number)
    index = of_lines(tmp_path, damaged + line(answer("q2"))).index()
    assert index["ids"] == ["q2"]
    assert index["fault"].startswith("1 damaged line left out: line 1: ")


def test_of_two_different_answers_neither_is_shown(tmp_path: Path) -> None:
    lines = line(answer("q1")) + line(answer("q2")) + line(answer("q1", 0.0, output="(B)"))
    index = of_lines(tmp_path, lines).index()
    assert index["ids"] == ["q2"]
    assert "line 3: question 'q1' has two different answers" in index["fault"]


def test_the_same_line_twice_is_shown_once(tmp_path: Path) -> None:
    index = of_lines(tmp_path, 2 * line(answer("q1"))).index()
    assert (index["ids"], index["fault"]) == (["q1"], None)


def test_a_log_likelihood_that_is_no_number_is_shown_as_none(tmp_path: Path) -> None:
    files = of_lines(tmp_path, line(answer("q1", logprobs={"A": float("-inf"), "B": float("nan"), "C": -1.0})))
    assert files.rows()[0]["logprobs"] == {"A": None, "B": None, "C": -1.0}


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path: Path) -> None:
    files = of_lines(tmp_path, line(answer("q1", output="\ud83d yes")))
    assert files.rows()[0]["output"] == "? yes"


def test_samples_that_are_not_there_or_elsewhere_are_a_fault(tmp_path: Path) -> None:
    files = Files()
    write_task(tmp_path, "medqa", "run", "slug", files.put)
    assert files.index()["fault"] == "samples/medqa.jsonl: cannot be read (No such file or directory)"
    (tmp_path / "secret.jsonl").write_bytes(line(answer("secret")))
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "samples" / "medqa.jsonl").symlink_to(tmp_path / "secret.jsonl")
    for task in ("medqa", "../../secret"):
        files = Files()
        write_task(tmp_path / "run", task, "run", "slug", files.put)
        assert files.index()["ids"] == []
        assert files.index()["fault"]
        assert list(files) == ["index.js"]
