"""Chats, instructions, and questions with free-text answers: every form is read, every fault is one line.

pytest tests/trainers/test_data_forms.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medbench.harness.contracts import MedbenchError
from medbench.trainers.data.conversations import Conversation, Turn
from medbench.trainers.data.forms import COLUMNS
from medbench.trainers.data.overlap import find_overlaps
from medbench.trainers.data.questions import Row
from medbench.trainers.data.rows import Source, load_rows

NEW = ("messages", "sharegpt", "prompt_completion", "alpaca", "question_answer")
USER, REPLY = {"role": "user", "content": "Is it flu?"}, {"role": "assistant", "content": "Perhaps."}
CHAT = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": " <think>\nFever.\n</think>\n\nPerhaps. "},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "No."},
]
TURNS = (
    Turn("system", "Be brief."),
    Turn("user", "Is it flu?"),
    Turn("assistant", "Perhaps.", "Fever.", taught=True),
    Turn("user", "Sure?"),
    Turn("assistant", "No.", taught=True),
)
SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [{"from": SHAREGPT_ROLES[turn["role"]], "value": turn["content"]} for turn in CHAT]


def load(tmp_path: Path, *rows: Any, **source: Any) -> list[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return load_rows([Source(path=str(path), **source)])


def fault(tmp_path: Path, *rows: Any, **source: Any) -> str:
    with pytest.raises(MedbenchError) as caught:
        load(tmp_path, *rows, **source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"messages": CHAT},
        {"conversations": SHAREGPT},
        {"messages": SHAREGPT, "prompt": "Is it flu?"},  # as in several public sets
        {"conversations": CHAT, "id": "x"},
        {"messages": CHAT[1:], "system": "Be brief."},
        {"conversations": SHAREGPT[1:], "system": " Be brief. "},
        {"messages": json.dumps(CHAT)},  # a cell of a CSV file
        {"messages": [{**turn, "tool_calls": None, "weight": None} for turn in CHAT], "tools": None},  # Parquet pads
        {
            "messages": [
                *CHAT[:2],
                {"role": "assistant", "content": "Perhaps.", "reasoning_content": "Fever."},
                *CHAT[3:],
            ]
        },
        {"messages": [{"role": "developer", "content": "Be brief."}, *CHAT[1:]]},
        {
            "instruction": "Sure?",
            "output": "No.",
            "history": [["Is it flu?", CHAT[2]["content"]]],
            "system": "Be brief.",
        },
    ],
)
def test_each_form_of_a_chat_is_the_same_chat(tmp_path: Path, raw: dict[str, Any]) -> None:
    (row,) = load(tmp_path, raw)
    assert isinstance(row, Conversation)
    assert row.turns == TURNS
    assert row.where.endswith("rows.jsonl:1")


@pytest.mark.parametrize(
    ("raw", "taught"),
    [
        ({"messages": [*CHAT[:2], {**CHAT[2], "weight": 0}, *CHAT[3:]]}, [False, True]),
        ({"messages": [*CHAT[:4], {**CHAT[4], "train": False}]}, [True, False]),
        ({"messages": [*CHAT[:2], {**CHAT[2], "weight": 1}, *CHAT[3:]]}, [True, True]),
        ({"prompt": CHAT[:4], "completion": CHAT[4:]}, [False, True]),
        ({"prompt": CHAT[:2], "completion": CHAT[2:]}, [True, True]),
        ({"prompt": CHAT[:4], "completion": "No."}, [False, True]),
    ],
)
def test_only_the_turns_that_the_row_says_are_taught(tmp_path: Path, raw: dict[str, Any], taught: list[bool]) -> None:
    (row,) = load(tmp_path, raw)
    assert [turn.taught for turn in row.turns if turn.role == "assistant"] == taught
    assert not any(turn.taught for turn in row.turns if turn.role != "assistant")
    assert [(turn.role, turn.content) for turn in row.turns] == [(turn.role, turn.content) for turn in TURNS]


def test_turns_behind_the_last_reply_are_kept_for_the_screening(tmp_path: Path) -> None:
    (row,) = load(tmp_path, {"messages": [USER, REPLY, {"role": "user", "content": "Who described circulation?"}]})
    assert "Who described circulation?" in row.screened(1).text


@pytest.mark.parametrize(
    ("raw", "asked", "context", "reasoning", "answer", "system"),
    [
        ({"prompt": " Why? ", "completion": " So. "}, "Why?", "", "", "So.", ""),
        ({"prompt": "Why?", "completion": "<think>\nHm.\n</think>\n\nSo."}, "Why?", "", "Hm.", "So.", ""),
        ({"prompt": "Why?", "completion": "Hm.</think>So.", "system": "Talk."}, "Why?", "", "Hm.", "So.", "Talk."),
        ({"prompt": "Why?", "completion": "<think>\n\n</think>\n\nSo."}, "Why?", "", "", "So.", ""),
        ({"instruction": "Name it.", "output": "Flu."}, "Name it.", "", "", "Flu.", ""),
        ({"instruction": "Name it.", "input": "", "output": "Flu."}, "Name it.", "", "", "Flu.", ""),
        (
            {"instruction": "Name it.", "input": "A man coughs.", "output": "Flu."},
            "A man coughs.",
            "Name it.",
            "",
            "Flu.",
            "",
        ),
        ({"question": "Why?", "answer": "So.", "reasoning": "Hm."}, "Why?", "", "Hm.", "So.", ""),
        ({"question": "Why?", "answer": "So.", "reasoning": None}, "Why?", "", "", "So.", ""),
        ({"question": "How many?", "answer": 42}, "How many?", "", "", "42", ""),
        ({"question": "Why?", "answer": "So.", "context": "A text."}, "Why?", "A text.", "", "So.", ""),
    ],
)
def test_single_questions(
    tmp_path: Path, raw: Any, asked: str, context: str, reasoning: str, answer: str, system: str
) -> None:
    (row,) = load(tmp_path, raw)
    assert isinstance(row, Row)
    assert (row.question.question, row.question.context, row.question.labels) == (asked, context, ())
    assert (row.reasoning, row.answer, row.system) == (reasoning, answer, system)
    assert row.verifiable == ("question" in raw)


def test_reasoning_can_be_left_out_of_a_source(tmp_path: Path) -> None:
    row = {"question": "Which?", "options": ["this", "that"], "answer": "A", "reasoning": "Because."}
    (kept,), (plain,) = load(tmp_path, row), load(tmp_path, row, reasoning=False)
    assert (kept.reasoning, plain.reasoning) == ("Because.", "")
    assert plain.question == kept.question
    (chat,) = load(tmp_path, {"messages": CHAT}, reasoning=False)
    assert [turn.content for turn in chat.turns] == [turn.content for turn in TURNS]
    assert not any(turn.reasoning for turn in chat.turns)


def test_the_ground_truth_of_a_worked_answer_follows_the_last_mark(tmp_path: Path) -> None:
    (row,) = load(tmp_path, {"question": "How many?", "answer": "2 + 2 = 4\n#### 4"})
    assert (row.question.gold, row.answer) == ("4", "2 + 2 = 4\n#### 4")


def test_a_source_gives_a_system_prompt_to_rows_without_one(tmp_path: Path) -> None:
    rows = load(tmp_path, {"messages": [USER, REPLY]}, {"messages": CHAT}, system="You are a doctor. ")
    assert [row.turns[0].content for row in rows] == ["You are a doctor.", "Be brief."]
    rows = load(
        tmp_path, {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "system": "c"}, system="d"
    )
    assert [row.system for row in rows] == ["d", "c"]
    lettered = {"question": "Which?", "options": ["a", "b"], "answer": "a", "persona": "d"}
    for source in ({"system": "d"}, {"columns": {"system": "persona"}}):
        assert "rows with options are asked as the protocol says" in fault(tmp_path, lettered, **source)


@pytest.mark.parametrize(
    ("columns", "raw", "found"),
    [
        ({"question": "stem", "answer": "truth"}, {"stem": "Why?", "truth": "So."}, ("Why?", "So.")),
        # the names that are given decide, whatever else the row has
        (
            {"question": "input", "answer": "output"},
            {"instruction": "x", "input": "Why?", "output": "So."},
            ("Why?", "So."),
        ),
        ({"prompt": "query", "completion": "response"}, {"query": "Why?", "response": "So."}, ("Why?", "So.")),
        ({"input": "context"}, {"instruction": "x", "context": "Why?", "output": "So."}, ("Why?", "So.")),
    ],
)
def test_columns_gives_other_names(tmp_path: Path, columns: Any, raw: Any, found: tuple[str, str]) -> None:
    (row,) = load(tmp_path, raw, columns=columns)
    assert (row.question.question, row.answer) == found


def test_columns_for_chats_and_for_options_in_columns_of_their_own(tmp_path: Path) -> None:
    (row,) = load(tmp_path, {"dialogue": SHAREGPT}, columns={"messages": "dialogue"})
    assert row.turns == TURNS
    path = tmp_path / "exam.csv"
    path.write_text("stem,A,B,C,key,why\nWhich metal?,Iron,Zinc,,B,Not iron.\nWhich gas?,Xenon,Neon,Argon,2,\n")
    mapped = {"question": "stem", "options": ["A", "B", "C"], "answer": "key", "reasoning": "why"}
    rows = load_rows([Source(path=str(path), columns=mapped)])
    assert [row.question.options for row in rows] == [("Iron", "Zinc"), ("Xenon", "Neon", "Argon")]
    assert [row.question.gold for row in rows] == ["B", "C"]
    assert [row.reasoning for row in rows] == ["Not iron.", ""]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"qestion": "stem"}, "'qestion' is not a column of any format; did you mean question"),
        ({"stem": "question"}, "the format's column comes first"),
        ({"question": ""}, "question: name a column of the data"),
        ({"options": []}, "options: name a column of the data"),
    ],
)
def test_columns_that_no_format_has(columns: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Source(path="a.jsonl", columns=columns)


def turns(*given: Any) -> dict[str, Any]:
    return {"messages": list(given)}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (turns(), "messages: no turns: remove the row"),
        ({"messages": "Hello"}, "messages: expected a list of turns, found str"),
        ({"messages": "[{'role': 'user'}]"}, "messages: the text is not JSON: write it with json.dumps"),
        ({"messages": None}, "messages: expected a list of turns, found NoneType"),
        (turns("Hello"), "messages, turn 1: expected an object with role and content, found str"),
        (turns({"content": "Hello"}), "messages, turn 1: no role (there are: content)"),
        (turns({"role": "doctor", "content": "x"}), "messages, turn 1: unknown role 'doctor': write one of system"),
        (turns({"from": "bot", "value": "x"}), "messages, turn 1: unknown from 'bot'"),
        (turns({"role": ["user"], "content": "x"}), "messages, turn 1: unknown role"),
        (turns({"role": "user"}), "messages, turn 1: no content (there are: role)"),
        (
            turns({"role": "user", "content": " \n"}, REPLY),
            "messages, turn 1: content is empty: write it, or remove the turn",
        ),
        (
            turns(USER, {"role": "assistant", "content": None}),
            "messages, turn 2: content: expected text, found NoneType",
        ),
        (turns(USER, {"role": "assistant", "content": 3}), "messages, turn 2: content: expected text, found int"),
        (
            turns({"role": "user", "content": [{"type": "text", "text": "x"}]}, REPLY),
            "content is a list of parts: write it as",
        ),
        (turns(USER, {**REPLY, "tool_calls": [{"id": 1}]}), "messages, turn 2: calls of tools cannot be trained"),
        (turns(USER, {"role": "tool", "content": "x"}, REPLY), "messages, turn 2: calls of tools cannot be trained"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "conversations, turn 1: calls of tools cannot"),
        (
            {**turns(USER, REPLY), "tools": [{"name": "x"}]},
            "tools: calls of tools cannot be trained: remove the column",
        ),
        (turns(CHAT[0], CHAT[0], USER, REPLY), "two system prompts: join them into one"),
        ({**turns(*CHAT), "system": "x"}, "two system prompts"),
        (turns(USER, CHAT[0], REPLY), "the system turn is not the first: put it first"),
        (turns(REPLY, USER), "the first turn is the assistant's, a reply to nothing"),
        (turns(USER), "no assistant turn, so there is nothing to teach"),
        (turns(CHAT[0], REPLY), "no user turn, so there is nothing to reply to"),
        (turns(USER, USER, REPLY), "turns 1 and 2 are both of the user: join them into one"),
        ({**turns(USER, REPLY, REPLY), "system": "x"}, "turns 2 and 3 are both of the assistant"),
        (turns(USER, {**REPLY, "weight": 0}), "all assistant turns have weight 0 or train false"),
        (turns(USER, {**REPLY, "weight": 0.5}), "messages, turn 2: weight: 0.5 is neither 0 nor 1"),
        (turns(USER, {**REPLY, "train": "no"}), "messages, turn 2: train: no is neither true nor false"),
        (
            turns(USER, {**CHAT[2], "reasoning": "x"}),
            "messages, turn 2: reasoning beside the text and in a <think> block",
        ),
        (turns(USER, {**REPLY, "content": "a <think>b</think> c"}), "its <think> tags are not one block at the start"),
        (turns(USER, {**REPLY, "content": "<think>a"}), "its <think> tags are not one block"),
        (turns(USER, {**REPLY, "content": "<think>a</think> "}), "nothing follows its <think> block: add the answer"),
        (turns(USER, {**REPLY, "content": "half \ud83d"}), "a lone surrogate"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": None, "completion": "b"}, "prompt: expected text, found NoneType"),
        ({"prompt": [USER], "completion": [USER]}, "no assistant turn"),
        ({"prompt": [USER, REPLY], "completion": [REPLY]}, "are both of the assistant"),
        (
            {"prompt": "a", "completion": "<think>b</think>c", "reasoning": "d"},
            "there is a column with reasoning: keep one",
        ),
        ({"instruction": "a", "output": ["b"]}, "output: expected text, found list"),
        ({"instruction": "a", "output": "b", "input": 3}, "input: expected text, found int"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "history: entry 1 is not a pair"),
        ({"instruction": "a", "output": "b", "history": [["c", ""]]}, "history, entry 1: reply is empty"),
        ({"question": "a", "answer": True}, "answer: expected text, found bool"),
        ('{"question": "a", "answer": NaN}', "answer: expected text, found NoneType"),
        ({"question": "a", "answer": {"text": "b"}}, "answer: expected text, found dict"),
        ({"question": "a", "answer": 1, "choices": ["b", "c"]}, "the column choices seems to have options"),
        ({"chosen": "a", "rejected": "b"}, "the columns chosen, rejected match no format; known: structured_medical"),
    ],
)
def test_a_faulty_row_is_one_line(tmp_path: Path, raw: Any, says: str) -> None:
    line = fault(tmp_path, raw)
    assert line.startswith(f"{tmp_path / 'rows.jsonl'}:1: ")
    assert says in line


def test_mixed_forms_in_one_file_are_named(tmp_path: Path) -> None:
    line = fault(tmp_path, turns(USER, REPLY), {"prompt": "a", "completion": "b"})
    assert (
        f"{tmp_path / 'rows.jsonl'}:2: the row has the columns of prompt_completion, the first row those of messages"
        in line
    )
    line = fault(tmp_path, turns(USER, REPLY), {"prompt": "a", "completion": "b"}, format="messages")
    assert "rows.jsonl:2: no column messages (there are: prompt, completion)" in line


def test_a_column_of_the_map_that_is_not_there(tmp_path: Path) -> None:
    line = fault(tmp_path, {"stem": "a", "truth": "b"}, columns={"question": "stem", "answer": "thruth"})
    assert "rows.jsonl:1: columns.answer: no column thruth (there are: stem, truth)" in line


LEAKED = "A 58-year-old baker walks with short shuffling steps, and his right hand shakes while it rests in his lap."


@pytest.mark.parametrize(
    "raw",
    [
        turns({"role": "system", "content": LEAKED}, USER, REPLY),
        turns({"role": "user", "content": LEAKED}, REPLY),
        turns(USER, {"role": "assistant", "content": LEAKED}),
        turns(USER, {**REPLY, "reasoning_content": LEAKED}),
        turns(USER, {"role": "assistant", "content": LEAKED, "weight": 0}, {"role": "user", "content": "?"}, REPLY),
        turns(USER, REPLY, {"role": "user", "content": LEAKED}),
        {**turns(USER, REPLY), "system": LEAKED},
        {"conversations": [{"from": "human", "value": LEAKED}, {"from": "gpt", "value": "x"}]},
        {"prompt": LEAKED, "completion": "x"},
        {"prompt": "x", "completion": f"<think>{LEAKED}</think>y"},
        {"prompt": "x", "completion": "y", "system": LEAKED},
        {"instruction": LEAKED, "output": "x"},
        {"instruction": "x", "input": LEAKED, "output": "y"},
        {"instruction": "x", "input": "y", "output": LEAKED},
        {"instruction": "x", "output": "y", "history": [[LEAKED, "z"]]},
        {"question": LEAKED, "answer": "x"},
        {"question": "x", "answer": LEAKED},
        {"question": "x", "answer": "y", "context": LEAKED},
        {"question": "x", "answer": "y", "reasoning": LEAKED},
    ],
)
def test_the_screening_sees_all_text(tmp_path: Path, raw: dict[str, Any]) -> None:
    from medbench.harness.contracts import Question

    benchmark = Question("7", "7", LEAKED, ("Nigra", "Pons"), ("A", "B"), "A")
    (row,) = load(tmp_path, raw)
    assert [found.question_id for found in find_overlaps([row.screened(1)], {"medqa": [benchmark]})] == ["7"]


def test_a_short_question_in_a_later_turn_is_found(tmp_path: Path) -> None:
    from medbench.harness.contracts import Question

    benchmark = Question("7", "7", "What ends labour?", ("Delivery of the placenta", "Rupture"), ("A", "B"), "A")
    later = [
        {"role": "user", "content": "What ends labour?"},
        {"role": "assistant", "content": "Delivery of the placenta"},
    ]
    (row,) = load(tmp_path, turns(USER, REPLY, *later))
    assert [found.question_id for found in find_overlaps([row.screened(1)], {"medqa": [benchmark]})] == ["7"]


words = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
roles = st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool"]) | values
a_turn = st.fixed_dictionaries(
    {},
    optional={"role": roles, "content": values, "from": roles, "value": values, "weight": values, "thinking": values},
)
names = st.sampled_from(
    [*sorted(set().union(*(COLUMNS[form] for form in NEW))), "input", "history", "system", "tools", "reasoning"]
)


@given(st.lists(st.dictionaries(names, values | st.lists(a_turn, max_size=4), max_size=6), min_size=1, max_size=2))
def test_for_any_content_the_fault_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    fault = ""
    try:
        found = load(tmp_path_factory.getbasetemp(), *rows)
    except MedbenchError as error:
        found, fault = [], str(error)
    assert len(fault.splitlines()) == (not found)
    assert all(row.screened(1).text.strip() for row in found)
