"""Training rows: every format, every fault by file and line, and the real files.

pytest tests/trainers/test_sft_rows.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medbench.harness.contracts import LETTERS, MedbenchError
from medbench.trainers.data.files import expand
from medbench.trainers.data.forms import COLUMNS
from medbench.trainers.data.questions import Row
from medbench.trainers.data.rows import Source, load_rows

MCQ = {"question": "Which metal?", "options": {"A": "Iron", "B": "Zinc"}, "answer_idx": "B"}
FREE = {"case": "A man coughs.", "reasoning": "Coughing, so the lung.", "answer": "Pneumonia."}
HUATUO = {"Question": "Why?", "Complex_CoT": "Hmm.", "Response": "Because."}
PUBMED = {
    "pubid": 7,
    "question": "Does it help?",
    "context": {"contexts": ["One.", "Two."]},
    "long_answer": "It seems to help.",
    "final_decision": "yes",
}


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load(tmp_path: Path, *rows: Any, format: Any = "auto", limit: int | None = None):
    return load_rows([Source(path=str(written(tmp_path, *rows)), format=format, limit=limit)])


@pytest.mark.parametrize(
    ("raw", "format", "question", "gold", "reasoning", "answer"),
    [
        (FREE, "structured_medical", "A man coughs.", "Pneumonia.", "Coughing, so the lung.", "Pneumonia."),
        (HUATUO, "huatuo_o1", "Why?", "Because.", "Hmm.", "Because."),
        (MCQ | {"reasoning": "Not iron.", "response": "Zinc."}, "huatuo_o1", "Which metal?", "B", "Not iron.", ""),
        (PUBMED, "pubmedqa", "Does it help?", "yes", "It seems to help.", ""),
        (MCQ, "multiple_choice", "Which metal?", "B", "", ""),
        (MCQ | {"explanation": "Not iron."}, "multiple_choice", "Which metal?", "B", "Not iron.", ""),
    ],
)
def test_each_format_is_read_and_recognised_by_its_columns(
    tmp_path, raw, format, question, gold, reasoning, answer
) -> None:
    (named,) = load(tmp_path, raw, format=format)
    (known,) = load(tmp_path, raw)
    assert named == known
    assert (named.question.question, named.question.gold) == (question, gold)
    assert (named.reasoning, named.answer) == (reasoning, answer)
    assert named.where.endswith("rows.jsonl:1")


@pytest.mark.parametrize(
    ("options", "answer", "gold"),
    [
        (["Iron", "Zinc"], {"answer": "Zinc"}, "B"),
        (["Iron", "Zinc"], {"answer": 1}, "B"),
        ({"A": "Iron", "B": "Zinc", "E": None}, {"answer": "A"}, "A"),
        (["B", "A"], {"answer": "A"}, "A"),  # a letter is the label, even if an option has the same text
        (["Iron", "Zinc"], {"answer_idx": "A", "answer": "Iron"}, "A"),
    ],
)
def test_gold_is_a_letter_an_index_or_the_options_text(tmp_path, options, answer, gold) -> None:
    (row,) = load(tmp_path, {"question": "Which?", "options": options, **answer})
    assert row.question.gold == gold
    assert row.question.labels == ("A", "B")


def test_pubmedqa_rows_are_the_questions_of_the_task(data_dir: Path) -> None:
    from medbench.tasks.pubmedqa.rows import Row as TaskRow

    path = data_dir / "pubmedqa" / "train.jsonl"
    task = [TaskRow.model_validate_json(line).canonical() for line in path.open(encoding="utf-8")]
    ours = [row.question for row in load_rows([Source(path=str(path))])]
    asked = [(q.id, q.cluster, q.question, q.context, q.options, q.labels, q.gold) for q in ours]
    assert asked == [(q.id, q.cluster, q.question, q.context, q.options, q.labels, q.gold) for q in task]


@pytest.mark.parametrize(
    ("name", "rows", "reasoned"),
    [("pubmedqa/train", 500, 500), ("train/medical_o1_demo_sft", 198, 198), ("train/medmcqa_mcq", 2816, 0)],
)
def test_real_files_are_read_completely(data_dir: Path, monkeypatch, name: str, rows: int, reasoned: int) -> None:
    monkeypatch.setenv("MEDBENCH_DATA", str(data_dir))
    found = load_rows([Source(path=f"$MEDBENCH_DATA/{name}.jsonl")])
    assert len(found) == rows
    assert sum(bool(row.reasoning) for row in found) == reasoned
    assert all(row.question.gold in row.question.labels for row in found)


def test_a_conclusion_takes_the_place_of_the_abstract(tmp_path: Path) -> None:
    source = Source(path=str(written(tmp_path, PUBMED)), format="pubmedqa", columns={"context": "long_answer"})
    (row,) = load_rows([source])
    assert isinstance(row, Row)
    assert (row.question.context, row.reasoning, row.question.gold) == ("It seems to help.", "", "yes")
    (whole,) = load(tmp_path, PUBMED | {"context": "[One.] Two."})
    assert whole.question.context == "[One.] Two."


@pytest.mark.parametrize(
    ("raw", "format", "says"),
    [
        ("{not json", "auto", "rows.jsonl:2: not JSON"),
        ("[1]", "auto", "rows.jsonl:2: expected a JSON object, found list"),
        ({"text": "x"}, "structured_medical", "rows.jsonl:2: no column case (there are: text)"),
        ({"case": "x"}, "structured_medical", "no column answer (there are: case)"),
        (FREE | {"reasoning": "  "}, "structured_medical", "rows.jsonl:2: reasoning is empty"),
        (FREE | {"answer": ""}, "structured_medical", "rows.jsonl:2: answer is empty"),
        (FREE | {"answer": 3}, "structured_medical", "answer: expected text, found int"),
        (FREE | {"answer": "<think>a</think> b"}, "structured_medical", "the answer contains a <think> tag"),
        (HUATUO | {"Response": None}, "huatuo_o1", "Response: expected text, found NoneType"),
        (PUBMED | {"final_decision": "no idea"}, "pubmedqa", "'no idea' is not one of yes, no, maybe"),
        (PUBMED | {"context": {"contexts": []}}, "pubmedqa", "context.contexts: expected a list of texts"),
        (PUBMED | {"context": [1]}, "pubmedqa", "context.contexts: expected a list of texts"),
        (PUBMED | {"context": " "}, "pubmedqa", "context is empty"),
        (PUBMED | {"long_answer": ""}, "pubmedqa", "long_answer is empty"),
        (MCQ | {"answer_idx": "C"}, "multiple_choice", "answer_idx: 'C' is not one of the options A, B"),
        (MCQ | {"answer_idx": 2}, "multiple_choice", "not one of the options"),
        (MCQ | {"answer_idx": True}, "multiple_choice", "not one of the options"),
        (MCQ | {"answer_idx": ["A"]}, "multiple_choice", "not one of the options"),
        (MCQ | {"options": {"A": "x", "C": "y"}}, "multiple_choice", "keys must be A, B, ... in order, found A, C"),
        (MCQ | {"options": ["x"]}, "multiple_choice", "expected 2 to 26, found 1"),
        (MCQ | {"options": ["x", ""]}, "multiple_choice", "expected an object or a list of texts"),
        (MCQ | {"options": "A or B"}, "multiple_choice", "expected an object or a list of texts"),
        (MCQ | {"reasoning": ""}, "multiple_choice", "reasoning is empty"),
        (MCQ | {"reasoning": "a </think> b"}, "multiple_choice", "a <think> tag inside the reasoning"),
        (MCQ | {"reasoning": "<think> </think>"}, "multiple_choice", "the reasoning is empty"),
        ({"question": "x", "options": ["a", "b"]}, "multiple_choice", "no column answer_idx or answer"),
        ('{"case": "a \\ud83d", "reasoning": "b", "answer": "c"}', "structured_medical", "a lone surrogate"),
    ],
)
def test_a_faulty_row_is_named_by_file_and_line(tmp_path: Path, raw: Any, format: Any, says: str) -> None:
    sound = {"structured_medical": FREE, "huatuo_o1": HUATUO, "pubmedqa": PUBMED}.get(format, MCQ)
    with pytest.raises(MedbenchError) as caught:
        load(tmp_path, sound, raw, format=format)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_that_match_no_format_list_the_formats(tmp_path: Path) -> None:
    with pytest.raises(
        MedbenchError, match=r"rows.jsonl:1: the columns text match no format; known: structured_medical"
    ):
        load(tmp_path, {"text": "x"})


def test_think_tags_around_the_reasoning_are_removed(tmp_path: Path) -> None:
    (row,) = load(tmp_path, FREE | {"reasoning": "<think>\nThe lung.\n</think>"})
    assert row.reasoning == "The lung."


def test_limit_takes_the_first_rows_and_no_more_are_read(tmp_path: Path) -> None:
    assert len(load(tmp_path, MCQ, MCQ, "{not json", limit=2)) == 2


def test_no_file_no_rows_no_variable(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(MedbenchError, match=r"nowhere\.jsonl: no such file"):
        load_rows([Source(path=str(tmp_path / "nowhere.jsonl"))])
    with pytest.raises(MedbenchError, match=r"rows\.jsonl: no rows"):
        load(tmp_path)
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)
    with pytest.raises(MedbenchError, match="MEDBENCH_DATA is not set: export MEDBENCH_DATA=FOLDER"):
        load_rows([Source(path="$MEDBENCH_DATA/a.jsonl")])


def test_only_a_leading_variable_is_expanded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MEDBENCH_DATA", "/data")
    assert expand("$MEDBENCH_DATA/a/b.jsonl") == expand("${MEDBENCH_DATA}/a/b.jsonl") == Path("/data/a/b.jsonl")
    assert expand("x/$MEDBENCH_DATA/$HOME.jsonl") == Path("x/$MEDBENCH_DATA/$HOME.jsonl")


@pytest.mark.parametrize("given", [{}, {"path": "a", "hub": "b/c"}, {"hub": "noslash"}, {"path": "a", "limit": 0}])
def test_a_source_is_either_a_path_or_a_hub_name(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Source(**given)


def test_a_hub_data_set_that_could_not_be_downloaded_is_one_line() -> None:
    with pytest.raises(MedbenchError) as caught:  # conftest: HF_HUB_OFFLINE
        load_rows([Source(hub="nobody/nothing", revision="abc")])
    assert "data set nobody/nothing@abc: not in the hub's cache" in str(caught.value)
    assert "correct hub, subset, revision or split" in str(caught.value)
    assert "\n" not in str(caught.value)


words = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
anything = (
    st.none() | st.booleans() | st.integers() | words | st.lists(words, max_size=3) | st.dictionaries(words, words)
)
columns = st.sampled_from(sorted(set().union(*COLUMNS.values()) | {"answer_idx", "long_answer", *LETTERS[:2]}))


@given(st.lists(st.dictionaries(columns, anything, max_size=8), min_size=1, max_size=3))
def test_for_any_content_of_a_file_the_fault_is_one_line(tmp_path_factory, rows: list[dict[str, Any]]) -> None:
    for format in ("auto", *COLUMNS):
        fault = ""
        try:
            found = load(tmp_path_factory.getbasetemp(), *rows, format=format)
        except MedbenchError as error:
            found, fault = [], str(error)
        assert len(fault.splitlines()) == (not found)
        assert all(row.question.question.strip() for row in found)


def test_the_screened_text_contains_all_that_training_shows(tmp_path: Path) -> None:
    (row,) = load(tmp_path, PUBMED)
    screened = row.screened(3)
    assert (screened.row, screened.stem) == (3, "Does it help?")
    assert all(part in screened.text for part in ("One.\nTwo.", "Does it help?", "It seems to help."))
