"""Tasks without options: scored, stored, read again, gated and shown; what needs options is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.extraction.quantity import without_limits
from medbench.harness.gates.judge import Gatekeeper
from medbench.harness.gates.rules import Gate, GateFile
from medbench.harness.protocols.protocol import DEFAULT, OPEN, load_protocol
from medbench.harness.runs.run_folder import read_result, read_run, read_samples

NAME = "medcalc_verified"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)


@pytest.fixture
def replies(tmp_path: Path) -> Path:
    """Right to all questions but the last, whose reply has no answer; the first ones 2 % too large."""
    questions = TaskLoader("sample").load(NAME).questions
    lines = []
    for number, question in enumerate(questions):
        value = without_limits(question.gold)
        if question.gold != value and number < 6:
            value = f"{float(value) * 1.02:.3f}"
        said = f"So it is.\nThe answer is ({value})." if number < len(questions) - 1 else "I do not know."
        lines.append(json.dumps({"id": question.id, "output": said}) + "\n")
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(lines))
    return path


def test_quantities_are_scored_stored_read_gated_and_shown(replies: Path) -> None:
    given = ["--data", "sample", "--name", "mine"]
    assert run(["score", str(replies), "--task", NAME, *given]) == 0
    assert read_run("runs/mine").protocol["name"] == OPEN
    result = read_result("runs/mine", NAME)
    assert (result.n, result.n_unparsed, result.chance) == (12, 1, 0)
    assert result.accuracy == pytest.approx(11 / 12)
    samples = {sample.id: sample for sample in read_samples("runs/mine", NAME)}
    assert (samples["10"].gold, samples["10"].extracted) == ("452.87563 (430.23185 to 475.51941)", "461.933")
    (Path("gates.yaml")).write_text(f"gates: [{{task: {NAME}, at_least: 0.2}}]\ndecide: census\n")
    assert run(["gate", "runs/mine", "--gates", "gates.yaml"]) == 0
    assert run(["report", "runs", "-o", "site"]) == 0
    assert "MedCalc Verified" in next(Path("site").rglob("run*.html"), Path("site/index.html")).read_text()
    assert run(["eval", "mine", "--replies", str(replies), "--tasks", NAME, "--data", "sample", "--name", "asked"]) == 0
    assert read_result("runs/asked", NAME).accuracy == result.accuracy


def test_a_full_score_for_a_value_beyond_the_limits_is_damage(replies: Path) -> None:
    assert run(["score", str(replies), "--task", NAME, "--data", "sample", "--name", "mine"]) == 0
    path = Path("runs/mine/samples", f"{NAME}.jsonl")
    path.write_text(path.read_text().replace('"extracted": "461.933"', '"extracted": "476"'))
    with pytest.raises(
        MedbenchError, match=r"scores 1 for '476' where '452\.87563 \(430\.23185 to 475\.51941\)' is right"
    ):
        list(read_samples("runs/mine", NAME))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tasks", f"{NAME},medqa"], f"{NAME} asks for a quantity, medqa for an option: evaluate them in two runs"),
        (["--tasks", NAME, "--protocol", "cot-v2"], f"{NAME}: no options, which protocol cot-v2 asks for"),
        (["--tasks", NAME, "--protocol", "direct-v1"], f"{NAME}: no options, which protocol direct-v1 asks for"),
        (["--tasks", "medqa", "--protocol", OPEN], f"protocol {OPEN} is for tasks without options: choose another"),
        (["--tasks", NAME, "--shuffle-options", "2"], f"--shuffle-options: {NAME}: no lettered options: leave it out"),
    ],
)
def test_what_needs_options_is_refused(
    replies: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert run(["eval", "mine", "--replies", str(replies), "--data", "sample", *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert says in error
    assert not Path("runs").exists()


def test_all_protocols_at_once_are_refused(replies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", str(replies), "--task", NAME, "--data", "sample", "--protocol", "all"]) == 2
    assert f"--protocol all: {NAME} has no options" in capsys.readouterr().err


def test_a_gate_asks_under_the_task_s_own_default_and_refuses_others() -> None:
    options = EvalOptions("m", data="sample")
    with Gatekeeper(GateFile(gates=[Gate(NAME, at_least=0.5)]), None, options, lambda _: None) as keeper:
        assert keeper._protocol.name == OPEN
    with pytest.raises(MedbenchError, match=f"{NAME}: no options, which protocol {DEFAULT} asks for"):
        Gatekeeper(GateFile(gates=[Gate(NAME, at_least=0.5)], protocol=DEFAULT), None, options, lambda _: None)
    both = [Gate(NAME, at_least=0.5), Gate("medqa", at_least=0.5)]
    with pytest.raises(MedbenchError, match="evaluate them in two runs"):
        Gatekeeper(GateFile(gates=both), None, options, lambda _: None)


def test_the_prompt_shows_the_note_and_asks_for_a_quantity(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", NAME, "--data", "sample"]) == 0
    shown = capsys.readouterr().out
    assert "An 81-year-old male" in shown
    assert "\nQuestion: Using the 2021 CKD-EPI" in shown
    assert 'finish your reply with "The answer is (X)", where X is only the number' in shown
    assert run(["tasks", NAME, "--data", "sample", "--protocol", "cot-v2"]) == 2
    assert "protocol cot-v2 asks for an option, and question '2' has none: use open-v1" in capsys.readouterr().err


def test_few_shot_examples_show_the_value_without_its_limits() -> None:
    task = TaskLoader("sample").load(NAME)
    assert task.examples is not None
    asked = task.questions[0]
    messages = load_protocol(OPEN, shots=2).messages(asked, task.examples.draw(asked.id, 2))
    shown = [message.content for message in messages if message.role == "assistant"]
    assert len(shown) == 2
    assert all(line.startswith("The answer is (") and " to " not in line for line in shown)


def test_a_template_for_options_is_no_open_protocol(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nabout: mine\nmethod: generate\nprompt: '{{ labels[0] }}'\nextraction: quantity-v1\n")
    with pytest.raises(MedbenchError, match="does not render for a question without options: UndefinedError"):
        load_protocol(str(path))


def test_the_default_tasks_are_as_before() -> None:
    assert EvalOptions("m").tasks == ("medqa", "mmlu_pro_medical", "pubmedqa")
    assert {card.name for card in TaskLoader("sample").cards.values() if card.core} == set(EvalOptions("m").tasks)
