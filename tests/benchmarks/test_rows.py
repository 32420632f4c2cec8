"""Rows from files: errors with file and line, duplicate clusters, the hash over rows, a round trip through arrow."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from medbench.harness.benchmarks.rows import (
    ROWS,
    ExampleRow,
    asked_rows,
    benchmark,
    cluster_id,
    example_rows,
    example_split,
    question_of,
    read_jsonl,
    rows_sha256,
)
from medbench.harness.contracts import MedbenchError, Question
from medbench.tasks.medqa import rows as medqa
from medbench.tasks.mmlu_pro_medical import rows as mmlu_pro
from medbench.tasks.pubmedqa import rows as pubmedqa

GOOD: dict[str, dict[str, Any]] = {
    "medqa": {"question": "Q?", "options": {"A": "a", "B": "b"}, "answer_idx": "B", "meta_info": "step1"},
    "mmlu_pro": {
        "question_id": 7,
        "question": "Q?",
        "options": ["a", "b", "c"],
        "answer": "C",
        "answer_index": 2,
        "category": "health",
    },
    "pubmedqa": {"pubid": 7, "question": "Q?", "context": {"contexts": ["one", "two"]}, "final_decision": "maybe"},
}
DATASETS = {"medqa": medqa.dataset, "mmlu_pro": mmlu_pro.dataset, "pubmedqa": pubmedqa.dataset}
MISSING = object()


class Anything(BaseModel):
    """A row that already is a canonical question."""

    question: dict[str, Any]

    def canonical(self) -> Question:
        tuples = {"options": tuple(self.question["options"]), "labels": tuple(self.question["labels"])}
        return Question(**{**self.question, **tuples})


texts = st.text(max_size=20)
questions = st.builds(
    Question,
    id=texts,
    cluster=texts,
    question=texts,
    options=st.lists(texts, min_size=1, max_size=4).map(tuple),
    labels=st.lists(texts, min_size=1, max_size=4).map(tuple),
    gold=texts,
    context=texts,
    category=st.dictionaries(texts, texts, max_size=3),
)
question_lists = st.lists(questions, min_size=1, max_size=6, unique_by=lambda question: question.id)


def write_rows(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(family: str, folder: Path, *names: str, split: str = "test") -> list[Question]:
    rows = DATASETS[family](data=str(folder), files={split: list(names)})[split]
    return [question_of(doc) for doc in rows]


def fault(family: str, folder: Path, *names: str) -> str:
    with pytest.raises(MedbenchError) as caught:
        loaded(family, folder, *names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# read_jsonl


def test_lines_are_numbered_from_one_and_blank_lines_count(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n  \n{"a": 2}')
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [(1, {"a": 1}), (4, {"a": 2})]


def test_unicode_line_separators_do_not_split_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"a": text}, ensure_ascii=False).replace("\x0b", "\\u000b"))
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [(1, {"a": text})]


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON",
        b'{"a": 1',
        b"[1, 2]",
        b'"text"',
        b"3",
        b"null",
        b"\x00\x00\x00",
        b'{"a": "\x00"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": "\xff"}',
        b'{"a": "\xe2\x82"}',
        b'\xff\xfe{"a": 1}',
        b'{"a": ' + b"9" * 5_000 + b"}",
    ],
    ids=lambda line: repr(line[:12]),
)
def test_a_faulty_line_is_named_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    rows = read_jsonl(path)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(MedbenchError) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "JSON object" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(content=st.binary(max_size=60))
def test_any_bytes_give_objects_or_a_named_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    said = ""
    try:
        assert all(isinstance(row, dict) for _, row in read_jsonl(path))
    except MedbenchError as error:
        said = str(error)
    assert not said or re.match(rf"{re.escape(str(path))}:\d+: ", said)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match=r"none\.jsonl: no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(MedbenchError, match=r"cannot be read \(Is a directory\)"):
        list(read_jsonl(tmp_path))


# benchmark()


@pytest.mark.parametrize("family", DATASETS)
def test_a_good_row_is_read(tmp_path: Path, family: str) -> None:
    write_rows(tmp_path / "f" / "test.jsonl", GOOD[family])
    (question,) = loaded(family, tmp_path, "f/test.jsonl")
    assert question.question == "Q?"
    assert question.gold in question.labels
    assert len(question.labels) == len(question.options) == len(set(question.labels))


def test_the_question_that_each_family_makes_of_a_row(tmp_path: Path) -> None:
    for family, row in GOOD.items():
        write_rows(tmp_path / f"{family}.jsonl", row)
    (med,), (pro,), (pub,) = (loaded(family, tmp_path, f"{family}.jsonl") for family in GOOD)
    assert (med.options, med.labels, med.gold, med.category) == (("a", "b"), ("A", "B"), "B", {"meta_info": "step1"})
    assert (pro.id, pro.options, pro.labels, pro.gold) == ("7", ("a", "b", "c"), ("A", "B", "C"), "C")
    assert (pub.id, pub.context, pub.labels, pub.gold) == ("7", "one\ntwo", ("yes", "no", "maybe"), "maybe")


def test_options_are_in_label_order_in_any_order_of_the_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", GOOD["medqa"] | {"options": {"B": "second", "A": "first"}})
    assert loaded("medqa", tmp_path, "test.jsonl")[0].options == ("first", "second")


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    assert fault("medqa", tmp_path / "none", "test.jsonl") == (
        f"data folder {tmp_path / 'none'} does not exist: correct --data or MEDBENCH_DATA"
    )


def test_a_missing_file_is_named_with_all_files_that_are_needed(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", GOOD["mmlu_pro"])
    assert fault("mmlu_pro", tmp_path, "a.jsonl", "b.jsonl") == (
        f"{tmp_path / 'b.jsonl'}: no such file; the data folder must hold a.jsonl, b.jsonl"
    )


@pytest.mark.parametrize("content", ["", "\n\n \n"])
def test_an_empty_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "test.jsonl").write_text(content)
    assert fault("medqa", tmp_path, "test.jsonl") == f"{tmp_path / 'test.jsonl'}: the file is empty"


def test_splits_other_than_test_may_be_absent(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", GOOD["medqa"])
    splits = medqa.dataset(data=str(tmp_path), files={"test": ["test.jsonl"], "train": ["train.jsonl"]})
    assert sorted(splits) == [ROWS, "test"]


def test_the_table_of_all_rows_knows_their_splits(tmp_path: Path) -> None:
    another = GOOD["medqa"] | {"question": "Another?"}
    write_rows(tmp_path / "test.jsonl", GOOD["medqa"])
    files = {"test": ["test.jsonl"], "train": ["train.jsonl"]}
    rows = medqa.dataset(data=str(tmp_path), files=files)[ROWS]
    assert [doc["question"] for doc in asked_rows(rows)] == [doc["question"] for doc in example_rows(rows)] == ["Q?"]
    write_rows(tmp_path / "train.jsonl", another)
    both = medqa.dataset(data=str(tmp_path), files=files)
    assert [doc["question"] for doc in asked_rows(both[ROWS])] == [doc["question"] for doc in both["test"]] == ["Q?"]
    assert [doc["question"] for doc in example_rows(both[ROWS])] == ["Another?"]
    assert [doc["question"] for doc in both["train"]] == ["Another?"]


def test_the_example_split_is_the_training_split_where_there_is_one() -> None:
    assert example_split(["test", "train", "validation"]) == "train"
    assert example_split(["test", "test", "validation"]) == "validation"
    assert example_split([ROWS, "test"]) == "test"


def test_an_example_row_equals_every_row_of_its_cluster_and_no_other(tmp_path: Path) -> None:
    twin = GOOD["mmlu_pro"] | {"question_id": 8}
    other = GOOD["mmlu_pro"] | {"question_id": 9, "question": "Another?"}
    write_rows(tmp_path / "test.jsonl", GOOD["mmlu_pro"], twin, other)
    rows = mmlu_pro.dataset(data=str(tmp_path), files={"test": ["test.jsonl"]})["test"]
    question = rows[0]
    # in the samplers' own words
    assert [row["id"] for row in map(ExampleRow, rows) if row != question] == ["9"]
    assert [row["id"] for row in map(ExampleRow, rows) if row == question] == ["7", "8"]


@pytest.mark.parametrize(
    ("family", "field", "value", "said"),
    [
        ("medqa", "question", MISSING, "question: field required"),
        ("medqa", "options", MISSING, "options: field required"),
        ("medqa", "options", {"A": "a", "B": 3}, "options.B: input should be a valid string"),
        ("medqa", "options", {"A": "a", "C": "c"}, "keys must be A, B, ... in order, found A, C"),
        ("medqa", "options", {"A": "a"}, "keys must be A, B, ... in order, found A"),
        ("medqa", "options", {}, "found none"),
        ("medqa", "answer_idx", MISSING, "answer_idx: field required"),
        ("medqa", "answer_idx", "E", "answer_idx: 'E' is not one of the options A, B"),
        ("medqa", "answer_idx", "", "answer_idx: '' is not one of the options A, B"),
        ("mmlu_pro", "question_id", "one", "question_id: input should be a valid integer"),
        ("mmlu_pro", "options", ["a"], "options: list should have at least 2 items"),
        ("mmlu_pro", "options", ["a"] * 27, "options: list should have at most 26 items"),
        ("mmlu_pro", "answer", "D", "answer: 'D' is not one of the options A to C"),
        ("mmlu_pro", "answer", "", "answer: '' is not one of the options A to C"),
        ("mmlu_pro", "answer_index", 1, "answer_index: 1 is not the index of answer 'C'"),
        ("mmlu_pro", "answer_index", -1, "answer_index: -1 is not the index of answer 'C'"),
        ("mmlu_pro", "category", MISSING, "category: field required"),
        ("pubmedqa", "pubid", None, "pubid: input should be a valid integer"),
        ("pubmedqa", "context", {}, "context.contexts: field required"),
        ("pubmedqa", "context", {"contexts": []}, "context.contexts: list should have at least 1 item"),
        ("pubmedqa", "final_decision", "perhaps", "final_decision: 'perhaps' is not yes, no or maybe"),
        ("pubmedqa", "final_decision", "Yes", "final_decision: 'Yes' is not yes, no or maybe"),
        # half of a surrogate pair is sound JSON, but nothing behind it can store the text
        ("medqa", "question", "cut \ud83d", "a lone surrogate"),
        ("mmlu_pro", "options", ["a", "b", "\udc00"], "a lone surrogate"),
        ("pubmedqa", "question", "\udfff", "a lone surrogate"),
    ],
)
def test_a_faulty_row_is_named_with_file_line_and_field(
    tmp_path: Path, family: str, field: str, value: Any, said: str
) -> None:
    row = {key: content for key, content in (GOOD[family] | {field: value}).items() if content is not MISSING}
    good = GOOD[family] | {"question": "Another?"} | ({"question_id": 1} if family == "mmlu_pro" else {})
    good |= {"pubid": 1} if family == "pubmedqa" else {}
    path = write_rows(tmp_path / "test.jsonl", good, row)
    message = fault(family, tmp_path, "test.jsonl")
    assert message.startswith(f"{path}:2: ")
    assert said in message


def test_a_line_that_is_not_json_is_named_through_benchmark(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "test.jsonl", GOOD["medqa"])
    path.write_bytes(path.read_bytes() + b"{\n")
    assert fault("medqa", tmp_path, "test.jsonl").startswith(f"{path}:2: not JSON")


@pytest.mark.parametrize("family", DATASETS)
def test_a_duplicate_names_both_places(tmp_path: Path, family: str) -> None:
    path = write_rows(tmp_path / "test.jsonl", GOOD[family], GOOD[family])
    message = fault(family, tmp_path, "test.jsonl")
    assert message.startswith(f"{path}:2: duplicate id ")
    assert f"first seen at {path}:1; remove one" in message


def test_a_duplicate_in_another_file_names_both_places(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", GOOD["mmlu_pro"] | {"question_id": 1}, GOOD["mmlu_pro"])
    second = write_rows(tmp_path / "b.jsonl", GOOD["mmlu_pro"])
    message = fault("mmlu_pro", tmp_path, "a.jsonl", "b.jsonl")
    assert message == f"{second}:1: duplicate id 7, first seen at {first}:2; remove one"


def test_equal_questions_under_two_ids_are_two_questions_of_one_cluster(tmp_path: Path) -> None:
    again = GOOD["mmlu_pro"] | {"question_id": 8, "options": ["c", "B", " a "], "answer": "A", "answer_index": 0}
    write_rows(tmp_path / "test.jsonl", GOOD["mmlu_pro"], again)
    first, second = loaded("mmlu_pro", tmp_path, "test.jsonl")
    assert first.id != second.id
    assert first.cluster == second.cluster


def test_the_folder_is_found_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "test.jsonl", GOOD["medqa"])
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path))
    assert medqa.dataset(files={"test": ["test.jsonl"]})["test"][0]["question"] == "Q?"


@given(rows=question_lists)
@settings(max_examples=50)
def test_questions_come_back_out_of_arrow_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Question]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    fields = Question.__dataclass_fields__
    write_rows(folder / "any.jsonl", *({"question": {key: getattr(row, key) for key in fields}} for row in rows))
    docs = benchmark(Anything)(data=str(folder), files={"test": ["any.jsonl"]})["test"]
    assert [question_of(doc) for doc in docs] == rows


# cluster_id, rows_sha256


@given(question=texts, options=st.lists(texts, max_size=5), data=st.data())
def test_the_cluster_ignores_case_white_space_and_option_order(
    question: str, options: list[str], data: st.DataObject
) -> None:
    def disguised(text: str) -> str:
        blanks = st.text(alphabet=" \t\n\u00a0", min_size=1, max_size=3)
        words = [data.draw(blanks) + word for word in text.split()]
        # ASCII alone: elsewhere upper and lower case are not always a pair ("ß", "ı", "ς")
        return "".join(c.swapcase() if c.isascii() and data.draw(st.booleans()) else c for c in "".join(words)) + " "

    shuffled = data.draw(st.permutations([disguised(option) for option in options]))
    assert cluster_id(disguised(question), shuffled) == cluster_id(question, options)


words = st.text(alphabet="abcdefgh ", min_size=1, max_size=8)


@given(one=st.tuples(words, st.lists(words, max_size=4)), other=st.tuples(words, st.lists(words, max_size=4)))
def test_different_questions_have_different_clusters(one: tuple[str, list[str]], other: tuple[str, list[str]]) -> None:
    def plain(item: tuple[str, list[str]]) -> tuple[str, list[str]]:
        return " ".join(item[0].split()), sorted(" ".join(option.split()) for option in item[1])

    assert (cluster_id(*one) == cluster_id(*other)) == (plain(one) == plain(other))


def test_the_cluster_of_options_whose_order_depends_on_case() -> None:
    assert cluster_id("Q", ("b", "A")) == cluster_id("q", ("B", "a"))


@given(rows=question_lists, data=st.data())
def test_the_hash_does_not_depend_on_the_order_of_rows(rows: list[Question], data: st.DataObject) -> None:
    assert rows_sha256(data.draw(st.permutations(rows))) == rows_sha256(rows)


@given(rows=question_lists, data=st.data())
def test_the_hash_sees_every_field_that_shapes_a_score(rows: list[Question], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    field = data.draw(st.sampled_from(["id", "question", "context", "gold", "options"]))
    changed = (*rows[at].options, "one more") if field == "options" else getattr(rows[at], field) + "!"
    others = [*rows[:at], replace(rows[at], **{field: changed}), *rows[at + 1 :]]
    assert rows_sha256(others) != rows_sha256(rows)
    assert rows_sha256(rows[:at] + rows[at + 1 :]) != rows_sha256(rows)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a": 1, "a": 2}', 'the key "a" is given twice'),
        ('{"a": {"b": [{"c": 1, "c": 1}]}}', 'the key "c" is given twice'),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        (json.dumps({"k" * 9000: 1})[:-1] + f', "{"k" * 9000}": 2}}', "is given twice"),
    ],
    ids=["twice", "deeper", "deep list", "deep object", "long"],
)
def test_a_line_that_two_readers_could_read_differently_is_refused(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(MedbenchError, match=re.escape(f"{tmp_path}/x.jsonl:2: ")) as fault:
        list(read_jsonl(tmp_path / "x.jsonl"))
    assert said in str(fault.value)
    assert len(str(fault.value)) < 500


@pytest.mark.parametrize("answer", ["a", "", "B", "c" * 9000, "b."])
def test_a_medqa_answer_that_contradicts_its_letter_is_refused(answer: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"answer: .* is not the text of option B") as fault:
        medqa.Row.model_validate(GOOD["medqa"] | {"answer": answer}).canonical()
    assert len(str(fault.value)) < 500


@pytest.mark.parametrize("answer", ["b", " b\n", None])
def test_a_medqa_answer_that_agrees_or_is_absent_is_taken(answer: str | None) -> None:
    question = medqa.Row.model_validate(GOOD["medqa"] | {"answer": answer}).canonical()
    assert question == medqa.Row.model_validate(GOOD["medqa"]).canonical()
