"""Every form and every kind of file, end to end: two SFT steps on the tiny model, the loss checked token by token.

pytest tests/trainers/test_data_end_to_end.py
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from medbench.harness.contracts import MedbenchError
from medbench.harness.protocols.chat import load_tokenizer
from medbench.harness.training import checkpoint_folder
from medbench.trainers import grpo, sft
from medbench.trainers.data.prompts import FINISH

pytestmark = pytest.mark.slow

Chat = list[dict[str, str]]
ORGANS = ("heart", "lung", "liver", "brain", "skin", "bone")


def said(*turns: tuple[str, str]) -> Chat:
    return [{"role": role, "content": content} for role, content in turns]


def chats() -> list[Chat]:
    """One for each organ, some with a system prompt and some with two replies."""
    made = []
    for number, organ in enumerate(ORGANS):
        system = [("system", "Be brief.")] if number % 2 else []
        second = [("user", "Sure?"), ("assistant", f"Yes, the {organ} it is.")] if number % 3 else []
        made.append(said(*system, ("user", f"What hurts, case {number}?"), ("assistant", f"The {organ}."), *second))
    return made


def single(system: str = "") -> list[Chat]:
    start = [("system", system)] if system else []
    return [said(*start, ("user", f"What hurts, case {n}?"), ("assistant", f"The {o}.")) for n, o in enumerate(ORGANS)]


def pairs(asked: str, answered: str) -> list[dict[str, Any]]:
    return [{asked: chat[0]["content"], answered: chat[1]["content"]} for chat in single()]


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def json_list(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    return folder / "rows.json"


def arrow(folder: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def table(folder: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with (folder / "rows.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(rows[0])
        writer.writerows([json.dumps(one) if isinstance(one, list) else one for one in row.values()] for row in rows)
    return folder / "rows.csv"


def semicolons(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return table(folder, rows, ";")


def in_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for name, part, write in (("a", rows[:2], jsonl), ("b", rows[2:4], arrow), ("c", rows[4:], table)):
        (folder / "data" / name).mkdir(parents=True)
        write(folder / "data" / name, part)
    (folder / "data" / "README.md").write_text("Rows.")
    return folder / "data"


def by_glob(folder: Path, rows: list[dict[str, Any]]) -> Path:
    in_folder(folder, rows)
    return folder / "data" / "*" / "rows.*"


SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
MESSAGES = [{"messages": chat} for chat in chats()]
SHAREGPT = [
    {"conversations": [{"from": SHAREGPT_ROLES[turn["role"]], "value": turn["content"]} for turn in chat]}
    for chat in chats()
]
ALPACA = [
    {"instruction": "Name the organ.", "input": chat[0]["content"], "output": chat[1]["content"]} for chat in single()
]
INSTRUCTED = [
    said(("user", f"Name the organ.\n\n{chat[0]['content']}"), *[("assistant", chat[1]["content"])])
    for chat in single()
]
Write = Callable[[Path, list[dict[str, Any]]], Path]


@pytest.mark.parametrize(
    ("rows", "write", "source", "expected"),
    [
        pytest.param(MESSAGES, jsonl, {}, chats(), id="messages"),
        pytest.param(MESSAGES, arrow, {}, chats(), id="messages in Parquet"),
        pytest.param(MESSAGES, semicolons, {}, chats(), id="messages in CSV"),
        pytest.param(SHAREGPT, jsonl, {}, chats(), id="conversations"),
        pytest.param(SHAREGPT, json_list, {}, chats(), id="conversations in JSON"),
        pytest.param(pairs("prompt", "completion"), jsonl, {}, single(), id="prompt and completion"),
        pytest.param(pairs("prompt", "completion"), by_glob, {}, single(), id="prompt and completion by a glob"),
        pytest.param(ALPACA, jsonl, {}, INSTRUCTED, id="alpaca"),
        pytest.param(ALPACA, table, {}, INSTRUCTED, id="alpaca in CSV"),
        pytest.param(pairs("question", "answer"), jsonl, {}, single(), id="question and answer"),
        pytest.param(pairs("question", "answer"), in_folder, {}, single(), id="question and answer in a folder"),
        pytest.param(
            pairs("stem", "truth"),
            table,
            {"columns": {"question": "stem", "answer": "truth"}, "system": "Be brief."},
            single("Be brief."),
            id="other columns, with a system prompt",
        ),
    ],
)
def test_two_steps_from_a_file_of_each_form(
    rows: list[dict[str, Any]],
    write: Write,
    source: dict[str, Any],
    expected: list[Chat],
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is compared is what TRL's own loader hands to the model."""
    config = sft.Config(
        data=[{"path": str(write(tmp_path, rows)), **source}],
        lora={"rank": 4},
        training={"steps": 2, "batch_size": 3, "save_every": 2, "learning_rate": 0.01},
    )
    seen: list[tuple[list[int], list[int]]] = []
    real = sft.run.run

    def noting(trainer: Any, **given: Any) -> None:
        for batch in trainer.get_train_dataloader():
            lines = zip(
                batch["input_ids"].tolist(), batch["labels"].tolist(), batch["attention_mask"].tolist(), strict=True
            )
            for ids, labels, mask in lines:
                assert labels[sum(mask) :] == [-100] * (len(mask) - sum(mask))
                seen.append((ids[: sum(mask)], labels[: sum(mask)]))
        real(trainer, **given)

    monkeypatch.setattr(sft.run, "run", noting)
    stage = tmp_path / "stage"
    lines = sft.prepare(config, start=tiny_model, folder=stage, benchmarks={})
    assert f"{len(rows)} rows; 0 overlap a benchmark, 0 longer than 2048 tokens, {len(rows)} trained on" in lines[0]
    sft.train(config, start=tiny_model, folder=stage / "attempt-1", seed=5)
    assert [line["step"] for line in checkpoint_folder.read_metrics(stage / "attempt-1")] == [1, 2]
    assert (stage / "attempt-1" / "step-000002" / "adapter_model.safetensors").exists()

    tokenizer = load_tokenizer(str(tiny_model))
    wanted = [_with_loss(chat, tokenizer) for chat in expected]
    assert sorted(seen) == sorted(wanted)  # six rows, three a step


