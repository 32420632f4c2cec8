"""Tables for a terminal: their numbers, and names that contain markup or control sequences."""

from __future__ import annotations

import pytest
from rich.table import Table
from rich.text import Text

from medbench.harness.benchmarks.catalog import TaskCard
from medbench.harness.cli.tables import rendered, result_table, task_table
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.runs.records import AdapterRecord, ExpertsRecord, ModelRecord, RunRecord, Totals
from medbench.harness.scoring.summary import TaskResult
from medbench.harness.text import percent

ESC = "\x1b"
HOSTILE = ["[red]evil[/red]", "[/]", "[link=https://example.org]click[/link]", ":boom:", "[bold"]
CONTROL = [f"{ESC}[31mevil{ESC}[0m", f"{ESC}]0;title\x07evil", f"{ESC}[2Jevil", "\x9b31mevil"]


@pytest.fixture(autouse=True)
def _no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is not a terminal, even under `pytest -s`: medbench's colours would hide those of a name."""


def a_result(task: str = "medqa", **changes: object) -> TaskResult:
    content = {
        "task": task,
        "version": "1",
        "split": "test",
        "source": "local",
        "official": True,
        "protocol": "cot-v2",
        "n": 200,
        "n_error": 3,
        "n_unparsed": 5,
        "n_truncated": 20,
        "outcomes": {"answered": 192, "error": 3, "truncated": 5},
        "accuracy": 0.871,
        "interval": (0.82, 0.91),
        "interval_wilson": (0.82, 0.91),
        "chance": 0.25,
        "tokens_per_answer": 311.6,
        "categories": {},
    }
    return TaskResult.model_validate(content | changes)


def a_record(model: str, notes: list[str] | None = None) -> RunRecord:
    return RunRecord(
        run_id="run",
        status="complete",
        created="2025-01-01T00:00:00+00:00",
        command=[],
        model=ModelRecord(name=model, kind="full", fingerprint="f"),
        tasks={},
        protocol={"name": "cot-v2"},
        seed=0,
        limit=None,
        engine={},
        packages={},
        git_commit=None,
        notes=notes or [],
        totals=Totals(seconds=10, prompt_tokens=3000, completion_tokens=1000),
    )


def shown(model: str = "mine", results: list[TaskResult] | None = None, notes: list[str] | None = None) -> str:
    return result_table(a_record(model, notes), {one.task: one for one in results or [a_result()]})


def test_a_task_has_its_numbers_in_one_row() -> None:
    (row,) = [line for line in shown().splitlines() if line.strip().startswith("medqa")]
    cells = [cell.strip() for cell in row.split("│")]
    assert cells == ["medqa", "87.1", "82.0 - 91.0", "25.0", "200", "2.5", "10.0", "3", "312"]


def test_model_protocol_speed_and_notes_are_shown() -> None:
    text = shown("mine", notes=["no chat template"])
    assert "mine · cot-v2" in text
    assert "10 s, 4000 tokens, 400 tokens/s" in text
    assert "note: no chat template" in text
    assert text.endswith("\n")


def test_a_task_without_a_score_shows_dashes() -> None:
    none: dict[str, object] = {"n_error": 0, "n_unparsed": 0, "n_truncated": 0, "outcomes": {}}
    text = shown(results=[a_result(accuracy=None, interval=None, tokens_per_answer=None, n=0, **none)])
    (row,) = [line for line in text.splitlines() if line.strip().startswith("medqa")]
    cells = [cell.strip() for cell in row.split("│")]
    assert (cells[1], cells[2], cells[-1]) == ("-", "-", "-")
    assert "nan" not in text.lower()


def test_more_than_a_twentieth_of_replies_cut_off_are_warned_of() -> None:
    text = shown(results=[a_result(n_truncated=11)])
    assert "warning: medqa: 5.5 % of the replies are cut off by the token limit: raise --max-new-tokens" in text
    assert "warning" not in shown(results=[a_result(n_truncated=10)])


def test_replies_of_unusual_form_are_counted() -> None:
    text = shown(results=[a_result(notes={"went_on": 7, "unmarked_thought": 2})])
    assert "medqa: 7 of 200 replies answer and go on with a question of their own; the first answer counts" in text
    assert "medqa: 2 of 200 replies look like thoughts whose marks are missing" in text


def test_the_sample_and_unofficial_rows_are_marked() -> None:
    assert "medqa (sample)" in shown(results=[a_result(source="sample", official=False)])
    assert "medqa (unofficial rows)" in shown(results=[a_result(official=False)])
    assert "(" not in shown().split("questions")[1].split("\n")[2]


@pytest.mark.parametrize("name", HOSTILE)
def test_markup_in_names_is_shown_as_text(name: str) -> None:
    assert name in shown(model=name)
    assert name in shown(results=[a_result(task=name)])
    assert name in shown(notes=[name])


@pytest.mark.parametrize("name", CONTROL)
def test_control_sequences_in_names_do_not_reach_the_output(name: str) -> None:
    for text in (shown(model=name), shown(results=[a_result(task=name)]), shown(notes=[name])):
        assert not {ESC, "\x07", "\x9b"} & set(text)
        assert "evil" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_markup_in_the_list_of_tasks_is_shown_as_text(name: str) -> None:
    card = TaskCard(
        name=name,
        version="1",
        label=name,
        core=False,
        about=name,
        n=10,
        chance=0.25,
        categories=(),
        files={},
        sha256={},
        hub={},
        path="x",
    )
    (row,) = [line for line in task_table([card], [load_protocol("cot-v2")]).splitlines() if "25.0" in line]
    assert row.count(name) == 2


def test_a_long_name_is_not_truncated() -> None:
    name = "org/" + "a-very-long-model-name-" * 8 + "end"
    assert name in shown(model=name).replace("\n", "")


def test_parts_end_with_one_newline_and_no_trailing_blanks() -> None:
    table = Table(show_edge=False)
    table.add_column("a column")
    table.add_row("x")
    text = rendered(table, Text("one   "), Text("two"))
    assert text.endswith("one\ntwo\n")
    assert all(line == line.rstrip() for line in text.splitlines())


def test_percent() -> None:
    assert [percent(share) for share in (None, 0, 0.871, 1)] == ["-", "0.0", "87.1", "100.0"]


def test_the_accuracy_without_flagged_questions_is_shown() -> None:
    rest = {
        "n": 1151,
        "left_out": 122,
        "accuracy": 0.9,
        "interval": (0.88, 0.92),
        "about": "two physicians found faults",
    }
    text = shown(results=[a_result(unflagged=rest)])
    assert (
        "medqa: 90.0 % (88.0 - 92.0) of 1151 without the 122 that reviewers flagged: two physicians found faults"
        in text
    )
    assert "flagged" not in shown()


def test_the_adapter_that_answered_is_named_for_each_task() -> None:
    adapter = AdapterRecord(name="cardio", path="cardio", fingerprint="f", tokenizer_sha256="t", rank=8)
    described = ExpertsRecord(base="b", served="lora", adapters={"medqa/step=1": adapter})
    model = ModelRecord(name="base + cardio", kind="experts", fingerprint="f", base="base", experts=described)
    record = a_record("base", []).model_copy(update={"model": model})
    text = result_table(record, {"medqa": a_result()})
    assert "medqa: answered by step=1: cardio; others: base, without an adapter" in text
