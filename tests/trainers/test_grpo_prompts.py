"""Prompts for reinforcement learning: the same text as in the evaluation, from rows that a reward can judge.

pytest tests/trainers/test_grpo_prompts.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.benchmarks.rows import read_jsonl
from medbench.harness.contracts import Data, MedbenchError, Task
from medbench.harness.evaluation.requests import build_request
from medbench.harness.protocols.chat import load_tokenizer
from medbench.harness.protocols.protocol import load_protocol
from medbench.tasks.medqa import rows as medqa
from medbench.tasks.pubmedqa import rows as pubmedqa
from medbench.trainers.data.prompts import Asker, load_questions, prompt_order
from medbench.trainers.data.rows import Source

LETTERED = {
    "question": "Which vitamin prevents scurvy?",
    "options": {"A": "Vitamin C", "B": "Vitamin K"},
    "answer_idx": "A",
}
DECIDED = {
    "pubid": 7,
    "question": "Does aspirin reduce fever?",
    "context": {"contexts": ["Forty adults took aspirin.", "Fever fell."]},
    "long_answer": "Aspirin reduced fever.",
    "final_decision": "yes",
}


def written(path: Path, *rows: dict[str, Any]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


@pytest.mark.parametrize("thinking", [None, True, False])
def test_prompts_are_those_of_the_evaluation(tiny_model: Path, tmp_path: Path, thinking: bool | None) -> None:
    from medbench.harness.engines.hf import HFEngine

    protocol = load_protocol("cot-v2", thinking=thinking)
    sources = [written(tmp_path / "a.jsonl", LETTERED), written(tmp_path / "b.jsonl", DECIDED)]
    questions = [row.question for row in load_questions(sources)]
    task = Task("t", "1", "test", 0.5, tuple(questions), Data("local", "0", False))
    asker = Asker(protocol, load_tokenizer(str(tiny_model)))
    engine = HFEngine(str(tiny_model))
    try:
        for question in questions:
            request = build_request(task, question, protocol, engine, seed=0)
            assert asker.prompt(question).text == request.prompt
            assert asker.templated == request.templated
    finally:
        engine.close()


def test_a_model_without_a_chat_template_is_asked_in_plain_text(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = None
    (row,) = load_questions([written(tmp_path / "a.jsonl", LETTERED)])
    asker = Asker(load_protocol("cot-v2"), tokenizer)
    assert not asker.templated
    assert asker.prompt(row.question).text == load_protocol("cot-v2").text(row.question)


@pytest.mark.parametrize(
    ("file", "row", "format"),
    [("pubmedqa/train.jsonl", pubmedqa.Row, "pubmedqa"), ("medqa/test.jsonl", medqa.Row, "multiple_choice")],
)
def test_real_rows_become_the_same_questions_as_in_the_tasks(data_dir: Path, file: str, row: Any, format: Any) -> None:
    path = data_dir / file
    raw = [one for _, one in read_jsonl(path)]
    protocol = load_protocol("cot-v2")
    wanted = [row.model_validate(one).canonical() for one in raw]
    found = [one.question for one in load_questions([Source(path=str(path), format=format)])]
    assert [protocol.text(one) for one in found] == [protocol.text(one) for one in wanted]
    assert [one.gold for one in found] == [one.gold for one in wanted]


def test_a_prompt_has_the_columns_that_the_rewards_need(tiny_model: Path, tmp_path: Path) -> None:
    (row,) = load_questions([written(tmp_path / "b.jsonl", DECIDED)])
    prompt = Asker(load_protocol("cot-v2"), load_tokenizer(str(tiny_model))).prompt(row.question, source=row.source)
    assert prompt.columns() == {
        "prompt": prompt.text,
        "question": "Does aspirin reduce fever?",
        "options": ["yes", "no", "maybe"],
        "labels": ["yes", "no", "maybe"],
        "gold": "yes",
        "context": "Forty adults took aspirin.\nFever fell.",
        "source": "Forty adults took aspirin.\nFever fell.",
        "id": row.question.id,
    }


SENTENCE = "Scurvy comes from a lack of vitamin C in the diet."


@pytest.mark.parametrize(
    ("more", "source"),
    [
        ({"source": "medqa"}, ""),
        ({"source": ["a", "b"]}, ""),
        ({"reference": None}, ""),
        ({"source": SENTENCE}, SENTENCE),
        ({"source": "usmle", "reference": SENTENCE}, SENTENCE),
    ],
)
def test_a_text_to_judge_by_is_a_sentence_in_source_or_reference(
    tmp_path: Path, more: dict[str, Any], source: str
) -> None:
    plain = {"question": "Which vitamin prevents scurvy?", "options": ["C", "K"], "answer": "A"}
    (row,) = load_questions([written(tmp_path / "a.jsonl", {**plain, **more})])
    assert row.source == source
    assert row.screened(1).text.endswith(source or "K")


def test_another_column_can_be_named_as_the_text_to_judge_by(tmp_path: Path) -> None:
    plain = {"question": "Which vitamin prevents scurvy?", "answer": "vitamin C", "exp": SENTENCE}
    source = written(tmp_path / "a.jsonl", plain).model_copy(update={"columns": {"source": "exp"}})
    (row,) = load_questions([source])
    assert row.source == SENTENCE


def test_long_prompts_are_left_out(tiny_model: Path, tmp_path: Path) -> None:
    rows = load_questions([written(tmp_path / "a.jsonl", LETTERED, LETTERED | {"question": "Which? " * 200})])
    asker = Asker(load_protocol("cot-v2"), load_tokenizer(str(tiny_model)))
    short = asker.prompt(rows[0].question)
    assert short.tokens == len(asker.ids(short.text))
    assert asker.fitting(rows, short.tokens) == [short]
    assert asker.fitting(rows, short.tokens - 1) == []


def test_a_row_without_options_is_named(tmp_path: Path) -> None:
    free = {"case": "A man coughs.", "reasoning": "He may have asthma.", "answer": "Asthma"}
    path = tmp_path / "a.jsonl"
    with pytest.raises(MedbenchError, match=r"a\.jsonl:1: a free-text row has no options"):
        load_questions([written(path, free)])


def test_a_gold_outside_the_options_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(MedbenchError, match=r"a\.jsonl:2: answer_idx: 'C' is not one of the options A, B"):
        load_questions([written(path, LETTERED, LETTERED | {"answer_idx": "C"})])


@given(st.integers(1, 20), st.integers(0, 100), st.integers(0, 2**31))
def test_each_pass_asks_every_prompt_once(n: int, draws: int, seed: int) -> None:
    order = prompt_order(n, draws, seed)
    assert len(order) == draws
    for begin in range(0, draws, n):
        one_pass = order[begin : begin + n]
        assert max(Counter(one_pass).values()) == 1
        assert set(one_pass) <= set(range(n))
    assert order == prompt_order(n, draws, seed)
    assert order == prompt_order(n, draws + 5, seed)[:draws]


def test_the_order_follows_the_seed_and_changes_from_pass_to_pass() -> None:
    order = prompt_order(50, 100, seed=1)
    assert order[:50] != order[50:]
    assert order != prompt_order(50, 100, seed=2)