def _with_loss(chat: Chat, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens and labels of a chat, by transformers' own rendering: a loss on what the assistant says and its end."""
    ids: list[int] = []
    labels: list[int] = []
    for number, turn in enumerate(chat):
        if turn["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(chat[:number], tokenize=False, add_generation_prompt=True)
            before = tokenizer.encode(prompt, add_special_tokens=False)
            reply = tokenizer.encode(turn["content"] + "<|im_end|>", add_special_tokens=False)
            labels += [-100] * (len(before) - len(ids)) + reply
            ids = before + reply
    return ids, labels


def test_a_dry_run_shows_the_first_row_that_is_trained_on(tmp_path: Path, tiny_model: Path) -> None:
    config = sft.Config(data=[{"path": str(jsonl(tmp_path, MESSAGES[1:]))}], training={"steps": 2})
    sft.prepare(config, start=tiny_model, folder=tmp_path, benchmarks={})
    head, *shown = sft.example(config, start=tiny_model, folder=tmp_path)
    assert head.startswith(f"first example, {tmp_path / 'rows.jsonl'}:1: ")
    assert head.endswith("with a loss (between >>> and <<<)")
    assert shown == [
        "<|im_start|>system",
        "Be brief.<|im_end|>",
        "<|im_start|>user",
        "What hurts, case 1?<|im_end|>",
        "<|im_start|>assistant",
        ">>>The lung.<|im_end|><<<",
        "<|im_start|>user",
        "Sure?<|im_end|>",
        "<|im_start|>assistant",
        ">>>Yes, the lung it is.<|im_end|><<<",
    ]


def test_a_template_that_drops_reasoning_is_reported(tmp_path: Path, tiny_model: Path) -> None:
    from support.chat_templates import with_real_template

    start = with_real_template(tiny_model, tmp_path / "qwen3", "qwen3")
    thoughtful = said(
        ("user", "What hurts?"),
        ("assistant", "<think>\nHm.\n</think>\n\nThe lung."),
        ("user", "Sure?"),
        ("assistant", "Yes."),
    )
    config = sft.Config(data=[{"path": str(jsonl(tmp_path, [{"messages": thoughtful}]))}], training={"steps": 1})
    lines = sft.prepare(config, start=start, folder=tmp_path / "stage", benchmarks={})
    assert "1 rows; 0 overlap a benchmark, 0 longer than 2048 tokens, 2 trained on" in lines[0]
    assert lines[-1].startswith("1 of 1 rows are chats that are trained as 2 sequences")


VERIFIABLE = [
    {"question": "How many lungs has a man?", "answer": 2},
    {"question": "Which gland makes insulin?", "answer": "The pancreas", "system": "Be brief."},
    {"question": "What is half of 500 mg?", "answer": "0.25 g"},
]


def test_grpo_on_answers_in_free_text(tmp_path: Path, tiny_model: Path) -> None:
    """Two steps; the model is asked for the form that the verifier reads, and the rewards are logged."""
    config = grpo.Config(
        prompts=[{"path": str(jsonl(tmp_path, VERIFIABLE))}],
        training={"steps": 2, "batch_size": 4, "save_every": 2},
        lora={"rank": 4},
        rollout={"completions": 2, "max_completion_tokens": 12},
        rewards={"long": 12, "short": 4},
        loss={"mask_truncated": False},
    )
    stage = tmp_path / "stage"
    lines = grpo.prepare(config, start=tiny_model, folder=stage, benchmarks={})
    assert any(
        line.startswith("3 prompts have a ground truth in free text") and "within 1 % of it" in line for line in lines
    )
    head, *shown = grpo.example(config, start=tiny_model, folder=stage)
    assert head.endswith("right answer: 2")
    assert "\n".join(shown) == (
        f"<|im_start|>user\nHow many lungs has a man?\n\n{FINISH}<|im_end|>\n<|im_start|>assistant\n"
    )
    grpo.train(config, start=tiny_model, folder=stage / "attempt-1", seed=1)
    metrics = checkpoint_folder.read_metrics(stage / "attempt-1")
    assert [line["step"] for line in metrics] == [1, 2]
    assert all("rewards/accuracy/mean" in line and "format_faults/no_thought" in line for line in metrics)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": chats()[0]}, "rows.jsonl:1: a chat has no ground truth"),
        ({"prompt": "a", "completion": "b"}, "rows.jsonl:1: a free-text row has no options"),
        ({"question": "a", "answer": "b" * 201}, "rows.jsonl:1: the answer has 201 characters"),
    ],
)
def test_grpo_refuses_rows_that_no_reward_can_judge(tmp_path: Path, tiny_model: Path, row: Any, says: str) -> None:
    config = grpo.Config(prompts=[{"path": str(jsonl(tmp_path, [row]))}], training={"steps": 1})
    with pytest.raises(MedbenchError) as caught:
        grpo.prepare(config, start=tiny_model, folder=tmp_path, benchmarks={})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
