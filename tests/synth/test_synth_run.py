"""`medbench synth` on stored replies: what is asked, what is kept, and where it is said why.

pytest tests/synth
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.judge_programs import program
from support.synth import (
    good_reply,
    lines_of,
    questions_in,
    recipe,
    write_replies,
    write_rows,
    wrong_letter,
)

from medbench.harness.cli.main import run
from medbench.harness.contracts import Completion, MedbenchError, Message, Question, Request
from medbench.harness.synth.filters import FILTERS
from medbench.harness.synth.synth import Synthesized, SynthOptions, synthesize
from medbench.trainers.data.prompts import load_questions
from medbench.trainers.data.rows import Source, load_rows


def made(folder: Path, path: Path, **more: Any) -> Synthesized:
    return synthesize(SynthOptions(path, folder / "out", **more), lambda _: None)


def accepted(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / "out/accepted").iterdir()) for row in lines_of(path)]


def rejected(folder: Path) -> list[dict[str, Any]]:
    return lines_of(folder / "out/rejected.jsonl")


def right(question: Question, sample: int) -> str:
    return good_reply(question, question.gold, sample)


def wrong(question: Question, sample: int) -> str:
    return good_reply(question, wrong_letter(question), sample)


def test_right_replies_become_rows_that_sft_and_grpo_read(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 6)
    write_replies(tmp_path / "replies.jsonl", questions, right, 1)
    found = made(tmp_path, recipe(tmp_path))
    assert found.card.files == {"accepted/multiple_choice.jsonl": 6, "rejected.jsonl": 0}
    path = str(tmp_path / "out/accepted/multiple_choice.jsonl")
    rows = load_rows([Source(path=path)])
    assert [row.question for row in rows] == questions
    assert [row.question.gold for row in load_questions([Source(path=path)])] == [one.gold for one in questions]


def test_the_reasoning_ends_before_the_sentence_with_the_answer(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 2)
    write_replies(tmp_path / "replies.jsonl", questions, right, 1)
    made(tmp_path, recipe(tmp_path))
    for row in accepted(tmp_path):
        assert row["reasoning"].endswith("fits the findings best.")
        assert "The answer is" not in row["reasoning"]


def test_a_thought_between_tags_is_the_reasoning(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 2)

    def thinking(question: Question, sample: int) -> str:
        thought = right(question, sample).partition("\n\n")[0]
        return f"<think>\n{thought}\n</think>\n\nThe answer is ({question.gold})."

    write_replies(tmp_path / "replies.jsonl", questions, thinking, 1)
    made(tmp_path, recipe(tmp_path))
    found = accepted(tmp_path)
    assert len(found) == 2
    assert not any("think" in row["reasoning"] for row in found)


def test_every_reply_is_in_one_file_with_where_it_came_from(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 8)
    write_replies(
        tmp_path / "replies.jsonl", questions, lambda q, n: right(q, n) if (len(q.id) + n) % 2 else wrong(q, n), 3
    )
    found = made(tmp_path, recipe(tmp_path, sampling={"attempts": 3}))
    rows, dropped = accepted(tmp_path), rejected(tmp_path)
    origins = [row["provenance"] for row in (*rows, *dropped)]
    assert len({origin["reply"] for origin in origins}) == len(origins) == found.card.replies == 24
    assert {origin["generator"] for origin in origins} == {found.record.generator.model.fingerprint}
    for origin in origins:
        assert set(origin) >= {"source", "id", "kind", "prompt_sha256", "seed", "attempt", "strategy", "told_answer"}
    assert {origin["id"] for origin in origins} == {question.id for question in questions}


def test_wrong_answers_are_tried_again_by_other_strategies_until_one_is_right(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 20)
    write_replies(tmp_path / "replies.jsonl", questions, lambda q, n: right(q, n) if n == 2 else wrong(q, n), 4)
    found = made(tmp_path, recipe(tmp_path, verify={"rounds": 3}))
    assert found.card.replies == 60
    assert found.card.accepted == 20
    strategies = [json.loads(line) for line in (tmp_path / "out/candidates.jsonl").read_text().splitlines()]
    by_round = [{one["strategy"] for one in strategies if one["round"] == number} for number in range(3)]
    assert by_round[0] == {"first"}
    assert "backtracking" not in by_round[1]
    assert by_round[1] <= {"new_path", "verification", "correction"}
    assert "backtracking" in by_round[2]
    assert all(row["provenance"]["round"] == 2 for row in accepted(tmp_path))


def test_no_more_rounds_are_spent_than_allowed_and_nobody_is_told_the_answer(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 5)
    write_replies(tmp_path / "replies.jsonl", questions, wrong, 9)
    found = made(tmp_path, recipe(tmp_path, verify={"rounds": 2}))
    assert found.card.replies == 15
    assert found.card.told == 0
    assert found.card.accepted == 0


def test_replies_of_a_model_that_was_told_the_answer_are_marked_and_counted(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 5)
    write_replies(tmp_path / "replies.jsonl", questions, lambda q, n: right(q, n) if n == 2 else wrong(q, n), 3)
    found = made(tmp_path, recipe(tmp_path, verify={"rounds": 1, "told_answer": True}))
    assert (found.card.told, found.card.told_accepted, found.card.accepted) == (5, 5, 5)
    assert all(row["provenance"]["told_answer"] is True for row in accepted(tmp_path))
    assert "5 replies, 5 of them accepted" in (tmp_path / "out/README.md").read_text()


class Recorder:
    """Remembers what it was asked, and always answers wrongly. An engine of the simplest kind."""

    name = "recorder"
    chat_template = "none"

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return messages[-1].content

    def settings(self) -> dict[str, Any]:
        return {}

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in requests:
            assert request is not None  # it has no `places`
            self.asked.append(request)
            yield Completion(request.id, f"I think so, number {len(self.asked)}.\n\nThe answer is (Z).", "stop")

    def close(self) -> None: ...


def test_a_strategy_sees_the_wrong_reply_and_not_the_right_answer(tmp_path: Path) -> None:
    (question,) = write_rows(tmp_path / "rows.jsonl", 1)
    engine = Recorder()
    path = recipe(tmp_path, verify={"rounds": 2, "told_answer": True}, generator={"replies": None})
    synthesize(SynthOptions(path, tmp_path / "out", engine=engine), lambda _: None)
    first, second, third, told = (request.prompt for request in engine.asked)
    assert question.question in first
    assert "number" not in first
    assert "I think so, number 1." in second
    assert "I think so, number 2." in third
    gold = question.options[question.labels.index(question.gold)]
    assert f"known to be: ({question.gold}) {gold}" in told
    assert not any("known to be" in text for text in (first, second, third))
    assert len({request.seed for request in engine.asked}) == 4


def test_backtracking_sees_all_replies(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 1)
    engine = Recorder()
    path = recipe(
        tmp_path,
        verify={"rounds": 2, "strategies": ["backtracking", "correction"]},
        generator={"replies": None},
        sampling={"attempts": 12},
    )
    synthesize(SynthOptions(path, tmp_path / "out", engine=engine), lambda _: None)
    both = [one.prompt for one in engine.asked if one.prompt.count("I think so, number") == 2]
    assert both
    assert all("one after the other" in text for text in both)


def test_pass_rates_are_those_of_first_replies(tmp_path: Path) -> None:
    """Question k of 5 has k right replies of 4."""
    questions = write_rows(tmp_path / "rows.jsonl", 5)
    place = {question.id: at for at, question in enumerate(questions)}
    write_replies(
        tmp_path / "replies.jsonl",
        questions,
        lambda q, n: right(q, n) if n % 2 or n // 2 < place[q.id] else wrong(q, n),
        8,
    )
    more = {"sampling": {"attempts": 4}, "verify": {"rounds": 1}}
    found = made(tmp_path, recipe(tmp_path, filters={"pass_rate": [0.25, 0.5]}, **more))
    rates = {
        row["provenance"]["id"]: row["provenance"]["pass_rate"] for row in (*accepted(tmp_path), *rejected(tmp_path))
    }
    assert rates == {question.id: at / 4 for at, question in enumerate(questions)}
    assert {row["provenance"]["pass_rate"] for row in accepted(tmp_path)} == {0.25, 0.5}
    (band,) = [one for one in found.card.filters if one.filter == "pass_rate"]
    assert band.reasons == {"too easy": 8, "too hard": 4}


def test_the_filters_are_counted_in_their_order(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 9)
    kind = {question.id: at for at, question in enumerate(questions)}

    def reply(question: Question, sample: int) -> Any:
        at, text = kind[question.id], right(question, sample)
        if at == 0:
            return ""
        if at == 1:
            return {"output": text, "finish_reason": "length"}
        if at == 2:
            return f"The answer is ({question.gold})."
        if at == 3:
            return text.replace("\n\n", " We must be sure of what the man has." * 8 + "\n\n")
        if at == 4:
            return wrong(question, sample)
        if at == 5:
            return f"<think>\n{text}\n\nThe answer is ({question.gold})."
        if at in (6, 7):  # the same reasoning twice
            thought = right(questions[6], 0).partition(" Of the options")[0]
            return f"{thought}\n\nThe answer is ({question.gold})."
        return text

    write_replies(tmp_path / "replies.jsonl", questions, reply, 1)
    found = made(tmp_path, recipe(tmp_path))
    assert [one.filter for one in found.card.filters] == list(FILTERS)
    counts = {one.filter: (one.seen, one.dropped) for one in found.card.filters}
    assert counts == {
        "failed": (9, 1),
        "cut_off": (8, 1),
        "form": (7, 2),
        "repetition": (5, 1),
        "answer": (4, 1),
        "judge": (3, 0),
        "pass_rate": (3, 0),
        "near_duplicate": (3, 1),
        "contamination": (2, 0),
    }
    assert found.card.accepted == 2
    reasons = {(row["filter"], row["reason"]) for row in rejected(tmp_path)}
    assert ("form", "unclosed") in reasons
    assert ("form", "no_reasoning") in reasons
    assert ("near_duplicate", "of an earlier reasoning") in reasons


def test_rows_that_overlap_a_benchmark_are_dropped(tmp_path: Path) -> None:
    from medbench.harness.benchmarks.catalog import TaskLoader

    asked = TaskLoader("sample", lambda _: None).load("medqa").questions[0]
    row = {
        "question": asked.question,
        "options": dict(zip(asked.labels, asked.options, strict=True)),
        "answer_idx": asked.gold,
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (question,) = questions_in(tmp_path / "rows.jsonl")
    write_replies(tmp_path / "replies.jsonl", [question], right, 1)
    found = made(
        tmp_path, recipe(tmp_path, filters={"contamination": {}, "form": False}, benchmarks=["medqa"]), data="sample"
    )
    assert found.card.accepted == 0
    (dropped,) = rejected(tmp_path)
    assert (dropped["filter"], dropped["reason"]) == ("contamination", "overlaps medqa")
    assert asked.id in dropped["detail"]


def test_a_judge_drops_reasoning_that_the_reference_contradicts(tmp_path: Path) -> None:
    """The judge of support.judge_programs calls a step with "not" contradicted, and one with common words supported."""
    rows = []
    for at in range(4):
        rows.append(
            {
                "question": f"Does drug {at} help?",
                "context": {
                    "contexts": [f"The drug {at} lowered the pressure of every patient who took it for weeks."]
                },
                "long_answer": "It does.",
                "final_decision": "yes",
            }
        )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = questions_in(tmp_path / "rows.jsonl")

    def reply(question: Question, sample: int) -> str:
        number = question.question.split()[2]
        said = (
            f"The drug {number} lowered the pressure of every patient. It took weeks for the pressure of every patient."
        )
        if number in "13":
            said += " The patient did not gain from the drug. The drug did not lower the pressure. It was not taken."
        return f"{said} Hence option yes fits the trial {number}.\n\nThe answer is (yes)."

    write_replies(tmp_path / "replies.jsonl", questions, reply, 1)
    judge = {"judge": "command", "command": program(tmp_path), "factuality": 0.6}
    filters = {"judge": judge, "least_steps": 1, "least_words": 1, "near_duplicates": None, "form": False}
    found = made(tmp_path, recipe(tmp_path, filters=filters))
    assert found.card.files["accepted/pubmedqa.jsonl"] == 2
    assert {row["reason"] for row in rejected(tmp_path)} == {"steps are contradicted"}
    assert accepted(tmp_path)[0]["provenance"]["judge"]["supported"] >= 2
    assert found.card.judge is not None
    assert found.card.judge["failed"] == 0
    before = next((tmp_path / "out").glob("verdicts-command-*.jsonl"))
    size = before.stat().st_size
    again = made(tmp_path, recipe(tmp_path, filters={**filters, "pass_rate": [0, 1]}), resume=True)
    assert again.card.accepted == 2
    assert before.stat().st_size == size  # nothing was judged twice


def test_a_question_without_options_is_compared_with_its_short_answer(tmp_path: Path) -> None:
    rows = [{"question": f"How many days does course {at} take?", "answer": f"{at + 3} days"} for at in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = questions_in(tmp_path / "rows.jsonl")

    def reply(question: Question, sample: int) -> str:
        at = int(question.question.split()[6 - 1])
        days = at + 3 if at % 2 else 99
        return (
            f"The course begins with a loading phase of one day. After that the remaining doses follow daily until "
            f"the cultures turn negative. Taken together this gives the course {at} its usual length.\n\n"
            f"The answer is {days} days"
        )

    write_replies(tmp_path / "replies.jsonl", questions, reply, 1)
    found = made(tmp_path, recipe(tmp_path, filters={"near_duplicates": None}))
    assert found.card.files["accepted/question_answer.jsonl"] == 2
    read = load_questions([Source(path=str(tmp_path / "out/accepted/question_answer.jsonl"))])
    assert [row.question.gold for row in read] == ["4 days", "6 days"]


def test_chats_are_asked_again_where_answers_need_not_be_right(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"Explain symptom {at} to a patient."},
                {"role": "assistant", "content": "It will pass."},
            ]
        }
        for at in range(2)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from medbench.harness.synth.questions import questions_of
    from medbench.harness.synth.recipe import read_recipe

    path = recipe(tmp_path, filters={"answer": False, "form": False})
    ids = [asked.question for asked in questions_of(read_recipe(path))]
    write_replies(
        tmp_path / "replies.jsonl",
        ids,
        lambda q, n: (
            f"The symptom comes from the nerve, see {q.id}. Patients want to hear what helps.\n\nAnswer: Rest {q.id}."
        ),
        1,
    )
    found = made(tmp_path, path)
    assert found.card.files["accepted/messages.jsonl"] == 2
    turns = accepted(tmp_path)[0]["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant"]
    assert turns[2]["content"] == f"Rest {ids[0].id}."
    assert len(load_rows([Source(path=str(tmp_path / "out/accepted/messages.jsonl"))])) == 2


def test_other_filters_are_applied_without_asking_again(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 6)
    write_replies(tmp_path / "replies.jsonl", questions, right, 1)
    assert made(tmp_path, recipe(tmp_path)).card.accepted == 6
    journal = (tmp_path / "out/candidates.jsonl").read_bytes()
    again = made(tmp_path, recipe(tmp_path, filters={"least_steps": 40}), resume=True)
    assert again.card.accepted == 0
    assert not list((tmp_path / "out/accepted").iterdir())
    assert (tmp_path / "out/candidates.jsonl").read_bytes() == journal


def test_a_larger_limit_goes_on_from_the_smaller_one(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 10)
    write_replies(tmp_path / "replies.jsonl", questions, right, 1)
    assert made(tmp_path, recipe(tmp_path), limit=3).card.questions == 3
    assert made(tmp_path, recipe(tmp_path), limit=8, resume=True).card.questions == 8
    assert made(tmp_path, recipe(tmp_path), limit=2, resume=True).card.questions == 2
    assert len((tmp_path / "out/candidates.jsonl").read_text().splitlines()) == 8


def test_sources_are_asked_in_turn(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 4, seed=1)
    write_rows(tmp_path / "more.jsonl", 2, seed=2)
    questions = questions_in(tmp_path / "rows.jsonl") + questions_in(tmp_path / "more.jsonl")
    write_replies(tmp_path / "replies.jsonl", questions, right, 1)
    sources = [
        {"path": str(tmp_path / "rows.jsonl"), "kind": "prognosis"},
        {"path": str(tmp_path / "more.jsonl"), "kind": "general-v1"},
    ]
    found = made(tmp_path, recipe(tmp_path, sources=sources))
    assert [row["provenance"]["kind"] for row in accepted(tmp_path)] == [
        "prognosis-v1",
        "general-v1",
        "prognosis-v1",
        "general-v1",
        "prognosis-v1",
        "prognosis-v1",
    ]
    assert [(one.kind, one.questions) for one in found.card.kinds] == [("general-v1", 2), ("prognosis-v1", 4)]


def test_failed_requests_are_counted_and_tried_by_no_other_strategy(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 4)
    write_replies(tmp_path / "replies.jsonl", questions[:3], right, 1)  # the last question has no reply
    found = made(tmp_path, recipe(tmp_path, verify={"rounds": 2}))
    assert (found.card.replies, found.card.accepted) == (4, 3)
    (dropped,) = rejected(tmp_path)
    assert dropped["reason"] == "the request failed"


def test_an_engine_that_stops_early_is_told_in_one_line(tmp_path: Path) -> None:
    class Stops(Recorder):
        def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
            next(iter(requests))
            yield from ()

    write_rows(tmp_path / "rows.jsonl", 2)
    options = SynthOptions(recipe(tmp_path, generator={"replies": None}), tmp_path / "out", engine=Stops())
    with pytest.raises(MedbenchError, match="ended without answering 1 request"):
        synthesize(options, lambda _: None)


def test_the_command_prints_counts_and_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 3)
    write_replies(tmp_path / "replies.jsonl", questions, right, 1)
    path, out = str(recipe(tmp_path)), str(tmp_path / "out")
    assert run(["synth", path, "--dry-run", "--limit", "2"]) == 0
    plan = capfd.readouterr().out
    assert "2 questions (decision-v1 1, diagnosis-v1 1)" in plan
    assert questions[0].question in plan
    assert not (tmp_path / "out").exists()
    assert run(["synth", path, "--out", out, "--quiet"]) == 0
    assert "3 of 3 replies passed: 100.0 %" in capfd.readouterr().out
    assert run(["synth", path, "--out", out, "--resume", "--json", "--quiet"]) == 0
    assert json.loads(capfd.readouterr().out)["card"]["accepted"] == 3
